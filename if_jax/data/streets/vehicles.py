"""Cars, trucks, buses and trams: a table of their shapes, and the function that draws them."""

import functools
import itertools
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from if_jax.data.streets.classes import BUS, CAR, TRAIN, TRUCK
from if_jax.data.streets.drawing import Painter
from if_jax.data.streets.shapes import pick, place, xyz

# RGB.
CAR_PAINT = np.array([
  (205, 205, 208), (160, 163, 168), (32, 34, 38), (70, 74, 80), (150, 30, 32), (40, 66, 120),
  (236, 236, 236), (48, 92, 62), (188, 170, 130), (120, 150, 170), (212, 160, 40),
])  # fmt: skip
LIVERIES = np.array([(206, 60, 50), (230, 190, 60), (60, 110, 170), (226, 226, 224), (70, 130, 90)])
CARGO = np.array([(228, 228, 226), (60, 96, 150), (170, 60, 50), (120, 124, 120), (216, 190, 80)])
GLASS = np.array([(34, 40, 48), (52, 62, 72), (84, 98, 112)])


class Vehicle(NamedTuple):
  """A prism: a profile seen from its right side, drawn out over the width.

  Positions are fractions of the size: along from the rear to the front, up from the road.
  """

  train_id: int
  palette: np.ndarray
  size: tuple[float, float, float]  # length, width, height in metres
  profile: tuple  # (along, up) from the rear bumper over the roof to the front bumper
  surfaces: str  # what covers each edge of the profile, a letter of SURFACES
  windows: tuple  # polygons (along, up) on either side, counter-clockwise
  wheels: tuple = ()  # along
  wheel_radius: float = 0.0  # metres
  lamp_height: float = 0.45
  narrowing: float = 0.0  # how much narrower the roof is than the belt
  stripes: tuple = ()  # (surface, along, along, up, up) on either side
  seams: tuple = ()  # (surface, left, right, low, high) on the rear, besides _REAR


SURFACES = {'b': 'body', 'c': 'cargo', 'g': 'glass', 'd': 'dark'}


def _corners(left: float, right: float, low: float, high: float) -> tuple:
  return ((left, low), (right, low), (right, high), (left, high))


def _panes(count: int, start: float, end: float, low: float, high: float) -> tuple:
  """A row of equal side windows."""
  pitch = (end - start) / count
  starts = [start + (k + 0.06) * pitch for k in range(count)]
  return tuple(_corners(a, a + 0.88 * pitch, low, high) for a in starts)


