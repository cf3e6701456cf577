"""3x3 convolutions with a quarter of the multiplications, by Winograd's algorithm.

A tile of 4 x 4 values of the result is made of 6 x 6 of the input, by 36 products for each pair of
channels where the definition has 9 for each of 16 values. Over all tiles these are 36 matrix
products; before and after them a few sums are taken.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016). Polynomials are
evaluated at 0, 1, -1, 1/2, -2 and infinity, which Barabasz et al., Error Analysis and Improving the
Accuracy of Winograd Convolution for Deep Neural Networks (2018), found to err least: in float32
3 to 5 times as much as a sum of products does.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Values of the result along one side of a tile, and those of the input that it is made of.
TILE = 4
_SEEN = TILE + 2

# For a tile y of the result along one axis, the values x that it sees, and a kernel k:
# y = _RESULT @ ((_KERNEL @ k) * (_INPUT @ x)).
_INPUT = np.array([
  [1, -1.5, -2, 1.5, 1, 0],
  [0, -1, 0.5, 2.5, 1, 0],
  [0, 1, -2.5, 0.5, 1, 0],
  [0, -2, -1, 2, 1, 0],
  [0, 0.5, -1, -0.5, 1, 0],
  [0, 1, -1.5, -2, 1.5, 1],
])  # fmt: skip
_KERNEL = np.array([
  [1, 0, 0],
  [1 / 3, 1 / 3, 1 / 3],
  [-1 / 3, 1 / 3, -1 / 3],
  [-16 / 15, -8 / 15, -4 / 15],
  [1 / 15, -2 / 15, 4 / 15],
  [0, 0, 1],
])  # fmt: skip
_RESULT = np.array([
  [1, 1, 1, 1, 1, 0],
  [0, 1, -1, 0.5, -2, 0],
  [0, 1, 1, 0.25, 4, 0],
  [0, 1, -1, 0.125, -8, 1],
])  # fmt: skip


# Along both axes.
_KERNELS = np.kron(_KERNEL, _KERNEL)

# More are worked on in strips of about as many as the second, which do not leave the caches: 32
# channels of 128 x 256 take 28 ms at once and 15 in strips (two images, one core).
_MANY_TILES = 512
_TILES_OF_STRIP = 256


# `jax.jit` here and below: traced once for all layers of one shape.
@jax.jit
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 3x3 convolution with stride 1 and one pixel of zeros around the image.

  Args:
    x: float32 [B, H, W, C].
    kernel: float32 [3, 3, C, D].
  Returns:
    float32 [B, H, W, D].
  """
  return _convolve('anc,acd->and', x, kernel)


@jax.jit
def input_gradient(kernel: jax.Array, gradient: jax.Array) -> jax.Array:
  """That of `conv3x3`: float32 [B, H, W, C] for a gradient float32 [B, H, W, D]."""
  return _convolve('and,acd->anc', gradient, kernel[::-1, ::-1])


def _convolve(axes, x, kernel):
  kernel = _of_kernel(kernel)

  def result_of(x):
    tiles = _of_input(x)
    return _to_result(_multiply(axes, tiles, kernel).reshape(*tiles.shape[:-1], -1))

  batch, height, width, _ = x.shape
  rows, starts = _strips(x.shape)
  x = _pad(x, rows, seen=True)
  if starts is None:
    y = result_of(x)
  else:
    y = jax.lax.map(lambda start: result_of(_strip(x, start, rows + 1)), starts)
  return y.reshape(batch, -1, *y.shape[-2:])[:, :height, :width]


@jax.jit
def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """That of `conv3x3`: float32 [3, 3, C, D] for a gradient float32 [B, H, W, D]."""

  def products_of(x, gradient):
    return _multiply('anc,and->acd', _of_input(x), _of_gradient(gradient))

  def products_of_strip(start):
    return products_of(_strip(x, start, rows + 1), _strip(gradient, start, rows))

  def add(total, start):
    return total + products_of_strip(start), None

  rows, starts = _strips(x.shape)
  x, gradient = _pad(x, rows, seen=True), _pad(gradient, rows)
  if starts is None:
    products = products_of(x, gradient)
  else:
    products, _ = jax.lax.scan(add, products_of_strip(starts[0]), starts[1:])
  return _to_kernel(products)


