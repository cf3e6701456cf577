"""What lines a street: buildings, trees, boundaries, and poles with what hangs on them."""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from if_jax.data.streets.classes import (
  BUILDING,
  FENCE,
  POLE,
  TRAFFIC_LIGHT,
  TRAFFIC_SIGN,
  VEGETATION,
  WALL,
)
from if_jax.data.streets.drawing import Painter
from if_jax.data.streets.shapes import discs, pick, quads, xyz

# RGB. The palettes overlap in greys, browns and greens, so that colour alone tells no class.
FACADES = np.array([
  (214, 200, 170), (176, 98, 78), (150, 150, 150), (205, 170, 110), (228, 226, 220),
  (128, 100, 84), (120, 132, 142), (160, 168, 140), (92, 92, 96), (214, 170, 160),
])  # fmt: skip
ROOFS = np.array([(150, 76, 60), (92, 84, 84), (120, 92, 74), (70, 72, 80)])
GLASS = np.array([(38, 46, 56), (60, 72, 86), (112, 126, 140), (150, 142, 124)])
LAMPLIGHT = (246, 206, 128)
LEAVES = np.array([
  (74, 108, 48), (58, 92, 52), (100, 122, 52), (48, 80, 44), (132, 124, 50), (156, 104, 48),
])  # fmt: skip
BARK = np.array([(86, 74, 62), (108, 98, 86)])
MASONRY = np.array([
  (150, 146, 138), (120, 116, 110), (166, 108, 86), (196, 190, 176), (104, 100, 104),
])  # fmt: skip
TIMBER = np.array([(120, 90, 64), (84, 96, 84), (60, 64, 68), (190, 186, 176), (104, 108, 110)])
STEEL = np.array([(110, 114, 116), (70, 76, 76), (150, 152, 150), (60, 76, 66)])
SPRAY = np.array([(228, 228, 226), (60, 96, 150), (170, 60, 50), (40, 44, 40), (216, 190, 80)])


class Building(NamedTuple):
  storeys: tuple[int, int]
  storey: float  # height in metres
  depth: float  # metres away from the street
  bay: float  # metres from window to window
  pitched: float  # share of pitched roofs
  shops: float  # share with shop windows on the ground floor


BUILDINGS = {
  'block': Building((3, 6), 3.3, 13, 2.7, 0.5, 0.5),
  'house': Building((1, 2), 2.9, 9, 3.0, 0.95, 0.0),
  'tower': Building((8, 15), 3.0, 16, 3.2, 0.0, 0.2),
  'hall': Building((1, 2), 4.6, 26, 5.0, 0.25, 0.0),
}
# Windows closer together than this many canvas pixels would only cost time.
LEAST_BAY = 6


def draw_building(
  painter: Painter, rng: Generator, x: float, z: float, side: int, length: float, name: str
):
  """Draws a building whose front runs along the street at x, to its far end at z."""
  kind = BUILDINGS[name]
  storeys, pitched = rng.integers(*kind.storeys, endpoint=True), rng.random() < kind.pitched
  stone, roof, shops = pick(rng, FACADES), pick(rng, ROOFS), rng.random() < kind.shops
  trim = 0.4 * stone + rng.uniform(110, 150)
  corner, front, away = xyz(x, 0, z - length), xyz(z=length), xyz(side * kind.depth)
  up = xyz(y=storeys * kind.storey + 0.6)
  slope = away / 2 + xyz(y=kind.depth * rng.uniform(0.25, 0.5) * pitched)
  gable = np.stack([corner, corner + away, corner + away + up, corner + up + slope, corner + up])
  painter.cast_shadow(np.concatenate([gable, gable + front]))
  if pitched:
    painter.fill(quads(corner + up, front, slope), roof, BUILDING)
  painter.fill(gable[None], stone, BUILDING)
  _draw_face(painter, rng, kind, corner, away, storeys, trim, False)
  painter.fill(quads(corner, front, up), stone, BUILDING)
  _draw_face(painter, rng, kind, corner, front, storeys, trim, shops)
  eaves = quads(corner + up - xyz(y=0.4), front, xyz(y=0.4))
  painter.fill(eaves, roof if pitched else 0.75 * stone, BUILDING)


