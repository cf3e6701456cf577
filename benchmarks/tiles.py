"""Boundary tiles of a data set, as the InverseForm loss cuts them, and how they are moved."""

import argparse
import collections
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from if_jax.data.datasets import load_dataset
from if_jax.data.decode import decode_image, decode_label
from if_jax.data.labels import LabelSet
from if_jax.losses.inverseform import cut_tiles
from if_jax.models.inversenet import load_inversenet
from if_jax.ops.boundaries import boundary_map
from if_jax.ops.transforms import matrix_from_parameters
from if_jax.ops.warp import affine_warp
from if_jax.predict import Predictor

TILE_SIZE = 224
# A pixel of a tile in the units of transform parameters, half tiles.
PIXEL = 2 / TILE_SIZE
# Less is little more than one straight line, and nobody can tell a shift along it.
ENOUGH_BOUNDARY = 0.03
# Bounds the memory: matching takes 10 MB per tile and round.
_BATCH_SIZE = 25
_TILE_ROWS = 3


class Tiles(NamedTuple):
  """Tiles of one split.

  Attributes:
    truth: float32 [N, T, T, 1], true boundaries.
    share: float32 [N], of the pixels that are true boundaries.
    predicted: as `truth`, by where a segmentation network shows boundaries: its 'edge head', if
      it has one, and between its predicted 'classes'; empty without such a network.
  """

  truth: np.ndarray
  share: np.ndarray
  predicted: dict[str, np.ndarray]

  def choose(self, count: int, min_share: float, seed: int) -> 'Tiles':
    """Draws at most `count` tiles that have at least `min_share` of boundary pixels."""
    eligible = np.flatnonzero(self.share >= min_share)
    if not eligible.size:
      raise ValueError(f'no tile has {min_share:.0%} of boundary pixels; give more images')
    chosen = np.random.default_rng(seed).permutation(eligible)[:count]
    return jax.tree.map(lambda x: x[chosen], self)


def add_arguments(parser: argparse.ArgumentParser, *, num_tiles: int) -> None:
  """Adds what all benchmarks ask for: data, the inverse network, where results go."""
  parser.add_argument('--dataset', default='streets', help='a name of if_jax.data.datasets')
  parser.add_argument('--root', help='the folder of the data set; streets needs none')
  parser.add_argument('--split', default='val')
  parser.add_argument(
    '--num_images', type=int, default=150, help='at most, spread evenly over the split'
  )
  parser.add_argument('--num_tiles', type=int, default=num_tiles, help='at most')
  parser.add_argument('--seed', type=int, default=0, help='draws the tiles and transforms')
  parser.add_argument(
    '--inversenet', default='default', help="'default', or a folder of --mode=train_inversenet"
  )
  parser.add_argument('--output', default='runs/benchmarks', help='folder of JSON and pictures')


def read_inverse_net(arguments: argparse.Namespace) -> jax.tree_util.Partial:
  """The inverse network as losses take it, and as a jitted function's argument."""
  return jax.tree_util.Partial(*load_inversenet(arguments.inversenet))


def read_tiles(arguments: argparse.Namespace, predictions: str | None = None) -> Tiles:
  """Cuts the boundary maps of a split into tiles, and keeps those that have any boundary.

  Args:
    arguments: of `add_arguments`.
    predictions: weight folder of a segmentation network, which sees the same images; None: no
      predicted tiles.
  Returns:
    The tiles, image by image.
  """
  options = {}
  if arguments.dataset == 'streets':
    options['num_examples'] = arguments.num_images
  dataset = load_dataset(arguments.dataset, arguments.split, root=arguments.root, **options)
  predictor = Predictor(predictions) if predictions else None
  kinds = collections.defaultdict(list)
  count = min(len(dataset), arguments.num_images)
  for i in range(count):
    example = dataset[i * len(dataset) // count]
    name = example['name']
    labels = dataset.label_set.to_train_ids(decode_label(example['label'], name), name)
    maps = {'truth': boundaries(labels, dataset.label_set)}
    if predictor:
      outputs = predictor(decode_image(example['image'], name))
      maps['classes'] = boundaries(outputs['label'], predictor.label_set)
      if predictor.edge_head:
        maps['edge head'] = outputs['edge_probability'][None]
    tiles = {kind: np.asarray(_cut(x)) for kind, x in maps.items()}
    kept = (tiles['truth'] > 0.5).any(axis=(1, 2, 3))
    for kind, x in tiles.items():
      kinds[kind].append(x[kept])
  predicted = {kind: np.concatenate(parts) for kind, parts in kinds.items()}
  truth = predicted.pop('truth')
  return Tiles(truth, (truth > 0.5).mean(axis=(1, 2, 3), dtype=np.float32), predicted)


def boundaries(labels: np.ndarray, label_set: LabelSet) -> jax.Array:
  """The boundary map [1, H, W, 1] of train ids [H, W]."""
  labels = jnp.asarray(labels[None], jnp.int32)
  return _boundary_map(labels, radius=2, num_classes=label_set.num_classes)


def warp(tiles: jax.Array, parameters: jax.Array) -> jax.Array:
  """Moves tiles [N, T, T, 1] by (tx, ty, log sx, log sy) [N, 4]; zeros come in."""
  moved = affine_warp(tiles, matrix_from_parameters(parameters)[:, :2])
  # Fused with a loss, it would be computed again for each use: four times slower on a CPU.
  return jax.lax.optimization_barrier(moved)


def random_shifts(rng: np.random.Generator, num_tiles: int) -> np.ndarray:
  """Parameters [num_tiles, 4] of shifts by one pixel, each in a direction of its own."""
  angle = rng.uniform(0, 2 * np.pi, num_tiles)
  still = np.zeros_like(angle)
  return np.stack([np.cos(angle), np.sin(angle), still, still], 1).astype(np.float32) * PIXEL


def random_scales(rng: np.random.Generator, num_tiles: int, ratio: float) -> np.ndarray:
  """Parameters [num_tiles, 4] of scales by 1 + ratio, or its inverse, along each axis."""
  signs = rng.choice([-1, 1], (num_tiles, 2))
  return np.pad(signs * np.log1p(ratio), ((0, 0), (2, 0))).astype(np.float32)


def in_batches(function: Callable, *arrays: np.ndarray):
  """Applies a jitted function to a few tiles at a time.

  Args:
    function: of arrays [B, ...], gives a tree of arrays [B, ...].
    *arrays: [N, ...].
  Returns:
    The tree of NumPy arrays [N, ...].
  """
  num_tiles = len(arrays[0])
  size = min(_BATCH_SIZE, num_tiles)
  parts = []
  for start in range(0, num_tiles, size):
    # The last batch begins with the first tiles again, so that one size is compiled.
    index = np.arange(start, start + size) % num_tiles
    parts.append(jax.device_get(function(*(x[index] for x in arrays))))
  return jax.tree.map(lambda *xs: np.concatenate(xs)[:num_tiles], *parts)


@jax.jit
def _cut(maps):
  columns = max(1, round(_TILE_ROWS * maps.shape[2] / maps.shape[1]))
  return cut_tiles(maps, _TILE_ROWS, columns, TILE_SIZE)


_boundary_map = jax.jit(boundary_map, static_argnames=('radius', 'num_classes'))
