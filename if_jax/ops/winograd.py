"""3x3 convolutions with a quarter of the multiplications, by Winograd's algorithm.

A tile of 4 x 4 values of the result is made of 6 x 6 of the input, by 36 products for each pair of
channels where the definition has 9 for each of 16 values. Over all tiles these are 36 matrix
products; before and after them a few sums are taken.

Errors are 2 to 5 times those of sums of products, those of a kernel's gradient 1 to 2 times. They
are relative to the largest value that a tile sees, and what is not finite makes its tile so, too.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016). Polynomials are
evaluated at 0, 1, -1, 1/2, -2 and infinity, which Barabasz et al., Error Analysis and Improving the
Accuracy of Winograd Convolution for Deep Neural Networks (2018), found to err least.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from if_jax.ops.varying import vary_alike

# Values of the result along one side of a tile, and those of the input that it is made of.
TILE = 4
_SEEN = TILE + 2

# Along one axis, `_result_sums(_KERNEL @ kernel * _input_sums(x))` are the four values that a
# kernel of three makes of the six of x.
_KERNEL = np.array([
  [1, 0, 0],
  [1 / 3, 1 / 3, 1 / 3],
  [-1 / 3, 1 / 3, -1 / 3],
  [-16 / 15, -8 / 15, -4 / 15],
  [1 / 15, -2 / 15, 4 / 15],
  [0, 0, 1],
])  # fmt: skip
# Along both.
_KERNELS = np.kron(_KERNEL, _KERNEL)

# More are worked on in strips of about as many as the second, one row of all images at least, so as
# not to leave the caches: 32 channels of 128 x 256 take 28 ms at once and 15 in strips (two images,
# one core).
_MANY_TILES = 512
_TILES_OF_STRIP = 256


# `jax.jit` here and below: traced once for all layers of one shape.
@jax.jit
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 3x3 convolution with stride 1 and one pixel of zeros around the image.

  Args:
    x: float32 [B, H, W, C], not empty.
    kernel: float32 [3, 3, C, D].
  Returns:
    float32 [B, H, W, D].
  """
  return _convolve('anc,acd->and', x, kernel, features=kernel.shape[3])


@jax.jit
def input_gradient(kernel: jax.Array, gradient: jax.Array) -> jax.Array:
  """That of `conv3x3`: float32 [B, H, W, C] for a gradient float32 [B, H, W, D]."""
  return _convolve('and,acd->anc', gradient, kernel[::-1, ::-1], features=kernel.shape[2])


def _convolve(axes, x, kernel, features):
  batch, height, width, _ = x.shape
  rows, starts = _strips(x.shape)
  kernel, x = _of_kernel(kernel), _pad(x, rows, seen=True)
  tiles = batch, rows, x.shape[2] // TILE - 1

  def result_of(x):
    return _to_result(_multiply(axes, _of_input(x), kernel), tiles)

  def put(y, start):
    result = result_of(_strip(x, start, rows + 1))
    return jax.lax.dynamic_update_slice_in_dim(y, result, start, 1), None

  if len(starts) == 1:
    y = result_of(x)
  else:
    y = jnp.zeros((batch, len(starts) * TILE * rows, TILE * tiles[2], features), x.dtype)
    y, _ = jax.lax.scan(put, vary_alike(y, x, kernel)[0], starts)
  return y[:, :height, :width]


@jax.jit
def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """That of `conv3x3`: float32 [3, 3, C, D] for a gradient float32 [B, H, W, D]."""

  def products_of(x, gradient):
    return _multiply('anc,and->acd', _of_input(x), _of_gradient(gradient))

  def add(total, start):
    return total + products_of(_strip(x, start, rows + 1), _strip(gradient, start, rows)), None

  rows, starts = _strips(x.shape)
  x, gradient = _pad(x, rows, seen=True), _pad(gradient, rows)
  if len(starts) == 1:
    products = products_of(x, gradient)
  else:
    total = jnp.zeros((_SEEN**2, x.shape[3], gradient.shape[3]), x.dtype)
    products, _ = jax.lax.scan(add, vary_alike(total, x, gradient)[0], starts)
  return _to_kernel(products)


