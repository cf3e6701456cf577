"""Gaussian blur."""

import functools

import jax
import jax.numpy as jnp


def gaussian_blur(maps: jax.Array, sigma: jax.Array | float, *, radius: int = 9) -> jax.Array:
  """Blurs maps, each as strongly as asked for, with zeros outside.

  Args:
    maps: float [N, H, W, C].
    sigma: float [N] or scalar, above 0: standard deviations in pixels.
    radius: pixels at which the Gaussian is cut off.
  Returns:
    float [N, H, W, C].
  Example:
    >>> line = jnp.array([0.0, 0.0, 1.0, 0.0, 0.0]).reshape(1, 1, 5, 1)
    >>> [round(x, 2) for x in gaussian_blur(line, 0.5, radius=1)[0, 0, :, 0].tolist()]
    [0.0, 0.08, 0.62, 0.08, 0.0]

  """
  offsets = jnp.arange(-radius, radius + 1)
  sigma = jnp.broadcast_to(jnp.asarray(sigma, maps.dtype), maps.shape[:1])
  weights = jax.nn.softmax(-(offsets**2) / (2 * sigma[:, None] ** 2))[:, :, None, None, None]
  for axis in (1, 2):
    padding = [(0, 0)] * 4
    padding[axis] = (radius, radius)
    padded = jnp.pad(maps, padding)
    length = maps.shape[axis]
    parts = (
      weights[:, i] * jax.lax.slice_in_dim(padded, i, i + length, axis=axis)
      for i in range(2 * radius + 1)
    )
    maps = functools.reduce(jnp.add, parts)
  return maps
