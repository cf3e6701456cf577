"""Pairs of boundary tiles whose transform is known: what inverse networks learn from."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from if_jax.data.labels import IGNORE
from if_jax.ops.blur import gaussian_blur
from if_jax.ops.boundaries import boundary_map
from if_jax.ops.resize import resize_bilinear
from if_jax.ops.transforms import NUM_PARAMETERS, matrix_from_parameters
from if_jax.ops.warp import grid_sample, homography_warp, pixel_centres

# A GPU would round the products of float32 matrices to three digits.
_multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

# Sides of a label crop, pixels: a tile shows from a third of it to four fifths.
CROP_SIZE = 320
_ZOOMS = (0.32, 0.8)


@dataclasses.dataclass(frozen=True)
class PairSettings:
  """What pairs are drawn.

  Attributes:
    num_parameters: P, of the transform: 4, 6 or 8, see `if_jax.ops.transforms`.
    tile_size: T, pixels of a tile's side.
    boundary_radius: pixels of the label map.
    max_shift: half tiles; 26 of 224 pixels are 0.232.
    max_scale: largest logarithm of a scale, and off-diagonal entry of an affine matrix.
    max_perspective: largest entry of a homography's last row.
    identity: share of pairs whose transform is the identity; a further quarter have a small one.
    clean: share of pairs whose prediction is the warped truth itself.

  Raises:
    ValueError: on construction, if a value is out of range.
  """

  num_parameters: int = 4
  tile_size: int = 224
  boundary_radius: int = 2
  max_shift: float = 0.232
  max_scale: float = 0.22
  max_perspective: float = 0.1
  identity: float = 0.1
  clean: float = 0.25

  def __post_init__(self):
    for name in ('max_shift', 'max_scale', 'max_perspective', 'identity', 'clean'):
      value = getattr(self, name)
      if not 0 <= value <= 1:
        raise ValueError(f'{name} is {value}; give a number from 0 to 1')
    if self.num_parameters not in NUM_PARAMETERS:
      raise ValueError(f'num_parameters is {self.num_parameters}; a transform has 4, 6 or 8')
    if self.tile_size < 16 or self.tile_size % 16:
      raise ValueError(f'tile_size is {self.tile_size}; give a multiple of 16')


def label_crops(
  label_maps: Sequence[np.ndarray],
  num_crops: int,
  rng: np.random.Generator,
  *,
  outside: int = IGNORE,
) -> np.ndarray:
  """Cuts squares at random places and sizes out of label maps, mirrored half of the time.

  Maps of the same sizes and a generator in the same state give the same places and sizes.

  Args:
    label_maps: uint8 [H, W] each, train ids, 255 ignored.
    num_crops: B.
    rng: draws everything.
    outside: stands where there is no map.
  Returns:
    uint8 [B, CROP_SIZE, CROP_SIZE].
  """
  crops = np.full((num_crops, CROP_SIZE, CROP_SIZE), outside, np.uint8)
  for crop in crops:
    label_map = label_maps[int(rng.integers(len(label_maps)))]
    enlargement = rng.uniform(0.8, 2.0)
    inside, indices = [], []
    for length in label_map.shape:
      # A fifth of the crop may lie outside of the map, on either side; more if the map is small.
      margin = CROP_SIZE // 5
      surplus = int(length * enlargement) - CROP_SIZE
      start = rng.integers(min(-margin, surplus), max(1, surplus + margin))
      index = np.floor((np.arange(CROP_SIZE) + start + 0.5) / enlargement).astype(int)
      inside.append((index >= 0) & (index < length))
      indices.append(index[inside[-1]])
    crop[np.ix_(*inside)] = label_map[np.ix_(*indices)]
    if rng.random() < 0.5:
      crop[:] = crop[:, ::-1].copy()
  return crops


def draw_pairs(
  rng: jax.Array,
  labels: jax.Array,
  settings: PairSettings,
  predicted: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws a pair of tiles from each label crop.

  The target is a tile of the boundary map. The prediction is the same map seen through a random
  transform; what moves in from outside the tile is there in half of the pairs and empty in the
  others. Most predictions are then made to look as networks predict them (`corrupt`), or, half of
  those, are what a network did predict, seen through the same transform.

  Args:
    rng: key.
    labels: integer [B, S, S], of `label_crops`.
    settings: of the pairs.
    predicted: boundary probability in 1 / 255, uint8 [B, S, S], where the labels are; or None.
  Returns:
    prediction and target, float32 [B, T, T, 1] in [0, 1], and parameters float32 [B, P] with
    prediction = warp(target, parameters).
  Raises:
    ValueError: at trace time, for fewer than two crops.
  """
  keys = jax.random.split(rng, 5)
  num_pairs, size = labels.shape[0], (settings.tile_size, settings.tile_size)
  # All ids that label sets use are classes; 255 is not.
  edges = boundary_map(
    labels.astype(jnp.int32), radius=settings.boundary_radius, num_classes=IGNORE
  )
  if num_pairs < 2:
    raise ValueError('one pair at a time has no foreign lines; draw 2 or more on each device')
  place = _draw_places(keys[0], num_pairs)
  parameters = draw_parameters(keys[1], num_pairs, settings)
  matrix = matrix_from_parameters(parameters)
  target = homography_warp(edges, place, size)
  prediction = homography_warp(edges, _multiply(place, matrix), size)
  inside = homography_warp(jnp.ones_like(target), matrix) > 0.5
  whole, clean = (
    jax.random.bernoulli(key, share, (num_pairs, 1, 1, 1))
    for key, share in zip(keys[2:4], (0.5, settings.clean), strict=True)
  )
  prediction = jnp.where(whole | inside, prediction, 0)
  dirty = corrupt(keys[4], prediction, jnp.roll(target, 1, axis=0))
  if predicted is not None:
    seen = predicted[..., None].astype(jnp.float32) / 255
    seen = homography_warp(seen, _multiply(place, matrix), size)
    real = jax.random.bernoulli(jax.random.fold_in(rng, 0), 0.5, (num_pairs, 1, 1, 1))
    dirty = jnp.where(real, jnp.where(whole | inside, seen, 0), dirty)
  return jnp.where(clean, prediction, dirty), target, parameters


