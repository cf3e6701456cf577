"""The training step on one device and on several, and the command that trains and resumes."""

import functools
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from processes import run_main, run_python

from if_jax.losses import LossWeights
from if_jax.models.layers import BatchNorm
from if_jax.optimizers import make_optimizer, make_schedule
from if_jax.train import TrainState, train_step
from if_jax.weights import load_weights


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


def make_step(model, optimizer):
  return functools.partial(
    train_step,
    model=model,
    optimizer=optimizer,
    weights=LossWeights(),
    boundary_radius=2,
    seed=0,
    axis_name=model.axis_name,
  )


def make_state(model, optimizer):
  variables = TinyModel().init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=optimizer.init(variables['params']),
  )


def make_batch(batch_size=4):
  """Columns of classes in colours; images have unequal shares of ignored pixels."""
  rng = np.random.RandomState(0)
  label = np.broadcast_to(np.arange(24) // 6, (batch_size, 16, 24)).astype(np.int32)
  image = (60 * label[..., None] + rng.randint(0, 40, (*label.shape, 3))).astype(np.uint8)
  label = label.copy()
  for i in range(batch_size):
    label[i, : 4 * i] = 255
  return {'image': image, 'label': label}


def test_a_step_lowers_the_loss():
  optimizer = make_optimizer(make_schedule(0.1, 100))
  model = TinyModel()
  step = jax.jit(make_step(model, optimizer))
  state, losses = make_state(model, optimizer), []
  for _ in range(30):
    state, metrics = step(state, make_batch())
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.5 * losses[0]
  assert int(state.step) == 30
  parts = metrics['segmentation'] + 0.3 * metrics['boundary'] + 0.1 * metrics['attention']
  parts += 0.4 * (
    metrics['aux_segmentation'] + 0.3 * metrics['aux_boundary'] + 0.1 * metrics['aux_attention']
  )
  np.testing.assert_allclose(metrics['loss'], parts, rtol=1e-5)


def test_dropout_differs_by_step_and_repeats_by_seed():
  optimizer = make_optimizer(make_schedule(0.0, 100))
  model = TinyModel(dropout=0.5)
  step = jax.jit(make_step(model, optimizer))
  state = make_state(model, optimizer)
  losses = [float(step(state.replace(step=jnp.int32(k)), make_batch())[1]['loss']) for k in (0, 1)]
  assert losses[0] != losses[1]
  assert losses[0] == float(step(state, make_batch())[1]['loss'])


DEVICES_SCRIPT = """
import sys
sys.path.insert(0, 'tests')
import jax, numpy as np
from flax.traverse_util import flatten_dict
from if_jax import parallel
from test_train import TinyModel, make_batch, make_optimizer, make_schedule, make_state, make_step

optimizer = make_optimizer(make_schedule(0.1, 10))
model = TinyModel(axis_name=parallel.AXIS)
step = parallel.pmap(make_step(model, optimizer), donate_state=True)
state = parallel.replicate(make_state(model, optimizer))
compilations = []
jax.monitoring.register_event_duration_secs_listener(
  lambda name, *_, **__: compilations.append(name) if 'backend_compile' in name else None
)
for i in range(5):
  state, metrics = step(state, parallel.shard(make_batch()))
  assert len(compilations) == 1, f'compiled again in step {i}'
for leaf in jax.tree.leaves(state):
  copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
  assert len(copies) == jax.local_device_count()
  assert all(np.array_equal(copies[0], copy) for copy in copies)
state = parallel.fetch({'params': state.params, 'batch_stats': state.batch_stats})
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


def test_weight_decay_and_momentum_are_pytorchs():
  torch = pytest.importorskip('torch')
  kernel, bias = np.float32([[1.0, -2.0]]), np.float32([3.0])
  gradients = {'kernel': np.float32([[0.5, 0.25]]), 'bias': np.float32([0.125])}
  params = {'kernel': jnp.asarray(kernel), 'bias': jnp.asarray(bias)}
  schedule = make_schedule(0.1, 10, power=0.9, warmup_steps=2)
  optimizer = make_optimizer(schedule, momentum=0.9, weight_decay=0.01)
  opt_state = optimizer.init(params)
  theirs = {name: torch.tensor(x, requires_grad=True) for name, x in params.items()}
  groups = [
    {'params': [theirs['kernel']], 'weight_decay': 0.01},
    {'params': [theirs['bias']], 'weight_decay': 0.0},
  ]
  sgd = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
  for step in range(5):
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    params = optax.apply_updates(params, updates)
    for group in sgd.param_groups:
      group['lr'] = 0.1 * step / 2 if step < 2 else 0.1 * (1 - (step - 2) / 8) ** 0.9
    for name, gradient in gradients.items():
      theirs[name].grad = torch.tensor(gradient)
    sgd.step()
  for name, expected in theirs.items():
    np.testing.assert_allclose(params[name], expected.detach().numpy(), rtol=1e-5)


SMALL = (
  '--mode=train',
  '--config.data.streets.num_train=6',
  '--config.data.streets.num_val=3',
  '--config.data.streets.size=(64,96)',
  '--config.augment.crop_size=(64,96)',
  '--config.train.batch_size=2',
  '--config.train.num_steps=4',
  '--config.train.log_every=1',
  '--config.train.eval_every=2',
  '--config.train.checkpoint_every=2',
)


def test_the_command_trains_and_a_resumed_run_ends_the_same(tmp_path):
  """Two forced devices; the second run starts from the checkpoint at step 2 of the first."""
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  run = run_main(*SMALL, f'--workdir={whole}', devices=2)
  assert run.returncode == 0, run.stderr
  assert 'train 4/4' in run.stderr
  assert json.loads((whole / 'config.json').read_text())['train']['num_steps'] == 4
  lines = [json.loads(line) for line in (whole / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if 'train/loss' in line] == [1, 2, 3, 4]
  assert [line['step'] for line in lines if 'val/miou' in line] == [2, 4]
  assert all(np.isfinite(line['train/loss']) for line in lines if 'train/loss' in line)
  with Image.open(whole / 'curves.png') as curves:
    assert curves.size[0] > 100
  _, card = load_weights(whole / 'best')
  best = max((line for line in lines if 'val/miou' in line), key=lambda line: line['val/miou'])
  assert (card['model'], card['step']) == ('hrnet16_slim', best['step'])

  shutil.copytree(whole, resumed)
  shutil.rmtree(resumed / 'checkpoints' / '4')
  again = run_main(*SMALL, f'--workdir={resumed}', devices=2)
  assert again.returncode == 0, again.stderr
  lines_again = [json.loads(line) for line in (resumed / 'metrics.jsonl').read_text().splitlines()]
  assert lines_again == lines
  expected, actual = (flatten_dict(load_weights(run / 'best')[0]) for run in (whole, resumed))
  for path, array in expected.items():
    np.testing.assert_array_equal(actual[path], array)

  other = run_main(*SMALL, f'--workdir={whole}', '--config.optimizer.momentum=0.5', devices=2)
  assert other.returncode == 2
  assert 'optimizer.momentum was 0.9, is 0.5' in other.stderr
  finished = run_main(*SMALL, f'--workdir={whole}', devices=2)
  assert finished.returncode == 0, finished.stderr
  assert (whole / 'metrics.jsonl').read_text().splitlines() == [json.dumps(x) for x in lines]
