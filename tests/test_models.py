"""The networks against the outputs of the original code, and what they promise beyond."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax.traverse_util import flatten_dict

from convert import from_torch, to_torch
from if_jax.data.labels import CAMVID
from if_jax.models import MODELS, create_model, from_pretrained, layers
from if_jax.models.hrnet import HRNetSpec
from if_jax.models.segmenter import Segmenter
from if_jax.ops.resize import resize_bilinear
from if_jax.weights import label_set_of, make_card, save_weights

# Millions of parameters without and with the edge head, as the original networks have them.
PARAMETERS = {
  'hrnet18': (4.018438, 4.092690),
  'hrnet16_slim': (3.197007, 3.255809),
  'ocrnet48': (70.372678, 70.894472),
  'ocrnet48_hms': (72.143430, 72.664711),
}


def _jit(function):
  """Compiles with few optimisations: a third of the time, the same numbers but for rounding."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def _apply(model, variables, image):
  apply = functools.partial(model.apply, train=False)
  # The deep ones run without jit: its compilation takes longer than that of all their single
  # operations, of which most occur many times.
  return (apply if _is_deep(model) else _jit(apply))(variables, image)


def _is_deep(model):
  return model.backbone_spec.width == 48


@functools.cache
def _variables(name):
  return from_torch(reference.state_dict(name), name)


def _shapes(model):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def _assert_close(actual, expected, tolerance):
  error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
  assert error < tolerance, f'{error:.2e} of the largest value'


@pytest.mark.parametrize('remat', [False, True])
def test_layers_of_one_shape_are_traced_once(monkeypatch, remat):
  """With their gradients: half of the time to the first step of a training."""
  traced = []

  def statistics(x, axis_name):
    traced.append(x.shape)
    return whole(x, axis_name)

  whole = layers._batch_statistics
  monkeypatch.setattr(layers, '_batch_statistics', statistics)
  make = functools.partial(layers.BasicBlock, layers.Conv, layers.BatchNorm)
  if remat:
    make = functools.partial(nn.remat(layers.BasicBlock, static_argnums=(2,)), *make.args)

  class Blocks(nn.Module):
    @nn.compact
    def __call__(self, x):
      for i in range(3):
        x = make(name=f'block{i}')(x, True)
      return x

  # A size that no other test has: what was traced for one is kept.
  x = jnp.ones((1, 5, 17 + 2 * remat, 4))
  variables = jax.eval_shape(Blocks().init, jax.random.key(0), x)

  def loss(params, variables):
    output, _ = Blocks().apply({**variables, 'params': params}, x, mutable=['batch_stats'])
    return jnp.sum(output)

  jax.eval_shape(jax.grad(loss), variables['params'], variables)
  assert len(traced) == 1


@pytest.mark.parametrize('name', MODELS)
def test_parameter_counts(name):
  assert set(PARAMETERS) == set(MODELS)
  for edge_head, expected in zip((False, True), PARAMETERS[name], strict=True):
    params = _shapes(create_model(name, edge_head=edge_head))['params']
    assert sum(x.size for x in jax.tree.leaves(params)) == round(1e6 * expected)
  assert MODELS[name].num_parameters == round(1e6 * PARAMETERS[name][1])


def test_a_network_comes_with_its_weights(tmp_path):
  given = create_model('hrnet16_slim', CAMVID.num_classes, edge_head=False)
  shapes = jax.tree.map(lambda x: np.ones(x.shape, np.float32), _shapes(given))
  save_weights(tmp_path, shapes, make_card('hrnet16_slim', given, CAMVID))
  model, variables, card = from_pretrained(tmp_path, dtype=jnp.bfloat16)
  assert model == given.clone(dtype=jnp.bfloat16)
  np.testing.assert_equal(variables, shapes)
  assert label_set_of(card).class_names == CAMVID.class_names
  save_weights(tmp_path, shapes, make_card('hrnet18', given, CAMVID))
  with pytest.raises(ValueError, match='do not fit the model'):
    from_pretrained(tmp_path)
  with pytest.raises(ValueError, match='no weights in hrnet18'):
    from_pretrained('hrnet18')