def _strips(shape: Sequence[int]) -> tuple[int, np.ndarray | None]:
  """How images [B, H, W, C] are worked on.

  Returns:
    Rows of tiles in a strip, and int32 [N, 2], the image and the first row of pixels of each; or
    those of an image, and None: all at once.
  """
  batch, height, width = (shape[0], *(-(-side // TILE) for side in shape[1:3]))
  if batch * height * width <= _MANY_TILES:
    return height, None
  count = -(-height // max(1, _TILES_OF_STRIP // width))
  rows = -(-height // count)
  starts = [(i, TILE * rows * j) for i in range(batch) for j in range(count)]
  return rows, np.array(starts, np.int32)


def _strip(x, start, rows):
  """From `start`, the image and the row, so many rows of tiles: [1, 4 * rows, W, C]."""
  return jax.lax.dynamic_slice(x, (*start, 0, 0), (1, TILE * rows, *x.shape[2:]))


def _pad(x, rows, seen=False):
  """Zeros around images, up to whole tiles, and whole strips of so many rows of them.

  With `seen` there is one pixel before the first tile, and a tile after the last, which sees two
  pixels of it.
  """
  before, after = (1, TILE - 1) if seen else (0, 0)
  height, width = (-x.shape[i] % side for i, side in ((1, TILE * rows), (2, TILE)))
  return jnp.pad(x, ((0, 0), (before, height + after), (before, width + after), (0, 0)))


def _of_input(x):
  """Padded images [B, 4 * h + 4, 4 * w + 4, C] to [6, 6, B, h, w, C]."""
  blocks = _blocks(x)
  own = [blocks[:, :-1, i] for i in range(TILE)]
  of_next = [blocks[:, 1:, i] for i in range(_SEEN - TILE)]
  rows = _combine(_INPUT, own + of_next, 0)
  own = [rows[..., :-1, i, :] for i in range(TILE)]
  of_next = [rows[..., 1:, i, :] for i in range(_SEEN - TILE)]
  return _combine(_INPUT, own + of_next, 1)


def _of_kernel(kernel):
  """[3, 3, C, D] to [36, C, D]."""
  return _apply(_KERNELS, kernel.reshape(9, *kernel.shape[2:]))


def _to_kernel(products):
  """The transpose of `_of_kernel`."""
  return _apply(_KERNELS.T, products).reshape(3, 3, *products.shape[1:])


def _apply(matrix, x):
  return jax.lax.optimization_barrier(jnp.tensordot(matrix.astype(np.float32), x, 1))


def _to_result(products):
  """[6, 6, B, h, w, D] to [B, 4 * h, 4 * w, D]."""
  columns = _combine(_RESULT, [products[:, i] for i in range(_SEEN)], -2)
  blocks = _combine(_RESULT, list(columns), 2)
  batch, height, _, width, _, features = blocks.shape
  return blocks.reshape(batch, TILE * height, TILE * width, features)


def _of_gradient(gradient):
  """The transpose of `_to_result`."""
  blocks = _blocks(gradient)
  rows = _combine(_RESULT.T, [blocks[:, :, i] for i in range(TILE)], 0)
  return _combine(_RESULT.T, [rows[..., i, :] for i in range(TILE)], 1)


def _blocks(x):
  """[B, 4 * h, 4 * w, C] to [B, h, 4, w, 4, C]."""
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // TILE, TILE, width // TILE, TILE, channels)


def _combine(matrix, arrays, axis):
  """For each row of the matrix the sum of the arrays weighted by it, stacked along a new axis."""
  sums = [
    functools.reduce(operator.add, (w * x for w, x in zip(row, arrays, strict=True) if w))
    for row in matrix.tolist()
  ]
  # Else XLA takes the sums into those that follow, and computes them again and again.
  return jax.lax.optimization_barrier(jnp.stack(sums, axis))


def _multiply(axes, x, y):
  """An `einsum` of [36, tiles, C] or [36, C, D], of which both are given with more axes."""
  x, y = (a.reshape(_SEEN**2, -1, a.shape[-1]) if a.ndim == 6 else a for a in (x, y))
  return jax.lax.optimization_barrier(jnp.einsum(axes, x, y))
