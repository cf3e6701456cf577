"""Bilinear resizing with the pixel-centre convention of PyTorch's `interpolate`."""

import jax
import jax.numpy as jnp
import numpy as np


def resize_bilinear(
  image: jax.Array, size: tuple[int, int], *, align_corners: bool = False
) -> jax.Array:
  """Resizes to `size` by bilinear interpolation, never antialiased.

  Whole factors take short cuts that XLA fuses with their neighbours: enlarging is slices, weighted
  sums and an interleaving reshape, shrinking picks the middle pixels. A gather in their place
  makes XLA's CPU backend transpose and recompute whatever comes before it.

  Args:
    image: float [B, H, W, C].
    size: (height, width) of the result, in pixels.
    align_corners: True maps corner pixel centres onto corner pixel centres; False (the field's
      default) maps the outer edges of the corner pixels onto each other.
  Returns:
    [B, height, width, C] in the dtype of `image`.
  Raises:
    ValueError: at trace time, if `image` has not four axes or `size` is not positive.
  Example:
    >>> resize_bilinear(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 4)).ravel().tolist()
    [0.0, 0.25, 0.75, 1.0]

  Source: PyTorch `torch.nn.functional.interpolate(mode='bilinear', antialias=False)`.
  """
  if image.ndim != 4:
    raise ValueError(f'image must be [B, H, W, C], got shape {image.shape}')
  if min(size) < 1:
    raise ValueError(f'size must be positive, got {size}')
  # The axis that shrinks most goes first: the second then has less to do.
  for axis in sorted((1, 2), key=lambda axis: size[axis - 1] / image.shape[axis]):
    image = _resize_axis(image, axis, size[axis - 1], align_corners)
  return image


def scale_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
  """The size of an image of `size` scaled by `scale`, rounded down as PyTorch rounds it."""
  return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def _resize_axis(x: jax.Array, axis: int, out: int, align_corners: bool) -> jax.Array:
  length = x.shape[axis]
  if out == length:
    return x
  if not align_corners and out % length == 0:
    return _enlarge(x, axis, out // length)
  if not align_corners and length % out == 0:
    return _shrink(x, axis, length // out)
  weights = jnp.asarray(_weights(length, out, align_corners), x.dtype)
  highest = jax.lax.Precision.HIGHEST
  return jnp.moveaxis(jnp.tensordot(weights, x, ((1,), (axis,)), precision=highest), 0, axis)


def _enlarge(x: jax.Array, axis: int, factor: int) -> jax.Array:
  length = x.shape[axis]
  pad = [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)]
  padded = jnp.pad(x, pad, mode='edge')
  before, after = (jax.lax.slice_in_dim(padded, s, s + length, axis=axis) for s in (0, 2))
  phases = []
  for k in range(factor):
    offset = (k + 0.5) / factor - 0.5  # of the new pixel's centre from the old one's, in old pixels
    neighbour = before if offset < 0 else after
    phases.append(x * (1 - abs(offset)) + neighbour * abs(offset) if offset else x)
  shape = (*x.shape[:axis], length * factor, *x.shape[axis + 1 :])
  return jnp.stack(phases, axis + 1).reshape(shape)


def _shrink(x: jax.Array, axis: int, factor: int) -> jax.Array:
  blocks = x.reshape(*x.shape[:axis], -1, factor, *x.shape[axis + 1 :])
  middle = jax.lax.index_in_dim(blocks, factor // 2, axis + 1, keepdims=False)
  if factor % 2:
    return middle
  return (middle + jax.lax.index_in_dim(blocks, factor // 2 - 1, axis + 1, keepdims=False)) / 2


def _weights(length: int, out: int, align_corners: bool) -> np.ndarray:
  """The [out, length] matrix whose rows hold the two weights of each new pixel."""
  if align_corners:
    centre = np.arange(out) * ((length - 1) / max(out - 1, 1))
  else:
    centre = np.maximum((np.arange(out) + 0.5) * (length / out) - 0.5, 0)
  low = np.minimum(centre.astype(int), length - 1)
  high = np.minimum(low + 1, length - 1)
  weights = np.zeros((out, length))
  rows = np.arange(out)
  np.add.at(weights, (rows, low), 1 - (centre - low))
  np.add.at(weights, (rows, high), centre - low)
  return weights.astype(np.float32)
