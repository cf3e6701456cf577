"""Losses against the numbers of the original code, and the properties they must have."""

import functools
import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from reference import load, nhwc

from if_jax.losses import (
  boundary_bce,
  cross_entropy,
  edge_attention,
  nats,
  ohem_cross_entropy,
  pixel_nats,
  rmi,
)
from if_jax.ops.resize import resize_bilinear

REFERENCE = load('losses')
SEGMENTATION = load('segmentation')

# Runs slower and compiles in a third of the time, which is what counts here.
fast_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture(scope='module')
def inputs():
  """Logits [2, 72, 120, 19], labels, edge logits and edges, drawn as tests/data/README.md says."""
  rng = np.random.RandomState(2000)
  rng.uniform(size=(5, 1, 224, 224))
  rng.uniform(size=(5, 1, 224, 224))
  logits = 3 * rng.standard_normal((2, 19, 72, 120))
  labels = rng.randint(0, 19, (2, 72, 120))
  labels[rng.uniform(size=labels.shape) < 0.1] = 255
  labels[:, :10] = 255
  edge_logits = 2 * rng.standard_normal((2, 1, 72, 120))
  edges = rng.uniform(size=(2, 1, 72, 120)) < 0.15
  np.testing.assert_array_equal(labels, REFERENCE['labels'])
  return (
    jnp.asarray(logits.transpose(0, 2, 3, 1), jnp.float32),
    jnp.asarray(labels, jnp.int32),
    jnp.asarray(edge_logits.transpose(0, 2, 3, 1), jnp.float32),
    jnp.asarray(edges.transpose(0, 2, 3, 1), jnp.float32),
  )


def _segmentation():
  """Logits [2, 48, 72, 19] and labels, every tenth ignored."""
  logits = jnp.asarray(nhwc(SEGMENTATION['logits']), jnp.float32)
  return logits, jnp.asarray(SEGMENTATION['labels'], jnp.int32)


def _assert_gradient(gradient, name):
  expected = REFERENCE[name].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(
    gradient[:, ::6, ::6], expected, rtol=0, atol=1e-4 * np.abs(expected).max()
  )
  np.testing.assert_allclose(jnp.linalg.norm(gradient), REFERENCE[f'{name}.norm'], rtol=1e-4)


def test_cross_entropy_matches_the_original(inputs):
  logits, labels, *_ = inputs
  value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels)[0])(logits)
  np.testing.assert_allclose(value, REFERENCE['cross_entropy'], rtol=1e-4)
  _assert_gradient(gradient, 'cross_entropy.dlogits')


def test_boundary_bce_matches_the_original(inputs):
  *_, edge_logits, edges = inputs

  def mean(x):
    total, count = boundary_bce(x, edges)
    return total / count

  value, gradient = jax.value_and_grad(mean)(edge_logits)
  np.testing.assert_allclose(value, REFERENCE['boundary_bce'], rtol=1e-4)
  _assert_gradient(gradient, 'boundary_bce.dedge')


def test_edge_attention_matches_the_original_at_its_threshold(inputs):
  """The original compares 0.8 with the logit: a probability of sigmoid(0.8)."""
  logits, labels, edge_logits, _ = inputs
  threshold = float(jax.nn.sigmoid(0.8))

  def loss(x):
    return edge_attention(x, labels, edge_logits, threshold=threshold)[0]

  value, gradient = jax.value_and_grad(loss)(logits)
  np.testing.assert_allclose(value, REFERENCE['edge_attention'], rtol=1e-4)
  _assert_gradient(gradient, 'edge_attention.dlogits')


def test_cross_entropy_perfect_and_uniform():
  labels = jnp.arange(12).reshape(1, 3, 4) % 5
  total, count = cross_entropy(100 * jax.nn.one_hot(labels, 5), labels)
  assert (float(total), float(count)) == (0.0, 1.0)
  total, _ = cross_entropy(jnp.zeros((1, 3, 4, 5)), labels)
  np.testing.assert_allclose(total, np.log(5), rtol=1e-6)