def _draw_face(
  painter: Painter, rng: Generator, kind: Building, corner, along, storeys: int, trim, shops: bool
):
  """Windows, and a door or shop windows below them, on one face of a building."""
  length = np.abs(along).sum()
  columns = max(round(length / kind.bay), 1)
  bay, ahead = length / columns, along / length
  wide, tall = rng.uniform(0.4, 0.62) * bay, rng.uniform(0.45, 0.6) * kind.storey
  glass = GLASS[rng.integers(len(GLASS), size=(storeys, columns))] * rng.uniform(0.8, 1.2)
  lit, door = rng.random((storeys, columns)) < 0.35, rng.integers(columns)
  sign = pick(rng, SPRAY)
  if kind.bay * painter.camera.focal < LEAST_BAY * corner[2]:
    return

  def panes(column, bottom, width, height):
    left = (np.ravel(column) + 0.5) * bay - width / 2
    corners = corner + left[:, None] * ahead + xyz(y=np.ravel(bottom))
    return quads(corners, width * ahead, xyz(y=height))

  def glaze(windows, glass, lit):
    painter.fill(windows, glass, BUILDING)
    if painter.light.lamps and lit.any():
      painter.fill(windows[lit], LAMPLIGHT, BUILDING, surface='glow')

  row, column = np.mgrid[int(shops) : storeys, :columns]
  if row.size:
    sill = (row + 0.22) * kind.storey + 0.5
    painter.fill(panes(column, sill - 0.1, wide + 0.24, tall + 0.22), trim, BUILDING)
    upper = glass[int(shops) :].reshape(-1, 3), lit[int(shops) :].ravel()
    glaze(panes(column, sill, wide, tall), *upper)
  if shops:
    painter.fill(quads(corner + xyz(y=kind.storey - 0.5), along, xyz(y=0.7)), sign, BUILDING)
    displays = panes(np.arange(columns), 0.5, 0.84 * bay, kind.storey - 1.2)
    glaze(displays, 0.8 * glass[0], lit[0] | lit[-1])
  else:
    painter.fill(panes(door, 0.0, 1.2, 2.3), 0.6 * trim, BUILDING)


class Tree(NamedTuple):
  height: tuple[float, float]
  width: float  # of the crown, relative to the height
  crown: float  # height of its lower end, relative to the height
  taper: float  # how much narrower it is on top
  bunches: int  # of leaves


TREES = {
  'broad': Tree((6, 13), 0.75, 0.3, 0.25, 34),
  'young': Tree((3, 5.5), 0.5, 0.4, 0.2, 22),
  'poplar': Tree((9, 16), 0.26, 0.1, 0.5, 30),
  'conifer': Tree((5, 13), 0.42, 0.08, 0.95, 28),
  'bush': Tree((0.8, 2.2), 1.5, -0.1, 0.3, 16),
}


def draw_tree(painter: Painter, rng: Generator, x: float, z: float, name: str):
  """Draws a trunk and a crown of ragged bunches of leaves."""
  kind, foot = TREES[name], xyz(x, 0, z)
  height = rng.uniform(*kind.height)
  half_width, half_height = kind.width * height / 2, (1 - kind.crown) * height / 2
  middle = foot + xyz(y=kind.crown * height + half_height)
  painter.cast_shadow(discs(foot, 0.03 * height, 4, lying=True)[0])
  painter.cast_shadow(discs(middle, 0.85 * half_width, 18, lying=True)[0])
  trunk = np.stack([foot + xyz(y=0.02 * height), middle])[None]
  painter.rods(trunk, height * np.array([[0.02, 0.012]]), pick(rng, BARK), VEGETATION)
  # A near crown has more and smaller bunches than a distant one.
  fineness = 2.5 if z < 22 else 1.0 if z < 50 else 0.4
  crown = _ball(rng, int(fineness * kind.bunches), painter.light.to_sun)
  slim = 1 - kind.taper * (crown[:, 1:2] + 1) / 2
  size = fineness**-0.4
  middles = middle + (1 - 0.25 * size) * crown * xyz(
    half_width * slim[:, 0], half_height, half_width * slim[:, 0]
  )
  radii = min(half_width, half_height) * size * (0.15 + 0.3 * slim)
  _draw_leaves(painter, rng, middles, radii, crown, pick(rng, LEAVES))


def _ball(rng: Generator, count: int, to_sun: np.ndarray) -> np.ndarray:
  """Random points [K, 3] in the unit ball, those in the shade and behind first."""
  points = rng.standard_normal((count, 3))
  points *= rng.random((count, 1)) ** 0.4 / np.sqrt(np.sum(points**2, 1, keepdims=True))
  return points[np.argsort(points @ [0.3 * to_sun[0], 0.8, -0.5])]


