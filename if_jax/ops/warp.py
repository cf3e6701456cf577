"""Geometric warps: differentiable in the image and in the parameters of the transform."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

OUTSIDE = -3.0  # a coordinate more than a pixel outside [-1, 1], whatever the size


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
  return grid_sample(image, _transformed_centres(theta, image.shape[1:3]))


def homography_warp(
  image: jax.Array, matrix: jax.Array, size: Sequence[int] | None = None
) -> jax.Array:
  """Warps images by homographies, bilinearly, with zeros outside.

  Args:
    image: float [B, H, W, C].
    matrix: float [B, 3, 3] with m22 = 1, each maps output to input coordinates as `affine_warp`
      has them: where (x', y', w) = matrix (x, y, 1), the output at (x, y) is the input at
      (x' / w, y' / w). Where w is not above 0.001, at and behind the horizon, there is nothing
      to see: the output is 0, and so is its gradient.
    size: (height, width) of what comes out, pixels; None: the image's.
  Returns:
    float [B, *size, C]: the warped images.
  Raises:
    ValueError: at trace time, if the shapes do not fit.
  Example:
    >>> line = jnp.array([0.0, 0.0, 1.0, 0.0]).reshape(1, 1, 4, 1)
    >>> one_to_the_left = jnp.array([[[1, 0, 2 / 4], [0, 1, 0], [0, 0, 1]]])
    >>> homography_warp(line, one_to_the_left).ravel().tolist()
    [0.0, 1.0, 0.0, 0.0]

  """
  if image.ndim != 4 or matrix.shape != (image.shape[0], 3, 3):
    raise ValueError(
      f'image must be [B, H, W, C] and matrix [B, 3, 3], got {image.shape} and {matrix.shape}'
    )
  points = _transformed_centres(matrix, size or image.shape[1:3])
  position, depth = points[..., :2], points[..., 2:]
  visible = depth > 1e-3
  # Dividing by 1 where nothing is seen keeps the gradient of what is not used finite.
  return grid_sample(image, jnp.where(visible, position / jnp.where(visible, depth, 1), OUTSIDE))


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


def _transformed_centres(matrix: jax.Array, size: Sequence[int]) -> jax.Array:
  """matrix (x, y, 1) of every pixel's centre, [B, H, W, K] for [B, K, 3]."""
  points = pixel_centres(size).astype(matrix.dtype)
  points = jnp.concatenate([points, jnp.ones_like(points[..., :1])], -1)
  return jnp.einsum('hwk,bck->bhwc', points, matrix, precision=jax.lax.Precision.HIGHEST)


def pixel_centres(size: Sequence[int]) -> jax.Array:
  """Where pixels lie, float [H, W, 2]: x and y in [-1, 1], as `affine_warp` has them."""
  y, x = ((2 * jnp.arange(length) + 1) / length - 1 for length in size)
  return jnp.stack(jnp.meshgrid(x, y), axis=-1)
