"""How well does an inverse network measure shifts and scales of boundaries it has never seen?

python -m benchmarks.inversenet_accuracy --dataset=camvid --root=/data/camvid \
  --predictions=runs/camvid/best
"""

import argparse
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

from benchmarks.results import COLORS, print_table, run, save_figure
from benchmarks.tiles import (
  ENOUGH_BOUNDARY,
  PIXEL,
  Tiles,
  add_arguments,
  in_batches,
  random_scales,
  random_shifts,
  read_inverse_net,
  read_tiles,
  warp,
)
from if_jax.boundary_pairs import corrupt
from if_jax.losses.inverseform import euclidean_distance
from if_jax.ops.transforms import matrix_from_parameters, parameters_from_matrix

MAX_SHIFT, MAX_SCALE = 22 * PIXEL, np.log(1.2)
# Pixels, and hundredths of the size: how far the curves go.
STRENGTHS = np.arange(21)
# Shares of boundary pixels, by which tiles are grouped.
DENSITIES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.inversenet_accuracy', description=__doc__)
  add_arguments(parser, num_tiles=1000)
  parser.add_argument('--num_curve_tiles', type=int, default=200, help='at most, for the curves')
  parser.add_argument(
    '--predictions', help='weight folder of a segmentation network: measure its boundaries, too'
  )
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  inverse_net = read_inverse_net(arguments)
  every = read_tiles(arguments, arguments.predictions)
  tiles = every.choose(arguments.num_tiles, 0.0, arguments.seed)
  dense = tiles.share >= ENOUGH_BOUNDARY

  errors = errors_by_kind(inverse_net, tiles, arguments.seed)
  accuracy = [
    {'maps': kind, 'tiles with': which} | summary(error[chosen])
    for which, chosen in (('3 % boundary', dense), ('any boundary', tiles.share > 0))
    for kind, error in errors.items()
  ]
  print_table('Errors: shifts in pixels of 224, logarithms of scales', accuracy)
  by_density = []
  for low, high in itertools.pairwise(DENSITIES):
    chosen = (tiles.share > low) & (tiles.share <= high)
    if chosen.any():
      name = f'{low:.0%} to {high:.0%}'
      by_density.append({'boundary pixels': name} | summary(errors['clean'][chosen]))
  print_table('Clean maps, by density', by_density)

  tiles = every.choose(arguments.num_curve_tiles, ENOUGH_BOUNDARY, arguments.seed)
  curves = distance_curves(inverse_net, tiles, arguments.seed)
  growth = []
  for (kind, motion), distances in curves.items():
    correlation = rank_correlation(distances)
    growth.append({
      'maps': kind,
      'over': motion,
      'tiles': len(distances),
      'd at 0': float(distances[:, 0].mean()),
      'd at 10': float(distances[:, 10].mean()),
      'ratio': float(distances[:, 0].mean() / distances[:, 10].mean()),
      'mean Spearman': float(correlation.mean()),
      'median Spearman': float(np.median(correlation)),
    })  # fmt: skip
  print_table('Distance over shifts of 0 to 20 pixels and scales of 0 to 20 %', growth)
  save_figure(draw(curves, errors, dense), arguments.output, 'inversenet_accuracy')
  return {'accuracy': accuracy, 'by_density': by_density, 'growth': growth}


def errors_by_kind(inverse_net, tiles: Tiles, seed: int) -> dict[str, np.ndarray]:
  """Absolute errors [N, 4] of x and y in pixels and of the scales' logarithms, by kind of map."""
  num_tiles = len(tiles.truth)
  limits = [MAX_SHIFT, MAX_SHIFT, MAX_SCALE, MAX_SCALE]
  parameters = np.random.default_rng(seed).uniform(-1, 1, (num_tiles, 4)) * limits
  parameters = parameters.astype(np.float32)
  numbers = np.arange(num_tiles)

  @functools.partial(jax.jit, static_argnames='dirty')
  def error(maps, truth, parameters, numbers, dirty):
    moved = warp(maps, parameters)
    if dirty:
      # The number of its first tile makes a batch's noise its own.
      key = jax.random.fold_in(jax.random.key(seed), numbers[0])
      moved = corrupt(key, moved, jnp.roll(truth, 1, axis=0))
    estimate = parameters_from_matrix(matrix_from_parameters(inverse_net(moved, truth)), 4)
    return jnp.abs(estimate - parameters) / jnp.array([PIXEL, PIXEL, 1, 1])

  kinds = {'clean': (tiles.truth, False), 'corrupt': (tiles.truth, True)}
  kinds |= {kind: (maps, False) for kind, maps in tiles.predicted.items()}
  return {
    kind: in_batches(functools.partial(error, dirty=dirty), maps, tiles.truth, parameters, numbers)
    for kind, (maps, dirty) in kinds.items()
  }