_DOORS = (('dark', 0.03, 0.97, 0.18, 0.24), ('dark', 0.41, 0.415, 0.24, 0.6))
_COACH = (
  (0, 0.1), (0, 0.45), (0.02, 0.97), (0.05, 1), (0.95, 1), (0.985, 0.95), (1, 0.42), (1, 0.1),
)  # fmt: skip
VEHICLES = {
  'hatchback': Vehicle(
    CAR, CAR_PAINT, (4.1, 1.75, 1.48),
    ((0, 0.18), (0, 0.58), (0.09, 0.95), (0.2, 1), (0.55, 0.99), (0.76, 0.62), (0.97, 0.5),
     (1, 0.18)), 'bgbbgbb',
    (((0.07, 0.62), (0.39, 0.62), (0.4, 0.93), (0.15, 0.92)),
     ((0.42, 0.62), (0.7, 0.62), (0.55, 0.93), (0.43, 0.93))),
    wheels=(0.2, 0.81), wheel_radius=0.31, narrowing=0.22, stripes=_DOORS,
  ),
  'saloon': Vehicle(
    CAR, CAR_PAINT, (4.7, 1.8, 1.44),
    ((0, 0.2), (0.01, 0.6), (0.14, 0.65), (0.29, 0.98), (0.55, 1), (0.74, 0.63), (0.97, 0.52),
     (1, 0.18)), 'bbgbgbb',
    (((0.21, 0.65), (0.42, 0.65), (0.42, 0.93), (0.31, 0.92)),
     ((0.44, 0.65), (0.68, 0.65), (0.55, 0.94), (0.45, 0.94))),
    wheels=(0.19, 0.81), wheel_radius=0.32, narrowing=0.22, stripes=_DOORS,
  ),
  'van': Vehicle(
    CAR, CAR_PAINT, (4.9, 1.95, 1.95),
    ((0, 0.15), (0, 0.5), (0.03, 0.95), (0.08, 1), (0.68, 1), (0.84, 0.58), (0.98, 0.48),
     (1, 0.15)), 'bgbbgbb',
    (*_panes(2, 0.06, 0.5, 0.58, 0.9), ((0.52, 0.58), (0.79, 0.58), (0.67, 0.9), (0.52, 0.9))),
    wheels=(0.19, 0.82), wheel_radius=0.34, lamp_height=0.36, narrowing=0.1, stripes=_DOORS,
  ),
  'truck': Vehicle(
    TRUCK, CAR_PAINT, (8.5, 2.5, 3.4),
    ((0, 0.2), (0, 1), (0.73, 1), (0.74, 0.3), (0.77, 0.3), (0.78, 0.84), (0.95, 0.84),
     (0.99, 0.5), (1, 0.12)), 'cccdbbgb',
    (((0.84, 0.52), (0.97, 0.52), (0.94, 0.78), (0.84, 0.78)),),
    wheels=(0.12, 0.25, 0.87), wheel_radius=0.5, lamp_height=0.22,
    stripes=(('cargo', 0, 0.73, 0.28, 1), ('dark', 0, 0.77, 0.2, 0.28)),
    seams=(('dark', 0.49, 0.51, 0.06, 0.78), ('dark', 0, 1, 0.05, 0.07)),
  ),
  'bus': Vehicle(
    BUS, LIVERIES, (11.5, 2.5, 3.1), _COACH, 'bgbbbgb',
    (*_panes(7, 0.03, 0.89, 0.48, 0.85),
     ((0.91, 0.2), (0.975, 0.2), (0.97, 0.85), (0.91, 0.85))),
    wheels=(0.22, 0.76), wheel_radius=0.48, lamp_height=0.28,
  ),
  'tram': Vehicle(
    TRAIN, LIVERIES, (9.5, 2.4, 3.5), _COACH, 'bgbdbgb', _panes(6, 0.02, 0.98, 0.46, 0.82),
    lamp_height=0.28,
    stripes=(('dark', 0, 1, 0.03, 0.14), ('cargo', 0, 1, 0.28, 0.38)),
  ),
}  # fmt: skip

# What is seen on a rear and on a front: (surface, left, right, low, high); left and right are
# fractions of the width, low and high fractions of the height above the lamps.
_REAR = (('dark', 0.06, 0.94, -0.3, -0.2), ('red', 0.05, 0.2, -0.04, 0.07),
         ('red', 0.8, 0.95, -0.04, 0.07), ('plate', 0.36, 0.64, -0.1, -0.02))  # fmt: skip
_FRONT = (('dark', 0.28, 0.72, -0.14, 0.02), ('lamp', 0.05, 0.25, -0.04, 0.06),
          ('lamp', 0.75, 0.95, -0.04, 0.06), ('plate', 0.37, 0.63, -0.2, -0.13))  # fmt: skip
_FIXED_COLOURS = {
  'dark': (36, 36, 38), 'tyre': (24, 24, 26), 'hub': (128, 130, 134), 'red': (170, 24, 26),
  'lamp': (226, 226, 216), 'plate': (220, 218, 200),
}  # fmt: skip
_LIT = {'red': (241, 51, 54), 'lamp': (255, 255, 250)}  # at night


class _Mesh(NamedTuple):
  """The polygons of a vehicle around its middle: metres (ahead, right, up)."""

  polygons: np.ndarray  # [K, N, 3], shorter ones padded with their last point
  surfaces: np.ndarray  # [K], names
  faces: np.ndarray  # [K]: which face of the prism a polygon lies on
  middles: np.ndarray  # [F, 3], of the faces


def vehicle_colours(rng: Generator, name: str) -> dict[str, tuple | np.ndarray]:
  """The colours of one vehicle, by surface."""
  body, cargo = pick(rng, VEHICLES[name].palette), pick(rng, CARGO)
  return {'body': body, 'cargo': cargo, 'glass': pick(rng, GLASS), **_FIXED_COLOURS}


