"""What does the InverseForm loss see, and which way does it push? One tile, in pictures.

A street is drawn, the boundaries of one tile are moved by a known transform and taken for a
prediction. Beside them stand the prediction moved back by the inverse network's answer, where
descent would raise (red) and lower (blue) the probability, and the loss along the motion.

python -m benchmarks.loss_figures
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.results import COLORS, print_table, run, save_figure
from benchmarks.tiles import PIXEL, TILE_SIZE
from if_jax.data.streets import draw
from if_jax.losses.inverseform import inverseform
from if_jax.models.inversenet import load_inversenet
from if_jax.ops.blur import gaussian_blur
from if_jax.ops.boundaries import boundary_map
from if_jax.ops.transforms import matrix_from_parameters
from if_jax.ops.warp import affine_warp

_SIZE = 3 * TILE_SIZE, 6 * TILE_SIZE
_GRID = {'tile_rows': 1, 'tile_columns': 1, 'tile_size': TILE_SIZE}
# Multiples of the motion at which the loss is taken, for its curve.
_MULTIPLES = np.linspace(-1.5, 1.5, 31, dtype=np.float32)
_BATCH_SIZE = 8


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.loss_figures', description=__doc__)
  parser.add_argument('--seed', type=int, default=8, help='of the street')
  parser.add_argument('--column', type=int, default=1, help='of the tile, 1 to 4, second row')
  parser.add_argument('--shift', type=float, nargs=2, default=(9, -6), help='pixels, x and y')
  parser.add_argument('--scale', type=float, default=1.06, help='of the prediction')
  parser.add_argument('--inversenet', default='default', help="or a folder of train_inversenet's")
  parser.add_argument('--output', default='runs/benchmarks', help='folder of JSON and picture')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  if not 1 <= arguments.column <= 4:
    raise ValueError(f'--column={arguments.column}: 1 to 4, so that there is a street around it')
  image, labels = draw(np.random.default_rng(arguments.seed), _SIZE)
  street = boundary_map(jnp.asarray(labels[None], jnp.int32))
  corner = TILE_SIZE, arguments.column * TILE_SIZE
  # The transform maps a place in the prediction to one in the truth: the inverse of the motion.
  motion = -np.array([*arguments.shift, 0, 0], np.float32) * PIXEL
  motion[2:] = -np.log(arguments.scale)
  inverse_net = jax.tree_util.Partial(*load_inversenet(arguments.inversenet))

  truth = _move(street, corner, jnp.zeros((1, 4)))
  prediction = _move(street, corner, motion[None])
  estimate = np.asarray(jax.jit(inverse_net)(prediction, truth))
  undone = affine_warp(prediction, _inverse_of(estimate))
  gradients = {
    name: np.asarray(_gradient(prediction, truth, inverse_net, gradient=name))
    for name in ('full', 'motion')
  }
  losses = _losses_along(street, corner, motion, truth, inverse_net)
  rows = [
    {'': 'shift x, px', 'moved by': -motion[0] / PIXEL, 'answer': -estimate[0, 0] / PIXEL},
    {'': 'shift y, px', 'moved by': -motion[1] / PIXEL, 'answer': -estimate[0, 1] / PIXEL},
    {'': 'scale x', 'moved by': np.exp(-motion[2]), 'answer': np.exp(-estimate[0, 2])},
    {'': 'scale y', 'moved by': np.exp(-motion[3]), 'answer': np.exp(-estimate[0, 3])},
  ]
  rows = [{k: v if isinstance(v, str) else float(v) for k, v in row.items()} for row in rows]
  print_table('How the boundaries were moved, and the answer', rows)
  maps = [np.asarray(x)[0, ..., 0] for x in (truth, prediction, undone)]
  save_figure(_draw(image, corner, maps, gradients, losses), arguments.output, 'loss_figures')
  # A quarter of the bytes.
  path = Path(arguments.output, 'loss_figures.png')
  Image.open(path).convert('RGB').quantize(128).save(path, optimize=True)
  return {'rows': rows, 'loss': dict(zip(_MULTIPLES.round(2).tolist(), losses, strict=True))}


def _move(street, corner, parameters):
  """The tile at a corner of moved boundaries; lines come in from the street around it."""
  margin = TILE_SIZE // 2
  (top, left), size = corner, 2 * TILE_SIZE
  around = street[:, top - margin : top - margin + size, left - margin : left - margin + size]
  around = jnp.repeat(around, len(parameters), 0)
  # Half tiles of a part twice as large.
  parameters = jnp.asarray(parameters) * jnp.array([0.5, 0.5, 1, 1])
  moved = gaussian_blur(affine_warp(around, matrix_from_parameters(parameters)[:, :2]), 1.0)
  return moved[:, margin:-margin, margin:-margin]


def _inverse_of(parameters):
  return jnp.linalg.inv(matrix_from_parameters(parameters))[:, :2]


@functools.partial(jax.jit, static_argnames='gradient')
def _gradient(prediction, truth, inverse_net, *, gradient):
  logits = jax.scipy.special.logit(jnp.clip(prediction, 0.02, 0.98))

  def loss(logits):
    return inverseform(logits, truth, inverse_net, gradient=gradient, **_GRID)[0]

  return jax.grad(loss)(logits)


def _losses_along(street, corner, motion, truth, inverse_net):
  @jax.jit
  def answers(parameters):
    moved = _move(street, corner, parameters)
    return inverse_net(moved, jnp.repeat(truth, len(moved), 0))

  parts = np.array_split(_MULTIPLES[:, None] * motion, -(-len(_MULTIPLES) // _BATCH_SIZE))
  return np.concatenate([np.linalg.norm(answers(x), axis=1) for x in parts]).tolist()


def _draw(image, corner, maps, gradients, losses) -> Figure:
  truth, prediction, undone = maps
  figure = Figure(figsize=(10.5, 7.3), layout='constrained')
  grid = figure.subplots(2, 3)
  (street, before, after), (full, kept, curve) = grid
  top, left = corner
  street.imshow(image[top : top + TILE_SIZE, left : left + TILE_SIZE])
  street.set_title('a tile of a street')
  before.imshow(_in_two_colours(truth, prediction))
  before.set_title('truth (black), prediction (orange)')
  after.imshow(_in_two_colours(truth, undone))
  after.set_title('moved back by the answer')
  for panel, name, title in (
    (full, 'full', 'descent, full gradient'),
    (kept, 'motion', 'descent, kept to motions'),
  ):
    slope = -gradients[name][0, ..., 0]
    limit = np.quantile(np.abs(slope), 0.995)
    panel.imshow(slope, cmap='RdBu_r', vmin=-limit, vmax=limit)
    panel.contour(truth, [0.5], colors='black', linewidths=0.6)
    panel.set_title(title)
  for panel in grid.ravel()[:-1]:
    panel.set_axis_off()
  curve.plot(_MULTIPLES, losses, color=COLORS[0], linewidth=2)
  curve.plot(1, np.interp(1, _MULTIPLES, losses), 'o', color=COLORS[1], markersize=8)
  curve.set(xlabel='times the motion', ylim=(0, None), title='the loss along the motion')
  curve.spines[['top', 'right']].set_visible(False)
  curve.grid(alpha=0.25)
  return figure


def _in_two_colours(truth, moved):
  """On white, the truth in black and what was moved in orange; where both are, darker."""
  orange = np.array([213, 94, 0]) / 255
  page = 1 - moved[..., None] * (1 - orange)
  return page * (1 - 0.75 * truth[..., None])


if __name__ == '__main__':
  main()