@pytest.mark.parametrize('ignored', [255, -1, 19, 200])
def test_ignored_pixels_count_for_nothing(inputs, ignored):
  """Whatever the logits are there, value and gradient are those of the image without them."""
  logits, labels, *_ = inputs
  masked = labels.at[:, :36].set(ignored)
  value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, masked)[0])(logits)
  np.testing.assert_allclose(value, cross_entropy(logits[:, 36:], labels[:, 36:])[0], rtol=1e-5)
  np.testing.assert_array_equal(gradient[:, :36], 0)
  assert np.isfinite(gradient).all()


def test_an_image_without_labels_adds_nothing(inputs):
  logits, labels, *_ = inputs
  value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels.at[1].set(255))[0])(logits)
  np.testing.assert_allclose(value, cross_entropy(logits[:1], labels[:1])[0], rtol=1e-5)
  np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize('factors', [(4, 4), (3, 5), (2, 1), (1, 8), (1, 1)])
@pytest.mark.parametrize('size', [(3, 4), (1, 1)])
def test_small_logits_are_enlarged_on_the_way(factors, size):
  """Value and gradient of every pixel are those of logits enlarged before."""
  rng = np.random.default_rng(0)
  full_size = tuple(n * factor for n, factor in zip(size, factors, strict=True))
  logits = jnp.asarray(20 * rng.standard_normal((2, *size, 5)), jnp.float32)
  labels = jnp.asarray(rng.integers(-1, 7, (2, *full_size)))
  weights = jnp.asarray(rng.standard_normal(labels.shape), jnp.float32)

  def weighted(logits, enlarge):
    values = pixel_nats(resize_bilinear(logits, full_size) if enlarge else logits, labels)
    return jnp.sum(weights * values), values

  expected, actual = (
    fast_jit(jax.value_and_grad(lambda x, e=enlarge: weighted(x, e), has_aux=True))(logits)
    for enlarge in (True, False)
  )
  np.testing.assert_allclose(actual[0][1], expected[0][1], rtol=1e-5, atol=2e-5)
  np.testing.assert_allclose(actual[1], expected[1], atol=1e-5)
  np.testing.assert_array_equal(np.where((labels < 0) | (labels > 4), actual[0][1], 0), 0)


@pytest.mark.parametrize('size', [(3, 4), (1, 2)])
def test_other_platforms_nats_are_those_of_a_cpu(size):
  """They enlarge all classes at once."""
  rng = np.random.default_rng(0)
  logits = jnp.asarray(5 * rng.standard_normal((2, *size, 5)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 5, (2, 4 * size[0], 3 * size[1])), jnp.int32)
  gradient = jnp.asarray(rng.standard_normal(labels.shape), jnp.float32)
  forward = fast_jit(nats._nats_by_class)(logits, labels)
  expected = fast_jit(nats._nats_by_enlarging)(logits, labels)
  np.testing.assert_allclose(forward, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    fast_jit(nats._gradient_by_class)(logits, labels, expected[1], gradient),
    fast_jit(nats._gradient_by_enlarging)(logits, labels, expected[1], gradient),
    atol=1e-5,
  )


def test_a_program_for_any_size_has_nats():
  """Sizes that are symbols are compared, never divided."""
  b, h, w = jax.export.symbolic_shape('b, h, w')
  shapes = (
    jax.ShapeDtypeStruct((b, h, w, 3), jnp.float32),
    jax.ShapeDtypeStruct((b, h, w), jnp.int32),
  )
  program = jax.export.export(jax.jit(pixel_nats))(*shapes)
  logits, labels = jnp.arange(36.0).reshape(1, 3, 4, 3), jnp.ones((1, 3, 4), jnp.int32)
  np.testing.assert_allclose(program.call(logits, labels), pixel_nats(logits, labels), rtol=1e-6)