def _draw_leaves(painter: Painter, rng: Generator, middles, radii, crown, colour):
  """Ragged bunches of leaves, their tone by their place `crown` [K, 3] in a unit ball."""
  tones = 0.85 + 0.3 * crown[:, 1:2] + 0.12 * crown[:, :1] * np.sign(painter.light.to_sun[0])
  tones = tones * rng.uniform(0.9, 1.1, (len(crown), 1))
  ragged = radii * rng.uniform(0.7, 1.2, (len(crown), 15))
  bunches = middles[:, None] + ragged[..., None] * discs(xyz(), 1.0, 15)
  painter.fill(bunches, tones * colour, VEGETATION, surface='round')


def draw_hedge(painter: Painter, rng: Generator, x: float, z: float, side: int, length: float):
  """Draws a clipped hedge along the street, to its far end at z."""
  height, leaf, tufts = rng.uniform(0.8, 1.9), pick(rng, LEAVES), 48
  _draw_box(painter, xyz(x, 0, z - length), side * 0.9, height, length, leaf, VEGETATION)
  middles = xyz(x, rng.uniform(0.3, 1.05, tufts) * height, np.linspace(z, z - length, tufts))
  crown = rng.uniform(-0.5, 1, (tufts, 3))
  _draw_leaves(painter, rng, middles, np.full((tufts, 1), 0.11), crown, leaf)


def draw_wall(painter: Painter, rng: Generator, x: float, z: float, side: int, length: float):
  """Draws a garden or factory wall with courses, a coping and now and then graffiti."""
  height, stone = rng.uniform(0.9, 2.6), pick(rng, MASONRY)
  corner, front = xyz(x, 0, z - length), xyz(z=length)
  _draw_box(painter, corner, side * 0.3, height, length, stone, WALL)
  courses = corner + xyz(y=np.arange(0.3, height, 0.3))
  painter.fill(quads(courses, front, xyz(y=0.04)), 0.8 * stone, WALL)
  if rng.random() < 0.35:
    starts = corner + xyz(0, rng.uniform(0.2, 0.5, 3) * height, rng.uniform(0, length - 3, 3))
    tags = quads(starts, xyz(0, 0.2, 2), xyz(0, 0.3 * height, 0.4))
    tags += xyz(0, rng.uniform(-0.2, 0.2, (3, 4)), rng.uniform(-0.3, 0.3, (3, 4)))
    painter.fill(tags, SPRAY[rng.integers(len(SPRAY), size=3)], WALL)
  coping = quads(corner + xyz(-side * 0.05, height), front, xyz(y=0.12))
  painter.fill(coping, np.minimum(1.2 * stone, 230), WALL)


def draw_fence(painter: Painter, rng: Generator, x: float, z: float, side: int, length: float):
  """Draws a fence of boards, or one of wire that shows what is behind it."""
  height, colour, boards = rng.uniform(1.0, 2.1), pick(rng, TIMBER), rng.random() < 0.55
  panel = quads(xyz(x, 0.08, z - length), xyz(z=length), xyz(y=height - 0.1))
  tone, opacity = (0.6, 0.9) if boards else (0.9, 0.4)
  painter.fill(panel, tone * colour, FENCE, opacity=opacity)
  if boards:
    starts = np.arange(z - 0.2, z - length, -0.3)
    tops = xyz(y=height + 0.08 * np.resize([0, 1], len(starts)))
    painter.fill(quads(xyz(x, 0.06, starts), xyz(z=0.22), tops), colour, FENCE)
  posts = [((x, 0, at), (x, height + 0.06, at)) for at in np.arange(z, z - length, -2.5)]
  rails = [((x, y * height, z - length), (x, y * height, z)) for y in (0.12, 0.55, 0.97)]
  ends = np.array(posts + rails)
  painter.rods(ends, np.full((len(ends), 2), 0.035), 0.85 * colour, FENCE)


def _draw_box(painter: Painter, corner, depth, height, length, colour, train_id: int):
  """A box along the street: its end towards us, its top and its front."""
  away, up, front = xyz(depth), xyz(y=height), xyz(z=length)
  end, face = quads(corner, away, up), quads(corner, front, up)
  top = quads(corner + up, away, front)
  painter.cast_shadow(np.concatenate([end[0], end[0] + front]))
  painter.fill(np.concatenate([end, top, face]), colour, train_id)


def draw_lamp_post(painter: Painter, rng: Generator, x: float, z: float, side: int):
  """Draws a lamp post whose arm reaches over the road."""
  height, steel = rng.uniform(6, 9), pick(rng, STEEL)
  top, head = (x, height, z), (x - side * rng.uniform(0.8, 2.2), height + 0.4, z)
  _draw_poles(painter, steel, ((x, 0.1, z), top, 0.08), (top, head, 0.05))
  lamp, lit = quads(xyz(*head) - xyz(0.35, 0.1), xyz(0.7), xyz(y=0.14)), painter.light.lamps
  painter.fill(lamp, LAMPLIGHT if lit else steel, POLE, surface='glow' if lit else 'flat')


