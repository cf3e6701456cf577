"""Does the InverseForm loss move boundaries where each pixel is free, or only fool its network?

Edge logits start as the true boundaries shifted by a few pixels, and descend a loss, pixel by
pixel. Compared are the loss's gradients and further ideas, each by the boundary F it ends with.

python -m benchmarks.free_edge_logits --dataset=camvid --root=/data/camvid
"""

import argparse
import functools
from collections.abc import Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks.results import COLORS, print_table, run, save_figure
from benchmarks.tiles import (
  ENOUGH_BOUNDARY,
  TILE_SIZE,
  add_arguments,
  in_batches,
  random_shifts,
  read_inverse_net,
  read_tiles,
  warp,
)
from if_jax.losses.boundary import boundary_bce
from if_jax.losses.inverseform import euclidean_distance, inverseform
from if_jax.ops.blur import gaussian_blur

SHIFT = 6.0
TOLERANCE = 2.0
# How often on the way F is taken.
_NUM_RECORDS = 6
_NUM_PICTURES = 3


def loss_with(gradient):
  """The loss as `if_jax` has it, by the name of its gradient."""

  def loss(logits, truth, inverse_net, rng):
    del rng
    grid = {'tile_rows': 1, 'tile_columns': 1, 'tile_size': TILE_SIZE}
    return inverseform(logits, truth, inverse_net, gradient=gradient, **grid)[0]

  return loss


def smoothed(logits, truth, inverse_net, rng):
  """The network sees a blurred prediction, so that the gradient is smooth."""
  del rng
  return jnp.sum(euclidean_distance(inverse_net(gaussian_blur(jax.nn.sigmoid(logits), 2.0), truth)))


def jittered(logits, truth, inverse_net, rng):
  """Offsets, flips and noise differ from step to step, so that no pattern fools all of them."""
  keys = jax.random.split(rng, 3)
  offset = jax.random.randint(keys[0], (2,), -16, 17)
  flip = jax.random.bernoulli(keys[1])

  def change(maps):
    maps = jnp.roll(maps, offset, axis=(1, 2))
    return jnp.where(flip, maps[:, :, ::-1], maps)

  noise = 0.05 * jax.random.normal(keys[2], logits.shape)
  prediction = change(jax.nn.sigmoid(logits)) + noise
  return jnp.sum(euclidean_distance(inverse_net(prediction, change(truth))))


def pulled(logits, truth, inverse_net, rng):
  """A cross-entropy with the truth warped to where the network sees the prediction, less 30 %."""
  del rng
  estimate = jax.lax.stop_gradient(inverse_net(jax.nn.sigmoid(logits), truth))
  return cross_entropy(logits, warp(truth, 0.7 * estimate))


def cross_entropy(logits, truth, inverse_net=None, rng=None):
  """What can be reached where pixels are free: it tells each its answer."""
  del inverse_net, rng
  totals, _ = jax.vmap(boundary_bce)(logits, truth)
  return jnp.sum(totals)


IDEAS = {
  'full gradient': loss_with('full'),
  'full, smoothed prediction': smoothed,
  'full, offsets, flips, noise': jittered,
  'motion gradient (default)': loss_with('motion'),
  'pulled to the warped truth': pulled,
  'cross-entropy (bound)': cross_entropy,
}


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.free_edge_logits', description=__doc__)
  add_arguments(parser, num_tiles=50)
  parser.add_argument('--steps', type=int, default=60, help='of each descent')
  parser.add_argument('--rate', type=float, default=0.3, help='of the first step, see `descend`')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  inverse_net = read_inverse_net(arguments)
  truth = read_tiles(arguments).choose(arguments.num_tiles, ENOUGH_BOUNDARY, arguments.seed).truth
  rng = np.random.default_rng(arguments.seed)
  logits = in_batches(start_logits, truth, SHIFT * random_shifts(rng, len(truth)))

  steps = np.linspace(0, arguments.steps, _NUM_RECORDS + 1).round().astype(int)
  rows, curves, ends = [], {}, {}
  for name, loss_fn in IDEAS.items():
    descent = functools.partial(
      descend,
      inverse_net=inverse_net,
      loss_fn=loss_fn,
      steps=steps.tolist(),
      rate=arguments.rate,
    )
    probability, distance = in_batches(descent, logits, truth)
    scores = np.array([
      [boundary_f(found, true, TOLERANCE) for found in path]
      for path, true in zip(probability, truth, strict=True)
    ])  # fmt: skip
    curves[name], ends[name] = scores, probability[:_NUM_PICTURES, -1]
    rows.append({
      'idea': name,
      'F before': float(scores[:, 0].mean()),
      'F after': float(scores[:, -1].mean()),
      'gain': float((scores[:, -1] - scores[:, 0]).mean()),
      'better tiles': f'{np.mean(scores[:, -1] > scores[:, 0]):.0%}',
      'd before': float(distance[:, 0].mean()),
      'd after': float(distance[:, -1].mean()),
    })  # fmt: skip
  print_table(
    f'Boundary F at {TOLERANCE:g} px, {len(truth)} tiles from {SHIFT:g} px, {steps[-1]} steps', rows
  )
  save_figure(draw_curves(steps, curves), arguments.output, 'free_edge_logits')
  few = logits[:_NUM_PICTURES], truth[:_NUM_PICTURES]
  save_figure(draw_tiles(*few, ends, inverse_net), arguments.output, 'free_edge_logits_tiles')
  return {
    'tiles': len(truth),
    'rows': rows,
    'steps': steps.tolist(),
    'F over steps': {name: scores.mean(axis=0).tolist() for name, scores in curves.items()},
  }


