"""From how far away does a loss bring boundaries home: InverseForm against cross-entropy.

The prediction is the true boundary map, moved; each loss is descended on the motion's four
parameters alone, with the same number of steps and its own best rate.

python -m benchmarks.basin_of_attraction --dataset=camvid --root=/data/camvid
"""

import argparse
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from benchmarks.results import COLORS, print_table, run, save_figure
from benchmarks.tiles import (
  ENOUGH_BOUNDARY,
  PIXEL,
  add_arguments,
  in_batches,
  random_scales,
  random_shifts,
  read_inverse_net,
  read_tiles,
  warp,
)
from if_jax.losses.boundary import boundary_bce
from if_jax.losses.inverseform import euclidean_distance
from if_jax.report import Progress

SHIFTS = (2, 5, 10, 15, 20)
SCALES = (0.05, 0.1, 0.15, 0.2)
# Pixels of Adam's first step; each loss takes the best for it.
RATES = (1.0, 2.0, 4.0)
# Tiles, of others than the ones that count, that the rate is chosen by.
_NUM_TRIAL_TILES = 8
_NUM_PROFILE_TILES = 50
_PROFILE_SHIFTS = np.arange(-24, 25, 2)


def inverseform_loss(inverse_net, prediction, truth):
  """The InverseForm distance, [N]."""
  return euclidean_distance(inverse_net(prediction, truth))


def cross_entropy_loss(inverse_net, prediction, truth):
  """The balanced cross-entropy of each tile, [N]."""
  del inverse_net
  logits = jax.scipy.special.logit(jnp.clip(prediction, 0.01, 0.99))
  totals, counts = jax.vmap(boundary_bce)(logits, truth)
  return totals / counts


def both_losses(inverse_net, prediction, truth):
  """Their sum, [N]: in training they have equal weights."""
  losses = inverseform_loss, cross_entropy_loss
  return sum(loss_fn(inverse_net, prediction, truth) for loss_fn in losses)