def test_a_certain_pixel_keeps_what_is_left():
  """log(1 + 3 exp(-15.6)) and the like: by 1e-7 of the logit itself, they would be lost."""
  logits = jnp.array([[100.0, 86.0, 86.0, 0.0], [21.3, 3.1, 2.2, 5.7]])[:, None, None]
  labels = jnp.zeros((2, 2, 2), int)
  expected = np.float64(logits) - np.float64(logits[..., :1])
  expected = np.log1p(np.exp(expected[..., 1:]).sum(-1))
  np.testing.assert_allclose(
    pixel_nats(logits, labels), np.broadcast_to(expected, labels.shape), atol=1e-7, rtol=0.05
  )


@pytest.mark.parametrize('enable_x64', [False, True])
def test_nats_are_float32_where_they_are_enlarged_on_a_mesh_of_devices(enable_x64):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('d',))
  by_device = jax.sharding.PartitionSpec('d')

  def total(logits, labels):
    values = pixel_nats(logits, labels)
    assert values.dtype == jnp.float32
    return jnp.sum(values)[None]

  with jax.enable_x64(enable_x64):
    on_devices = jax.shard_map(total, mesh=mesh, in_specs=by_device, out_specs=by_device)
    logits, labels = jnp.ones((1, 2, 2, 3), jnp.float32), jnp.zeros((1, 4, 4), jnp.int32)
    gradient = fast_jit(jax.grad(lambda x: jnp.sum(on_devices(x, labels))))(logits)
  assert gradient.dtype == jnp.float32
  np.testing.assert_allclose(jnp.sum(gradient, -1), 0, atol=1e-6)
  np.testing.assert_allclose(jnp.sum(gradient[..., 0]), -16 * 2 / 3, rtol=1e-5)


@pytest.mark.parametrize('loss_fn', [cross_entropy, ohem_cross_entropy, edge_attention])
def test_losses_take_small_logits(loss_fn):
  logits, labels = _segmentation()
  logits, labels = logits[:, :9, :12], labels[:, :36, :36]
  edge_logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 36, 36, 1)), jnp.float32)
  options = {'edge_logits': 2 * edge_logits} if loss_fn is edge_attention else {}
  loss_fn = fast_jit(functools.partial(loss_fn, **options))
  small = loss_fn(logits, labels)
  np.testing.assert_allclose(small, loss_fn(resize_bilinear(logits, (36, 36)), labels), rtol=1e-5)
  np.testing.assert_allclose(
    loss_fn(logits, labels, nats=pixel_nats(logits, labels)), small, rtol=1e-6
  )


@pytest.mark.parametrize('edges', [0.0, 1.0])
def test_boundary_bce_without_boundaries_or_without_others_is_zero(edges):
  logits = jnp.linspace(-100, 100, 16).reshape(1, 4, 4, 1)
  value, gradient = jax.value_and_grad(lambda x: boundary_bce(x, jnp.full_like(x, edges))[0])(
    logits
  )
  assert float(value) == 0
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('dtype', [bool, jnp.float32])
def test_masking_boundary_pixels_equals_dropping_them(inputs, dtype):
  *_, edge_logits, edges = inputs
  valid = jnp.ones_like(edges).at[:, :20].set(0).astype(dtype)
  total, count = boundary_bce(edge_logits, edges, valid=valid)
  expected, expected_count = boundary_bce(edge_logits[:, 20:], edges[:, 20:])
  assert float(count) == float(expected_count)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  gradient = jax.grad(lambda x: boundary_bce(x, edges, valid=valid)[0])(edge_logits)
  np.testing.assert_array_equal(gradient[:, :20], 0)


def test_boundary_bce_of_nothing_is_zero(inputs):
  *_, edge_logits, edges = inputs
  total, count = boundary_bce(edge_logits, edges, valid=jnp.zeros_like(edges))
  assert (float(total), float(count)) == (0, 0)


