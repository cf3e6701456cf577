"""Perspective drawing: a camera, a light, and a painter of an image and its labels at once."""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from if_jax.data.streets.photo import photograph

# The canvas has this many pixels a side for each pixel of the image.
SUPERSAMPLING = 2
# Fractional bits of the coordinates given to OpenCV.
SUBPIXEL_BITS = 4
# Metres in front of the camera; nothing is projected from nearer.
NEAR = 0.6
# What is round is lit as if it faced the viewer and a little upwards.
ROUND = np.array([0.0, 0.5, -0.85])
# The rounding behind the near end of a rod: points (ahead, aside) of the unit circle.
HALF_CIRCLE = np.array([(-math.sin(a), math.cos(a)) for a in np.linspace(0, np.pi, 7)])
# The share of light that does not reach the ground below something that stands on it.
CONTACT_SHADOW = 0.6


@dataclass(frozen=True)
class Camera:
  """A pin-hole camera above the origin that looks along a road.

  World coordinates are metres: x to the right, y up from the road, z ahead. The road's bend is a
  shear of the world, so that whatever stands along the road follows it.
  """

  height: float
  focal: float  # canvas pixels
  centre: tuple[float, float]  # canvas pixels (x, y) of the point straight ahead at the horizon
  half_width: float  # canvas pixels
  roll: float  # radians
  bend: float  # metres sideways at z metres ahead: bend * z^2

  def project(self, points: np.ndarray) -> np.ndarray:
    """World points [..., 3] to canvas pixels [..., 2]."""
    x, y, z = points[..., 0], points[..., 1], np.maximum(points[..., 2], NEAR)
    scale = self.focal / z
    right, down = (x + self.bend * z * z) * scale, (self.height - y) * scale
    cos, sin = math.cos(self.roll), math.sin(self.roll)
    return np.stack([cos * right - sin * down, sin * right + cos * down], -1) + self.centre

  def sees(self, x: float, z: float, margin: float = 9.0) -> bool:
    """Whether something within this margin in metres around a place may be in the picture."""
    # Half as much again, for the centre may be off the middle and the picture askew.
    return abs(x + self.bend * z * z) - margin < 1.5 * self.half_width / self.focal * z


