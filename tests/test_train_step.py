"""The training step on one device and on several, whole, in parts, averaged and half frozen."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from processes import run_python

from if_jax.losses import LossWeights, joint_loss
from if_jax.losses.inverseform import DISTANCES
from if_jax.losses.joint import SEGMENTATION_LOSSES
from if_jax.models import MODELS, create_model
from if_jax.models.layers import BatchNorm
from if_jax.ops.normalize import normalize
from if_jax.optimizers import make_optimizer, make_schedule
from if_jax.train_step import TrainState, train_step


class TinyModel(nn.Module):
  """Quick to compile, with all outputs, batch norm over the devices, and dropout if asked for."""

  axis_name: str | None = None
  dropout: float = 0.0

  @nn.compact
  def __call__(self, image, train=False):
    x = nn.Conv(8, (3, 3), name='conv')(image)
    x = nn.relu(BatchNorm(axis_name=self.axis_name, name='bn')(x, train))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    names = {'logits': 4, 'aux_logits': 4, 'edge_logits': 1, 'aux_edge_logits': 1}
    return {name: nn.Dense(features, name=name)(x) for name, features in names.items()}


def measure_tiles(scale, prediction, target):
  """Stands for an inverse network: four multiples of the difference in brightness."""
  return scale * jnp.mean(prediction - target, (1, 2))


def make_loss(axis_name=None, weights=None, **options):
  """The joint loss without its dearest term."""
  return Partial(
    functools.partial(joint_loss, weights=weights or LossWeights(), axis_name=axis_name, **options)
  )


def make_whole_loss(*arguments, **options):
  """The joint loss with all of its terms."""
  loss_fn = make_loss(*arguments, tile_rows=1, tile_columns=1, **options)
  return Partial(loss_fn, inverse_net=Partial(measure_tiles, np.float32([1, 2, 3, 4])))


def make_step(model, optimizer, **options):
  return functools.partial(
    train_step, model=model, optimizer=optimizer, seed=0, axis_name=model.axis_name, **options
  )


def make_state(model, optimizer, **options):
  variables = model.clone(axis_name=None).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  return TrainState.create(variables, optimizer, **options)


def make_batch(batch_size=4):
  """Columns of classes in colours; images have unequal shares of ignored pixels."""
  rng = np.random.RandomState(0)
  label = np.broadcast_to(np.arange(24) // 6, (batch_size, 16, 24)).astype(np.int32)
  image = (60 * label[..., None] + rng.randint(0, 40, (*label.shape, 3))).astype(np.uint8)
  label = label.copy()
  for i in range(batch_size):
    label[i, : 4 * i] = 255
  return {'image': image, 'label': label}


def jit(function):
  """Compiles with few optimisations: a third of the time."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def half(batch, i):
  return {name: x[2 * i : 2 * i + 2] for name, x in batch.items()}


def assert_trees_close(actual, expected, **tolerances):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), actual, expected)


def test_a_step_lowers_the_loss():
  optimizer = make_optimizer(make_schedule(0.2, 100))
  model, loss_fn = TinyModel(), make_whole_loss()
  step = jit(make_step(model, optimizer))
  state, losses = make_state(model, optimizer), []
  for _ in range(15):
    state, metrics = step(state, make_batch(), loss_fn)
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.5 * losses[0]
  assert int(state.step) == 15
  weights = {'segmentation': 1.0, 'boundary': 0.3, 'attention': 0.1, 'inverseform': 0.3}
  total = sum(w * (metrics[k] + 0.4 * metrics[f'aux_{k}']) for k, w in weights.items())
  np.testing.assert_allclose(metrics['loss'], total, rtol=1e-5)


def test_the_inverseform_term_counts_from_its_step():
  optimizer = make_optimizer(make_schedule(0.1, 100))
  model, batch = TinyModel(), make_batch()
  states = {}
  for name, options in (
    ('never', {'weights': LossWeights(inverseform=0)}),
    ('late', {'inverseform_from': 2}),
  ):
    step, loss_fn = jit(make_step(model, optimizer)), make_whole_loss(**options)
    states[name] = [make_state(model, optimizer)]
    for _ in range(3):
      states[name].append(step(states[name][-1], batch, loss_fn)[0])
  same = [
    all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
    for pair in zip(*([s.params for s in of_one] for of_one in states.values()), strict=True)
  ]
  assert same == [True, True, True, False]


