"""Where things stand: the plan of a street and the list of all that lines and uses it."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from if_jax.data.streets import figures, scenery, vehicles
from if_jax.data.streets.shapes import choose

STREET_LENGTH = 100.0  # metres
LEFT, RIGHT = -1, 1  # the sides of the street: the sign of x
AWAY, TOWARDS = 0.0, math.pi  # yaws


class Setting(NamedTuple):
  """A kind of street: odds of what stands on a plot and bounds it, and how dense the rest is."""

  plots: dict[str, float]
  bounds: dict[str, float]
  setback: tuple[float, float]  # metres from the pavement to a building
  skyline: float  # share of the skyline that is built up
  people: float  # mean number on either pavement
  parked: float  # share of parking places taken
  trees: float  # share of streets lined with trees
  paved: float  # share of streets without grass


SETTINGS = {
  'town': Setting(
    {'block': 9, 'tower': 1, 'house': 0.6, 'green': 0.8}, {'none': 1, 'wall': 0.1}, (0, 0.5),
    skyline=0.7, people=6, parked=0.55, trees=0.4, paved=0.9),
  'suburb': Setting(
    {'house': 7, 'block': 1, 'green': 1.5}, {'none': 1, 'fence': 2, 'wall': 1.3, 'hedge': 1.5},
    (3, 8), skyline=0.3, people=2.5, parked=0.35, trees=0.5, paved=0.3),
  'estate': Setting(
    {'tower': 3, 'block': 2, 'green': 3}, {'none': 3, 'fence': 1, 'hedge': 1}, (4, 12),
    skyline=0.6, people=4, parked=0.45, trees=0.6, paved=0.2),
  'works': Setting(
    {'hall': 5, 'block': 1, 'green': 1.5}, {'none': 0.7, 'wall': 3, 'fence': 3}, (5, 12),
    skyline=0.4, people=1.5, parked=0.25, trees=0.2, paved=0.5),
  'park': Setting(
    {'green': 6, 'house': 1}, {'none': 1, 'fence': 1.2, 'wall': 1, 'hedge': 1.5}, (4, 10),
    skyline=0.15, people=3, parked=0.2, trees=0.8, paved=0.1),
}  # fmt: skip
SETTING_ODDS = {'town': 5, 'suburb': 4, 'estate': 2, 'works': 2, 'park': 2}

BOUNDS = {'fence': scenery.draw_fence, 'wall': scenery.draw_wall, 'hedge': scenery.draw_hedge}
WILD_ODDS = {'broad': 3, 'young': 1, 'poplar': 1, 'conifer': 2, 'bush': 2}
GARDEN_ODDS = {'young': 1, 'bush': 1, 'conifer': 0.5}
AVENUE_ODDS = {'broad': 2, 'young': 1, 'poplar': 1}
LANE_ODDS = {'hatchback': 4, 'saloon': 4, 'van': 2, 'truck': 1.4, 'bus': 1.3, 'cyclist': 1.3,
             'motorcyclist': 1.5}  # fmt: skip
PARKED_ODDS = {'hatchback': 5, 'saloon': 5, 'van': 2.5, 'truck': 0.5, 'motorcycle': 0.8}
PEDESTRIAN_ODDS = {'walking': 1, 'strolling': 1, 'standing': 1}


class Street(NamedTuple):
  """The plan of a street, in metres; the camera drives in the middle of the lane at x = 0."""

  setting: Setting
  lane: float  # width
  kerb: dict[int, float]  # x, by side
  oncoming: int  # lanes
  tram: bool  # whether the innermost oncoming lane is a tram's
  parking: dict[int, float]  # width of the parking lane, by side
  pavement: dict[int, float]  # width, by side
  junction: tuple[float, float]  # where a road crosses, from z to z; beyond the street if nowhere

  def plots(self, side: int) -> float:
    """Where the plots begin, beyond the pavement."""
    return self.kerb[side] + side * self.pavement[side]

  def has_junction(self) -> bool:
    return self.junction[0] < STREET_LENGTH

  def at_junction(self, z0: float, z1: float, margin: float = 1.0) -> bool:
    return z1 > self.junction[0] - margin and z0 < self.junction[1] + margin


class Thing(NamedTuple):
  """Something to be drawn by `draw(painter, rng, x, z, *args)`; the farther the earlier."""

  draw: Callable
  x: float
  z: float
  args: tuple = ()
  distance: float | None = None  # in metres, where it is not z that decides what hides what


def plan(rng: Generator) -> Street:
  """Draws the lots for a street as a whole."""
  setting = SETTINGS[choose(rng, SETTING_ODDS)]
  lane, tram = rng.uniform(3.0, 3.6), bool(rng.random() < 0.28)
  oncoming = int(rng.integers(1, 3)) + tram
  parking = {side: 2.2 * (rng.random() < 0.6) for side in (LEFT, RIGHT)}
  start = rng.uniform(16, 55) if rng.random() < 0.45 else 2 * STREET_LENGTH
  return Street(
    setting=setting,
    lane=lane,
    kerb={LEFT: -lane * (0.5 + oncoming) - parking[LEFT], RIGHT: lane * 0.5 + parking[RIGHT]},
    oncoming=oncoming,
    tram=tram,
    parking=parking,
    pavement={side: rng.uniform(1.8, 4.5) for side in (LEFT, RIGHT)},
    junction=(start, start + rng.uniform(6, 10)),
  )


def things(rng: Generator, street: Street) -> Iterator[Thing]:
  """All that stands and moves in a street, in no particular order."""
  avenue, pitch = choose(rng, AVENUE_ODDS), rng.uniform(8, 16)
  if rng.random() >= street.setting.trees:
    pitch = STREET_LENGTH
  for side in (LEFT, RIGHT):
    yield from _plots(rng, street, side)
    yield from _kerbside(rng, street, side)
    yield from _avenue(rng, street, side, avenue, pitch)
    yield from _parked(rng, street, side)
    yield from _pavement(rng, street, side)
  density = rng.uniform(0.35, 1.0)
  for lane in range(street.oncoming + 1):
    yield from _lane(rng, street, lane, density)
  if street.has_junction():
    yield from _crossing(rng, street)


def _plots(rng: Generator, street: Street, side: int) -> Iterator[Thing]:
  """Buildings and greens one after another, each behind its own fence, wall or hedge."""
  edge, setback = street.plots(side), street.setting.setback
  end = rng.uniform(2.5, 8)
  while end < STREET_LENGTH:
    start, length = end, rng.uniform(9, 24)
    end = start + length
    kind, bound = choose(rng, street.setting.plots), choose(rng, street.setting.bounds)
    x = edge + side * rng.uniform(*setback)
    if street.at_junction(start, end, 3.0):
      continue
    plot = []
    if kind == 'green':
      plot += _trees(rng, x + side * 2, side * 14, start, end, rng.integers(2, 7), WILD_ODDS)
    else:
      plot.append(Thing(scenery.draw_building, x, end, (side, length, kind)))
      if abs(x - edge) > 2.5:
        plot += _trees(rng, x - side, -side, start, end, rng.integers(3), GARDEN_ODDS)
    if bound != 'none':
      plot.append(Thing(BOUNDS[bound], edge, end, (side, length)))
    # What stands along a plot, on the pavement, is in front of all that stands on it.
    for order, thing in enumerate(plot):
      yield thing._replace(distance=end - order / 1000)
    end += rng.uniform(1, 5) * (setback[1] > 2)


def _trees(rng: Generator, x, width, start, end, count, odds) -> Iterator[Thing]:
  """Trees between x and x + width, the farthest first."""
  for z in np.sort(rng.uniform(start, end, count))[::-1]:
    yield Thing(scenery.draw_tree, x + rng.random() * width, z, (choose(rng, odds),))


def _avenue(rng: Generator, street: Street, side: int, name: str, pitch: float) -> Iterator[Thing]:
  for z in np.arange(rng.uniform(0.9, 1.5) * pitch, STREET_LENGTH, pitch):
    z = z + rng.uniform(-1.5, 1.5)
    if not street.at_junction(z, z, 2.0) and rng.random() < 0.85:
      yield Thing(scenery.draw_tree, street.kerb[side] + side * 0.9, z, (name,))


def _kerbside(rng: Generator, street: Street, side: int) -> Iterator[Thing]:
  """Lamp posts, signs and traffic lights."""
  x = street.kerb[side] + side * 0.6
  for z in np.arange(rng.uniform(6, 18), STREET_LENGTH, rng.uniform(20, 32)):
    yield Thing(scenery.draw_lamp_post, x, z, (side,))
  for z in rng.uniform(6, 60, rng.poisson(1.8)):
    yield Thing(scenery.draw_sign, x, z)
  if street.has_junction() and rng.random() < 0.75:
    for z in (street.junction[0] - 1, street.junction[1] + 1):
      yield Thing(scenery.draw_traffic_light, x, z, (side,))


def _lane(rng: Generator, street: Street, lane: int, density: float) -> Iterator[Thing]:
  """The traffic on one lane: 0 is ours, the others come towards us."""
  is_tram, yaw, z = street.tram and lane == 1, TOWARDS if lane else AWAY, rng.uniform(6, 22)
  while z < STREET_LENGTH - 20:
    name = 'tram' if is_tram else choose(rng, LANE_ODDS)
    if rng.random() < density:
      for thing in _vehicle(rng, name, rng.uniform(-0.3, 0.3) - street.lane * lane, z, yaw):
        yield thing
        z = thing.z + _length(name) / 2
    z += rng.uniform(3, 22)


def _parked(rng: Generator, street: Street, side: int) -> Iterator[Thing]:
  z = rng.uniform(3, 12)
  while street.parking[side] and z < 90:
    yaw = AWAY if side == RIGHT or rng.random() < 0.3 else TOWARDS
    if rng.random() < street.setting.parked and not street.at_junction(z, z + 6, 5.0):
      yield from _vehicle(rng, choose(rng, PARKED_ODDS), street.kerb[side] - side * 1.1, z, yaw)
    z += rng.uniform(5.5, 7.5)


def _crossing(rng: Generator, street: Street) -> Iterator[Thing]:
  """Who crosses our street at the junction: on its road, and on the stripes before it."""
  middle, stripes = sum(street.junction) / 2, street.junction[0] - 2.5
  for x in rng.uniform(-16, 16, rng.integers(3)):
    side = _toss(rng, LEFT, RIGHT)
    name = choose(rng, LANE_ODDS)
    z = middle - side * 1.7 - _length(name) / 2
    yield from _vehicle(rng, name, x, z, side * math.pi / 2)
  for x in rng.uniform(street.kerb[LEFT], street.kerb[RIGHT], rng.integers(4)):
    yaw = _toss(rng, LEFT, RIGHT) * math.pi / 2
    yield Thing(figures.draw_figure, x, stripes + rng.uniform(-1.3, 1.3), (yaw, 'walking'))


def _toss(rng: Generator, heads: float, tails: float) -> float:
  return heads if rng.random() < 0.5 else tails


def _length(name: str) -> float:
  return vehicles.VEHICLES[name].size[0] if name in vehicles.VEHICLES else 2.0


def _vehicle(rng: Generator, name: str, x: float, z: float, yaw: float) -> Iterator[Thing]:
  """A vehicle with its near end at z: a figure on two wheels, or the wagons of one colour."""
  length = _length(name)
  if name in figures.FIGURES:
    yield Thing(figures.draw_figure, x + rng.uniform(-0.8, 0.8), z + length / 2, (yaw, name))
    return
  colours = vehicles.vehicle_colours(rng, name)
  for wagon in range(rng.integers(2, 4) if name == 'tram' else 1):
    yield Thing(vehicles.draw_vehicle, x, z + length * (wagon + 0.5), (yaw, name, colours))


def _pavement(rng: Generator, street: Street, side: int) -> Iterator[Thing]:
  """Pedestrians, some of them in pairs, and bicycles left at the kerb."""
  kerb, width = street.kerb[side], street.pavement[side]
  for z in 5 + rng.gamma(1.6, 14, rng.poisson(street.setting.people)):
    x, yaw = kerb + side * rng.uniform(0.5, width - 0.3), _toss(rng, AWAY, TOWARDS)
    for neighbour in range(1 + (rng.random() < 0.35)):
      args = (yaw + rng.normal(0, 0.4), choose(rng, PEDESTRIAN_ODDS))
      yield Thing(figures.draw_figure, x + 0.6 * neighbour, z + 0.2 * neighbour, args)
  if rng.random() < 0.3:
    for z in rng.uniform(6, 25) + 0.7 * np.arange(rng.integers(1, 5)):
      yaw = side * math.pi / 2 + rng.normal(0, 0.2)
      yield Thing(figures.draw_figure, kerb + side, z, (yaw, 'bicycle'))
