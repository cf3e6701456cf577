"""Small heads on backbone features, and their enlargement to the image."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp

from if_jax.models.layers import LOGITS_INIT, ConvNorm, ModuleDef
from if_jax.ops.resize import is_whole_multiple, resize_bilinear


class ConvHead(nn.Module):
  """Two 1x1 convolutions with normalisation and ReLU between: features to logits."""

  conv: ModuleDef
  norm: ModuleDef
  hidden: int
  features: int
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = ConvNorm(self.conv, self.norm, self.hidden, use_bias=self.use_bias, name='hidden')(x, train)
    return self.conv(
      self.features, use_bias=self.use_bias, kernel_init=LOGITS_INIT, name='classifier'
    )(x)


def enlarge_logits(logits: jax.Array, size: Sequence[int]) -> jax.Array:
  """Logits [B, h, w, K] to float32 [B, height, width, K]."""
  return resize_bilinear(logits.astype(jnp.float32), size)


def enlarge_probability(logits: jax.Array, size: Sequence[int]) -> jax.Array:
  """Logits of a two-sided choice, enlarged as probabilities: float32 [B, height, width, 1].

  The original's edge head enlarges what comes out of its sigmoid. The logit of the enlarged
  probability is the same map and stays finite where the sigmoid saturates.
  """
  positive, negative = (
    resize_bilinear(jax.nn.sigmoid(sign * logits.astype(jnp.float32)), size) for sign in (1, -1)
  )
  tiny = jnp.finfo(jnp.float32).tiny
  return jnp.log(jnp.maximum(positive, tiny)) - jnp.log(jnp.maximum(negative, tiny))


def small_outputs(size: Sequence[int], **logits: jax.Array) -> dict[str, jax.Array]:
  """Logits before they are enlarged, as float32, for `pixel_nats` and `best_class`.

  Those of which `size` is no whole multiple are left out; of symbols of `jax.export` it is none.
  """
  if any(map(jax.export.is_symbolic_dim, size)):
    return {}
  return {
    f'small_{name}': x.astype(jnp.float32)
    for name, x in logits.items()
    if is_whole_multiple(size, x.shape[1:3])
  }
