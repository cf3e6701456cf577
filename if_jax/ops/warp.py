"""Geometric warps: differentiable in the image and in the parameters of the transform."""

import jax
import jax.numpy as jnp
from einops import rearrange


def affine_warp(image: jax.Array, theta: jax.Array) -> jax.Array:
  """Warps images by affine transforms, bilinearly, with zeros outside.

  Args:
    image: float [B, H, W, C].
    theta: float [B, 2, 3], each maps output to input coordinates; both run over [-1, 1] from the
      outer edge of the first pixel to the outer edge of the last, x (width) before y (height).
      [[1, 0, 0], [0, 1, 0]] is the identity; [[1, 0, tx], [0, 1, 0]] shows at each place what
      stands tx * W / 2 pixels to its right.
  Returns:
    float [B, H, W, C]: the warped images.
  Raises:
    ValueError: at trace time, if the shapes do not fit.
  Example:
    >>> line = jnp.array([0.0, 0.0, 1.0, 0.0]).reshape(1, 1, 4, 1)
    >>> one_to_the_left = jnp.array([[[1, 0, 2 / 4], [0, 1, 0]]])
    >>> affine_warp(line, one_to_the_left).ravel().tolist()
    [0.0, 1.0, 0.0, 0.0]

  On a pixel's centre the slope of the image jumps, and rounding decides which side's slope is the
  gradient: at the identity, that of `theta` is one of many.

  Source: PyTorch `affine_grid` and `grid_sample` (bilinear, zero padding, align_corners=False).
  """
  if image.ndim != 4 or theta.shape != (image.shape[0], 2, 3):
    raise ValueError(
      f'image must be [B, H, W, C] and theta [B, 2, 3], got {image.shape} and {theta.shape}'
    )
  return grid_sample(image, affine_grid(theta, image.shape[1:3]))


def affine_grid(theta: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Sampling positions [B, H, W, 2] in [-1, 1], x before y, of affine transforms [B, 2, 3]."""
  x, y = jnp.meshgrid(_centres(size[1], theta.dtype), _centres(size[0], theta.dtype))
  points = jnp.stack([x, y, jnp.ones_like(x)], -1)
  return jnp.einsum('hwk,bck->bhwc', points, theta, precision=jax.lax.Precision.HIGHEST)


def grid_sample(image: jax.Array, grid: jax.Array) -> jax.Array:
  """Samples images at given positions, bilinearly, with zeros outside.

  Args:
    image: float [B, H, W, C].
    grid: float [B, h, w, 2], positions in [-1, 1] as `affine_warp` has them, x before y.
  Returns:
    float [B, h, w, C].
  """
  height, width = image.shape[1:3]
  # A border of one zero on every side stands for all that lies outside; clamping to it keeps far
  # positions (and NaNs that a diverging transform makes) from indexing anything else.
  padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
  x = jnp.clip((grid[..., 0] + 1) * (width / 2) - 0.5, -1, width)
  y = jnp.clip((grid[..., 1] + 1) * (height / 2) - 0.5, -1, height)
  left = jnp.clip(jnp.floor(jax.lax.stop_gradient(x)), -1, width - 1)
  top = jnp.clip(jnp.floor(jax.lax.stop_gradient(y)), -1, height - 1)
  right_weight, bottom_weight = (x - left)[..., None], (y - top)[..., None]
  left, top = left.astype(jnp.int32), top.astype(jnp.int32)

  def pixels(dy, dx):
    flat = rearrange(padded, 'b h w c -> b (h w) c')
    index = (top + 1 + dy) * (width + 2) + left + 1 + dx
    return jax.vmap(lambda values, at: values[at])(flat, index)

  upper = pixels(0, 0) * (1 - right_weight) + pixels(0, 1) * right_weight
  lower = pixels(1, 0) * (1 - right_weight) + pixels(1, 1) * right_weight
  return upper * (1 - bottom_weight) + lower * bottom_weight


def _centres(length: int, dtype) -> jax.Array:
  """Coordinates in [-1, 1] of the centres of `length` pixels."""
  return (2 * jnp.arange(length, dtype=dtype) + 1) / length - 1
