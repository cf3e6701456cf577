"""Pairs of tiles: the transform between them is the one that is said, and nothing is invented."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from if_jax.boundary_pairs import (
  CROP_SIZE,
  PairSettings,
  corrupt,
  draw_pairs,
  draw_parameters,
  label_crops,
)
from if_jax.data.labels import IGNORE
from if_jax.ops.boundaries import boundary_map
from if_jax.ops.transforms import matrix_from_parameters
from if_jax.ops.warp import homography_warp

# Compiled with few optimisations, in a third of the time.
fast_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def label_maps():
  """Two maps, of unequal sizes, of rectangles."""
  rng = np.random.default_rng(0)
  maps = [np.zeros((200, 300), np.uint8), np.full((360, 240), 7, np.uint8)]
  for label_map in maps:
    for label in range(1, 30):
      y, x = rng.integers(0, label_map.shape)
      height, width = rng.integers(20, 80, 2)
      label_map[y : y + height, x : x + width] = label
  return maps


@functools.cache
def drawn(num_parameters):
  settings = PairSettings(num_parameters, tile_size=64, clean=1.0, identity=0.25)
  crops = label_crops(label_maps(), 24, np.random.default_rng(1))
  draw = fast_jit(functools.partial(draw_pairs, settings=settings))
  return jax.device_get(draw(jax.random.key(0, impl='rbg'), crops))


def test_crops_hold_what_the_maps_hold():
  maps = [np.uint8([[3, 4], [5, 5]]), np.full((700, 40), 9, np.uint8)]
  crops = label_crops(maps, 20, np.random.default_rng(0))
  assert crops.shape == (20, CROP_SIZE, CROP_SIZE)
  assert crops.dtype == np.uint8
  assert set(np.unique(crops)) == {3, 4, 5, 9, IGNORE}
  np.testing.assert_array_equal(crops, label_crops(maps, 20, np.random.default_rng(0)))
  assert (crops != label_crops(maps, 20, np.random.default_rng(1))).any()


def test_crops_keep_neighbours_and_show_the_whole_map():
  """On a map of columns numbered from 0, labels go up or, mirrored, down in steps of at most 2."""
  columns = np.broadcast_to(np.arange(250, dtype=np.uint8), (250, 250))
  crops = label_crops([columns], 50, np.random.default_rng(0)).astype(int)
  mirrored = 0
  for crop in crops:
    row = crop[crop[:, CROP_SIZE // 2] != IGNORE][0]
    row = row[row != IGNORE]
    steps = np.diff(row)
    sign = 1 if row[-1] > row[0] else -1
    mirrored += sign < 0
    assert set(sign * steps) <= {0, 1, 2}
  assert 10 < mirrored < 40
  assert {0, 249} <= set(np.unique(crops))


@pytest.mark.parametrize('num_parameters', [4, 8])
def test_a_clean_prediction_is_the_target_under_the_transform(num_parameters):
  """Nearer to it than under a transform that is a pixel off."""
  prediction, target, parameters = drawn(num_parameters)
  assert prediction.shape == target.shape == (24, 64, 64, 1)
  assert parameters.shape == (24, num_parameters)

  @fast_jit
  def error(offset):
    matrix = matrix_from_parameters(parameters + offset)
    inside = homography_warp(jnp.ones_like(target), matrix) > 0.99
    difference = jnp.abs(prediction - homography_warp(target, matrix))
    return jnp.sum(difference * inside) / jnp.sum(inside)

  least = error(jnp.zeros(num_parameters))
  assert least < 0.4 * float(jnp.mean(target))
  for i in range(num_parameters):
    for pixel in (-2 / 64, 2 / 64):
      assert error(pixel * jnp.eye(num_parameters)[i]) > 1.1 * least, i


def test_aligned_clean_pairs_are_equal():
  prediction, target, parameters = drawn(4)
  aligned = ~parameters.any(axis=1)
  assert 2 <= aligned.sum() <= 12
  np.testing.assert_allclose(prediction[aligned], target[aligned], atol=1e-6)
  assert (target[aligned].mean(axis=(1, 2, 3)) > 0.02).all()


def test_what_moves_in_is_there_in_half_of_the_pairs():
  prediction, target, parameters = drawn(4)
  seen = np.asarray(homography_warp(jnp.ones_like(target), matrix_from_parameters(parameters)))
  can_move_in = np.sum(seen == 0, axis=(1, 2, 3)) > 200
  moved_in = np.any((prediction > 0) & (seen == 0), axis=(1, 2, 3))
  assert can_move_in.sum() >= 8
  assert 0.2 < moved_in[can_move_in].mean() < 0.8


@pytest.mark.parametrize('num_parameters', [4, 6, 8])
def test_parameters_fill_their_ranges_in_the_shares_asked_for(num_parameters):
  settings = PairSettings(num_parameters=num_parameters, identity=0.2)
  parameters = np.abs(draw_parameters(jax.random.key(0), 4000, settings))
  shift, scale, last = settings.max_shift, settings.max_scale, settings.max_perspective
  limits = {
    4: [shift, shift, scale, scale],
    6: [scale, scale, shift, scale, scale, shift],
    8: [scale, scale, shift, scale, scale, shift, last, last],
  }[num_parameters]
  share = parameters / limits
  assert share.max() <= 1
  assert (share.max(axis=0) > 0.98).all()
  assert np.mean(share.max(axis=1) == 0) == pytest.approx(0.2, abs=0.03)
  # Of 4 numbers or more, all are below a quarter in a 256th of the others at most.
  assert np.mean(share.max(axis=1) <= 0.25) == pytest.approx(0.45, abs=0.03)


def test_corrupted_maps_are_probabilities_that_follow_the_lines_more_or_less():
  _, target, _ = drawn(4)
  rng = jax.random.key(3, impl='rbg')
  dirty = np.asarray(fast_jit(corrupt)(rng, target, np.roll(target, 1, axis=0)))
  assert dirty.shape == target.shape
  assert 0 <= dirty.min() < dirty.max() <= 1
  agreement = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(dirty, target, strict=True)]
  assert max(agreement) > 0.6
  assert min(agreement) < 0.4
  assert np.mean(agreement) > 0.2


def test_settings_out_of_range_are_told():
  with pytest.raises(ValueError, match=r'clean is 1.5'):
    PairSettings(clean=1.5)


def test_half_of_the_others_are_what_a_network_predicted_under_the_same_transform():
  settings = PairSettings(tile_size=64, clean=0.0, identity=0.5)
  crops = label_crops(label_maps(), 48, np.random.default_rng(1))
  edges = boundary_map(jnp.asarray(crops, jnp.int32), radius=2, num_classes=IGNORE)
  predicted = np.uint8(51 * edges[..., 0])
  draw = fast_jit(functools.partial(draw_pairs, settings=settings))
  rng = jax.random.key(0, impl='rbg')
  without, target, truth = jax.device_get(draw(rng, crops))
  prediction, same_target, same_truth = jax.device_get(draw(rng, crops, predicted=predicted))
  np.testing.assert_array_equal(same_target, target)
  np.testing.assert_array_equal(same_truth, truth)
  real = (prediction != without).any((1, 2, 3))
  assert 14 <= real.sum() <= 34
  aligned = real & (truth == 0).all(1)
  assert aligned.any()
  np.testing.assert_allclose(prediction[aligned], target[aligned] / 5, atol=1e-5)
