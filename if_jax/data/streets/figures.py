"""People, bicycles and motorcycles: tables of the rods that make them, and how they are drawn."""

import functools
import itertools

import numpy as np
from numpy.random import Generator

from if_jax.data.streets.classes import BICYCLE, MOTORCYCLE, PERSON, RIDER
from if_jax.data.streets.drawing import Painter
from if_jax.data.streets.shapes import discs, pick, place, xyz
from if_jax.data.streets.vehicles import CAR_PAINT

# RGB.
CLOTH = np.array([
  (40, 44, 60), (60, 90, 140), (150, 40, 50), (200, 196, 186), (90, 90, 92), (60, 96, 70),
  (200, 150, 60), (30, 30, 32), (150, 110, 150), (120, 96, 70),
])  # fmt: skip
SKIN = np.array([(236, 196, 168), (200, 150, 118), (130, 88, 64), (90, 62, 46)])
HAIR = np.array([(40, 32, 28), (90, 64, 40), (180, 150, 96), (130, 126, 122)])

# A figure is made of rods: (train id, colour, end, end, radius, radius); positions are
# (ahead, right, up) in metres.


def _both_sides(*rods) -> tuple:
  """Rods on the right, and the same on the left."""
  return (*rods, *((i, c, _mirror(a), _mirror(b), *radii) for i, c, a, b, *radii in rods))


def _mirror(point: tuple) -> tuple:
  return (point[0], -point[1], point[2])


def _walker(stride: float, swing: float) -> tuple:
  """A pedestrian of 1.75 m; the stride is the way of a foot, in metres."""
  rods = []
  for side in (-1, 1):
    hip, knee = (0, 0.09 * side, 0.9), (0.6 * stride * side + 0.04, 0.1 * side, 0.5)
    foot, hand = (stride * side, 0.1 * side, 0.07), (-swing * side, 0.26 * side, 0.85)
    rods += [
      (PERSON, 'trousers', hip, knee, 0.095, 0.07), (PERSON, 'trousers', knee, foot, 0.07, 0.05),
      (PERSON, 'shoes', foot, (foot[0] + 0.14, foot[1], 0.05), 0.05, 0.04),
      (PERSON, 'shirt', (0, 0.21 * side, 1.4), hand, 0.065, 0.045),
      (PERSON, 'skin', hand, (hand[0], hand[1], 0.8), 0.05, 0.04),
    ]  # fmt: skip
  return (
    *rods, (PERSON, 'shirt', (0, 0, 0.92), (0, 0, 1.36), 0.16, 0.2),
    (PERSON, 'skin', (0.02, 0, 1.5), (0.03, 0, 1.62), 0.06, 0.1),
    (PERSON, 'hair', (-0.02, 0, 1.62), (-0.01, 0, 1.67), 0.09, 0.1),
  )  # fmt: skip


def _wheel(train_id: int, ahead: float, radius: float, width: float) -> tuple:
  """A tyre that stands on the ground, in twelve pieces."""
  turn = np.linspace(0, 2 * np.pi, 13)
  rim = [(ahead + radius * np.cos(a), 0, radius * (1 + np.sin(a))) for a in turn]
  return tuple((train_id, 'tyre', *ends, width / 2, width / 2) for ends in itertools.pairwise(rim))


_BICYCLE = (
  *_wheel(BICYCLE, -0.52, 0.34, 0.05),
  *_wheel(BICYCLE, 0.52, 0.34, 0.05),
  (BICYCLE, 'frame', (-0.52, 0, 0.34), (-0.1, 0, 0.3), 0.02, 0.025),
  (BICYCLE, 'frame', (-0.1, 0, 0.3), (-0.22, 0, 0.88), 0.025, 0.025),
  (BICYCLE, 'frame', (-0.2, 0, 0.75), (0.4, 0, 0.8), 0.025, 0.025),
  (BICYCLE, 'frame', (-0.1, 0, 0.3), (0.4, 0, 0.74), 0.025, 0.025),
  (BICYCLE, 'frame', (0.52, 0, 0.34), (0.36, 0, 1.0), 0.025, 0.02),
  (BICYCLE, 'dark', (0.38, -0.28, 1.02), (0.38, 0.28, 1.02), 0.025, 0.025),
  (BICYCLE, 'dark', (-0.34, 0, 0.92), (-0.12, 0, 0.92), 0.06, 0.03),
)
_MOTORCYCLE = (
  *_wheel(MOTORCYCLE, -0.7, 0.29, 0.15),
  *_wheel(MOTORCYCLE, 0.74, 0.29, 0.12),
  (MOTORCYCLE, 'dark', (-0.68, 0, 0.32), (-0.05, 0, 0.35), 0.07, 0.16),
  (MOTORCYCLE, 'metal', (-0.05, 0, 0.36), (0.25, 0, 0.42), 0.17, 0.15),
  (MOTORCYCLE, 'metal', (-0.75, 0.16, 0.36), (0.1, 0.14, 0.3), 0.06, 0.04),
  (MOTORCYCLE, 'frame', (-0.75, 0, 0.76), (0.0, 0, 0.72), 0.1, 0.13),
  (MOTORCYCLE, 'frame', (0.0, 0, 0.78), (0.36, 0, 0.86), 0.15, 0.14),
  (MOTORCYCLE, 'dark', (-0.7, 0, 0.84), (-0.15, 0, 0.8), 0.07, 0.08),
  (MOTORCYCLE, 'metal', (0.72, 0, 0.32), (0.46, 0, 0.98), 0.05, 0.05),
  (MOTORCYCLE, 'frame', (0.5, 0, 0.86), (0.54, 0, 0.98), 0.13, 0.12),
  (MOTORCYCLE, 'dark', (0.4, -0.36, 1.04), (0.4, 0.36, 1.04), 0.03, 0.03),
)


