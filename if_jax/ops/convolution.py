"""2-D convolution whose gradients are as fast as the convolution itself."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
  """A 2-D convolution with square kernel. Reverse mode only.

  A 1x1 kernel is applied as a matrix product: on XLA's CPU backend 2.5 to 4 times faster. There,
  the gradient of a 3x3 kernel is a matrix product, too; see `_kernel_gradient_as_product`.

  Args:
    x: float [B, H, W, C].
    kernel: float [k, k, C, D], of the dtype of `x`.
    stride: along both axes.
    padding: zeros around the image, in pixels.
  Returns:
    [B, H', W', D] with H' = (H + 2 * padding - k) // stride + 1.
  """
  if kernel.shape[0] == 1 and stride == 1 and padding == 0:
    return jnp.tensordot(x, kernel[0, 0], 1)
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=[(padding, padding)] * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _forward(x, kernel, stride, padding):
  return conv2d(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, gradient):
  # Without the barrier a training step of hrnet16_slim took 7 % longer: XLA makes what leads to
  # the gradient anew for each of its uses.
  gradient = jax.lax.optimization_barrier(gradient)
  x, kernel = residuals
  apply = functools.partial(conv2d.fun, stride=stride, padding=padding)
  (x_gradient,) = jax.linear_transpose(lambda x: apply(x, kernel), x)(gradient)

  def by_xla(x, gradient):
    return jax.linear_transpose(lambda kernel: apply(x, kernel), kernel)(gradient)[0]

  if kernel.shape[0] == 3 and stride == padding == 1:
    kernel_gradient = jax.lax.platform_dependent(
      x, gradient, cpu=_kernel_gradient_as_product, default=by_xla
    )
  else:
    kernel_gradient = by_xla(x, gradient)
  return x_gradient, kernel_gradient


conv2d.defvjp(_forward, _backward)


def _kernel_gradient_as_product(x, gradient):
  """The gradient of a 3x3 kernel, stride 1, padding 1, as one product of two matrices.

  The product of three copies of x, moved by -1, 0 and 1 along a row, with three copies of the
  gradient, moved along a column, holds all nine taps. XLA's own form of this convolution has the
  few channels as its image and the image as its channels, and transposes both to get there.
  """
  width, channels, features = x.shape[2], x.shape[3], gradient.shape[3]
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  x = jnp.concatenate([x[:, :, i : i + width] for i in range(3)], axis=-1)
  moved = [jnp.pad(gradient, ((0, 0), (i, 2 - i), (0, 0), (0, 0))) for i in range(3)]
  gradient = jnp.concatenate(moved, axis=-1)
  x, gradient = jax.lax.optimization_barrier((x, gradient))
  product = jax.lax.dot_general(
    x.reshape(-1, 3 * channels), gradient.reshape(-1, 3 * features), (((0,), (0,)), ((), ()))
  )
  return product.reshape(3, channels, 3, features).transpose(2, 0, 1, 3)
