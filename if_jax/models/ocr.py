"""Object-contextual representations (OCR): every pixel attends to a description of each class."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from if_jax.models.heads import ConvHead
from if_jax.models.layers import LOGITS_INIT, ConvNorm, ModuleDef


class OCR(nn.Module):
  """The OCR head.

  A first, coarse segmentation weighs the pixels' features into one description per class; every
  pixel then attends to these descriptions, and what it gathers is joined to its own features.

  Source: Yuan et al., Object-Contextual Representations for Semantic Segmentation (2020).
  """

  conv: ModuleDef
  norm: ModuleDef
  num_classes: int
  features: int = 512
  key_features: int = 256
  dropout: float = 0.05

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features [B, h, w, C] to logits and coarse logits [B, h, w, K], and features for edges."""
    coarse_logits = ConvHead(self.conv, self.norm, x.shape[-1], self.num_classes, name='aux_head')(
      x, train
    )
    pixels = self._block(self.features, 'conv3x3', kernel_size=3, use_bias=True)(x, train)
    classes = gather_classes(pixels, coarse_logits)
    context = self._attend(pixels, classes, train)
    joined = jnp.concatenate([context, pixels], axis=-1)
    out = self._block(self.features, 'join')(joined, train)
    # Whole channels are dropped, as PyTorch's Dropout2d drops them.
    out = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(out)
    logits = self.conv(
      self.num_classes, use_bias=True, kernel_init=LOGITS_INIT, name='classifier'
    )(out)
    return logits, coarse_logits, out

  def _attend(self, pixels, classes, train):
    """Each pixel's mixture of the class descriptions, weighted by similarity."""
    query = pixels
    for i in range(2):
      query = self._block(self.key_features, f'query{i}')(query, train)
    key = classes
    for i in range(2):
      key = self._block(self.key_features, f'key{i}')(key, train)
    value = self._block(self.key_features, 'value')(classes, train)
    similarity = jnp.einsum('bhwc,bkic->bhwk', query, key).astype(jnp.float32)
    weights = nn.softmax(self.key_features**-0.5 * similarity).astype(value.dtype)
    context = jnp.einsum('bhwk,bkic->bhwc', weights, value)
    return self._block(self.features, 'out')(context, train)

  def _block(self, features, name, kernel_size=1, use_bias=False):
    return ConvNorm(self.conv, self.norm, features, kernel_size, use_bias=use_bias, name=name)


def gather_classes(pixels: jax.Array, logits: jax.Array) -> jax.Array:
  """Means of pixel features, weighted by each class's share over the image.

  Args:
    pixels: [B, h, w, C].
    logits: [B, h, w, K]; the softmax runs over the pixels of each class.
  Returns:
    [B, K, 1, C] in the dtype of `pixels`: one description per class.
  """
  flat = rearrange(logits.astype(jnp.float32), 'b h w k -> b (h w) k')
  weights = nn.softmax(flat, axis=1).astype(pixels.dtype)
  classes = jnp.einsum('bnk,bnc->bkc', weights, rearrange(pixels, 'b h w c -> b (h w) c'))
  return classes[:, :, None]