def _rider(seat: tuple, shoulder: tuple, hand: tuple, knee: tuple, foot: tuple) -> tuple:
  """A rider by the places of the middle of his body and of his right limbs."""
  head = (shoulder[0] + 0.1, 0, shoulder[2] + 0.24)
  return (
    *_both_sides(
      (RIDER, 'trousers', (seat[0], 0.09, seat[2]), knee, 0.09, 0.07),
      (RIDER, 'trousers', knee, foot, 0.07, 0.05),
      (RIDER, 'shoes', foot, (foot[0] + 0.12, foot[1], foot[2] - 0.03), 0.05, 0.04),
      (RIDER, 'shirt', (shoulder[0], 0.2, shoulder[2]), hand, 0.065, 0.045),
    ),
    (RIDER, 'shirt', seat, shoulder, 0.16, 0.19),
    (RIDER, 'skin', (shoulder[0] + 0.06, 0, shoulder[2] + 0.1), head, 0.06, 0.1),
    (RIDER, 'helmet', head, (head[0] - 0.03, 0, head[2] + 0.07), 0.1, 0.11),
  )


_CYCLIST = _rider((-0.22, 0, 1.0), (0.1, 0, 1.48), (0.38, 0.24, 1.06), (0.12, 0.1, 0.76),
                  (-0.04, 0.11, 0.26))  # fmt: skip
_BIKER = _rider((-0.28, 0, 0.94), (-0.08, 0, 1.42), (0.38, 0.3, 1.06), (0.16, 0.22, 0.78),
                (-0.04, 0.22, 0.34))  # fmt: skip
FIGURES = {
  'walking': _walker(0.3, 0.2),
  'strolling': _walker(0.17, 0.1),
  'standing': _walker(0.02, 0.02),
  'bicycle': _BICYCLE,
  'cyclist': _BICYCLE + _CYCLIST,
  'motorcycle': _MOTORCYCLE,
  'motorcyclist': _MOTORCYCLE + _BIKER,
}


def draw_figure(painter: Painter, rng: Generator, x: float, z: float, yaw: float, name: str):
  """Draws a figure that stands at (x, z) metres, a little taller or shorter than the table's."""
  colours = {
    'shirt': pick(rng, CLOTH), 'trousers': pick(rng, CLOTH), 'skin': pick(rng, SKIN),
    'hair': pick(rng, HAIR), 'frame': pick(rng, CAR_PAINT), 'helmet': pick(rng, CLOTH),
    'shoes': (40, 36, 34), 'dark': (34, 34, 36), 'metal': (120, 122, 126), 'tyre': (26, 26, 28),
  }  # fmt: skip
  ends, radii, train_ids, names = _skeleton(name)
  size, position = rng.uniform(0.88, 1.08), xyz(x, 0, z)
  ends = place(size * ends, position, yaw)
  # To a decimetre: rods at one distance keep the order of the table.
  order = np.argsort(-ends[..., 2].mean(1).round(1), kind='stable')
  rod_colours = [colours[names[k]] for k in order]
  painter.rods(ends[order], size * radii[order], rod_colours, train_ids[order])
  painter.occlude(discs(position, 0.25, 6, lying=True)[0])
  painter.cast_shadow(ends.reshape(-1, 3))


@functools.cache
def _skeleton(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
  """Ends [K, 2, 3], radii [K, 2], train ids [K] and colours of a figure's rods."""
  train_ids, names, starts, stops, *radii = zip(*FIGURES[name], strict=True)
  ends = np.stack([starts, stops], 1).astype(float)
  return ends, np.stack(radii, 1), np.array(train_ids), names
