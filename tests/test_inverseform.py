"""The InverseForm loss against the original's numbers, and the properties it must have."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads

from convert import from_torch
from if_jax.losses.inverseform import (
  cut_tiles,
  euclidean_distance,
  geodesic_distance,
  inverseform,
  inverseform_as_released,
)
from if_jax.models.inversenet import InverseMLP, load_inversenet

REFERENCE = reference.load('losses')
TILE = 8
KERNEL = 0.1 * np.random.RandomState(0).standard_normal((TILE, TILE, 1, 4)).astype(np.float32)


@pytest.fixture(scope='module')
def released_net():
  """100 M weights, 400 MB."""
  variables = from_torch(reference.state_dict('inversenet'), 'inversenet')
  variables = jax.tree.map(jnp.asarray, variables)
  return functools.partial(jax.jit(InverseMLP().apply), variables)


@pytest.fixture(scope='module')
def maps():
  """Edge logits and edges [2, 72, 120, 1], drawn as tests/data/README.md says."""
  rng = np.random.RandomState(2000)
  rng.uniform(size=(10, 1, 224, 224))
  rng.standard_normal((2, 19, 72, 120))
  rng.randint(0, 19, (2, 72, 120))
  rng.uniform(size=(2, 72, 120))
  edge_logits = 2 * rng.standard_normal((2, 1, 72, 120))
  edges = rng.uniform(size=(2, 1, 72, 120)) < 0.15
  np.testing.assert_array_equal(edges, REFERENCE['edges'])
  return jnp.float32(reference.nhwc(edge_logits)), jnp.float32(reference.nhwc(edges))


def _linear_net(prediction, target):
  """Four weighted sums of the difference: exactly 0 for equal maps."""
  return jnp.tensordot(prediction - target, KERNEL, 3)


small_inverseform = functools.partial(inverseform, inverse_net=_linear_net, tile_size=TILE)


def _small_maps(shape=(2, 24, 48, 1)):
  rng = np.random.RandomState(1)
  edge_logits = jnp.float32(2 * rng.standard_normal(shape))
  return edge_logits, jnp.float32(rng.uniform(size=shape) < 0.2)


def _mean(pair):
  total, count = pair
  return total / count


def test_value_and_gradient_match_the_original(released_net, maps):
  edge_logits, edges = maps
  value, gradient = jax.value_and_grad(
    lambda x: _mean(inverseform(x, edges, released_net, tile_columns=6, gradient='full'))
  )(edge_logits)
  np.testing.assert_allclose(value, REFERENCE['inverseform_sigmoid'], rtol=1e-4)
  expected = reference.nhwc(REFERENCE['inverseform_sigmoid.dedge'])
  np.testing.assert_allclose(
    gradient[:, ::6, ::6], expected, rtol=0, atol=1e-4 * np.abs(expected).max()
  )
  norm = REFERENCE['inverseform_sigmoid.dedge.norm']
  np.testing.assert_allclose(jnp.linalg.norm(gradient), norm, rtol=1e-4)
  assert np.abs(gradient).min() > 0


def test_shrunken_maps_match_the_original(released_net):
  shape = (1, 840, 1400, 1)
  edge_logits = jnp.float32(2 * np.random.RandomState(4000).standard_normal(shape))
  edges = jnp.float32(np.random.RandomState(4001).uniform(size=shape) < 0.15)
  value, gradient = jax.value_and_grad(
    lambda x: _mean(inverseform(x, edges, released_net, tile_columns=6, gradient='full'))
  )(edge_logits)
  name = 'inverseform_sigmoid_840x1400'
  np.testing.assert_allclose(value, REFERENCE[name], rtol=1e-4)
  np.testing.assert_allclose(jnp.linalg.norm(gradient), REFERENCE[f'{name}.dedge.norm'], rtol=1e-4)


def test_the_released_loss_has_its_value_and_no_gradient(released_net, maps):
  edge_logits, edges = maps
  value, gradient = jax.value_and_grad(
    lambda x: _mean(inverseform_as_released(x, edges, released_net))
  )(edge_logits)
  np.testing.assert_allclose(value, REFERENCE['inverseform_as_released'], rtol=1e-4)
  np.testing.assert_array_equal(gradient, 0)


def test_jit_equals_eager():
  edge_logits, edges = _small_maps()
  expected = small_inverseform(edge_logits, edges)
  np.testing.assert_allclose(jax.jit(small_inverseform)(edge_logits, edges), expected, rtol=1e-5)


@pytest.mark.parametrize('distance', ['euclidean', 'geodesic'])
def test_bfloat16_comes_within_two_percent(distance):
  edge_logits, edges = _small_maps()
  loss = jax.jit(
    jax.value_and_grad(lambda x: _mean(small_inverseform(x, edges, distance=distance)))
  )
  value, gradient = loss(edge_logits)
  rounded_value, rounded = loss(edge_logits.astype(jnp.bfloat16))
  assert rounded.dtype == jnp.bfloat16
  np.testing.assert_allclose(rounded_value, value, rtol=0.02)
  difference = jnp.linalg.norm(rounded.astype(jnp.float32) - gradient)
  assert difference < 0.02 * jnp.linalg.norm(gradient)


def test_tiles_without_a_boundary_count_for_nothing():
  edge_logits, edges = _small_maps()
  edges = edges.at[0, :8, 8:16].set(0).at[1, 16:].set(0)
  (total, count), gradient = jax.value_and_grad(
    jax.jit(lambda x: small_inverseform(x, edges)), has_aux=True
  )(edge_logits)
  edge_logits, edges = np.asarray(edge_logits), np.asarray(edges)
  assert count == 2 * 18 - 7
  np.testing.assert_array_equal(gradient[0, :8, 8:16], 0)
  np.testing.assert_array_equal(gradient[1, 16:], 0)
  expected = 0
  for image, row, column in np.ndindex(2, 3, 6):
    tile = np.s_[image, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    if edges[tile].any():
      difference = 1 / (1 + np.exp(-edge_logits[tile])) - edges[tile]
      expected += np.linalg.norm(np.tensordot(difference, KERNEL, 3))
  np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('size', 'columns'), [((30, 40), 4), ((20, 60), 9), ((60, 30), 2), ((99, 10), 1), ((24, 48), 6)]
)
def test_the_grid_follows_the_aspect_ratio(size, columns):
  seen = []

  def inverse_net(prediction, target):
    seen.extend([prediction.shape, target.shape])
    return jnp.zeros((len(target), 4))

  _, count = inverseform(
    jnp.zeros((2, *size, 1)), jnp.ones((2, *size, 1)), inverse_net, tile_size=8
  )
  assert set(seen) == {(2 * 3 * columns, 8, 8, 1)}
  assert count == 2 * 3 * columns


@pytest.mark.parametrize('distance', ['euclidean', 'geodesic'])
def test_value_and_gradient_are_finite_for_empty_full_and_identical_maps(distance):
  """At 200, the probability is exactly 0 or 1: identical maps have distance 0, with a kink."""
  _, some = _small_maps((1, 24, 48, 1))
  loss = jax.jit(
    jax.value_and_grad(
      lambda x, edges: small_inverseform(x, edges, distance=distance), has_aux=True
    )
  )
  targets = some, jnp.zeros_like(some), jnp.ones_like(some)
  for scale, edges in itertools.product((0, 1, 200), targets):
    (total, count), gradient = loss(scale * (edges - 0.5), edges)
    assert count == (18 if edges.any() else 0)
    if scale == 200 or not edges.any():
      np.testing.assert_allclose(total, 0, atol=1e-6)
      np.testing.assert_allclose(gradient, 0, atol=1e-6)
    else:
      assert 0 < total < np.inf
      assert np.isfinite(gradient).all()
      # A prediction that is the same everywhere does not move.
      assert gradient.any() == (scale == 1 and edges is some)


def test_pixels_that_are_not_valid_are_empty_in_both_maps():
  edge_logits, edges = _small_maps()
  valid = jnp.ones(edges.shape, bool).at[:, :10, 5:30].set(False)
  (total, count), gradient = jax.value_and_grad(
    jax.jit(lambda x: small_inverseform(x, edges, valid=valid)), has_aux=True
  )(edge_logits)
  np.testing.assert_array_equal(gradient[~valid], 0)
  assert (gradient[valid] != 0).mean() > 0.9
  emptied = jnp.where(valid, edge_logits, -200), jnp.where(valid, edges, 0)
  np.testing.assert_allclose((total, count), small_inverseform(*emptied), rtol=1e-5)


def test_tiles_are_slices_of_the_resized_maps_row_by_row():
  maps = np.random.RandomState(0).standard_normal((2, 12, 20, 3)).astype(np.float32)
  tiles = np.asarray(cut_tiles(jnp.asarray(maps), 3, 5, 4))
  for n, (image, row, column) in enumerate(np.ndindex(2, 3, 5)):
    expected = maps[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
    np.testing.assert_array_equal(tiles[n], expected)
  plane = jnp.arange(20.0) + 100 * jnp.arange(12.0)[:, None]
  # Enlarged threefold, pixel k has its centre at (k - 1) / 3 of the old ones.
  last = cut_tiles(plane[None, ..., None], 3, 5, 12)[7, ..., 0]
  rows, columns = (np.arange(12, 24) - 1) / 3, (np.arange(24, 36) - 1) / 3
  np.testing.assert_allclose(last, columns + 100 * rows[:, None], rtol=1e-5)


def _numpy_geodesic(matrix, residual_weight=0.1):
  u, _, v_transposed = np.linalg.svd(matrix)
  rotation = u @ np.diag([1, 1, np.linalg.det(u @ v_transposed)]) @ v_transposed
  angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
  return angle + residual_weight * np.sum((matrix - rotation) ** 2)


def _homography(parameters):
  return np.eye(3) + np.append(parameters, 0).reshape(3, 3)


def test_geodesic_distance_matches_numpy():
  estimate, truth = 0.4 * np.random.RandomState(0).standard_normal((2, 10, 8))
  expected = [_numpy_geodesic(_homography(p)) for p in estimate]
  actual = jax.jit(geodesic_distance)(jnp.float32(estimate))
  np.testing.assert_allclose(actual, expected, rtol=1e-4)
  expected = [
    _numpy_geodesic(np.linalg.inv(_homography(t)) @ _homography(p), residual_weight=0.3)
    for p, t in zip(estimate, truth, strict=True)
  ]
  with_weight = jax.jit(functools.partial(geodesic_distance, residual_weight=0.3))
  actual = with_weight(jnp.float32(estimate), jnp.float32(truth))
  np.testing.assert_allclose(actual, expected, rtol=1e-3)


def test_geodesic_distance_of_rotations_is_their_angle():
  angles = np.array([0, 1e-3, 0.5, -2])
  cosine, sine = np.cos(angles), np.sin(angles)
  zero = np.zeros_like(angles)
  rotations = jnp.float32(np.stack([cosine - 1, -sine, zero, sine, cosine - 1, zero], -1))
  turned_by_half = jnp.tile(rotations[2:3], (4, 1))
  for truth, expected in ((None, angles), (turned_by_half, angles - 0.5)):
    actual = jax.jit(geodesic_distance)(rotations, truth)
    np.testing.assert_allclose(actual, np.abs(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
  ('distance', 'count'), [(euclidean_distance, 6), (geodesic_distance, 4), (geodesic_distance, 8)]
)
def test_distances_have_the_gradient_of_their_differences(distance, count):
  with jax.enable_x64(True):
    pair = 0.3 * np.random.RandomState(count).standard_normal((2, 3, count))
    check_grads(jax.jit(distance), tuple(jnp.asarray(pair)), order=1, modes=['rev'], eps=1e-6)


@pytest.mark.parametrize('distance', [euclidean_distance, geodesic_distance])
def test_distances_at_the_truth_are_zero_and_their_gradients_finite(distance):
  truth = jnp.concatenate([jnp.zeros((3, 8)), 0.2 * jax.random.normal(jax.random.key(0), (3, 8))])
  value, pullback = jax.vjp(jax.jit(distance), truth, truth)
  np.testing.assert_allclose(value, 0, atol=1e-6)
  gradient, _ = pullback(jnp.ones(6))
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(gradient[:3], 0, atol=1e-6)


def test_mistakes_are_named():
  edge_logits, edges = _small_maps()
  for function in (inverseform, inverseform_as_released):
    with pytest.raises(ValueError, match=r'\(2, 24, 48, 2\) and \(2, 24, 48, 1\)'):
      function(jnp.zeros((2, 24, 48, 2)), edges, _linear_net)
    with pytest.raises(ValueError, match='got 0 x 6 of 8'):
      function(edge_logits, edges, _linear_net, tile_rows=0, tile_columns=6, tile_size=8)
  with pytest.raises(ValueError, match=r'shape of edges, \(2, 24, 48, 1\), got \(2, 24, 48\)'):
    small_inverseform(edge_logits, edges, valid=edges[..., 0])
  with pytest.raises(ValueError, match=r"unknown distance 'geodetic'.*Did you mean 'geodesic'"):
    small_inverseform(edge_logits, edges, distance='geodetic')
  with pytest.raises(ValueError, match=r'\[N, P\], got \(36,\)'):
    inverseform(edge_logits, edges, lambda p, t: jnp.zeros(len(p)), tile_size=8)
  with pytest.raises(ValueError, match='4, 6 or 8 parameters, got 5'):
    geodesic_distance(jnp.zeros((2, 5)))
  with pytest.raises(ValueError, match=r'got \(2, 4\) and \(2, 6\)'):
    euclidean_distance(jnp.zeros((2, 4)), jnp.zeros((2, 6)))


def test_the_shipped_network_in_the_loss():
  """Whatever the maps, value and gradient are finite; jit, bfloat16 and equal maps do not differ.

  Tiles of 64 pixels, for speed.
  """
  inverse_net = functools.partial(*load_inversenet())
  square = jnp.zeros((1, 64, 128, 1)).at[:, 20:44, 30:90].set(1)
  edges = square - jnp.zeros_like(square).at[:, 24:40, 34:86].set(1)
  loss = functools.partial(inverseform, inverse_net=inverse_net, tile_rows=1, tile_size=64)
  value_and_grad = jax.jit(jax.value_and_grad(lambda x, edges: loss(x, edges)[0]))
  aligned, _ = value_and_grad(20 * edges - 10, edges)
  shifted_logits = 20 * jnp.roll(edges, 4, axis=2) - 10
  shifted, gradient = value_and_grad(shifted_logits, edges)
  assert aligned < 0.1 * shifted
  assert np.abs(gradient).max() > 0
  np.testing.assert_allclose(loss(shifted_logits, edges)[0], shifted, rtol=1e-3)
  rounded, _ = value_and_grad(shifted_logits.astype(jnp.bfloat16), edges)
  np.testing.assert_allclose(rounded, shifted, rtol=0.02)
  for prediction in (-10.0, 10.0):
    for truth in (jnp.zeros_like(edges), jnp.ones_like(edges), edges):
      value, gradient = value_and_grad(jnp.full_like(edges, prediction), truth)
      assert np.isfinite(value) and np.isfinite(gradient).all()
