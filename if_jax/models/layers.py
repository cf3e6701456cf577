"""Convolution, normalisation and residual blocks that the networks are made of."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from if_jax.ops import onednn
from if_jax.ops.convolution import conv2d, takes_winograd

Dtype = Any
# Makes a `Conv`, a `BatchNorm` or a block of them.
ModuleDef = Callable[..., Any]

# PyTorch's defaults, which the published checkpoints were trained with.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

# Of convolutions that a normalisation follows, which takes their scale away again.
HE_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# Of those that give logits, as HRNet's repositories have it: a network that knows nothing says so.
# He's would make the one logit of an edge 22 times as large as the features it is made of.
LOGITS_INIT = nn.initializers.normal(0.001)


class Conv(nn.Module):
  """A 2-D convolution with square kernel, padded as PyTorch's `padding=kernel_size // 2`.

  With `onednn` it runs by `if_jax.ops.onednn`, if it is not so large that Winograd's algorithm is
  faster.
  """

  features: int
  kernel_size: int = 1
  stride: int = 1
  padding: int | None = None
  use_bias: bool = False
  dtype: Dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = HE_INIT
  onednn: bool = False

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel, bias = self._entries(x.shape[-1])
    if self.is_by_onednn(x):
      return self._by_onednn(x, kernel, bias)
    x = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self._pixels())
    return x if bias is None else x + bias.astype(self.dtype)

  def is_by_onednn(self, x: jax.Array) -> bool:
    """Whether x, [B, H, W, C], is convolved by oneDNN."""
    form = self.features, self.kernel_size, self.stride, self._pixels()
    return self.onednn and not takes_winograd(x, *form)

  def normalized(
    self,
    x: jax.Array,
    multiplier: jax.Array,
    offset: jax.Array,
    residual: jax.Array | None,
    relu: bool,
  ) -> jax.Array:
    """`multiplier * conv(x) + offset`, plus `residual`, then ReLU, in one call of oneDNN."""
    kernel, bias = self._entries(x.shape[-1])
    bias = offset if bias is None else bias * multiplier + offset
    return self._by_onednn(x, kernel * multiplier, bias, residual, relu=relu)

  @nn.compact
  def _entries(self, channels):
    k = self.kernel_size
    kernel = self.param('kernel', self.kernel_init, (k, k, channels, self.features))
    zeros = nn.initializers.zeros
    return kernel, self.param('bias', zeros, (self.features,)) if self.use_bias else None

  def _by_onednn(self, x, *operands, **options):
    operands = (None if y is None else y.astype(self.dtype) for y in (x, *operands))
    return onednn.conv2d(*operands, stride=self.stride, padding=self._pixels(), **options)

  def _pixels(self):
    return self.kernel_size // 2 if self.padding is None else self.padding


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last, as PyTorch computes it.

  In training it normalises by the statistics of the whole batch, over all devices of `axis_name`,
  and moves the running ones towards them. PyTorch's running variance is the unbiased one, Flax's
  the biased one; on the 15 pixels of a coarse branch they differ by 7 %.
  """

  axis_name: str | None = None
  dtype: Dtype = jnp.float32

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    scale, bias, running_mean, running_var = self._entries(x.shape[-1])
    running = running_mean.value, running_var.value
    if not train:
      return _transform(x, scale, bias, *running, dtype=self.dtype)
    if self.is_initializing():
      return _normalize(x, scale, bias, *running, axis_name=None, dtype=self.dtype)[0]
    x, running_mean.value, running_var.value = _normalize(
      x, scale, bias, *running, axis_name=self.axis_name, dtype=self.dtype
    )
    return x

  def affine(self, features: int) -> tuple[jax.Array, jax.Array]:
    """What it multiplies by and then adds in evaluation: float32 [features] each."""
    scale, bias, running_mean, running_var = self._entries(features)
    return _affine(scale, bias, running_mean.value, running_var.value)

  @nn.compact
  def _entries(self, features):
    shape = (features,)
    return (
      self.param('scale', nn.initializers.ones, shape),
      self.param('bias', nn.initializers.zeros, shape),
      self.variable('batch_stats', 'mean', jnp.zeros, shape),
      self.variable('batch_stats', 'var', jnp.ones, shape),
    )


# `jax.jit` here and below: traced once for all layers of one shape, see docs/performance.md.
@functools.partial(jax.jit, static_argnames=('axis_name', 'dtype'))
def _normalize(x, scale, bias, running_mean, running_var, *, axis_name, dtype):
  """`x` normalised by the statistics of the batch, and the running ones after it."""
  mean, var, count = _batch_statistics(x, axis_name)
  unbiased = var * (count / jnp.maximum(count - 1, 1))
  running = (
    BATCH_NORM_MOMENTUM * before + (1 - BATCH_NORM_MOMENTUM) * batch
    for before, batch in ((running_mean, mean), (running_var, unbiased))
  )
  # In float32, and so are the sums of its gradient: in bfloat16 those erred by 15 %.
  return _transform(x, scale, bias, mean, var, dtype=jnp.float32).astype(dtype), *running