LOSSES = {
  'InverseForm': inverseform_loss,
  'balanced cross-entropy': cross_entropy_loss,
  'both': both_losses,
}


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.basin_of_attraction', description=__doc__)
  add_arguments(parser, num_tiles=200)
  parser.add_argument('--steps', type=int, default=40, help='of each descent')
  parser.add_argument('--momentum', type=float, default=0.9, help="Adam's first decay rate")
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  inverse_net = read_inverse_net(arguments)
  every = read_tiles(arguments)
  tiles = every.choose(arguments.num_tiles + _NUM_TRIAL_TILES, ENOUGH_BOUNDARY, arguments.seed)
  num_trial_tiles = min(_NUM_TRIAL_TILES, len(tiles.truth) // 2)
  trial, truth = np.split(tiles.truth[: num_trial_tiles + arguments.num_tiles], [num_trial_tiles])
  descents = {
    name: functools.partial(
      descend,
      inverse_net=inverse_net,
      loss_fn=loss_fn,
      num_steps=arguments.steps,
      momentum=arguments.momentum,
    )
    for name, loss_fn in LOSSES.items()
  }
  rates = {name: best_rate(fn, trial, arguments.seed) for name, fn in descents.items()}

  rows, ends = [], {}
  all_starts = starts(len(truth), arguments.seed)
  with Progress('descents', len(all_starts) * len(descents)) as progress:
    for start, parameters in all_starts.items():
      for name, fn in descents.items():
        end = in_batches(functools.partial(fn, rate=rates[name]), parameters, truth)
        ends[start, name] = end
        rows.append({
          'start': '{} {:g} {}'.format(*start),
          'loss': name,
          '% within 1 px and 1 %': 100 * float(np.mean(within(end, 1))),
          '% within 2 px and 2 %': 100 * float(np.mean(within(end, 2))),
          'median final shift, px': float(np.median(np.hypot(*end[:, :2].T)) / PIXEL),
          'median final log scale': float(np.median(np.abs(end[:, 2:]).max(axis=1))),
        })  # fmt: skip
        progress.update(len(rows))
  title = f'{len(truth)} tiles, {arguments.steps} steps of Adam whose rate falls to 0, from ' + (
    ', '.join(f'{rate:g} px ({name})' for name, rate in rates.items())
  )
  print_table(title, rows)
  profiles = loss_profiles(inverse_net, truth[:_NUM_PROFILE_TILES], arguments.seed)
  save_figure(draw(ends, profiles), arguments.output, 'basin_of_attraction')
  return {'tiles': len(truth), 'rates': rates, 'rows': rows}


def starts(num_tiles: int, seed: int) -> dict[tuple[str, float, str], np.ndarray]:
  """Parameters [num_tiles, 4] by what they are: kind, size and unit of the motion."""
  rng = np.random.default_rng(seed)
  shifts = {('shift', px, 'px'): px * random_shifts(rng, num_tiles) for px in SHIFTS}
  scales = {('scale', 100 * ratio, '%'): random_scales(rng, num_tiles, ratio) for ratio in SCALES}
  return shifts | scales


def descend(parameters, truth, *, inverse_net, loss_fn, num_steps, momentum, rate):
  """Where the parameters [N, 4] of the motion of `truth` come to, [N, 4]."""
  state = optax.scale_by_adam(b1=momentum).init(parameters)
  step_fn = functools.partial(_step, inverse_net=inverse_net, loss_fn=loss_fn, momentum=momentum)
  # A loop in XLA would run the convolutions on one core.
  for i in range(num_steps):
    step_size = rate * PIXEL * (1 - i / num_steps)
    parameters, state = step_fn(parameters, state, truth, step_size)
  return parameters


@functools.partial(jax.jit, static_argnames=('loss_fn', 'momentum'))
def _step(parameters, state, truth, step_size, *, inverse_net, loss_fn, momentum):
  def loss(parameters):
    return jnp.sum(loss_fn(inverse_net, warp(truth, parameters), truth))

  adam = optax.scale_by_adam(b1=momentum)
  direction, state = adam.update(jax.grad(loss)(parameters), state)
  return parameters - step_size * direction, state


def best_rate(descent, truth: np.ndarray, seed: int) -> float:
  """The rate by which most of a few descents end within 2 pixels and 2 %; of equals, nearest."""

  def score(rate):
    ends = np.concatenate([
      in_batches(functools.partial(descent, rate=rate), parameters, truth)
      for (_, size, _), parameters in starts(len(truth), seed + 1).items()
      if size in (5, 20)  # pixels or percent
    ])  # fmt: skip
    return np.mean(within(ends, 2)), -np.median(np.linalg.norm(ends, axis=1))

  return max(RATES, key=score)


def within(parameters: np.ndarray, tolerance: float) -> np.ndarray:
  """Whether shifts are at most so many pixels and scales so many percent, along both axes."""
  limits = np.array([PIXEL, PIXEL, 0.01, 0.01]) * tolerance
  return (np.abs(parameters) <= limits).all(axis=1)


def loss_profiles(inverse_net, truth: np.ndarray, seed: int) -> dict[str, np.ndarray]:
  """Each loss along a shift, [N, K]: less its value at 0, by what it rises to on average."""
  directions = random_shifts(np.random.default_rng(seed), len(truth))

  @functools.partial(jax.jit, static_argnames='loss_fn')
  def value(truth, shifts, loss_fn):
    return loss_fn(inverse_net, warp(truth, shifts), truth)

  profiles = {}
  for name, loss_fn in LOSSES.items():
    values = functools.partial(value, loss_fn=loss_fn)
    profile = np.stack(
      [in_batches(values, truth, directions * np.float32(px)) for px in _PROFILE_SHIFTS], axis=1
    )
    profile = profile - profile[:, _PROFILE_SHIFTS == 0]
    profiles[name] = profile / profile[:, [0, -1]].mean()
  return profiles


def draw(ends, profiles) -> Figure:
  figure = Figure(figsize=(13, 7), layout='constrained')
  (basin, shares_of_shift), (medians, shares_of_scale) = figure.subplots(2, 2)
  for color, name in zip(COLORS, LOSSES, strict=False):
    low, middle, high = np.quantile(profiles[name], (0.25, 0.5, 0.75), axis=0)
    basin.plot(_PROFILE_SHIFTS, middle, color=color, label=name)
    basin.fill_between(_PROFILE_SHIFTS, low, high, color=color, alpha=0.2, lw=0)
    shifts = [np.hypot(*ends[('shift', px, 'px'), name][:, :2].T) / PIXEL for px in SHIFTS]
    low, middle, high = np.quantile(shifts, (0.25, 0.5, 0.75), axis=1)
    medians.plot(SHIFTS, middle, '.-', color=color, label=name)
    medians.fill_between(SHIFTS, low, high, color=color, alpha=0.2, lw=0)
    for panel, kind in ((shares_of_shift, 'shift'), (shares_of_scale, 'scale')):
      mine = {
        size: end for ((what, size, _), loss), end in ends.items() if (what, loss) == (kind, name)
      }
      for tolerance, style in ((1, '.-'), (2, '.:')):
        share = [100 * np.mean(within(end, tolerance)) for end in mine.values()]
        label = f'{name}: {tolerance} px and {tolerance} %'
        panel.plot(list(mine), share, style, color=color, label=label)
  medians.plot(SHIFTS, SHIFTS, 'k:', lw=1, label='start')
  basin.set(xlabel='shift, pixels of 224', ylabel='loss, relative; median and quartiles')
  medians.set(
    xlabel='start: shift, pixels of 224', ylabel='end: shift; median and quartiles', ylim=0
  )
  shares_of_shift.set(xlabel='start: shift, pixels of 224', ylabel='tiles that end within, %')
  shares_of_scale.set(xlabel='start: scale, %', ylabel='tiles that end within, %')
  for panel in (basin, medians, shares_of_shift, shares_of_scale):
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(alpha=0.25)
    panel.legend(frameon=False, fontsize='small')
  for panel in (shares_of_shift, shares_of_scale):
    panel.set_ylim(0, 103)
  return figure


if __name__ == '__main__':
  main()