@pytest.mark.parametrize('name', MODELS)
def test_forward_matches_the_original(name):
  expected = reference.load(f'{name}.forward')
  variables = _variables(name)
  outputs = _apply(create_model(name), variables, reference.image())
  strided = outputs['logits'][:, ::4, ::4]
  _assert_close(strided, reference.nhwc(expected['pred.strided4']), 1e-5)
  assert np.mean(outputs['logits'].argmax(-1) == expected['argmax']) > 0.9999
  edges = outputs['edge_logits'][:, ::4, ::4]
  if name == 'ocrnet48_hms':  # Its only edge head ends in a sigmoid.
    edges = jax.nn.sigmoid(edges)
    for scale, theirs in [(1.0, '1_0x'), (0.5, '0_5x'), (0.25, '0_25x')]:
      attention = reference.nhwc(expected[f'attn_{theirs}.strided4'])
      _assert_close(outputs['attention'][scale][:, ::4, ::4], attention, 1e-5)
  _assert_close(edges, reference.nhwc(expected['edge_pred.strided4']), 1e-5)


def test_hms_on_two_scales_matches_the_original():
  expected = reference.load('ocrnet48_hms.two_scale')
  variables = _variables('ocrnet48_hms')
  model = create_model('ocrnet48_hms', scales=(0.5, 1.0))
  outputs = _apply(model, variables, reference.image())
  _assert_close(outputs['logits'][:, ::4, ::4], reference.nhwc(expected['pred.strided4']), 1e-5)


@pytest.mark.parametrize(('name', 'remat'), [('hrnet18', False), ('hrnet16_slim', True)])
def test_training_mode_matches_the_original(name, remat):
  """Loss, gradients and running statistics, with activations kept or recomputed."""
  expected = reference.load(f'{name}.train_mode')
  variables = _variables(name)
  model = create_model(name, remat=remat)

  def one(logits, edges):
    draw = np.random.RandomState(5).standard_normal(np.take(logits.shape, (0, 3, 1, 2)))
    return jnp.mean(logits * reference.nhwc(draw).astype(np.float32)) + jnp.mean(edges * edges)

  def loss(params):
    outputs, updated = model.apply(
      {**variables, 'params': params}, reference.image(), train=True, mutable=['batch_stats']
    )
    auxiliary = one(outputs['aux_logits'], jax.nn.sigmoid(outputs['aux_edge_logits']))
    return one(outputs['logits'], outputs['edge_logits']) + 0.4 * auxiliary, updated

  value_and_grad = _jit(jax.value_and_grad(loss, has_aux=True))
  (value, updated), gradients = value_and_grad(variables['params'])
  np.testing.assert_allclose(value, expected['loss'], rtol=1e-5)

  # In PyTorch's names; the statistics' places are filled, `to_torch` wants them.
  gradients = to_torch({'params': gradients, 'batch_stats': variables['batch_stats']}, name)
  updated = to_torch({'params': variables['params'], **updated}, name)
  norms = dict(zip(expected['gradnorm_names'].tolist(), expected['gradnorms'], strict=True))
  # Five million activations lie before a ReLU, some of them within rounding of 0: which side they
  # fall on moves the gradients before them by up to 2 % (measured: noise of 1e-6 on the image).
  # The heads come after all that. A bias before a batch norm has no effect, its gradient is noise.
  largest = max(norms.values())
  for entry, norm in norms.items():
    assert abs(np.linalg.norm(gradients[entry]) - norm) < 0.03 * norm + 1e-6 * largest, entry
  for key in expected.files:
    kind, _, entry = key.partition(':')
    if kind == 'grad':
      exact = 'head' in entry or 'stage4.1' in entry
      _assert_close(gradients[entry], expected[key], 1e-4 if exact else 0.03)
    elif kind in ('running_mean', 'running_var'):
      _assert_close(updated[f'{entry}.{kind}'], expected[key], 1e-5)


def test_the_edge_head_changes_no_other_output():
  with_edges = create_model('hrnet16_slim')
  variables = _variables('hrnet16_slim')
  without = {
    collection: {k: v for k, v in tree.items() if not k.startswith('edge')}
    for collection, tree in variables.items()
  }
  image = reference.image()
  outputs = _apply(create_model('hrnet16_slim', edge_head=False), without, image)
  assert list(outputs) == ['logits']
  expected = _apply(with_edges, variables, image)['logits']
  np.testing.assert_allclose(outputs['logits'], expected, atol=1e-5)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('size', [(97, 131), (33, 64), (30, 30)])
def test_any_image_size(name, size):
  model = create_model(name, num_classes=5)
  outputs = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, *size, 3)))[0]
  )
  assert outputs['logits'].shape == (1, *size, 5)
  assert outputs['edge_logits'].shape == (1, *size, 1)


