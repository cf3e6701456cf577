"""What a camera makes of a painted scene: texture, shadows, exposure, blur and noise."""

import cv2
import numpy as np
from numpy.random import Generator

from if_jax.data.streets.classes import (
  BUILDING,
  FENCE,
  ROAD,
  SIDEWALK,
  SKY,
  TERRAIN,
  VEGETATION,
  WALL,
)

# How rough a class looks: relative amplitude of pixel-sized grain, and of larger blotches.
ROUGHNESS = {
  ROAD: (0.07, 0.06), SIDEWALK: (0.07, 0.07), BUILDING: (0.04, 0.04), WALL: (0.08, 0.12),
  FENCE: (0.06, 0.05), VEGETATION: (0.28, 0.14), TERRAIN: (0.22, 0.20), SKY: (0.0, 0.008),
}  # fmt: skip
SMOOTH = (0.02, 0.02)  # all other classes
# Shadows are laid on these classes only, so whatever stands in front of them stays in the light.
GROUND = (ROAD, SIDEWALK, TERRAIN)
# What the automatic exposure aims at, of 255, and how far it goes: an evening stays darker.
BRIGHTNESS, ADAPTATION = 122, 0.65


def photograph(rng: Generator, canvas: np.ndarray, shadow: np.ndarray) -> tuple:
  """Samples a canvas [n H, n W, 4] of RGB and train ids, and a shadow map [H, W] in 0..255.

  Returns:
    image: uint8 [H, W, 3], RGB; the mean of n x n canvas pixels makes it antialiased.
    train_ids: uint8 [H, W]; one of n x n canvas pixels.
  """
  height, width = shadow.shape
  step = canvas.shape[0] // height
  train_ids = np.ascontiguousarray(canvas[step - 1 :: step, step - 1 :: step, 3])
  image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)[..., :3]
  exposure = (BRIGHTNESS / max(image.mean(), 1)) ** ADAPTATION * rng.uniform(0.88, 1.14)
  white_balance = rng.uniform(0.95, 1.05, 3)
  blur, vignette, noise = rng.uniform(0.2, 0.6), rng.uniform(0.0, 0.35), rng.uniform(2.0, 8.0)

  light = _texture(rng, train_ids) * (1 - shadow * _by_class(train_ids, GROUND, 1 / 255))
  y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
  light *= exposure - (exposure * vignette / 2 * (x * x + y * y)).astype(np.float32)
  gains = cv2.merge([light * np.float32(gain) for gain in white_balance])
  image = cv2.GaussianBlur(cv2.multiply(image, gains, dtype=cv2.CV_32F), (3, 3), blur)
  grain = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
  return cv2.addWeighted(image, 1, grain, noise / 128, -noise, dtype=cv2.CV_8U), train_ids


def _texture(rng: Generator, train_ids: np.ndarray) -> np.ndarray:
  """Relative brightness float32 [H, W] of rough surfaces."""
  shape = train_ids.shape
  fine = np.frombuffer(rng.bytes(train_ids.size), np.uint8).reshape(shape) / np.float32(128) - 1
  coarse = smooth_noise(rng, shape, (24, 24)) + smooth_noise(rng, shape, (60, 90))
  classes, (fines, coarses) = list(ROUGHNESS), zip(*ROUGHNESS.values(), strict=True)
  return (
    1
    + fine * _by_class(train_ids, classes, fines, SMOOTH[0])
    + coarse * _by_class(train_ids, classes, coarses, SMOOTH[1])
  )


def _by_class(train_ids: np.ndarray, classes, values, otherwise: float = 0.0) -> np.ndarray:
  """A float32 [H, W] value for each pixel, by its class."""
  table = np.full(256, otherwise, np.float32)
  table[list(classes)] = values
  return cv2.LUT(train_ids, table)


def smooth_noise(rng: Generator, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
  """Soft random hills, float32 [H, W] in -1..1, from a coarse grid of cells."""
  grid = rng.random(cells, np.float32) * 2 - 1
  return cv2.resize(grid, size[::-1], interpolation=cv2.INTER_LINEAR)