def _draw_poles(painter: Painter, steel, *poles: tuple):
  """Draws poles (end, end, radius) of one colour, a little thinner at their far ends."""
  ends = np.array([pole[:2] for pole in poles], float)
  for pole in ends:
    painter.cast_shadow(np.concatenate([pole, pole + xyz(0.12)]))
  radii = np.array([(radius, 0.8 * radius) for _, _, radius in poles])
  painter.rods(ends, radii, steel, POLE)


RED, BLUE, GREEN, WHITE, YELLOW, BLACK = (
  (186, 30, 36), (28, 80, 160), (40, 110, 66), (232, 232, 228), (236, 196, 50), (34, 34, 36),
)  # fmt: skip
# Corners, turn in radians, width in metres, and the colours of border, face and bar.
SIGNS = (
  (18, 0.0, 0.7, WHITE, RED, WHITE), (18, 0.0, 0.7, RED, WHITE, BLACK),
  (18, 0.0, 0.7, WHITE, BLUE, WHITE), (3, -np.pi / 2, 0.9, RED, WHITE, WHITE),
  (3, np.pi / 2, 0.9, RED, WHITE, BLACK), (8, np.pi / 8, 0.75, WHITE, RED, WHITE),
  (4, 0.0, 0.75, WHITE, YELLOW, YELLOW), (4, np.pi / 4, 0.85, WHITE, BLUE, WHITE),
)  # fmt: skip
BOARDS = ((BLUE, WHITE), (YELLOW, BLACK), (WHITE, BLACK), (GREEN, WHITE))
LAMPS = np.array([(60, 230, 130), (255, 190, 40), (255, 50, 40)])


def draw_sign(painter: Painter, rng: Generator, x: float, z: float):
  """Draws a pole with one or two traffic signs, or a board with place names between two poles."""
  steel = pick(rng, STEEL)
  if rng.random() < 0.2:
    ground, ink = BOARDS[rng.integers(len(BOARDS))]
    _draw_poles(painter, steel, *(((at, 0, z), (at, 3.4, z), 0.05) for at in (x - 0.8, x + 0.8)))
    board = quads(xyz(x - 1.1, 2.1, z), xyz(2.2), xyz(y=1.3))
    names = quads(xyz(x - 0.85, [2.4, 2.9], z), xyz(rng.uniform(0.7, 1.6)), xyz(y=0.16))
    painter.fill(np.concatenate([board, names]), (ground, ink, ink), TRAFFIC_SIGN, surface='round')
    return
  top = rng.uniform(2.7, 3.4)
  _draw_poles(painter, steel, ((x, 0, z), (x, top, z), 0.04))
  for row in range(rng.integers(1, 3)):
    corners, turn, width, border, face, ink = SIGNS[rng.integers(len(SIGNS))]
    middle = xyz(x, top - 0.25 - 0.9 * row, z - 0.05)
    plates = [discs(middle, share * width / 2, corners, turn=turn) for share in (1, 0.78)]
    bar = quads(middle - width * xyz(0.22, 0.06), xyz(0.44 * width), xyz(y=0.12 * width))
    painter.fill(np.concatenate(plates), (border, face), TRAFFIC_SIGN, surface='round')
    painter.fill(bar, ink, TRAFFIC_SIGN, surface='round')


def draw_traffic_light(painter: Painter, rng: Generator, x: float, z: float, side: int):
  """Draws a traffic light on a pole, at times with a second one on an arm over the road."""
  steel, phase, over = pick(rng, STEEL), rng.integers(3), x - side * rng.uniform(2.0, 3.5)
  poles, heads = [((x, 0, z), (x, 3.2, z), 0.07)], [(x, 2.5)]
  if rng.random() < 0.4:
    poles += [((x, 3.2, z), (x, 5.6, z), 0.07), ((x, 5.6, z), (over, 5.8, z), 0.06)]
    heads += [(over, 4.9)]
  _draw_poles(painter, steel, *poles)
  shown = LAMPS * np.where(np.arange(3) == phase, 1, 0.25)[:, None]
  for middle, low in heads:
    box = quads(xyz(middle - 0.18, low, z - 0.1), xyz(0.36), xyz(y=1.0))
    painter.fill(box, (38, 42, 40), TRAFFIC_LIGHT, surface='round')
    lamps = discs(xyz(middle, low + np.array([0.2, 0.5, 0.8]), z - 0.12), 0.11, 10)
    painter.fill(lamps, shown, TRAFFIC_LIGHT, surface='glow')