def summary(errors: np.ndarray) -> dict:
  """Means and medians of absolute errors [N, 4]."""
  length = np.hypot(errors[:, 0], errors[:, 1])
  return {
    'tiles': len(errors),
    'x': float(errors[:, 0].mean()),
    'y': float(errors[:, 1].mean()),
    'mean per axis': float(errors[:, :2].mean()),
    'median per axis': float(np.median(errors[:, :2])),
    'mean length': float(length.mean()),
    'median length': float(np.median(length)),
    'mean scale': float(errors[:, 2:].mean()),
    'median scale': float(np.median(errors[:, 2:])),
  }


def distance_curves(inverse_net, tiles: Tiles, seed: int) -> dict[tuple[str, str], np.ndarray]:
  """Distances [N, 21] over `STRENGTHS`, by the kind of map and of motion."""
  rng = np.random.default_rng(seed)
  num_tiles = len(tiles.truth)
  signs = np.sign(random_scales(rng, num_tiles, 0.1))[:, None]
  motions = {
    'shift': random_shifts(rng, num_tiles)[:, None] * STRENGTHS[:, None],
    'scale': signs * np.log1p(STRENGTHS / 100)[:, None],
  }

  @jax.jit
  def distance(maps, truth, parameters):
    return euclidean_distance(inverse_net(warp(maps, parameters), truth))

  # A loop in XLA would run the convolutions on one core.
  def distances(maps, truth, parameters):
    path = np.moveaxis(parameters, 1, 0).astype(np.float32)
    return jnp.stack([distance(maps, truth, each) for each in path], axis=1)

  kinds = {'clean': tiles.truth} | tiles.predicted
  return {
    (kind, name): in_batches(distances, maps, tiles.truth, parameters)
    for kind, maps in kinds.items()
    for name, parameters in motions.items()
  }


def rank_correlation(distances: np.ndarray) -> np.ndarray:
  """Spearman's correlation [N] of distances [N, K] with their order; 0 where all are equal."""
  ranks = rankdata(distances, axis=1)
  ranks -= ranks.mean(axis=1, keepdims=True)
  order = np.arange(ranks.shape[1]) - (ranks.shape[1] - 1) / 2
  norms = np.linalg.norm(ranks, axis=1) * np.linalg.norm(order)
  return ranks @ order / np.where(norms == 0, 1, norms)


def draw(curves, errors, dense) -> Figure:
  figure = Figure(figsize=(13, 4), layout='constrained')
  panels = figure.subplots(1, 3)
  axis_labels = {'shift': 'shift, pixels of 224', 'scale': 'scale, %'}
  expected = {'shift': STRENGTHS * PIXEL, 'scale': np.sqrt(2) * np.log1p(STRENGTHS / 100)}
  colors = dict(zip(('clean', 'corrupt', 'edge head', 'classes'), COLORS, strict=False))
  for panel, motion in zip(panels, axis_labels, strict=False):
    panel.plot(STRENGTHS, expected[motion], 'k:', lw=1, label='what it is')
    for (kind, name), distances in curves.items():
      if name == motion:
        low, middle, high = np.quantile(distances, (0.25, 0.5, 0.75), axis=0)
        panel.plot(STRENGTHS, middle, color=colors[kind], label=kind)
        panel.fill_between(STRENGTHS, low, high, color=colors[kind], alpha=0.2, lw=0)
    panel.set(
      xlabel=axis_labels[motion], ylabel='distance, half tiles; median and quartiles', ylim=0
    )
    panel.legend(framealpha=0.8, edgecolor='none')
  for kind, error in errors.items():
    length = np.sort(np.hypot(error[dense, 0], error[dense, 1]))
    share = 100 * np.arange(1, len(length) + 1) / len(length)
    panels[2].plot(length, share, color=colors[kind], label=kind)
  panels[2].set(
    xlabel='error of the shift, pixels of 224', ylabel='tiles, %', xlim=(0, 12), ylim=(0, 100)
  )
  panels[2].legend(frameon=False)
  for panel in panels:
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(alpha=0.25)
  return figure


if __name__ == '__main__':
  main()
