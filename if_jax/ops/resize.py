"""Bilinear resizing with the pixel-centre convention of PyTorch's `interpolate`."""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

# Old pixels in a block whose product is faster than a gather.
_SMALL_BLOCK = 64


def resize_bilinear(
  image: jax.Array, size: Sequence[int], *, align_corners: bool = False
) -> jax.Array:
  """Resizes to `size` by bilinear interpolation, never antialiased. Reverse mode only.

  Whole factors take short cuts that XLA fuses with their neighbours: enlarging is slices, weighted
  sums and an interleaving reshape, shrinking picks the middle pixels. A gather in their place
  makes XLA's CPU backend transpose and recompute whatever comes before it; other factors take it
  all the same, for a product with a matrix of weights is dearer still but for single channels.

  Args:
    image: float [B, H, W, C], finite: what is not may spread further than to its neighbours.
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
  if any(map(jax.export.is_symbolic_dim, (*size, *image.shape[1:3]))):
    if align_corners:
      raise ValueError('align_corners=True needs sizes that are numbers')
    return _resize_symbolic(image, size)
  if min(size) < 1:
    raise ValueError(f'size must be positive, got {size}')
  # The axis that shrinks most goes first: the second then has less to do. Of equals the columns do:
  # then it moves whole rows (19 logits to 512 x 1024, by 8: 17 to 11 ms).
  for axis in sorted((2, 1), key=lambda axis: size[axis - 1] / image.shape[axis]):
    image = _resize_axis(image, axis, size[axis - 1], align_corners)
  return image


def is_whole_multiple(size: Sequence[int], small: Sequence[int]) -> bool:
  """Whether each side is a whole multiple of that of `small`."""
  return all(n > 0 and m % n == 0 for m, n in zip(size, small, strict=True))


def scale_size(size: Sequence[int], scale: float) -> tuple[int, int]:
  """The size of an image of `size` scaled by `scale`, rounded down as PyTorch rounds it."""
  height, width = (max(1, _scale_side(side, scale)) for side in size)
  return height, width


def _scale_side(side: int, scale: float) -> int:
  if not jax.export.is_symbolic_dim(side):
    return int(side * scale)
  ratio = Fraction(scale).limit_denominator(1000)
  return side * ratio.numerator // ratio.denominator


def _resize_axis(x: jax.Array, axis: int, out: int, align_corners: bool) -> jax.Array:
  length = x.shape[axis]
  if out == length:
    return x
  if not align_corners and out % length == 0:
    return _enlarge(x, axis, out // length)
  if not align_corners and length % out == 0:
    return _shrink(x, axis, length // out)
  return _interpolate(x, axis, out, align_corners)


@functools.partial(jax.jit, static_argnames='size')
def _resize_symbolic(image: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resizes where a size is a symbol of `jax.export`, of which no short cut can be told.

  Under jit it stays one named operation of the program, which if_jax/onnx_translation.py knows.
  """
  for axis in (1, 2):
    length, out = image.shape[axis], size[axis - 1]
    if out == length:
      continue
    # Pixel centres in whole numbers of 1 / (2 * out): float32 would be off by 1e-4 of a pixel.
    centre = jnp.maximum((2 * jnp.arange(out) + 1) * length - out, 0)
    fraction = ((centre % (2 * out)) / (2 * out)).astype(image.dtype)
    image = _between(image, axis, centre // (2 * out), fraction)
  return image


def _between(x: jax.Array, axis: int, low: jax.Array, fraction: jax.Array) -> jax.Array:
  """The values at `low + fraction` along an axis, both [out]; beyond its end stands the last."""
  fraction = jnp.expand_dims(fraction, [a for a in range(x.ndim) if a != axis])
  below, above = (jnp.take(x, low + i, axis, mode='clip') for i in range(2))
  return below + (above - below) * fraction


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _interpolate(x: jax.Array, axis: int, out: int, align_corners: bool) -> jax.Array:
  # Along the columns of a map with one channel the gather takes single numbers: in front of
  # InverseForm 15 ms, and the product 1.
  block = x.shape[axis] // _num_blocks(x.shape[axis], out, align_corners)
  if math.prod(x.shape[axis + 1 :]) == 1 and block <= _SMALL_BLOCK:
    return _resize_by_product(x, axis, out, align_corners)
  low, fraction = _places(x.shape[axis], out, align_corners)
  return _between(x, axis, jnp.asarray(low), jnp.asarray(fraction, x.dtype))


def _interpolate_forward(x, axis, out, align_corners):
  return _interpolate(x, axis, out, align_corners), x.shape[axis]


def _interpolate_backward(axis, out, align_corners, length, gradient):
  """What JAX would derive adds to single places, one by one."""
  resize = functools.partial(_resize_by_product, axis=axis, out=out, align_corners=align_corners)
  shape = (*gradient.shape[:axis], length, *gradient.shape[axis + 1 :])
  return tuple(jax.linear_transpose(resize, jax.ShapeDtypeStruct(shape, gradient.dtype))(gradient))


_interpolate.defvjp(_interpolate_forward, _interpolate_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _enlarge(x: jax.Array, axis: int, factor: int) -> jax.Array:
  length = x.shape[axis]
  padded = _pad_edges(x, axis)
  neighbours = [jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(3)]
  phases = [
    sum(neighbour * weight for neighbour, weight in zip(neighbours, weights, strict=True) if weight)
    for weights in phase_weights(factor)
  ]
  shape = (*x.shape[:axis], length * factor, *x.shape[axis + 1 :])
  return jnp.stack(phases, axis + 1).reshape(shape)


def _pad_edges(x: jax.Array, axis: int) -> jax.Array:
  """One more at each end of an axis, copies of what stands there."""
  return jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)], mode='edge')