def draw_parameters(rng: jax.Array, num_pairs: int, settings: PairSettings) -> jax.Array:
  """Draws transform parameters [num_pairs, P], uniform within the ranges of the settings."""
  shift, scale = settings.max_shift, settings.max_scale
  limits = {
    4: [shift, shift, scale, scale],
    6: 2 * [scale, scale, shift],
    8: [*2 * [scale, scale, shift], *2 * [settings.max_perspective]],
  }[settings.num_parameters]
  keys = jax.random.split(rng)
  parameters = jax.random.uniform(keys[0], (num_pairs, len(limits)), minval=-1) * jnp.array(limits)
  kind = jax.random.uniform(keys[1], (num_pairs, 1))
  size = jnp.where(kind < settings.identity, 0, jnp.where(kind < settings.identity + 0.25, 0.25, 1))
  return parameters * size


def corrupt(rng: jax.Array, edges: jax.Array, others: jax.Array) -> jax.Array:
  """Makes boundary maps look as networks predict them, from hardly changed to hardly there.

  A severity is drawn for each tile. The more of it, the more the lines waver and break off, the
  broader they are blurred before a threshold of random height and softness makes lines or bands
  of them, and the more bands stand where no line is. Parts of foreign lines appear; probability,
  background and noise of two widths vary. All of it happens at half the resolution, as networks
  predict at less than that.

  Args:
    rng: key.
    edges: float32 [N, T, T, 1] in [0, 1].
    others: as `edges`, where the foreign lines come from.
  Returns:
    float32 [N, T, T, 1] in [0, 1].
  """
  num_tiles, size = edges.shape[0], edges.shape[1:3]
  half = (size[0] // 2, size[1] // 2)
  keys = iter(jax.random.split(rng, 18))

  def uniform(low, high):
    return jax.random.uniform(next(keys), (num_tiles, 1, 1, 1), minval=low, maxval=high)

  def patches(cells, channels=1):
    noise = jax.random.normal(next(keys), (num_tiles, cells, cells, channels))
    return jax.image.resize(noise, (num_tiles, *half, channels), 'linear')

  severity = uniform(0, 1)
  # Half tiles: at most some seven of 224 pixels, as a standard deviation.
  wavering = 0.06 * severity * patches(9, 2)
  lines = grid_sample(edges, pixel_centres(half) + wavering)
  others = resize_bilinear(others, half)
  kept = jax.nn.sigmoid(8 * (patches(10) + uniform(0.3, 2.5) - 1.5 * severity * uniform(0, 1)))
  foreign = jax.nn.sigmoid(8 * (patches(6) - uniform(0.8, 3.0)))
  lines = jnp.maximum(lines * kept, others * foreign)
  lines = gaussian_blur(lines, uniform(0.3, 1.7)[:, 0, 0, 0] + 4 * severity[:, 0, 0, 0])
  # The peak of a line some pixels wide falls with the blur; what follows is relative to it.
  lines = lines / jnp.maximum(jnp.max(lines, axis=(1, 2), keepdims=True), 0.1)
  threshold, steepness = uniform(0.08, 0.5), uniform(4, 20)
  lines = jax.nn.sigmoid(steepness * (lines - threshold)) - jax.nn.sigmoid(-steepness * threshold)
  bands = jax.nn.sigmoid(8 * (patches(8) - uniform(0.0, 3.0) - 3 * (1 - severity)))
  lines = jnp.maximum(lines, bands) * uniform(0.5, 1.2)
  lines = lines + patches(28) * uniform(0, 0.15) + uniform(-0.1, 0.1)
  grain = jax.random.normal(next(keys), edges.shape) * uniform(0, 0.1)
  return jnp.clip(resize_bilinear(lines, size) + grain, 0, 1)


def _draw_places(rng, num_places):
  """Matrices [N, 3, 3] from a tile's coordinates to those of the crop."""
  keys = jax.random.split(rng)
  half = jax.random.uniform(keys[0], (num_places, 1), minval=_ZOOMS[0], maxval=_ZOOMS[1])
  centre = jax.random.uniform(keys[1], (num_places, 2), minval=-1) * (1 - half)
  return matrix_from_parameters(jnp.concatenate([centre, jnp.log(half), jnp.log(half)], axis=-1))