def _strips(shape: Sequence[int]) -> tuple[int, np.ndarray]:
  """How images [B, H, W, C] are worked on.

  All at a time, for devices may share them.

  Returns:
    Rows of tiles in a strip, and int32 [N], the first row of pixels of each.
  """
  batch, height, width = (shape[0], *(-(-side // TILE) for side in shape[1:3]))
  rows = height
  if batch * height * width > _MANY_TILES:
    count = -(-height // max(1, _TILES_OF_STRIP // (batch * width)))
    rows = -(-height // count)
  return rows, np.arange(0, TILE * height, TILE * rows, dtype=np.int32)


def _strip(x, start, rows):
  return jax.lax.dynamic_slice_in_dim(x, start, TILE * rows, 1)


def _pad(x, rows, seen=False):
  """Zeros around images, up to whole tiles, and whole strips of so many rows of them.

  With `seen` there is one pixel before the first tile, and a tile after the last, which sees two
  pixels of it.
  """
  before, after = (1, TILE - 1) if seen else (0, 0)
  height, width = (-x.shape[i] % side for i, side in ((1, TILE * rows), (2, TILE)))
  return jnp.pad(x, ((0, 0), (before, height + after), (before, width + after), (0, 0)))


def _of_input(x):
  """Padded images [B, 4 * h + 4, 4 * w + 4, C] to [36, B * h * w, C]."""
  blocks = _blocks(x)
  own = [blocks[:, :-1, i] for i in range(TILE)]
  of_next = [blocks[:, 1:, i] for i in range(_SEEN - TILE)]
  rows = _stack(_input_sums(own + of_next), 0)
  own = [rows[..., :-1, i, :] for i in range(TILE)]
  of_next = [rows[..., 1:, i, :] for i in range(_SEEN - TILE)]
  return _flatten(_stack(_input_sums(own + of_next), 1))


def _of_kernel(kernel):
  """[3, 3, C, D] to [36, C, D]."""
  return _apply(_KERNELS, kernel.reshape(9, *kernel.shape[2:]))


def _to_kernel(products):
  """The transpose of `_of_kernel`."""
  return _apply(_KERNELS.T, products).reshape(3, 3, *products.shape[1:])


def _apply(matrix, x):
  return jax.lax.optimization_barrier(jnp.tensordot(matrix.astype(np.float32), x, 1))


def _to_result(products, tiles):
  """[36, B * h * w, D], of `tiles`, (B, h, w), to [B, 4 * h, 4 * w, D]."""
  products = products.reshape(_SEEN, _SEEN, *tiles, -1)
  columns = _stack(_result_sums([products[:, i] for i in range(_SEEN)]), -2)
  blocks = _stack(_result_sums(list(columns)), 2)
  batch, height, width = tiles
  return blocks.reshape(batch, TILE * height, TILE * width, -1)


def _of_gradient(gradient):
  """The transpose of `_to_result`."""
  blocks = _blocks(gradient)
  rows = _stack(_gradient_sums([blocks[:, :, i] for i in range(TILE)]), 0)
  return _flatten(_stack(_gradient_sums([rows[..., i, :] for i in range(TILE)]), 1))


def _input_sums(x):
  """Of six arrays along one axis, six: the coefficients are those of products of (t - point)."""
  # Of t^2 - 1, and of (t - 1/2) (t + 2).
  p = [x[i + 2] - x[i] for i in range(4)]
  q = [p[i] + 1.5 * x[i + 1] for i in range(4)]
  return q[2] - q[0], q[2] + q[1], q[2] - q[1], p[2] + 2 * p[1], p[2] - 0.5 * p[1], q[3] - q[1]


def _result_sums(x):
  """Of six arrays four: the powers of each point."""
  even, odd = x[1] + x[2], x[1] - x[2]
  return (
    x[0] + even + x[3] + x[4],
    odd + 0.5 * x[3] - 2 * x[4],
    even + 0.25 * x[3] + 4 * x[4],
    odd + 0.125 * x[3] - 8 * x[4] + x[5],
  )


def _gradient_sums(y):
  """The transpose of `_result_sums`: of four arrays six, the values at each point."""
  even, odd = y[0] + y[2], y[1] + y[3]
  return (
    y[0],
    even + odd,
    even - odd,
    y[0] + 0.5 * y[1] + 0.25 * y[2] + 0.125 * y[3],
    y[0] - 2 * y[1] + 4 * y[2] - 8 * y[3],
    y[3],
  )


def _blocks(x):
  """[B, 4 * h, 4 * w, C] to [B, h, 4, w, 4, C]."""
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // TILE, TILE, width // TILE, TILE, channels)


def _flatten(x):
  """[6, 6, B, h, w, C] to [36, B * h * w, C]."""
  return x.reshape(_SEEN**2, -1, x.shape[-1])


def _stack(sums, axis):
  # Else XLA takes the sums into those that follow, and computes them again and again.
  return jax.lax.optimization_barrier(jnp.stack(sums, axis))


def _multiply(axes, x, y):
  return jax.lax.optimization_barrier(jnp.einsum(axes, x, y))