def test_total_matches_the_original(inputs):
  """The release's sum from our parts.

  InverseForm's addend is the reference's own number, its network being large: it is held in
  test_inverseform.py. Its gradient is 0.
  """
  logits, labels, edge_logits, edges = inputs
  threshold = float(jax.nn.sigmoid(0.8))

  def loss(x, edge_x):
    boundary, count = boundary_bce(edge_x, edges)
    attention = edge_attention(x, labels, edge_x, threshold=threshold)[0]
    inverse = REFERENCE['inverseform_as_released'].astype(np.float32)
    return cross_entropy(x, labels)[0] + 0.3 * boundary / count + 0.1 * attention + 0.3 * inverse

  value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(logits, edge_logits)
  np.testing.assert_allclose(value, REFERENCE['total_as_released'], rtol=1e-4)
  _assert_gradient(gradients[0], 'total_as_released.dlogits')
  _assert_gradient(gradients[1], 'total_as_released.dedge')


def _mean(loss_fn, labels, **options):
  """The mean of a loss as a function of its logits."""

  def mean(logits):
    total, count = loss_fn(logits, labels, **options)
    return total / count

  return mean


@pytest.mark.parametrize(('threshold', 'min_kept'), [(0.7, 500), (0.9, 500), (0.7, 3000)])
def test_ohem_matches_the_original(threshold, min_kept):
  logits, labels = _segmentation()
  mean = _mean(ohem_cross_entropy, labels, threshold=threshold, min_kept=min_kept)
  value, gradient = fast_jit(jax.value_and_grad(mean))(logits)
  name = f'ohem.{threshold}.{min_kept}'
  np.testing.assert_allclose(value, SEGMENTATION[name], rtol=1e-4)
  np.testing.assert_allclose(
    jnp.linalg.norm(gradient), SEGMENTATION[f'{name}.dlogits.norm'], rtol=1e-4
  )


@pytest.mark.parametrize('min_kept', [1, 100, 3000, 5000, 100_000])
def test_ohem_keeps_the_hardest_pixels(min_kept):
  """Few are below the threshold, so that `min_kept` decides; 3000 is all of them and some more."""
  logits, labels = _segmentation()
  logits, labels = logits[:1], labels[:1]
  nats = -np.asarray(jax.nn.log_softmax(logits))[labels < 19, np.asarray(labels)[labels < 19]]
  hard = np.sort(nats)[::-1][: max(min_kept, np.sum(nats > -np.log(0.01)))]
  total, count = ohem_cross_entropy(logits, labels, threshold=0.01, min_kept=min_kept)
  assert int(count) == len(hard)
  np.testing.assert_allclose(total, hard.sum(), rtol=1e-5)


def test_ohem_keeps_a_sixteenth_where_all_is_easy():
  labels = jnp.arange(64).reshape(1, 8, 8) % 3
  confident = (5 + jnp.arange(64.0).reshape(1, 8, 8, 1) / 64) * jax.nn.one_hot(labels, 3)
  assert int(ohem_cross_entropy(confident, labels)[1]) == 4


@pytest.mark.parametrize(('bce_share', 'name'), [(0.5, 'rmi'), (1.0, 'rmi.bce_only')])
def test_rmi_matches_the_original(bce_share, name):
  logits, labels = _segmentation()
  mean = _mean(rmi, labels, bce_share=bce_share)
  value, gradient = fast_jit(jax.value_and_grad(mean))(logits)
  np.testing.assert_allclose(value, SEGMENTATION[name], rtol=1e-4)
  if name == 'rmi':
    norm = SEGMENTATION['rmi.dlogits.norm']
    np.testing.assert_allclose(jnp.linalg.norm(gradient), norm, rtol=1e-4)


