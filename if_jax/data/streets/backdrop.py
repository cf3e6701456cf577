"""What lies behind and below the things in a street: sky, skyline, ground and our own bonnet."""

import math

import cv2
import numpy as np
from numpy.random import Generator

from if_jax.data.streets.classes import (
  BUILDING,
  IGNORED,
  ROAD,
  SIDEWALK,
  SKY,
  TERRAIN,
  VEGETATION,
)
from if_jax.data.streets.drawing import Painter
from if_jax.data.streets.layout import LEFT, RIGHT, STREET_LENGTH, Street
from if_jax.data.streets.photo import smooth_noise
from if_jax.data.streets.scenery import FACADES, LEAVES
from if_jax.data.streets.shapes import discs, pick, quads, xyz
from if_jax.data.streets.vehicles import CAR_PAINT

FAR, WIDE = 150.0, 300.0  # metres to the skyline that closes the street, and to its ends
NEAREST = 1.0  # metres to where the ground begins, always below the picture

# RGB.
ASPHALT = np.array([(98, 98, 102), (84, 84, 86), (118, 116, 114), (108, 100, 96)])
PAVING = np.array([(150, 146, 142), (130, 128, 128), (166, 156, 144), (146, 118, 106)])
GRASS = np.array([(104, 124, 62), (120, 118, 70), (84, 110, 56), (138, 122, 84), (112, 100, 74)])
CHALK = np.array([(214, 212, 204)])
RAIL_BED, RAIL = (70, 68, 66), (170, 170, 172)


def draw_sky(painter: Painter, rng: Generator, zenith: tuple, horizon: tuple, clouds: float):
  """Covers the whole canvas with a sky, its clouds denser with `clouds` in 0..1."""
  size, (height, width) = (64, 96), painter.canvas.shape[:2]
  rows = np.linspace(0, 1, size[0]) * height / painter.camera.centre[1]
  rise = np.sqrt(np.clip(1 - rows, 0, 1))[:, None, None]
  sky = np.array(horizon) + rise * np.subtract(zenith, horizon)
  billows = sum(smooth_noise(rng, size, (n, n)) / k for n, k in ((5, 1), (11, 1.6), (23, 3)))
  cover = np.clip(1.3 * (billows + 2.2 * clouds - 1.2), 0, 0.9)[..., None]
  cloud = 0.55 * np.array(horizon) + 108 + 14 * billows[..., None]
  sky = np.clip(sky + cover * (cloud - sky), 0, 255)
  layers = np.concatenate([sky, np.full((*size, 1), SKY)], -1).astype(np.uint8)
  cv2.resize(layers, (width, height), dst=painter.canvas)


def draw_skyline(painter: Painter, rng: Generator, built: float):
  """Closes the view with distant trees and, in front of a share `built` of them, houses."""
  count = 60
  x = np.sort(rng.uniform(-WIDE, WIDE, count))
  treetops = xyz(x, rng.uniform(4, 11, count), FAR)
  ground = xyz([WIDE, -WIDE], 0, FAR)
  painter.fill(np.concatenate([treetops, ground])[None], pick(rng, LEAVES), VEGETATION)
  widths, heights = xyz(rng.uniform(9, 24, count)), xyz(y=rng.uniform(5, 26, count))
  colours, is_built = FACADES[rng.integers(len(FACADES), size=count)], rng.random(count) < built
  houses = quads(xyz(x, 0, FAR), widths, heights)
  painter.fill(houses[is_built], colours[is_built], BUILDING)


def draw_ground(painter: Painter, rng: Generator, street: Street):
  """Lays road, pavements, grass and markings."""
  asphalt, paving, grass = pick(rng, ASPHALT), pick(rng, PAVING), pick(rng, GRASS)
  paved = rng.random() < street.setting.paved
  _lay(painter, -WIDE, WIDE, paving if paved else grass, SIDEWALK if paved else TERRAIN)
  for side in (LEFT, RIGHT):
    kerb, width = street.kerb[side], side * street.pavement[side]
    _lay(painter, kerb, kerb + width, paving, SIDEWALK)
    joints = xyz(kerb, z=np.arange(3.0, 30.0, 1.2))
    painter.fill(quads(joints, xyz(width), xyz(z=0.04)), 0.86 * paving, SIDEWALK)
    if not paved and rng.random() < 0.5:
      _lay(painter, kerb, kerb + 0.4 * width, grass, TERRAIN)
    _lay(painter, kerb, kerb + side * 0.18, 1.2 * paving, SIDEWALK)
  _lay(painter, street.kerb[LEFT], street.kerb[RIGHT], asphalt, ROAD)
  _draw_wear(painter, rng, street, asphalt)
  if street.has_junction():
    _lay(painter, -WIDE, WIDE, asphalt, ROAD, *street.junction)
  _draw_markings(painter, rng, street)


