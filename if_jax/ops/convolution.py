"""2-D convolution whose gradients are as fast as the convolution itself."""

import functools
import math

import jax
import jax.export
import jax.numpy as jnp

from if_jax.ops import winograd
from if_jax.ops.varying import vary_alike


# `jax.jit`: traced once for all layers of one shape.
@functools.partial(jax.jit, static_argnames=('stride', 'padding'))
def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
  """A 2-D convolution with square kernel. Reverse mode only.

  A 1x1 kernel is applied as a matrix product: on XLA's CPU backend 2.5 to 4 times faster. There,
  gradients take other forms than XLA's own, too, where these are faster, and so do convolutions
  with 3x3 kernels: the very large, and most of those whose gradients are taken, which are thus not
  the same to the last bits as without (`if_jax.ops.winograd`).

  Args:
    x: float [B, H, W, C].
    kernel: float [k, k, C, D], of the dtype of `x`.
    stride: along both axes.
    padding: zeros around the image, in pixels.
  Returns:
    [B, H', W', D] with H' = (H + 2 * padding - k) // stride + 1.
  """
  return _conv2d(*vary_alike(x, kernel), stride, padding)


def takes_winograd(
  x: jax.Array, features: int, kernel_size: int, stride: int, padding: int, gradients: bool = False
) -> bool:
  """Whether `conv2d` of x to so many features is by `if_jax.ops.winograd` on CPUs.

  It is where this pays for compiling 0.1 s longer: without gradients, where one image may be all,
  only if that takes long itself, from 5 GFLOP an image.
  """
  least = 2**18 if gradients else 2**26 * x.shape[0]
  return _winograd_pays((kernel_size, stride, padding), x, features, least)


def _evaluate(x, kernel, stride, padding):
  return _compute(x, kernel, stride, padding, gradients=False)


def _compute(x, kernel, stride, padding, gradients):
  taken = takes_winograd(x, kernel.shape[3], kernel.shape[0], stride, padding, gradients)
  by_xla = functools.partial(_apply, stride=stride, padding=padding)
  return _by_platform(winograd.conv3x3 if taken else None, by_xla, x, kernel)


def _by_platform(on_cpu, by_xla, *operands):
  """By another form than XLA's on CPUs, where there is one."""
  # Where JAX's types say which devices hold what, pixels of all images are not one axis. They do
  # within `jax.set_mesh` of a mesh with explicit axes, without which JAX has no gradients there.
  if on_cpu is None or jax.sharding.get_abstract_mesh().explicit_axes:
    return by_xla(*operands)
  return jax.lax.platform_dependent(*operands, cpu=on_cpu, default=by_xla)


def _apply(x, kernel, stride, padding):
  if kernel.shape[0] == 1 and stride == 1 and padding == 0:
    return jnp.tensordot(x, kernel[0, 0], 1)
  return _convolve(x, kernel, stride, [(padding, padding)] * 2)


def _convolve(x, kernel, stride, padding):
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _forward(x, kernel, stride, padding):
  return _compute(x, kernel, stride, padding, gradients=True), (x, kernel)


def _backward(stride, padding, residuals, gradient):
  # Without the barrier a training step of hrnet16_slim took 7 % longer: XLA makes what leads to
  # the gradient anew for each of its uses.
  gradient = jax.lax.optimization_barrier(gradient)
  x, kernel = residuals
  apply = functools.partial(_apply, stride=stride, padding=padding)

  def input_by_xla(x, kernel, gradient):
    return jax.linear_transpose(lambda x: apply(x, kernel), x)(gradient)[0]

  def kernel_by_xla(x, kernel, gradient):
    return jax.linear_transpose(lambda kernel: apply(x, kernel), kernel)(gradient)[0]

  form = kernel.shape[0], stride, padding
  choices = (
    (_input_gradient_on_cpu(form, x, gradient), input_by_xla),
    (_kernel_gradient_on_cpu(form, x, gradient), kernel_by_xla),
  )
  return tuple(_by_platform(*forms, x, kernel, gradient) for forms in choices)


_conv2d = jax.custom_vjp(_evaluate, nondiff_argnums=(2, 3))
_conv2d.defvjp(_forward, _backward)