def test_dropout_differs_by_step_and_repeats_by_seed():
  optimizer = make_optimizer(make_schedule(0.0, 100))
  model, loss_fn = TinyModel(dropout=0.5), make_loss()
  step = jit(make_step(model, optimizer))
  state, batch = make_state(model, optimizer), make_batch()
  losses = [
    float(step(state.replace(step=jnp.int32(k)), batch, loss_fn)[1]['loss']) for k in (0, 1, 0)
  ]
  assert losses[0] != losses[1]
  assert losses[0] == losses[2]


DEVICES_SCRIPT = """
import sys
sys.path.insert(0, 'tests')
import jax, numpy as np
from flax.traverse_util import flatten_dict
from if_jax import parallel
from test_train_step import *

optimizer = make_optimizer(make_schedule(0.1, 10))
model = TinyModel(axis_name=parallel.axis_name())
step = make_step(model, optimizer, ema_decay=0.5)
step = parallel.pmap(step, num_constants=1, donate_state=True)
state = parallel.replicate(make_state(model, optimizer, averaged=True))
loss_fn = parallel.replicate(make_whole_loss(parallel.axis_name()))
compilations = []
jax.monitoring.register_event_duration_secs_listener(
  lambda name, *_, **__: compilations.append(name) if 'backend_compile' in name else None
)
for i in range(5):
  state, metrics = step(state, parallel.shard(make_batch()), loss_fn)
  assert len(compilations) == 1, f'compiled again in step {i}'
for leaf in jax.tree.leaves(state):
  copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
  assert len(copies) == jax.local_device_count()
  assert all(np.array_equal(copies[0], copy) for copy in copies)
state = parallel.fetch({'now': state.variables, 'average': state.average})
np.savez(sys.argv[1], loss=metrics['loss'], **flatten_dict(state, sep='/'))
"""


def test_devices_agree_with_one_another_and_with_one(tmp_path):
  """Batch norm, class weights and every mean are those of the whole batch."""
  results = []
  for devices in (1, 2, 4):
    path = tmp_path / f'{devices}.npz'
    run = run_python('-c', DEVICES_SCRIPT, str(path), devices=devices)
    assert run.returncode == 0, run.stderr
    results.append(np.load(path))
  for other in results[1:]:
    for name in results[0].files:
      np.testing.assert_allclose(other[name], results[0][name], atol=2e-6, err_msg=name)


def test_a_step_in_parts_is_the_mean_of_steps_on_them():
  """Without momentum, the parameters after it are the mean of those after each part alone."""
  optimizer = make_optimizer(make_schedule(0.1, 100), momentum=0.0)
  model, loss_fn, batch = TinyModel(), make_loss(), make_batch()
  state = make_state(model, optimizer)
  whole, metrics = jit(make_step(model, optimizer, accumulation=2))(state, batch, loss_fn)
  step = jit(make_step(model, optimizer))
  first, first_metrics = step(state, half(batch, 0), loss_fn)
  # The second part starts from the running statistics that the first left.
  second, second_metrics = step(
    state.replace(batch_stats=first.batch_stats), half(batch, 1), loss_fn
  )
  expected = jax.tree.map(lambda a, b: (a + b) / 2, first.params, second.params)
  assert_trees_close(whole.params, expected, atol=1e-6)
  assert_trees_close(whole.batch_stats, second.batch_stats, rtol=1e-6)
  assert int(whole.step) == 1
  for name in set(metrics) - {'gradient_norm'}:
    expected = (first_metrics[name] + second_metrics[name]) / 2
    np.testing.assert_allclose(metrics[name], expected, rtol=1e-5, err_msg=name)


def test_parts_make_no_difference_where_images_count_one_by_one():
  """Batch norm by its running statistics, and a loss that is a mean over images."""

  def loss_fn(outputs, labels, step):
    del step
    error = jnp.mean(jnp.square(outputs['logits'] - labels[..., None] % 255))
    return error, {'error': error}

  optimizer = make_optimizer(make_schedule(0.01, 100))
  model = TinyModel()
  state = make_state(model, optimizer, frozen=('bn',))
  results = []
  for accumulation in (1, 2, 4):
    step = make_step(model, optimizer, accumulation=accumulation, frozen=('bn',))
    results.append(jit(step)(state, make_batch(), Partial(loss_fn)))
  for other in results[1:]:
    assert_trees_close(other, results[0], rtol=1e-5, atol=1e-7)