@jax.jit
def start_logits(truth, shifts):
  prediction = gaussian_blur(warp(truth, shifts), 1.0)
  return jax.scipy.special.logit(jnp.clip(prediction, 0.02, 0.98))


def descend(logits, truth, *, inverse_net, loss_fn, steps, rate):
  """Steps with momentum, each tile's in units of its largest gradient so far.

  Args:
    logits: float32 [N, T, T, 1].
    truth: as `logits`.
    inverse_net: what `loss_fn` takes.
    loss_fn: (logits, truth, inverse_net, rng) -> sum over the tiles.
    steps: when to record, from 0 to the last.
    rate: logits by which one step at first changes a pixel whose gradient is the root mean square
      of the tile's; it falls to 0 in a straight line. Momentum makes up to ten of it.
  Returns:
    Probabilities [N, len(steps), T, T, 1] and InverseForm distances [N, len(steps)].
  """
  state = logits, jnp.zeros_like(logits), jnp.zeros((len(logits), 1, 1, 1))
  records = []
  # A loop in XLA would run the convolutions on one core.
  for i in range(steps[-1] + 1):
    if i in steps:
      records.append(_look(state[0], truth, inverse_net))
    now = rate * (1 - i / steps[-1])
    state = _step(state, truth, jax.random.key(i), now, inverse_net=inverse_net, loss_fn=loss_fn)
  return tuple(jnp.stack(x, axis=1) for x in zip(*records, strict=True))


@functools.partial(jax.jit, static_argnames='loss_fn')
def _step(state, truth, rng, rate, *, inverse_net, loss_fn):
  logits, momentum, largest = state
  gradient = _gradient(logits, truth, rng, inverse_net=inverse_net, loss_fn=loss_fn)
  size = jnp.sqrt(jnp.mean(gradient**2, axis=(1, 2, 3), keepdims=True) + 1e-20)
  largest = jnp.maximum(largest, size)
  momentum = 0.9 * momentum + gradient
  return logits - rate * momentum / largest, momentum, largest


@functools.partial(jax.jit, static_argnames='loss_fn')
def _gradient(logits, truth, rng, *, inverse_net, loss_fn):
  return jax.grad(loss_fn)(logits, truth, inverse_net, rng)


@jax.jit
def _look(logits, truth, inverse_net):
  probability = jax.nn.sigmoid(logits)
  return probability, euclidean_distance(inverse_net(probability, truth))


def boundary_f(probability: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
  """Boundary F of two maps [T, T, 1] thresholded at 0.5.

  Precision is the share of predicted boundary pixels with a true one within `tolerance` pixels,
  recall the reverse. `if_jax.boundary_metrics` compares the outlines of classes; those of a line
  some pixels wide would be its two sides.
  """
  found, true = probability[..., 0] > 0.5, truth[..., 0] > 0.5
  if not found.any() or not true.any():
    return 0.0

  def share_near(pixels, others):
    elsewhere = (~others).astype(np.uint8)
    distance = cv2.distanceTransform(elsewhere, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.mean(distance[pixels] <= tolerance)

  precision, recall = share_near(found, true), share_near(true, found)
  return float(2 * precision * recall / max(precision + recall, 1e-9))


def draw_curves(steps, curves) -> Figure:
  figure = Figure(figsize=(8.5, 4), layout='constrained')
  panel = figure.subplots()
  for color, (name, scores) in zip(COLORS, curves.items(), strict=True):
    panel.plot(steps, scores.mean(axis=0), '.-', color=color, label=name)
  panel.set(xlabel='step', ylabel=f'mean boundary F at {TOLERANCE:g} px', ylim=(None, 1.01))
  panel.spines[['top', 'right']].set_visible(False)
  panel.grid(alpha=0.25)
  figure.legend(loc='outside right center', frameon=False)
  return figure


def draw_tiles(logits, truth, ends, inverse_net) -> Figure:
  """Truth, start, both ends and both gradients; red raises a pixel's probability, blue lowers."""
  full, motion = 'full gradient', 'motion gradient (default)'
  maps = {
    'truth': truth,
    'start': np.asarray(jax.nn.sigmoid(logits)),
    f'end, {full}': ends[full],
    f'end, {motion}': ends[motion],
  }
  # The direction of descent.
  slopes = {
    name: -np.asarray(_gradient(logits, truth, None, inverse_net=inverse_net, loss_fn=IDEAS[name]))
    for name in (full, motion)
  }
  num_columns = len(maps) + len(slopes)
  size = 2.3 * num_columns, 2.4 * len(truth) + 0.2
  figure = Figure(figsize=size, layout='constrained')
  grid = figure.subplots(len(truth), num_columns, squeeze=False)
  for i, row in enumerate(grid):
    for panel, (name, x) in zip(row, maps.items(), strict=False):
      panel.imshow(x[i, ..., 0], cmap='gray_r', vmin=0, vmax=1)
      panel.set_title(name if i == 0 else '', fontsize='small')
    for panel, (name, x) in zip(row[len(maps) :], slopes.items(), strict=True):
      limit = max(np.quantile(np.abs(x[i]), 0.995), 1e-12)
      panel.imshow(x[i, ..., 0], cmap='RdBu_r', vmin=-limit, vmax=limit)
      panel.set_title(f'descent, {name}' if i == 0 else '', fontsize='small')
    for panel in row[1:]:
      panel.contour(truth[i, ..., 0], [0.5], colors='tab:green', linewidths=0.6)
    for panel in row:
      panel.set_axis_off()
  return figure


if __name__ == '__main__':
  main()