def _batch_statistics(x, axis_name):
  x = x.astype(jnp.float32)
  axes = tuple(range(x.ndim - 1))
  count = x.size // x.shape[-1]
  # No stack without need, and no maximum below: their gradients are small operations, of which a
  # network has hundreds, that take long to compile.
  mean, square = jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)
  if axis_name is not None:
    mean, square = jax.lax.pmean(jnp.stack([mean, square]), axis_name)
    count = count * jax.lax.axis_size(axis_name)
  var = square - jnp.square(mean)
  # Of numbers that are all the same it can come out below 0.
  return mean, var + jax.lax.stop_gradient(jnp.maximum(-var, 0)), count


@functools.partial(jax.jit, static_argnames='dtype')
def _transform(x, scale, bias, mean, var, *, dtype):
  multiplier, offset = _affine(scale, bias, mean, var)
  return x.astype(dtype) * multiplier.astype(dtype) + offset.astype(dtype)


def _affine(scale, bias, mean, var):
  # One multiplication and one addition per value: fused into the convolution before it.
  multiplier = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
  return multiplier, bias - mean * multiplier


@jax.jit
def add_relu(x: jax.Array, y: jax.Array) -> jax.Array:
  """`relu(x + y)` of finite numbers, which XLA's CPU backend computes once. Reverse mode only.

  As it stands, a ReLU counts as so cheap there that it is computed anew for each of its uses, the
  sum with it, and so are the sums of the blocks before that it is made of, through a whole branch.
  An addition that ends in two large arrays is not.
  """
  return _add_relu(x, y)


@jax.custom_vjp
def _add_relu(x, y):
  return x + jnp.maximum(y, -x)


def _add_relu_forward(x, y):
  out = x + jnp.maximum(y, -x)
  return out, out


def _add_relu_backward(out, gradient):
  gradient = jnp.where(out > 0, gradient, 0)
  return gradient, gradient


_add_relu.defvjp(_add_relu_forward, _add_relu_backward)


def conv_norm(
  conv: Conv,
  norm: BatchNorm,
  x: jax.Array,
  train: bool,
  *,
  residual: jax.Array | None = None,
  relu: bool = True,
) -> jax.Array:
  """A convolution, its normalisation, what is added to it, and ReLU: by oneDNN in one go."""
  if not train and conv.is_by_onednn(x):
    return conv.normalized(x, *norm.affine(conv.features), residual, relu)
  x = norm(conv(x), train)
  if residual is not None:
    return add_relu(x, residual) if relu else x + residual
  return nn.relu(x) if relu else x


def check_mode(model: nn.Module, train: bool) -> None:
  """Raises ValueError if a network that is for evaluation alone is to train."""
  if train and model.onednn:
    raise ValueError('a network with onednn=True has no gradients; make one without it to train')


class ConvNorm(nn.Module):
  """Convolution, batch normalisation and, unless switched off, ReLU."""

  conv: ModuleDef
  norm: ModuleDef
  features: int
  kernel_size: int = 1
  stride: int = 1
  use_bias: bool = False
  relu: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    conv = self.conv(
      self.features, self.kernel_size, self.stride, use_bias=self.use_bias, name='conv'
    )
    return conv_norm(conv, self.norm(name='bn'), x, train, relu=self.relu)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions around which the input passes; channels and size stay."""

  conv: ModuleDef
  norm: ModuleDef

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    conv1, conv2 = (self.conv(x.shape[-1], 3, name=f'conv{i}') for i in (1, 2))
    norm1, norm2 = (self.norm(name=f'bn{i}') for i in (1, 2))
    y = conv_norm(conv1, norm1, x, train)
    return conv_norm(conv2, norm2, y, train, residual=x)


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions; the result has four times `features` channels."""

  conv: ModuleDef
  norm: ModuleDef
  features: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    widths_and_sizes = (self.features, 1), (self.features, 3), (4 * self.features, 1)
    conv1, conv2, conv3 = (
      self.conv(*both, name=f'conv{i}') for i, both in enumerate(widths_and_sizes, start=1)
    )
    norm1, norm2, norm3 = (self.norm(name=f'bn{i}') for i in (1, 2, 3))
    y = conv_norm(conv1, norm1, x, train)
    y = conv_norm(conv2, norm2, y, train)
    if x.shape[-1] != 4 * self.features:
      downsample = self.conv(4 * self.features, name='downsample_conv')
      x = conv_norm(downsample, self.norm(name='downsample_bn'), x, train, relu=False)
    return conv_norm(conv3, norm3, y, train, residual=x)