def _lay(painter: Painter, left, right, colour, train_id: int, near=NEAREST, far=FAR):
  """Covers ground from left to right and near to far, in slices for the haze to grow with."""
  cuts = np.geomspace(far, near, 2 + int(5 * math.log10(far / near)))
  slices = quads(xyz(left, z=cuts[:-1]), xyz(right - left), xyz(z=np.diff(cuts)))
  painter.fill(slices, colour, train_id)


def _draw_wear(painter: Painter, rng: Generator, street: Street, asphalt: np.ndarray):
  """Mended places and manholes in the road."""

  def lots(low, high):
    return rng.uniform(low, high, 8)

  spots = xyz(lots(street.kerb[LEFT], street.kerb[RIGHT] - 1), 0, lots(3, 40))
  across, along = xyz(lots(0.3, 1.6)), xyz(lots(-0.3, 0.3), 0, lots(0.5, 8))
  painter.fill(quads(spots, across, along), asphalt * lots(0.8, 1.1)[:, None], ROAD)
  lids = discs(spots[:3] + xyz(0.3, 0, 1), 0.35, 14, lying=True)
  painter.fill(lids, 0.7 * asphalt, ROAD)


def _draw_markings(painter: Painter, rng: Generator, street: Street):
  """Lines between the lanes and along parked cars, rails, and a crossing at the junction."""
  chalk, lane = pick(rng, CHALK), street.lane
  dash, pitch = rng.uniform(2, 4), rng.uniform(5, 9)
  starts = np.arange(1.2, STREET_LENGTH, pitch)
  starts = starts[[not street.at_junction(z, z + dash) for z in starts]]
  for k in range(street.oncoming):
    dashes = quads(xyz(-lane * (0.5 + k) - 0.06, z=starts), xyz(0.12), xyz(z=dash))
    painter.fill(dashes, chalk, ROAD)
  before, behind = min(street.junction[0], STREET_LENGTH), street.junction[1]
  for side in (LEFT, RIGHT):
    if street.parking[side]:
      x = street.kerb[side] - side * street.parking[side]
      _lay(painter, x, x + 0.1, chalk, ROAD, far=before)
      if street.has_junction():
        _lay(painter, x, x + 0.1, chalk, ROAD, behind, STREET_LENGTH)
  for x in (-lane - 0.72, -lane + 0.72) if street.tram else ():
    _lay(painter, x - 0.05, x + 0.05, RAIL_BED, ROAD)
    _lay(painter, x - 0.02, x + 0.02, RAIL, ROAD)
  if street.has_junction():
    stripes = xyz(np.arange(street.kerb[LEFT] + 0.3, street.kerb[RIGHT] - 0.4), 0, before - 4)
    painter.fill(quads(stripes, xyz(0.5), xyz(z=3)), chalk, ROAD)
    painter.fill(quads(xyz(-lane / 2, 0, before - 5.4), xyz(lane), xyz(z=0.4)), chalk, ROAD)


def draw_bonnet(painter: Painter, rng: Generator):
  """Draws the bonnet of our own car, which counts for no class, along the lower edge."""
  camera, ahead, turn = painter.camera, 1.5, np.linspace(0, np.pi, 24)
  metre = camera.focal / ahead  # in canvas pixels
  rows = painter.canvas.shape[0]
  lower_edge = camera.height - (rows - camera.centre[1]) / metre
  rise, paint = rng.uniform(0.05, 0.14) * rows / metre, pick(rng, CAR_PAINT)
  for width, height, tone in ((1.0, 1.0, 0.5), (0.85, 0.75, 0.6), (0.6, 0.5, 0.7)):
    crest = lower_edge + rise * (height - 1.2 * (1 - np.sin(turn) ** 0.6))
    arch, ends = xyz(width * np.cos(turn), crest, ahead), xyz([-1, 1], lower_edge - 2, ahead)
    painter.fill(np.concatenate([arch, ends])[None], tone * paint, IGNORED)