def test_the_average_follows_its_formula():
  optimizer = make_optimizer(make_schedule(0.1, 100))
  model, loss_fn, batch = TinyModel(), make_loss(), make_batch()
  step = jit(make_step(model, optimizer, ema_decay=0.3))
  state = make_state(model, optimizer, averaged=True)
  expected = state.variables
  # (1 + k) / (10 + k): 0.1, 2/11, 3/12, then more than 0.3.
  for decay in (0.1, 2 / 11, 0.25, 0.3, 0.3):
    state, _ = step(state, batch, loss_fn)
    expected = jax.tree.map(lambda a, x, d=decay: d * a + (1 - d) * x, expected, state.variables)
  assert_trees_close(state.average, expected, rtol=1e-5, atol=1e-7)
  assert state.evaluated is state.average
  assert set(state.average) == {'params', 'batch_stats'}
  assert np.any(state.average['params']['conv']['kernel'] != state.params['conv']['kernel'])


def test_without_an_average_the_last_weights_are_evaluated():
  optimizer = make_optimizer(make_schedule(0.1, 100))
  state = make_state(TinyModel(), optimizer)
  assert state.evaluated['params'] is state.params
  assert state.evaluated['batch_stats'] is state.batch_stats


def test_frozen_modules_stay_to_the_bit():
  """Weights, running statistics and averages, while the loss is that of evaluation mode."""
  frozen = ('conv', 'bn')
  optimizer = make_optimizer(make_schedule(0.1, 100))
  model, loss_fn, batch = TinyModel(), make_loss(), make_batch()
  step = jit(make_step(model, optimizer, frozen=frozen, ema_decay=0.9))
  start = state = make_state(model, optimizer, frozen=frozen, averaged=True)
  losses = []
  for _ in range(4):
    state, metrics = step(state, batch, loss_fn)
    losses.append(float(metrics['loss']))
  for module, before in start.params.items():
    same = module in frozen
    for after in (state.params[module], state.average['params'][module]):
      for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.array_equal(a, b) == same, module
  assert_trees_close(state.batch_stats, start.batch_stats, rtol=0)
  assert_trees_close(state.average['batch_stats'], start.batch_stats, rtol=0)
  assert losses[-1] < losses[0]
  outputs = model.apply(start.variables, normalize(batch['image']))
  np.testing.assert_allclose(losses[0], loss_fn(outputs, batch['label'])[0], rtol=1e-5)


def test_what_is_frozen_takes_no_memory_in_the_optimizer():
  optimizer = make_optimizer(make_schedule(0.1, 100))

  def num_values(frozen):
    state = make_state(TinyModel(), optimizer, frozen=frozen)
    return sum(np.size(x) for x in jax.tree.leaves(state.opt_state))

  params = make_state(TinyModel(), optimizer).params
  sizes = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}
  counters = num_values(tuple(params))
  assert counters == 1
  assert num_values(('conv',)) == sum(sizes.values()) - sizes['conv'] + counters


def test_a_step_with_everything_frozen_changes_nothing():
  optimizer = make_optimizer(make_schedule(0.1, 100))
  model = TinyModel()
  frozen = tuple(make_state(model, optimizer).params)
  start = make_state(model, optimizer, frozen=frozen)
  state, metrics = jit(make_step(model, optimizer, frozen=frozen))(start, make_batch(), make_loss())
  assert_trees_close(state.variables, start.variables, rtol=0)
  assert metrics['gradient_norm'] == 0 and int(state.step) == 1


def shrunk(name, **options):
  """The network of that name, on a backbone with hardly a block and a channel: quick to compile."""
  model = create_model(name, 4, **options)
  spec = dataclasses.replace(
    model.backbone_spec, width=1, modules=(1, 0, 0), blocks=1, stem_blocks=1
  )
  return model.clone(backbone_spec=spec)