def _region_term(logits, labels):
  """As the paper writes it, in float64, for one image; pooled by hand, at multiples of 4."""

  def points(maps):
    padded = np.pad(maps, ((2, 2), (2, 2), (0, 0)))
    rows, columns = (size // 4 for size in padded.shape[:2])
    pooled = padded.reshape(rows, 4, columns, 4, -1).mean((1, 3))
    windows = np.lib.stride_tricks.sliding_window_view(pooled, (3, 3), axis=(0, 1))
    points = windows.reshape(-1, windows.shape[2], 9).transpose(1, 2, 0)
    return points - points.mean(-1, keepdims=True)

  y = points(np.eye(logits.shape[-1])[labels])
  p = points(1 / (1 + np.exp(-logits)))
  ridge = 5e-4 * np.eye(9)
  y_p = y @ p.transpose(0, 2, 1)
  inverse = np.linalg.inv(p @ p.transpose(0, 2, 1) + ridge)
  left = y @ y.transpose(0, 2, 1) - y_p @ inverse @ y_p.transpose(0, 2, 1)
  return np.linalg.slogdet(left + ridge)[1].sum() / 18


def test_rmi_matches_the_formula_in_value_and_gradient():
  rng = np.random.RandomState(0)
  labels = np.kron(rng.randint(0, 3, (8, 6)), np.ones((4, 4), int))
  logits, direction = rng.standard_normal((2, 32, 24, 3))
  loss_fn = _mean(rmi, jnp.asarray(labels)[None], bce_share=0.0)
  at, towards = jnp.float32(logits)[None], jnp.float32(direction)[None]
  value, slope = fast_jit(lambda x, dx: jax.jvp(loss_fn, (x,), (dx,)))(at, towards)
  np.testing.assert_allclose(value, _region_term(logits, labels), rtol=1e-5)
  step = 1e-5 * direction
  ahead, behind = _region_term(logits + step, labels), _region_term(logits - step, labels)
  np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-4)


def test_rmi_of_straight_edges_which_make_the_covariance_singular():
  """Where prediction and label agree, an eigenvalue v leaves ridge (v / (v + ridge) + 1).

  The edge is vertical: of the nine directions of a neighbourhood six vary not at all.
  """
  labels = jnp.zeros((1, 510, 510), jnp.int32).at[:, :, 240:].set(1)
  logits = 200 * jax.nn.one_hot(labels, 2) - 100
  columns = np.zeros((128, 2))
  columns[:60, 0], columns[60, :], columns[61:, 1] = 1, 0.5, 1
  columns[0] /= 2
  value, gradient = fast_jit(jax.value_and_grad(_mean(rmi, labels, bce_share=0.0)))(logits)
  assert np.isfinite(gradient).all()
  expected = 0
  for column in columns.T:
    image = np.outer(np.r_[0.5, np.ones(127)], column)
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3)).reshape(-1, 9)
    values = np.linalg.eigvalsh(np.cov(windows.T, bias=True) * len(windows)).clip(0)
    expected += np.log(5e-4 * (values / (values + 5e-4) + 1)).sum() / 18
  np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_rmi_of_a_class_that_is_nowhere_is_a_constant():
  labels = jnp.zeros((2, 16, 24), jnp.int32)
  logits = jnp.asarray(np.random.RandomState(1).standard_normal((2, 16, 24, 2)), jnp.float32)
  value_and_grad = fast_jit(jax.value_and_grad(_mean(rmi, labels, bce_share=0.0)))
  value, gradient = value_and_grad(logits)
  np.testing.assert_allclose(gradient[..., 1], 0, atol=1e-6)
  np.testing.assert_allclose(value_and_grad(logits.at[..., 1].set(3))[0], value, rtol=1e-5)


def test_rmi_does_without_lapack_in_which_two_heads_could_stand_still():
  logits, labels = _segmentation()
  program = jax.jit(jax.grad(_mean(rmi, labels))).lower(logits).as_text()
  assert 'lapack' not in program
  assert 'lapack' in jax.jit(jnp.linalg.eigh).lower(jnp.eye(3)).as_text()