# Where XLA's CPU backend is slow in gradients, and what is done in its place. The times are those
# of one core for two images.

# An array of so many, copied a few times, does not fit a core's cache: with 96 channels of 32 x 64
# XLA's form is still as fast as one by rows.
_MANY_NUMBERS = 2**19


def _winograd_pays(form, x, features, least=2**18, most_per_tile=8):
  """Whether a convolution, or one of its gradients, is faster by `winograd`.

  Args:
    form: size of the kernel, stride and padding.
    x: [B, H, W, C], the input.
    features: of the result.
    least: tiles times channels times features that pay for what else there is to do.
    most_per_tile: channels or features, whichever are more; with few tiles the sums of the kernel
      cost more than the products they spare.
  """
  sizes = x.shape[:3]
  if form != (3, 1, 1) or x.dtype != jnp.float32 or any(map(jax.export.is_symbolic_dim, sizes)):
    return False
  few, many = sorted((x.shape[3], features))
  tiles = sizes[0] * (sizes[1] // winograd.TILE) * (sizes[2] // winograd.TILE)
  # So do those of the images with few channels.
  is_wide = few >= 32 and many <= 4 * few and many <= most_per_tile * tiles
  return is_wide and tiles * few * many >= least


def _input_gradient_on_cpu(form, x, gradient):
  """Another form than XLA's, or None."""
  if _winograd_pays(form, x, gradient.shape[3]):
    return lambda x, kernel, gradient: winograd.input_gradient(kernel, gradient)
  # 64 channels of 128 x 256, from 64: 21 to 15 ms. With fewer channels it makes no difference.
  return _input_gradient_of_stride_2 if form == (3, 2, 1) and x.shape[3] >= 64 else None


def _kernel_gradient_on_cpu(form, x, gradient):
  """Another form than XLA's, matrix products, or None.

  XLA's own form of a kernel's gradient has the few channels as its image and the image as its
  channels, and transposes both to get there.
  """
  channels, features = x.shape[3], gradient.shape[3]
  if form == (1, 1, 0):
    return _kernel_gradient_of_1x1
  # 256 channels of one image of 8 x 16, 32 to a tile: 3.3 to 2.5 ms; 512: 20 to 40.
  if _winograd_pays(form, x, features, most_per_tile=32):
    return lambda x, kernel, gradient: winograd.kernel_gradient(x, gradient)
  if form == (3, 1, 1) and channels > 4 * features:
    return _kernel_gradient_of_wide_3x3
  # 16 channels of 32 x 64: 1.5 to 0.3 ms; 18 of 64 x 128: 2.7 to 1.9.
  if form == (3, 1, 1) and min(channels, features) < 48:
    return _kernel_gradient_of_3x3
  # In bfloat16 192 channels of 64 x 128: 400 to 170 ms; from 64 to 288 in float32: 230 to 80.
  if form == (3, 1, 1) and _are_many(*gradient.shape[:3], min(channels, features)):
    return functools.partial(_kernel_gradient_of_3x3, rows=2)
  # 64 channels to 64 of 64 x 128: 48 to 30 ms; 3 to 64 of 128 x 256: 12 to 6.
  if form == (3, 2, 1) and _are_many(*gradient.shape):
    return _kernel_gradient_of_stride_2
  return None


def _are_many(*sizes):
  return not any(map(jax.export.is_symbolic_dim, sizes)) and math.prod(sizes) >= _MANY_NUMBERS


def _input_gradient_of_stride_2(x, kernel, gradient):
  """Of each two by two pixels each has taps of its own: four small convolutions.

  XLA puts zeros between the pixels of the gradient, and multiplies by them.
  """
  kernel = jnp.swapaxes(kernel, 2, 3)
  # Even pixels see tap 1 alone, odd ones tap 2 and, of the next pixel of the gradient, tap 0.
  even, odd = (slice(1, 2), (0, 0)), (slice(2, None, -2), (0, 1))
  rows = [
    jnp.stack(
      [_convolve(gradient, kernel[y, x], 1, (below, right)) for x, right in (even, odd)], axis=3
    )
    for y, below in (even, odd)
  ]
  batch, height, width, channels = x.shape
  blocks = jnp.stack(rows, axis=2)
  pixels = blocks.reshape(batch, 2 * gradient.shape[1], 2 * gradient.shape[2], channels)
  return pixels[:, :height, :width]


def _kernel_gradient_of_1x1(x, kernel, gradient):
  del kernel
  return _product_over_pixels(x, gradient)[None, None]


def _kernel_gradient_of_3x3(x, kernel, gradient, rows=None):
  """Products of three copies of x moved along a row, and three of the gradient along a column.

  A product holds all nine taps. With `rows` there is one for so many rows, and their copies stay
  in a core's cache; else one for all.
  """
  height, width = x.shape[1:3]
  channels, features = kernel.shape[2:]
  rows = rows or height + 2
  missing = -(height + 2) % rows
  x = jnp.pad(x, ((0, 0), (1, 1 + missing), (1, 1), (0, 0)))
  gradient = jnp.pad(gradient, ((0, 0), (2, 2 + missing), (0, 0), (0, 0)))

  def operands_of(start):
    x_rows = jax.lax.dynamic_slice_in_dim(x, start, rows, 1)
    gradient_rows = jax.lax.dynamic_slice_in_dim(gradient, start, rows + 2, 1)
    along_row = [x_rows[:, :, i : i + width] for i in range(3)]
    along_column = [gradient_rows[:, 2 - i : 2 - i + rows] for i in range(3)]
    return jnp.concatenate(along_row, axis=-1), jnp.concatenate(along_column, axis=-1)

  product = _sum_over_rows(operands_of, height + 2 + missing, rows)
  return product.reshape(3, channels, 3, features).transpose(2, 0, 1, 3)


def _kernel_gradient_of_stride_2(x, kernel, gradient, rows=2):
  """Products, for so many rows of the gradient each, of it and the nine pixels that each saw."""
  height, width = gradient.shape[1:3]
  missing = -height % rows
  # As many pixels as are seen, one before the first and some after the last.
  below, right = 2 * (height + missing) - x.shape[1], 2 * width - x.shape[2]
  x = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
  gradient = jnp.pad(gradient, ((0, 0), (0, missing), (0, 0), (0, 0)))

  def operands_of(start):
    seen = jax.lax.dynamic_slice_in_dim(x, 2 * start, 2 * rows + 1, 1)
    taps = [
      seen[:, i : i + 2 * rows : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)
    ]
    return jnp.concatenate(taps, axis=-1), jax.lax.dynamic_slice_in_dim(gradient, start, rows, 1)

  return _sum_over_rows(operands_of, height + missing, rows).reshape(kernel.shape)


def _sum_over_rows(operands_of, height, rows):
  """The sum of `_product_over_pixels(*operands_of(start))`, starts being `rows` apart."""
  x, gradient = operands_of(0)
  if height == rows:
    return _product_over_pixels(x, gradient)
  dtype = jnp.promote_types(x.dtype, jnp.float32)

  def add(total, start):
    return total + _product_over_pixels(*operands_of(start), dtype), None

  first = _product_over_pixels(x, gradient, dtype)
  return jax.lax.scan(add, first, jnp.arange(rows, height, rows))[0].astype(x.dtype)


def _kernel_gradient_of_wide_3x3(x, kernel, gradient):
  """One product: of x, which is wide, as it is, and nine moved copies of the gradient."""
  height, width = x.shape[1:3]
  gradient = jnp.pad(gradient, ((0, 0), (1, 1), (1, 1), (0, 0)))
  moved = [
    gradient[:, 2 - i : 2 - i + height, 2 - j : 2 - j + width] for i in range(3) for j in range(3)
  ]
  product = _product_over_pixels(x, jnp.concatenate(moved, axis=-1))
  return product.reshape(kernel.shape[2], 3, 3, -1).transpose(1, 2, 0, 3)


def _product_over_pixels(x, gradient, dtype=None):
  """[B, H, W, C] and [B, H, W, D] to [C, D], of the operands' dtype or another."""
  x, gradient = jax.lax.optimization_barrier((x, gradient))
  x, gradient = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
  return jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())), preferred_element_type=dtype)
