"""Points and polygons in world coordinates, and random choices, for all that is drawn."""

import bisect
import functools
import itertools
import math

import numpy as np
from numpy.random import Generator


def xyz(x=0.0, y=0.0, z=0.0) -> np.ndarray:
  """World points [..., 3] from numbers or arrays, in metres."""
  points = np.empty((*np.broadcast(x, y, z).shape, 3))
  points[..., 0], points[..., 1], points[..., 2] = x, y, z
  return points


def quads(corners: np.ndarray, along: np.ndarray, up: np.ndarray) -> np.ndarray:
  """Parallelograms [K, 4, 3] at corners [K, 3] or [3], spanned by edges [K, 3] or [3]."""
  polygons = np.empty((corners.size // 3, 4, 3))
  polygons[:] = corners.reshape(-1, 1, 3)
  polygons[:, 1] += along
  polygons[:, 2] += along + up
  polygons[:, 3] += up
  return polygons


def discs(
  middles: np.ndarray, radius: float, corners: int, *, lying: bool = False, turn: float = 0.0
) -> np.ndarray:
  """Regular polygons [K, corners, 3] around middles [K, 3] or [3], facing us or lying."""
  return middles.reshape(-1, 1, 3) + radius * _rim(corners, lying, turn)


@functools.cache
def _rim(corners: int, lying: bool, turn: float) -> np.ndarray:
  angles = turn + np.linspace(0, 2 * np.pi, corners, endpoint=False)
  cos, sin = np.cos(angles), np.sin(angles)
  return xyz(cos, z=sin) if lying else xyz(cos, sin)


def place(local: np.ndarray, position: np.ndarray, yaw: float) -> np.ndarray:
  """Local points [..., 3] = (ahead, to the right, up) to the world; at yaw 0 ahead is z."""
  ahead, right, up = local[..., 0], local[..., 1], local[..., 2]
  cos, sin = math.cos(yaw), math.sin(yaw)
  return xyz(ahead * sin + right * cos, up, ahead * cos - right * sin) + position


def choose(rng: Generator, odds: dict[str, float]) -> str:
  """A key, as likely as its odds."""
  bounds = list(itertools.accumulate(odds.values()))
  return list(odds)[bisect.bisect(bounds, rng.random() * bounds[-1])]


def pick(rng: Generator, palette: np.ndarray) -> np.ndarray:
  """A colour near one of a palette's [N, 3], RGB in 0..255."""
  return palette[rng.integers(len(palette))] * rng.uniform(0.88, 1.12) * rng.uniform(0.95, 1.05, 3)