def _enlarge_forward(x, axis, factor):
  return _enlarge(x, axis, factor), None


def _enlarge_backward(axis, factor, _, gradient):
  """What JAX would derive pads and adds arrays of full size, 7 to 15 times slower on a CPU."""
  length = gradient.shape[axis] // factor
  shape = (*gradient.shape[:axis], length, factor, *gradient.shape[axis + 1 :])
  gradient = gradient.reshape(shape)
  phases = [jax.lax.index_in_dim(gradient, k, axis + 1, keepdims=False) for k in range(factor)]
  # What each old pixel gives to the new ones about its predecessor, itself and its successor.
  before, here, after = jax.lax.optimization_barrier(
    [
      sum(phase * weight for phase, weight in zip(phases, weights, strict=True) if weight)
      for weights in zip(*phase_weights(factor), strict=True)
    ]
  )
  # Beyond the frame stands a copy of the last pixel: what goes there comes back to it.
  part = functools.partial(jax.lax.slice_in_dim, axis=axis)
  first, rest = part(before, 0, 1), part(before, 1, length)
  last, others = part(after, length - 1, length), part(after, 0, length - 1)
  gradient = here
  for ends in (
    (rest, jnp.zeros_like(first)),
    (first, jnp.zeros_like(rest)),
    (jnp.zeros_like(last), others),
    (jnp.zeros_like(others), last),
  ):
    gradient += jnp.concatenate(ends, axis)
  return (gradient,)


_enlarge.defvjp(_enlarge_forward, _enlarge_backward)


def phase_weights(factor: int) -> list[tuple[float, float, float]]:
  """For each new pixel of an old one, along one axis, the weights of the old pixels about it.

  They are those of the one before it, of itself and of the one after it.
  """
  weights = []
  for k in range(factor):
    offset = (k + 0.5) / factor - 0.5  # of the new pixel's centre from the old one's, in old pixels
    weights.append((max(-offset, 0.0), 1 - abs(offset), max(offset, 0.0)))
  return weights


def _resize_by_product(x: jax.Array, axis: int, out: int, align_corners: bool) -> jax.Array:
  """As `_interpolate`, by products with matrices of weights, in an order that moves no axis about.

  Weights recur: from 1024 to 1344 pixels, 16 old ones and the one to each side give 21 new ones,
  64 times. On a CPU that is 8 times as fast as one product of all, forward and backward.
  """
  length = x.shape[axis]
  num_blocks = _num_blocks(length, out, align_corners)
  size = length // num_blocks
  weights = jnp.asarray(_block_weights(size, out // num_blocks, align_corners))
  weights = weights.astype(x.dtype)
  blocks = _blocks(x, axis, num_blocks)
  outer, inner = math.prod(x.shape[:axis]) * num_blocks, math.prod(x.shape[axis + 1 :])
  highest = jax.lax.Precision.HIGHEST
  if inner == 1:
    product = jnp.matmul(blocks.reshape(outer, size + 2), weights.T, precision=highest)
  else:
    # One product for each of the outer indices, or XLA would move the axis to the front and back.
    weights = jnp.broadcast_to(weights, (outer, *weights.shape))
    product = jnp.matmul(weights, blocks.reshape(outer, size + 2, inner), precision=highest)
  return product.reshape(*x.shape[:axis], out, *x.shape[axis + 1 :])


def _num_blocks(length: int, out: int, align_corners: bool) -> int:
  """How often the weights recur; with corners aligned they do not."""
  return 1 if align_corners else math.gcd(length, out)


def _blocks(x: jax.Array, axis: int, num_blocks: int) -> jax.Array:
  """Cuts an axis into blocks, [..., blocks, 1 + length + 1, ...] with a neighbour to each side."""
  length = x.shape[axis]
  padded = _pad_edges(x, axis)

  def cut(x):
    blocks = num_blocks, x.shape[axis] // num_blocks
    return x.reshape(*x.shape[:axis], *blocks, *x.shape[axis + 1 :])

  part = functools.partial(jax.lax.slice_in_dim, axis=axis)
  size = length // num_blocks
  before, after = part(padded, 0, length, size), part(padded, size + 1, None, size)
  return jnp.concatenate([cut(before), cut(x), cut(after)], axis + 1)


def _shrink(x: jax.Array, axis: int, factor: int) -> jax.Array:
  blocks = x.reshape(*x.shape[:axis], -1, factor, *x.shape[axis + 1 :])
  middle = jax.lax.index_in_dim(blocks, factor // 2, axis + 1, keepdims=False)
  if factor % 2:
    return middle
  return (middle + jax.lax.index_in_dim(blocks, factor // 2 - 1, axis + 1, keepdims=False)) / 2


def _places(length: int, out: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
  """Of each new pixel's centre: the old pixel before it, and how far it is on to the next."""
  centre = np.maximum(_centres(length, out, align_corners), 0)
  low = np.minimum(centre.astype(int), length - 1)
  return low, centre - low


def _centres(length: int, out: int, align_corners: bool) -> np.ndarray:
  """New pixels' centres, in old pixels; the first and last may lie beyond the old ones' centres."""
  if align_corners:
    return np.arange(out) * ((length - 1) / max(out - 1, 1))
  return (np.arange(out) + 0.5) * (length / out) - 0.5


def _block_weights(old: int, new: int, align_corners: bool) -> np.ndarray:
  """The weights [new, 1 + old + 1], in new pixels, of a block's old ones and of those beside it."""
  centre = _centres(old, new, align_corners)
  low = np.floor(centre).astype(int)
  weights = np.zeros((new, old + 2), np.float32)
  rows = np.arange(new)
  np.add.at(weights, (rows, low + 1), 1 - (centre - low))
  np.add.at(weights, (rows, low + 2), centre - low)
  return weights