@dataclass(frozen=True)
class Light:
  """Sunlight, skylight and haze; sun and ambient are RGB where 1 leaves a colour as it is."""

  to_sun: np.ndarray  # unit vector
  sun: np.ndarray
  ambient: np.ndarray
  haze: np.ndarray  # RGB in 0..255
  visibility: float  # metres until haze hides 63 %
  lamps: bool  # dark enough for windows and lamps to be lit

  def shine(self, colours: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """What light makes of the colours [K, 3] of surfaces with these normals [K, 3]."""
    sunlit = np.maximum(normals @ self.to_sun, 0)[:, None]
    # Skylight comes from above: what faces down is darker.
    return colours * (self.ambient * (0.85 + 0.15 * normals[:, 1:2]) + self.sun * sunlit)

  def veil(self, colours: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """What haze makes of colours [K, 3] seen from depths [K] in metres."""
    return colours + (self.haze - colours) * (1 - np.exp(-depths / self.visibility))[:, None]

  @functools.cached_property
  def shadow(self) -> float:
    """The share of light that does not reach the ground where the sun is hidden."""
    sun = self.sun.mean() * self.to_sun[1]
    return sun / (sun + self.ambient.mean())


class _Batch(NamedTuple):
  """The polygons, or rods, of one call."""

  points: np.ndarray  # [K, N, 3] in metres: outlines, or the ends of rods
  colours: np.ndarray  # [K, 3]
  train_ids: np.ndarray  # [K]
  radii: np.ndarray | None  # [K, 2] in metres, of rods
  surface: str
  cull: bool
  opacity: float


class Painter:
  """Fills polygons of the world, the later over the earlier, into an image and its labels.

  One four-channel canvas (RGB and train id) takes both, so they cannot come apart. Calls are only
  noted: `finish` projects and lights all polygons at once, for numpy is slow in small bites.
  """

  def __init__(self, camera: Camera, light: Light, size: tuple[int, int]):
    self.camera, self.light, self.size = camera, light, size
    self.canvas = np.zeros((SUPERSAMPLING * size[0], SUPERSAMPLING * size[1], 4), np.uint8)
    self._batches: list[_Batch] = []
    self._shadows: list[tuple[float, np.ndarray]] = []

  def fill(
    self, polygons, colours, train_ids, *, surface='flat', cull=False, opacity=1.0, radii=None
  ):
    """Fills polygons in order.

    Args:
      polygons: world points [K, N, 3].
      colours: RGB in 0..255, [3] or [K, 3].
      train_ids: one for all, or one for each.
      surface: 'flat' is lit by the direction that it faces; 'round' is the outline of something
        round; 'glow' shines by itself.
      cull: leave out polygons that do not run counter-clockwise as seen from the camera.
      opacity: below 1 what is behind shows in the image, but not in the labels.
      radii: the polygons are rods [K, 2, 3] of these radii [K, 2] in metres at their ends.
    """
    rgb, ids = np.empty((len(polygons), 3)), np.empty(len(polygons), np.uint8)
    rgb[:], ids[:] = colours, train_ids
    self._batches.append(_Batch(polygons, rgb, ids, radii, surface, cull, opacity))

  def rods(self, ends: np.ndarray, radii: np.ndarray, colours, train_ids):
    """Fills rounded, tapering rods: ends [K, 2, 3] and radii [K, 2] in metres."""
    self.fill(ends, colours, train_ids, surface='round', radii=radii)

  def cast_shadow(self, points: np.ndarray):
    """Shades the ground behind the convex hull of world points [N, 3], seen from the sun."""
    sun = self.light.to_sun
    self._shadows.append((self.light.shadow, points - points[:, 1:2] * (sun / sun[1])))

  def occlude(self, ground: np.ndarray):
    """Darkens the ground below something that stands close to it: hull of points [N, 3]."""
    self._shadows.append((CONTACT_SHADOW, ground))

  def finish(self, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """The picture as a camera takes it, uint8 RGB [H, W, 3], and its train ids [H, W]."""
    jobs = zip(self._batches, self._outlines(), self._paints(), strict=True)
    for batch, outlines, paints in jobs:
      part = self._part_around(outlines) if batch.opacity < 1 else self.canvas[:0]
      behind = part.copy()
      self._fill_outlines(batch, outlines, paints)
      if part.size:
        mixed = cv2.addWeighted(part, batch.opacity, behind, 1 - batch.opacity, 0)
        part[..., :3] = mixed[..., :3]
    return photograph(rng, self.canvas, self._shadow_map())

  def _fill_outlines(self, batch: _Batch, outlines: np.ndarray, paints: list):
    pairs = zip(outlines, paints, strict=True)
    if batch.cull:
      pairs = itertools.compress(pairs, _counter_clockwise(outlines))
    for outline, paint in pairs:
      cv2.fillPoly(self.canvas, [outline], paint, shift=SUBPIXEL_BITS)

  def _part_around(self, outlines: np.ndarray) -> np.ndarray:
    """The part of the canvas that holds outlines in fixed point."""
    corners = outlines.reshape(-1, 2) >> SUBPIXEL_BITS
    left, top = np.maximum(corners.min(0) - 2, 0)
    right, bottom = np.maximum(corners.max(0) + 3, 1)
    return self.canvas[top:bottom, left:right]

  def _outlines(self) -> list[np.ndarray]:
    """For each batch its outlines on the canvas, int32 [K, N, 2] in fixed point."""
    points = np.concatenate([batch.points.reshape(-1, 3) for batch in self._batches])
    # Far outside is as good as farther outside, and safe from overflow.
    pixels = np.clip(self.camera.project(points) * 2**SUBPIXEL_BITS, -(2**24), 2**24)
    ends = np.cumsum([batch.points.size // 3 for batch in self._batches])
    outlines = []
    for batch, part in zip(self._batches, np.split(pixels, ends[:-1]), strict=True):
      outline = part.reshape(*batch.points.shape[:2], 2)
      if batch.radii is not None:
        scale = self.camera.focal / np.maximum(batch.points[..., 2], NEAR)
        # One image pixel is the least width, so that distant poles still show in the labels.
        radii = np.maximum(batch.radii * scale, SUPERSAMPLING / 2)
        outline = _rod_outlines(outline, radii * 2**SUBPIXEL_BITS)
      outlines.append(np.rint(outline).astype(np.int32))
    return outlines

  def _paints(self) -> list[list]:
    """For each batch the (R, G, B, train id) of its polygons."""
    counts = [len(batch.points) for batch in self._batches]
    # Three corners tell where a polygon faces; a rod has two, and faces nowhere.
    corners = np.concatenate(
      [
        batch.points[:, :3] if batch.radii is None else batch.points[:, [0, 1, 1]]
        for batch in self._batches
      ]
    )
    centres, normals = corners.mean(1), _normals(corners)
    eye = np.array([0, self.camera.height, 0])
    normals *= np.where(np.sum(normals * (eye - centres), 1) < 0, -1, 1)[:, None]
    surfaces = np.repeat([batch.surface for batch in self._batches], counts)
    normals[surfaces == 'round'] = ROUND
    colours = np.concatenate([batch.colours for batch in self._batches])
    lit = self.light.veil(self.light.shine(colours, normals), np.maximum(centres[:, 2], NEAR))
    lit = np.where((surfaces == 'glow')[:, None], colours, lit)
    train_ids = np.concatenate([batch.train_ids for batch in self._batches])
    paints = np.concatenate([np.clip(lit, 0, 255), train_ids[:, None]], 1).tolist()
    ends = list(itertools.accumulate(counts))
    return [paints[end - count : end] for end, count in zip(ends, counts, strict=True)]

  def _shadow_map(self) -> np.ndarray:
    """How much light does not reach the ground, uint8 [H, W]."""
    shadow_map = np.zeros(self.size, np.uint8)
    if not self._shadows:
      return shadow_map
    # The darker over the lighter.
    shadows = sorted(self._shadows, key=lambda shadow: shadow[0])
    pixels = self.camera.project(np.concatenate([ground for _, ground in shadows]))
    pixels = np.rint(np.clip(pixels / SUPERSAMPLING, -(2**20), 2**20)).astype(np.int32)
    ends = itertools.accumulate(len(ground) for _, ground in shadows)
    for (strength, ground), end in zip(shadows, ends, strict=True):
      hull = cv2.convexHull(pixels[end - len(ground) : end])
      cv2.fillConvexPoly(shadow_map, hull, 255 * strength)
    return cv2.blur(shadow_map, (3, 3))


def _rod_outlines(ends: np.ndarray, radii: np.ndarray) -> np.ndarray:
  """The outlines [K, 14, 2] of rods with ends [K, 2, 2] and radii [K, 2]: two half circles."""
  ahead = ends[:, 1] - ends[:, 0]
  ahead = ahead / (np.hypot(ahead[:, 0], ahead[:, 1]) + 1e-9)[:, None]
  aside = ahead[:, ::-1] * [-1, 1]
  arc = HALF_CIRCLE[:, :1] * ahead[:, None] + HALF_CIRCLE[:, 1:] * aside[:, None]
  halves = ends[:, :1] + radii[:, :1, None] * arc, ends[:, 1:] - radii[:, 1:, None] * arc
  return np.concatenate(halves, 1)


def _counter_clockwise(outlines: np.ndarray) -> np.ndarray:
  """Which of the outlines [K, N, 2] run counter-clockwise to the eye; image rows run downwards."""
  here, there = outlines.astype(float), np.roll(outlines, -1, 1)
  return np.sum(here[..., 0] * there[..., 1] - here[..., 1] * there[..., 0], 1) < 0


def _normals(corners: np.ndarray) -> np.ndarray:
  """Unit normals [K, 3] of triangles [K, 3, 3]."""
  normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
  return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9)