@pytest.mark.parametrize('name', MODELS)
def test_training_outputs_and_dtypes_in_bfloat16(name):
  model = create_model(name, num_classes=5, dtype=jnp.bfloat16)
  rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
  outputs, variables = jax.eval_shape(
    lambda: model.init_with_output(rngs, jnp.zeros((2, 64, 96, 3)), train=True)
  )
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((outputs, variables)))
  expected = {'logits', 'aux_logits', 'edge_logits'}
  if name == 'ocrnet48_hms':
    expected |= {'attention', 'scale_logits'}
  else:
    expected |= {'aux_edge_logits', 'small_logits', 'small_aux_logits'}
  assert set(outputs) == expected


@pytest.mark.parametrize('train', [False, True])
def test_small_logits_are_those_before_enlarging_where_they_can_be_enlarged_by_class(train):
  spec = HRNetSpec(width=8, modules=(1, 1, 1), blocks=1, stem_blocks=1, patch_stem=True)
  model = Segmenter(spec, num_classes=5, small_logits=not train)

  def apply(size):
    rng = jax.random.key(0)
    return model.init_with_output(rng, jax.random.normal(rng, (1, *size, 3)), train=train)[0]

  outputs = _jit(lambda: apply((16, 24)))()
  for name in ('logits', 'aux_logits') if train else ('logits',):
    assert outputs[f'small_{name}'].shape == (1, 2, 3, 5)
    enlarged = resize_bilinear(outputs[f'small_{name}'], (16, 24))
    np.testing.assert_allclose(outputs[name], enlarged, atol=1e-6)
  assert 'small_logits' not in jax.eval_shape(lambda: apply((16, 23)))


def test_bfloat16_stays_close_to_float32():
  variables = _variables('hrnet16_slim')
  image = reference.image()
  exact = _apply(create_model('hrnet16_slim'), variables, image)['logits']
  rounded = _apply(create_model('hrnet16_slim', dtype=jnp.bfloat16), variables, image)['logits']
  assert rounded.dtype == jnp.float32
  assert np.mean(exact.argmax(-1) == rounded.argmax(-1)) > 0.95


def test_initial_variables_have_the_converted_ones_names_and_shapes():
  for name in MODELS:
    shapes = flatten_dict(_shapes(create_model(name)))
    converted = flatten_dict(_variables(name))
    assert {k: v.shape for k, v in shapes.items()} == {k: v.shape for k, v in converted.items()}


def test_wrong_names_and_scales_are_refused():
  with pytest.raises(ValueError, match="Did you mean 'hrnet18'"):
    create_model('hrnet_18')
  with pytest.raises(ValueError, match='among them'):
    create_model('ocrnet48_hms', scales=(0.5, 2.0))
  with pytest.raises(ValueError, match='one scale'):
    create_model('hrnet18', scales=(1.0,))


@pytest.mark.parametrize('head', ['plain', 'ocr'])
def test_a_fresh_network_is_certain_of_nothing(head):
  spec = HRNetSpec(width=8, modules=(1, 1, 1), blocks=1, stem_blocks=1, patch_stem=True)
  model = Segmenter(spec, num_classes=5, head=head)
  image = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))

  def first_outputs(rng):
    variables = model.init(rng, image)
    return model.apply(variables, image, True, mutable=['batch_stats'], rngs={'dropout': rng})[0]

  outputs = _jit(first_outputs)(jax.random.key(1))
  names = {'logits', 'aux_logits', 'edge_logits', 'aux_edge_logits'}
  assert outputs.keys() == names | {'small_logits', 'small_aux_logits'}
  for name, logits in outputs.items():
    # At 0 both sides, or all classes, are as likely.
    assert 0 < np.abs(logits).max() < 0.2, name


def test_a_sum_and_its_relu_and_their_gradients_are_those_of_relu():
  rng = np.random.default_rng(0)
  x, y, gradient = (rng.normal(size=(3, 4, 5, 6)).astype(np.float32) for _ in range(3))
  # Ends of the scale, and sums of exactly 0.
  x[0, 0, 0] = [1e30, -1e30, 0, 1, -1, 1e-38]
  y[0, 0, 0] = [-1e30, 1, 0, -1, 1 + 1e-7, 1e-38]
  actual, pull_back = jax.vjp(layers.add_relu, x, y)
  expected, pull_back_relu = jax.vjp(lambda x, y: nn.relu(x + y), x, y)
  np.testing.assert_array_equal(actual, expected)
  for ours, theirs in zip(pull_back(gradient), pull_back_relu(gradient), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert np.isnan(layers.add_relu(np.float32(np.nan), np.float32(1)))
  assert np.isnan(layers.add_relu(np.float32(1), np.float32(np.nan)))