SEGMENTATION_LOSSES = [cross_entropy, ohem_cross_entropy, rmi]


@pytest.mark.parametrize('loss_fn', SEGMENTATION_LOSSES)
def test_bfloat16_gives_nearly_the_same(loss_fn):
  logits, labels = _segmentation()
  value_and_grad = fast_jit(jax.value_and_grad(_mean(loss_fn, labels)))
  value, gradient = value_and_grad(logits)
  half_value, half_gradient = value_and_grad(logits.astype(jnp.bfloat16))
  assert (half_value.dtype, half_gradient.dtype) == (jnp.float32, jnp.bfloat16)
  np.testing.assert_allclose(half_value, value, rtol=0.02)
  np.testing.assert_allclose(
    jnp.linalg.norm(half_gradient.astype(jnp.float32)), jnp.linalg.norm(gradient), rtol=0.02
  )


@pytest.mark.parametrize('loss_fn', SEGMENTATION_LOSSES)
def test_finite_where_nothing_varies(loss_fn):
  value_and_grad = fast_jit(jax.value_and_grad(lambda x, y: loss_fn(x, y)[0]))
  for logit, label in itertools.product((0.0, 100.0, -100.0), (0, 1, 255)):
    logits = jnp.zeros((2, 16, 24, 3)).at[..., 0].set(logit)
    value, gradient = value_and_grad(logits, jnp.full((2, 16, 24), label))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    if label == 255:
      np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize('loss_fn', SEGMENTATION_LOSSES)
def test_logits_of_ignored_pixels_do_not_matter(loss_fn):
  logits, labels = _segmentation()
  ignored = labels[..., None] == 255
  value_and_grad = fast_jit(jax.value_and_grad(_mean(loss_fn, labels)))
  value, gradient = value_and_grad(logits)
  np.testing.assert_array_equal(jnp.where(ignored, gradient, 0), 0)
  other, _ = value_and_grad(jnp.where(ignored, 50 - logits, logits))
  np.testing.assert_allclose(other, value, rtol=1e-6)


def test_ohem_masking_equals_dropping():
  logits, labels = _segmentation()
  options = {'threshold': 0.01, 'min_kept': 1000}
  ohem = fast_jit(functools.partial(ohem_cross_entropy, **options))
  masked = ohem(logits, labels.at[:, 20:].set(255))
  dropped = ohem(logits[:, :20], labels[:, :20])
  np.testing.assert_allclose(masked, dropped, rtol=1e-5)


def test_shapes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match=r'\(1, 4, 4, 3\) and \(1, 4, 5\)'):
    cross_entropy(jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 5), jnp.int32))
  with pytest.raises(ValueError, match=r'whole multiples of them, got \(1, 4, 4, 3\)'):
    pixel_nats(jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 8, 6), jnp.int32))
  with pytest.raises(ValueError, match=r'like the labels, \(1, 8, 8\), got \(1, 4, 4\)'):
    cross_entropy(
      jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 8, 8), jnp.int32), nats=jnp.zeros((1, 4, 4))
    )
  with pytest.raises(ValueError, match=r'\(1, 4, 4, 3\) and \(1, 8, 8\)'):
    rmi(jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 8, 8), jnp.int32))
  with pytest.raises(ValueError, match='differ in shape'):
    boundary_bce(jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 4, 4)))
  with pytest.raises(ValueError, match='edges and valid differ in shape'):
    boundary_bce(jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 4, 4, 1)), valid=jnp.ones((1, 4, 4)))
  with pytest.raises(ValueError, match=r'at least 8 x 8 pixels, got \(4, 9\)'):
    rmi(jnp.zeros((1, 4, 9, 2)), jnp.zeros((1, 4, 9), jnp.int32))
  with pytest.raises(ValueError, match='at least 1 pixel, got 0'):
    ohem_cross_entropy(jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 4), jnp.int32), min_kept=0)
