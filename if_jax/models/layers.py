"""Convolution, normalisation and residual blocks that the networks are made of."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from if_jax.ops.convolution import conv2d

Dtype = Any
ModuleDef = Callable[..., nn.Module]

# PyTorch's defaults, which the published checkpoints were trained with.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

# Of convolutions that a normalisation follows, which takes their scale away again.
HE_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# Of those that give logits, as HRNet's repositories have it: a network that knows nothing says so.
# He's would make the one logit of an edge 22 times as large as the features it is made of.
LOGITS_INIT = nn.initializers.normal(0.001)


class Conv(nn.Module):
  """A 2-D convolution with square kernel, padded as PyTorch's `padding=kernel_size // 2`."""

  features: int
  kernel_size: int = 1
  stride: int = 1
  padding: int | None = None
  use_bias: bool = False
  dtype: Dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = HE_INIT

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    k = self.kernel_size
    shape = (k, k, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape).astype(self.dtype)
    padding = k // 2 if self.padding is None else self.padding
    x = conv2d(x.astype(self.dtype), kernel, self.stride, padding)
    if self.use_bias:
      x = x + self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
    return x


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last, as PyTorch computes it.

  In training it normalises by the statistics of the whole batch, over all devices of `axis_name`,
  and moves the running ones towards them. PyTorch's running variance is the unbiased one, Flax's
  the biased one; on the 15 pixels of a coarse branch they differ by 7 %.
  """

  axis_name: str | None = None
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    shape = (x.shape[-1],)
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape)
    if train:
      mean, var, count = self._batch_statistics(x)
      if not self.is_initializing():
        unbiased = var * (count / jnp.maximum(count - 1, 1))
        for running, batch in ((running_mean, mean), (running_var, unbiased)):
          kept = BATCH_NORM_MOMENTUM * running.value
          running.value = kept + (1 - BATCH_NORM_MOMENTUM) * batch
    else:
      mean, var = running_mean.value, running_var.value
    # One multiplication and one addition per value: fused into the convolution before it.
    multiplier = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
    offset = bias - mean * multiplier
    return x.astype(self.dtype) * multiplier.astype(self.dtype) + offset.astype(self.dtype)

  def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    x = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    moments = jnp.stack([jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)])
    if self.axis_name is not None and not self.is_initializing():
      moments = jax.lax.pmean(moments, self.axis_name)
      count = count * jax.lax.axis_size(self.axis_name)
    mean = moments[0]
    return mean, jnp.maximum(moments[1] - jnp.square(mean), 0), count


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
    x = self.conv(
      self.features, self.kernel_size, self.stride, use_bias=self.use_bias, name='conv'
    )(x)
    x = self.norm(name='bn')(x, train)
    return nn.relu(x) if self.relu else x


class BasicBlock(nn.Module):
  """Two 3x3 convolutions around which the input passes; channels and size stay."""

  conv: ModuleDef
  norm: ModuleDef

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = self.conv(x.shape[-1], 3, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y, train))
    y = self.conv(x.shape[-1], 3, name='conv2')(y)
    return nn.relu(self.norm(name='bn2')(y, train) + x)


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions; the result has four times `features` channels."""

  conv: ModuleDef
  norm: ModuleDef
  features: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nn.relu(self.norm(name='bn1')(self.conv(self.features, name='conv1')(x), train))
    y = nn.relu(self.norm(name='bn2')(self.conv(self.features, 3, name='conv2')(y), train))
    y = self.norm(name='bn3')(self.conv(4 * self.features, name='conv3')(y), train)
    if x.shape[-1] != 4 * self.features:
      x = self.conv(4 * self.features, name='downsample_conv')(x)
      x = self.norm(name='downsample_bn')(x, train)
    return nn.relu(y + x)
