"""Inverse networks: the fit is exact, odd tiles break nothing, weight folders come back."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from if_jax.data.decode import decode_label
from if_jax.data.streets import Streets
from if_jax.losses.inverseform import cut_tiles
from if_jax.models import inversenet
from if_jax.models.inversenet import (
  InverseMatcher,
  InverseMLP,
  create_inversenet,
  load_inversenet,
)
from if_jax.ops.boundaries import boundary_map
from if_jax.ops.transforms import matrix_from_parameters, transform_points
from if_jax.ops.warp import homography_warp
from if_jax.weights import save_weights

# Compiled with few optimisations, in a third of the time.
fast_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
fast_fit = fast_jit(inversenet._fit, static_argnums=4)
SIZE = 48
MATCHER = InverseMatcher(width=8, num_features=4, gates=(6.0, 2.0))


@functools.cache
def matcher_variables():
  tile = jnp.zeros((1, SIZE, SIZE, 1))
  return fast_jit(MATCHER.init)(jax.random.key(0), tile, tile)


def random_tiles(num_tiles=3, size=SIZE):
  rng = np.random.RandomState(0)
  return [rng.uniform(size=(num_tiles, size, size, 1)).astype(np.float32) for _ in range(2)]


def random_parameters(num_parameters, num_tiles=5):
  limits = {4: 0.3, 6: 0.2, 8: 0.1}
  rng = np.random.RandomState(num_parameters)
  shape = (num_tiles, num_parameters)
  return rng.uniform(-1, 1, shape).astype(np.float32) * limits[num_parameters]


@pytest.mark.parametrize('num_outputs', [4, 6, 8])
def test_the_fit_to_true_matches_is_the_transform(num_outputs):
  """Whatever their precisions; points without precision may lie anywhere."""
  rng = np.random.RandomState(0)
  points = rng.uniform(-1, 1, (40, 2)).astype(np.float32)
  parameters = random_parameters(num_outputs)
  matches = np.array(transform_points(parameters, points))
  root = rng.normal(size=(5, 40, 2, 2))
  precision = (root @ root.swapaxes(-1, -2) + 0.1 * np.eye(2)).astype(np.float32)
  # Where a point's precision is that of a line, its match may lie anywhere along it.
  precision[:, 0] = [[0, 0], [0, 2]]
  matches[:, 0, 0] += 0.7
  precision[:, 1], matches[:, 1] = 0, -3
  if num_outputs == 8:  # Its basis depends on where a match lies along a line, too.
    precision[:, 0] = 0
  fit = fast_fit(points, matches, precision, 0.0, num_outputs)
  np.testing.assert_allclose(fit, parameters, atol=1e-4)


@pytest.mark.parametrize('num_outputs', [4, 6, 8])
def test_the_fit_to_nothing_is_the_identity(num_outputs):
  points, matches = np.ones((3, 2), np.float32), np.full((2, 3, 2), 0.5, np.float32)
  fit = fast_fit(points, matches, np.zeros((2, 3, 2, 2), np.float32), 1.0, num_outputs)
  np.testing.assert_array_equal(fit, np.zeros((2, num_outputs)))


@pytest.mark.parametrize('num_outputs', [4, 6, 8])
@pytest.mark.parametrize('size', [(16, 16), (32, 64), (80, 80)])
def test_tiles_may_have_any_size_in_sixteens(num_outputs, size):
  model = MATCHER.clone(num_outputs=num_outputs)
  tile = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), tile, tile)
  apply = functools.partial(model.apply, every_round=True)
  rounds = jax.eval_shape(apply, variables, tile, tile)
  assert rounds.shape == (len(model.gates), 2, num_outputs)
  # The same weights for all sizes.
  shapes = jax.tree.map(jnp.shape, jax.eval_shape(MATCHER.init, jax.random.key(0), tile, tile))
  assert jax.tree.map(jnp.shape, variables) == shapes


def test_other_sizes_are_told():
  tile = jnp.zeros((1, 40, 48, 1))
  with pytest.raises(ValueError, match='multiple of 16'):
    MATCHER.init(jax.random.key(0), tile, tile)
  with pytest.raises(ValueError, match='must both be'):
    MATCHER.init(jax.random.key(0), jnp.zeros((2, 48, 48, 1)), jnp.zeros((1, 48, 48, 1)))


def test_the_matcher_is_the_same_under_jit_in_any_order_and_in_rounds():
  variables, (prediction, target) = matcher_variables(), random_tiles()
  apply = fast_jit(MATCHER.apply)
  estimate = apply(variables, prediction, target)
  assert estimate.shape == (3, 4)
  eager = MATCHER.apply(variables, prediction, target, every_round=True)
  np.testing.assert_allclose(estimate, eager[-1], atol=1e-5)
  order = [2, 0, 1]
  permuted = apply(variables, prediction[order], target[order])
  np.testing.assert_allclose(permuted, estimate[np.array(order)], atol=1e-5)
  assert np.ptp(estimate, axis=0).min() > 1e-4


def test_gradients_of_odd_tiles_are_finite():
  apply_fn, variables = load_inversenet()
  empty, full = jnp.zeros((1, SIZE, SIZE, 1)), jnp.ones((1, SIZE, SIZE, 1))
  line = empty.at[:, 20:23].set(1)
  tiles = jnp.concatenate([empty, full, line])
  prediction, target = (jnp.concatenate(3 * [tiles]), jnp.repeat(tiles, 3, axis=0))

  def total(variables, prediction):
    estimate = apply_fn(variables, prediction, target)
    return jnp.sum(jnp.square(estimate)), estimate

  gradients, estimate = fast_jit(jax.grad(total, argnums=(0, 1), has_aux=True))(
    variables, prediction
  )
  assert np.isfinite(estimate).all()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
  assert np.abs(gradients[1]).max() > 0


def test_the_default_measures_scenes_it_never_saw():
  """What its training reached on real boundaries is in docs/inversenet.md; this is less."""
  scenes = Streets(2, (224, 448), seed=1234)
  ids = [scenes.label_set.to_train_ids(decode_label(s['label'], ''), '') for s in scenes]
  edges = boundary_map(jnp.asarray(ids), radius=2)
  target = cut_tiles(edges, 1, 2, 224)
  parameters = jnp.array([[0, 0, 0, 0], [10 / 112, 0, 0, 0], [-0.1, 0.15, 0.1, -0.15]])
  warped = [
    homography_warp(target, matrix_from_parameters(jnp.broadcast_to(x, (4, 4)))) for x in parameters
  ]
  apply_fn, variables = load_inversenet()
  empty = jnp.zeros_like(target[:1])
  estimate = fast_jit(apply_fn)(
    variables, jnp.concatenate([*warped, empty]), jnp.concatenate([target, target, target, empty])
  )
  aligned, shifted, both, nothing = np.split(np.asarray(estimate), [4, 8, 12])
  norms = [np.linalg.norm(x, axis=1).mean() for x in (aligned, shifted, nothing)]
  assert norms[0] < norms[1] / 10
  assert norms[2] < norms[1] / 10
  errors = np.abs(np.stack([shifted, both]) - parameters[1:, None]).mean(axis=1)
  assert errors[:, :2].max() < 2 / 112
  assert errors[:, 2:].max() < 0.03


def test_the_default_is_small():
  folder = Path(inversenet.__file__).parent.parent / 'pretrained' / 'inversenet'
  assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6


def test_the_released_layout_takes_any_tile():
  model = InverseMLP(num_outputs=6, hidden=(5, 3))
  prediction, target = random_tiles(size=8)
  variables = fast_jit(model.init)(jax.random.key(0), prediction, target)
  assert variables['params']['hidden0']['kernel'].shape == (2 * 8 * 8, 5)
  estimate = model.apply(variables, prediction, target)
  rounds = model.apply(variables, prediction, target, every_round=True)
  assert estimate.shape == (3, 6)
  np.testing.assert_array_equal(rounds, estimate[None])


def save_inversenet(folder, architecture, num_outputs=4, tile_size=16, card=None):
  model = create_inversenet(architecture, num_outputs)
  tile = jnp.zeros((1, tile_size, tile_size, 1))
  shapes = jax.eval_shape(model.init, jax.random.key(0), tile, tile)
  rng = np.random.RandomState(1)
  variables = jax.tree.map(
    lambda x: np.asarray(0.1 * rng.standard_normal(x.shape), np.float32), shapes
  )
  layout = {'architecture': architecture, 'num_outputs': num_outputs, 'tile_size': tile_size}
  save_weights(folder, variables, {'model': 'inversenet', **layout, **(card or {})})
  return variables


@pytest.mark.parametrize(
  ('architecture', 'num_outputs', 'tile_size'), [('matcher', 6, 32), ('mlp', 4, 16)]
)
def test_a_weight_folder_comes_back(tmp_path, architecture, num_outputs, tile_size):
  saved = save_inversenet(tmp_path, architecture, num_outputs, tile_size)
  apply_fn, variables = load_inversenet(tmp_path)
  np.testing.assert_equal(variables, saved)
  tiles = jax.ShapeDtypeStruct((2, tile_size, tile_size, 1), jnp.float32)
  estimate = jax.eval_shape(apply_fn, variables, tiles, tiles)
  assert (estimate.shape, estimate.dtype) == ((2, num_outputs), jnp.float32)


def test_other_folders_are_told(tmp_path):
  with pytest.raises(ValueError, match='there is no such folder'):
    load_inversenet(tmp_path / 'none')
  with pytest.raises(ValueError, match='no weights in'):
    load_inversenet(tmp_path)
  save_weights(tmp_path, {'params': {'a': np.zeros(3, np.float32)}}, {'model': 'hrnet18'})
  with pytest.raises(ValueError, match='are of hrnet18, not of an inverse network'):
    load_inversenet(tmp_path)
  save_inversenet(tmp_path, 'mlp', card={'num_outputs': 6})
  with pytest.raises(ValueError, match='do not fit mlp with 6 outputs: 2 mis-shaped'):
    load_inversenet(tmp_path)
  save_inversenet(tmp_path, 'mlp', card={'architecture': 'cnn'})
  with pytest.raises(ValueError, match="no inverse network 'cnn'; there are matcher, mlp"):
    load_inversenet(tmp_path)