def random_variables(model):
  """Variables of a model as at the start of a training; drawn, which is faster than `init`."""
  rng = np.random.RandomState(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))

  def draw(path, x):
    if x.ndim > 1:
      scale = np.sqrt(2 / np.prod(x.shape[:-1]))
      return rng.normal(0, scale, x.shape).astype(np.float32)
    return np.full(x.shape, path[-1].key in ('scale', 'var'), np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def test_bfloat16_recomputed_and_in_parts():
  """On a fixed batch; the parameters stay float32."""
  optimizer = make_optimizer(make_schedule(0.05, 100))
  model = shrunk('hrnet16_slim', dtype=jnp.bfloat16, remat=True)
  step = jit(make_step(model, optimizer, accumulation=2))
  state = TrainState.create(random_variables(model), optimizer)
  batch, loss_fn = make_batch(), make_loss()
  losses = []
  for _ in range(20):
    state, metrics = step(state, batch, loss_fn)
    losses.append(float(metrics['loss']))
  assert np.all(np.isfinite(losses))
  assert losses[-1] < 0.8 * losses[0]
  dtypes = {x.dtype for x in jax.tree.leaves((state.variables, state.opt_state))}
  assert dtypes == {jnp.dtype('float32'), jnp.dtype('int32')}


# Keyword arguments of `make_whole_loss`: every segmentation term and distance, with and without the
# auxiliary losses.
COMBINATIONS = [
  {'segmentation': segmentation, 'distance': distance, 'weights': LossWeights(auxiliary=auxiliary)}
  for segmentation, distance, auxiliary in itertools.product(
    SEGMENTATION_LOSSES, DISTANCES, (0.4, 0.0)
  )
]


@pytest.mark.parametrize('edge_head', [True, False])
@pytest.mark.parametrize('name', MODELS)
def test_every_combination_can_be_traced(name, edge_head):
  """Outputs of the network in training, and the gradient of every loss by all of them."""
  model = create_model(name, 4, edge_head=edge_head)
  rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(0)}
  image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
  labels = jax.ShapeDtypeStruct((2, 64, 96), jnp.int32)
  outputs, _ = jax.eval_shape(lambda x: model.init_with_output(rngs, x, train=True), image)
  for options in COMBINATIONS:
    loss = jax.value_and_grad(make_whole_loss(**options), has_aux=True)
    (total, terms), gradients = jax.eval_shape(loss, outputs, labels)
    assert total.shape == () and jax.tree.structure(gradients) == jax.tree.structure(outputs)
    auxiliary = options['weights'].auxiliary > 0
    # Multi-scale attention has no auxiliary edge head.
    assert ('inverseform' in terms) == edge_head
    assert ('aux_segmentation' in terms) == auxiliary
    hms = name == 'ocrnet48_hms'
    assert ('aux_inverseform' in terms) == (edge_head and auxiliary and not hms)
    assert ('scale_0.5' in terms) == hms


def take_a_step_with_each(model, combinations):
  """From the same state; compiled once for all of these losses."""
  losses = [make_whole_loss(**options) for options in combinations]

  def loss_fn(which, outputs, labels, step):
    del step
    total = jax.lax.switch(which, [lambda *a, f=f: f(*a)[0] for f in losses], outputs, labels)
    return total, {}

  optimizer = make_optimizer(make_schedule(0.1, 100))
  step = jit(make_step(model, optimizer))
  start = TrainState.create(random_variables(model), optimizer)
  batch = {name: x.repeat(4, axis=1).repeat(4, axis=2) for name, x in make_batch(2).items()}
  results = []
  for which in range(len(combinations)):
    state, metrics = step(start, batch, Partial(loss_fn, jnp.int32(which)))
    assert np.isfinite(metrics['loss']) and 0 < metrics['gradient_norm'] < np.inf
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
    results.append(float(metrics['loss']))
  return results


@pytest.mark.parametrize(('name', 'which'), [('ocrnet48', 6), ('ocrnet48_hms', 9)])
def test_networks_of_small_width_take_a_step(name, which):
  """Those of one scale without OCR do so in other tests: here in bfloat16, whole in test_train."""
  take_a_step_with_each(shrunk(name), COMBINATIONS[which : which + 1])


@pytest.mark.slow
@pytest.mark.parametrize('edge_head', [True, False])
@pytest.mark.parametrize('name', MODELS)
def test_every_network_takes_a_step_with_every_loss(name, edge_head):
  results = take_a_step_with_each(create_model(name, 4, edge_head=edge_head), COMBINATIONS)
  # Without an edge head, there is no distance to tell apart.
  assert len(set(results)) == len(results) // (1 if edge_head else 2)
