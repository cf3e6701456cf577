"""The weighted sum of all losses, in every combination of outputs and choices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from if_jax.losses import (
  LossWeights,
  boundary_bce,
  cross_entropy,
  edge_attention,
  inverseform,
  inverseform_as_released,
  inverseform_of_probability,
  joint_loss,
  ohem_cross_entropy,
  rmi,
)
from if_jax.ops.boundaries import boundary_map, soft_boundary_map
from if_jax.ops.resize import resize_bilinear

SEGMENTATION_LOSSES = {'cross_entropy': cross_entropy, 'ohem': ohem_cross_entropy, 'rmi': rmi}
GRID = {'tile_rows': 1, 'tile_columns': 2}

# Runs slower and compiles in a third of the time, which is what counts here.
fast_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def _inverse_net(prediction, target):
  """Stands in for the network: differences of moments, [N, 4]."""
  ramp = jnp.linspace(-1, 1, prediction.shape[1])
  difference = (prediction - target)[..., 0]
  profiles = jnp.mean(difference, 1), jnp.mean(difference, 2)
  return jnp.stack(
    [jnp.mean(profile * ramp**power, -1) for profile in profiles for power in (1, 2)], -1
  )


def _labels(seed=0):
  """int32 [2, 16, 24] in 0 .. 3, in blocks, a corner ignored."""
  blocks = np.random.RandomState(seed).randint(0, 4, (2, 4, 4))
  labels = np.kron(blocks, np.ones((1, 4, 6), int))
  labels[:, :5, :7] = 255
  return jnp.asarray(labels, jnp.int32)


def _outputs(*names, scales=()):
  rng = np.random.RandomState(1)

  def draw(channels):
    return jnp.asarray(2 * rng.standard_normal((2, 16, 24, channels)), jnp.float32)

  outputs = {name: draw(1 if 'edge' in name else 4) for name in ('logits', *names)}
  if scales:
    outputs['scale_logits'] = {scale: draw(4) for scale in scales}
  return outputs


def _joint(**options):
  """`joint_loss` as a function of outputs and labels."""
  options = {'weights': LossWeights(), 'inverse_net': _inverse_net, **GRID} | options
  return functools.partial(joint_loss, **options)


@functools.cache
def _value_and_grad(segmentation, distance='euclidean'):
  """The same with gradients, compiled once; called with `_everything` alone."""
  loss = _joint(segmentation=segmentation, distance=distance)
  return fast_jit(jax.value_and_grad(loss, has_aux=True))


def _everything():
  return _outputs('edge_logits', 'aux_logits', 'aux_edge_logits', scales=(0.5, 1.0))


def _means(outputs, labels):
  """Every term by its own loss."""
  edges, valid = boundary_map(labels, num_classes=4), (labels < 4)[..., None]
  pairs = {}
  for prefix in ('', 'aux_'):
    logits, edge_logits = outputs[f'{prefix}logits'], outputs[f'{prefix}edge_logits']
    pairs |= {
      f'{prefix}segmentation': cross_entropy(logits, labels),
      f'{prefix}boundary': boundary_bce(edge_logits, edges, valid=valid),
      f'{prefix}attention': edge_attention(logits, labels, edge_logits),
      f'{prefix}inverseform': inverseform(edge_logits, edges, _inverse_net, valid=valid, **GRID),
    }
  for scale, logits in outputs['scale_logits'].items():
    pairs[f'scale_{scale}'] = cross_entropy(logits, labels)
  return {name: total / count for name, (total, count) in pairs.items()}


def test_terms_are_the_losses_and_the_total_their_weighted_sum():
  inputs = _everything(), _labels()
  (total, terms), _ = _value_and_grad('cross_entropy')(*inputs)
  means = fast_jit(_means)(*inputs)
  assert set(means) == set(terms)
  for name, mean in means.items():
    np.testing.assert_allclose(terms[name], mean, rtol=1e-6)
  main, aux = (
    means[f'{prefix}segmentation']
    + 0.3 * means[f'{prefix}boundary']
    + 0.1 * means[f'{prefix}attention']
    + 0.3 * means[f'{prefix}inverseform']
    for prefix in ('', 'aux_')
  )
  scales = 0.05 * (means['scale_0.5'] + means['scale_1.0'])
  np.testing.assert_allclose(total, main + 0.4 * aux + scales, rtol=1e-6)


@pytest.mark.parametrize(('name', 'loss_fn'), SEGMENTATION_LOSSES.items())
def test_without_edges_the_segmentation_term_is_all(name, loss_fn):
  outputs, labels = _outputs(), _labels()

  def both(outputs):
    return _joint(segmentation=name)(outputs, labels), loss_fn(outputs['logits'], labels)

  (joint, terms), (total, count) = fast_jit(both)(outputs)
  assert list(terms) == ['segmentation']
  np.testing.assert_allclose(joint, total / count, rtol=1e-6)


COMBINATIONS = list(
  itertools.product(
    ((), ('edge_logits',)),
    ((), ('aux_logits',), ('aux_logits', 'aux_edge_logits')),
    ((), (0.5, 1.0)),
  )
)


@pytest.mark.parametrize('distance', ['euclidean', 'geodesic'])
@pytest.mark.parametrize('segmentation', SEGMENTATION_LOSSES)
def test_every_combination_of_outputs_has_its_terms(segmentation, distance):
  edge_terms = ('segmentation', 'boundary', 'attention', 'inverseform')
  loss = _joint(segmentation=segmentation, distance=distance)
  for main, aux, scales in COMBINATIONS:
    _, terms = jax.eval_shape(loss, _outputs(*main, *aux, scales=scales), _labels())
    expected = set(edge_terms if main else edge_terms[:1])
    if aux:
      of_aux = edge_terms if 'aux_edge_logits' in aux else edge_terms[:1]
      expected |= {f'aux_{term}' for term in of_aux}
    assert set(terms) == expected | {f'scale_{scale}' for scale in scales}


@pytest.mark.parametrize(
  ('segmentation', 'distance'),
  [('cross_entropy', 'euclidean'), ('ohem', 'geodesic'), ('rmi', 'euclidean')],
)
def test_every_output_learns(segmentation, distance):
  _, gradients = _value_and_grad(segmentation, distance)(_everything(), _labels())
  for gradient in jax.tree.leaves(gradients):
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize('segmentation', SEGMENTATION_LOSSES)
def test_cross_entropies_take_small_logits_where_there_are_some(segmentation):
  """The terms stay as they are; with RMI, which needs the full size, attention alone takes them."""
  rng = np.random.RandomState(2)
  small = {
    f'small_{name}': jnp.asarray(2 * rng.standard_normal((2, 4, 6, 4)), jnp.float32)
    for name in ('logits', 'aux_logits')
  }
  full = {name.removeprefix('small_'): resize_bilinear(x, (16, 24)) for name, x in small.items()}
  others = _outputs('edge_logits', 'aux_edge_logits')
  value_and_grad = fast_jit(jax.value_and_grad(_joint(segmentation=segmentation), has_aux=True))
  (_, expected), _ = value_and_grad(others | full, _labels())
  (_, terms), gradient = value_and_grad(others | full | small, _labels())
  assert set(terms) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-5)
  for name in full:
    assert np.any(gradient[f'small_{name}'])
    assert np.any(gradient[name]) == (segmentation == 'rmi')


def test_edge_logits_learn_from_inverseform_alone():
  weights = LossWeights(boundary=0, attention=0, auxiliary=0, scales=0)
  loss = _joint(weights=weights)
  gradients = jax.grad(lambda outputs: loss(outputs, _labels())[0])(_outputs('edge_logits'))
  assert np.abs(gradients['edge_logits']).max() > 0


@pytest.mark.parametrize(
  ('weight', 'term'),
  [
    ('boundary', 'boundary'),
    ('attention', 'attention'),
    ('inverseform', 'inverseform'),
    ('auxiliary', 'aux_segmentation'),
    ('scales', 'scale_0.5'),
  ],
)
def test_a_weight_of_zero_leaves_its_term_out(weight, term):
  inputs = _outputs('edge_logits', 'aux_logits', scales=(0.5,)), _labels()
  assert term in jax.eval_shape(_joint(), *inputs)[1]
  assert term not in jax.eval_shape(_joint(weights=LossWeights(**{weight: 0.0})), *inputs)[1]


def test_without_a_network_there_is_no_inverseform():
  loss = _joint(inverse_net=None)
  _, terms = jax.eval_shape(loss, _outputs('edge_logits'), _labels())
  assert set(terms) == {'segmentation', 'boundary', 'attention'}


def test_a_gradient_as_released_teaches_nothing():
  outputs, labels = _outputs('edge_logits', 'aux_logits', 'aux_edge_logits'), _labels()
  released, without = (
    fast_jit(jax.value_and_grad(_joint(**options), has_aux=True))(outputs, labels)
    for options in ({'gradient': 'as_released', 'tile_size': 16}, {'inverse_net': None})
  )
  (total, terms), gradients = released
  edges = boundary_map(labels, num_classes=4)
  term, count = inverseform_as_released(outputs['edge_logits'], edges, _inverse_net, tile_size=16)
  np.testing.assert_allclose(terms['inverseform'], term / count, rtol=1e-5)
  assert terms['inverseform'] > 0
  np.testing.assert_allclose(total, without[0][0] + 0.3 * 1.4 * terms['inverseform'], rtol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, gradients, without[1])


def test_the_gradient_is_that_of_inverseform():
  outputs, labels = _outputs('edge_logits'), _labels()
  edges, valid = boundary_map(labels, num_classes=4), (labels < 4)[..., None]
  weights = LossWeights(segmentation=0, boundary=0, attention=0)
  options = {'gradient': 'full', 'tile_size': 16, **GRID}

  def term(edge_logits):
    total, count = inverseform(edge_logits, edges, _inverse_net, valid=valid, **options)
    return 0.3 * total / count

  joint = jax.grad(lambda x: _joint(weights=weights, **options)(outputs | x, labels)[0])
  found = joint({'edge_logits': outputs['edge_logits']})['edge_logits']
  np.testing.assert_allclose(found, jax.grad(term)(outputs['edge_logits']), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize('names', [('aux_logits',), ('edge_logits', 'aux_logits')])
@pytest.mark.parametrize('scale', [0.0, 1.0, 50.0])
def test_on_classes_inverseform_judges_what_the_logits_say(names, scale):
  """Of a network without an edge head, too; of one that is certain of nothing or everything."""
  outputs, labels = _outputs(*names), _labels()
  logits = {name: scale * outputs[name] for name in ('logits', 'aux_logits')}
  edges, valid = boundary_map(labels, num_classes=4), (labels < 4)[..., None]
  weights = LossWeights(segmentation=0, boundary=0, attention=0)
  options = {'tile_size': 16, **GRID}

  def term(logits):
    soft = soft_boundary_map(jax.nn.softmax(logits), valid=valid)
    total, count = inverseform_of_probability(soft, edges, _inverse_net, valid=valid, **options)
    return 0.3 * total / count

  joint = _joint(weights=weights, inverseform_on='classes', **options)
  found = jax.grad(lambda x: joint(outputs | x, labels)[0])(logits)
  for name, weight in (('logits', 1.0), ('aux_logits', 0.4)):
    expected = weight * jax.grad(term)(logits[name])
    assert jnp.linalg.norm(expected) > 1e-4 or scale != 1
    np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-8)
    assert not jnp.any(jnp.where(valid, 0, found[name]))


def test_a_choice_that_is_not_there_is_told():
  with pytest.raises(ValueError, match=r"unknown inverseform_on 'class'.* mean 'classes'\?"):
    _joint(inverseform_on='class')(_outputs(), _labels())


def test_before_its_step_inverseform_is_but_measured():
  outputs, labels = _outputs('edge_logits'), _labels()
  loss = _joint(inverseform_from=10, tile_size=16)
  (early, terms), (late, terms_late) = loss(outputs, labels, 9), loss(outputs, labels, 10)
  assert terms['inverseform'] == terms_late['inverseform'] > 0
  np.testing.assert_allclose(late - early, 0.3 * terms['inverseform'], rtol=1e-4)


def test_edge_logits_of_ignored_pixels_do_not_matter():
  """Neither padding nor void is trained as `no boundary`."""
  outputs, labels = _everything(), _labels()
  value_and_grad = _value_and_grad('cross_entropy')
  (value, _), gradients = value_and_grad(outputs, labels)
  ignored = (labels == 255)[..., None]
  np.testing.assert_array_equal(gradients['edge_logits'] == 0, ignored)
  other = outputs | {'edge_logits': jnp.where(ignored, 9.0, outputs['edge_logits'])}
  np.testing.assert_allclose(value_and_grad(other, labels)[0][0], value, rtol=1e-6)


@pytest.mark.parametrize(
  ('segmentation', 'make_outputs'), [('cross_entropy', _everything), ('rmi', _outputs)]
)
def test_shares_of_devices_add_up_to_the_whole(segmentation, make_outputs):
  """The second device has other classes, fewer labels, and no boundary."""
  outputs = make_outputs()
  labels = _labels().at[1].set(255).at[1, 2:, 9:].set(3)
  of_one = _joint(segmentation=segmentation)
  of_two = jax.vmap(_joint(segmentation=segmentation, axis_name='devices'), axis_name='devices')
  per_device = jax.tree.map(lambda x: x[:, None], (outputs, labels))
  shares, whole = fast_jit(lambda: (of_two(*per_device), of_one(outputs, labels)))()
  jax.tree.map(
    lambda share, value: np.testing.assert_allclose(jnp.sum(share), value, rtol=1e-5), shares, whole
  )


def test_nothing_to_count_is_zero_and_not_nan():
  """No label anywhere: no class, no boundary, no hard pixel."""
  labels = jnp.full_like(_labels(), 255)
  (total, terms), gradients = _value_and_grad('ohem', 'geodesic')(_everything(), labels)
  assert float(total) == 0
  assert all(float(term) == 0 for term in terms.values())
  for gradient in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(gradient, 0)


def test_jit_equals_eager():
  loss, inputs = _joint(inverse_net=None), (_outputs('edge_logits'), _labels())
  jax.tree.map(
    lambda jitted, eager: np.testing.assert_allclose(jitted, eager, rtol=1e-5),
    fast_jit(loss)(*inputs),
    loss(*inputs),
  )


@pytest.mark.parametrize(
  ('choice', 'message'),
  [
    ({'segmentation': 'cross-entropy'}, "segmentation loss 'cross-entropy'.*'cross_entropy'"),
    ({'distance': 'euclidian'}, "distance 'euclidian'.*'euclidean'"),
    ({'gradient': 'as_release'}, "gradient 'as_release'.*'as_released'"),
  ],
)
def test_the_nearest_choice_is_proposed(choice, message):
  with pytest.raises(ValueError, match=message):
    _joint(**choice)(_outputs(), _labels())


def test_negative_weights_are_told():
  with pytest.raises(ValueError, match=r'loss inverseform is -0\.1; give 0 or more'):
    LossWeights(inverseform=-0.1)