def draw_vehicle(
  painter: Painter, rng: Generator, x: float, z: float, yaw: float, name: str, colours: dict
):
  """Draws a vehicle whose middle stands at (x, z) metres; at yaw 0 it drives away from us."""
  kind, mesh, position = VEHICLES[name], _mesh(name), xyz(x, 0, z)
  depths = place(mesh.middles, position, yaw)[:, 2]
  # The sides, the last two faces, hide the others, and never the other way round.
  depths[-2:] -= 100
  order = np.argsort(-depths[mesh.faces], kind='stable')
  polygons, surfaces = place(mesh.polygons[order], position, yaw), mesh.surfaces[order]
  painter.fill(polygons, [colours[s] for s in surfaces], kind.train_id, cull=True)
  if painter.light.lamps:
    lit = np.isin(surfaces, list(_LIT))
    shine = [_LIT[s] for s in surfaces[lit]]
    painter.fill(polygons[lit], shine, kind.train_id, cull=True, surface='glow')
  corners = [(a, r, u) for u in (0, 0.9) for a in (-0.5, 0.5) for r in (-0.5, 0.5)]
  corners = place(np.array(corners) * kind.size, position, yaw)
  painter.cast_shadow(corners)
  painter.occlude(corners[:4])


@functools.cache
def _mesh(name: str) -> _Mesh:
  kind = VEHICLES[name]
  faces = [*_ends_and_tops(kind), _side(kind, -0.5), _side(kind, 0.5)]
  parts = [(k, surface, outline) for k, face in enumerate(faces) for surface, outline in face]
  numbers, surfaces, outlines = zip(*parts, strict=True)
  most = max(map(len, outlines))
  points = np.array([[*outline, *[outline[-1]] * (most - len(outline))] for outline in outlines])
  along, right, up = np.moveaxis(points, -1, 0)
  right = right * (1 - kind.narrowing * np.clip((up - 0.6) / 0.4, 0, 1))
  points = np.stack([along - 0.5, right, up], -1) * kind.size
  numbers = np.array(numbers)
  middles = np.stack([points[numbers == k].mean((0, 1)) for k in range(len(faces))])
  return _Mesh(points, np.array(surfaces), numbers, middles)


def _ends_and_tops(kind: Vehicle) -> list[list]:
  """For each edge of the profile the parts (surface, outline of (along, right, up)) on it."""
  faces = []
  for ((a, low), (b, high)), letter in zip(
    itertools.pairwise(kind.profile), kind.surfaces, strict=True
  ):
    outline = np.array([(a, -0.5, low), (a, 0.5, low), (b, 0.5, high), (b, -0.5, high)])
    if SURFACES[letter] == 'glass':
      pane = outline.mean(0) + 0.86 * (outline - outline.mean(0))
      faces.append([('body', outline), ('glass', pane)])
    else:
      faces.append([(SURFACES[letter], outline)])
  faces[0] += _panels(kind, 0.0, kind.seams + _REAR)
  faces[-1] += _panels(kind, 1.0, _FRONT)
  return faces


def _panels(kind: Vehicle, along: float, panels: tuple) -> list:
  """The parts on the rear (along is 0) or on the front (along is 1), and the tyres below."""
  rectangles = [(s, a, b, kind.lamp_height + low, kind.lamp_height + high)
                for s, a, b, low, high in panels]  # fmt: skip
  if kind.wheels:
    clearance = kind.profile[-1 if along else 0][1]
    rectangles += [('tyre', left, left + 0.14, 0, clearance) for left in (0.04, 0.82)]
  mirror = -1 if along else 1
  return [
    (s, [(along, mirror * (r - 0.5), u) for r, u in _corners(*rectangle)])
    for s, *rectangle in rectangles
  ]


def _side(kind: Vehicle, right: float) -> list:
  """The parts (surface, outline of (along, right, up)) on the left or the right side."""
  length, _, height = kind.size
  turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
  parts = [('body', kind.profile[::-1])]
  parts += [(surface, _corners(*rectangle)) for surface, *rectangle in kind.stripes]
  parts += [('glass', window) for window in kind.windows]
  for along in kind.wheels:
    for surface, radius in (('tyre', kind.wheel_radius), ('hub', 0.55 * kind.wheel_radius)):
      a, u = radius * np.cos(turn) / length, (radius * np.sin(turn) + kind.wheel_radius) / height
      parts.append((surface, list(zip(along + a, u, strict=True))))
  order = 1 if right > 0 else -1
  return [(surface, [(a, right, u) for a, u in outline][::order]) for surface, outline in parts]
