"""Hierarchical multi-scale attention (HMS): the same network at several scales, mixed per pixel."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from if_jax.models.heads import ConvHead, enlarge_logits, enlarge_probability
from if_jax.models.hrnet import HRNet, HRNetSpec
from if_jax.models.layers import (
  LOGITS_INIT,
  BatchNorm,
  Conv,
  ConvNorm,
  Dtype,
  ModuleDef,
  check_mode,
)
from if_jax.models.ocr import OCR
from if_jax.ops.resize import resize_bilinear, scale_size

TRAINING_SCALES = (0.5, 1.0)


class MultiScaleSegmenter(nn.Module):
  """HRNet with OCR, applied at several scales whose answers are mixed by learned attention.

  From the largest scale to the smallest, each scale's attention says how much of its own answer
  replaces that of the larger ones. Training uses the scales 0.5 and 1.

  Attributes: as `Segmenter`, and
    scales: ratios of the image's size, in evaluation; 1.0 among them.

  Source: Tao et al., Hierarchical Multi-Scale Attention for Semantic Segmentation (2020).
  """

  backbone_spec: HRNetSpec
  num_classes: int
  edge_head: bool = True
  dtype: Dtype = jnp.float32
  remat: bool = False
  axis_name: str | None = None
  onednn: bool = False
  scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)

  def setup(self) -> None:
    conv = functools.partial(Conv, dtype=self.dtype, onednn=self.onednn)
    norm = functools.partial(BatchNorm, axis_name=self.axis_name, dtype=self.dtype)
    self.backbone = HRNet(self.backbone_spec, conv, norm, remat=self.remat)
    self.ocr = OCR(conv, norm, self.num_classes)
    self.scale_attention = ScaleAttention(conv, norm)
    if self.edge_head:
      self.edge_classifier = ConvHead(
        conv, norm, 15 * self.backbone_spec.width, 1, name='edge_head'
      )

  def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array | dict]:
    """Segments images of any size.

    Args:
      image: float32 [B, H, W, 3], RGB normalised by ImageNet's mean and standard deviation.
      train: batch statistics and dropout, two scales; adds what training supervises.
    Returns:
      'logits' float32 [B, H, W, K]; with an edge head 'edge_logits' float32 [B, H, W, 1];
      'attention', by scale, float32 [B, h, w, 1] in (0, 1) at that scale's size. In training also
      'aux_logits' float32 [B, H, W, K] and 'scale_logits', by scale, float32 [B, H, W, K].
    """
    check_mode(self, train)
    scales = TRAINING_SCALES if train else self.scales
    size = image.shape[1:3]
    outputs: dict[str, Any] = {'attention': {}, 'scale_logits': {}}
    logits: Any = None
    aux_logits: Any = None
    for scale in sorted(scales, reverse=True):
      one = self._one_scale(resize_bilinear(image, scale_size(size, scale)), train)
      attention = one['attention']
      logits = _mix(logits, one['logits'], attention, enlarge=scale < 1)
      aux_logits = _mix(aux_logits, one['aux_logits'], attention, enlarge=scale < 1)
      if scale == 1 and self.edge_head:
        outputs['edge_logits'] = one['edge_logits']
      outputs['attention'][scale] = attention
      outputs['scale_logits'][scale] = resize_bilinear(one['logits'], size)
    outputs['logits'] = resize_bilinear(logits, size)
    if train:
      outputs['aux_logits'] = resize_bilinear(aux_logits, size)
    else:
      del outputs['scale_logits']
    return outputs

  def _one_scale(self, image, train):
    size = image.shape[1:3]
    features = self.backbone(image, train)
    logits, aux_logits, ocr_features = self.ocr(features, train)
    outputs = {
      'logits': enlarge_logits(logits, size),
      'aux_logits': enlarge_logits(aux_logits, size),
      'attention': enlarge_logits(self.scale_attention(ocr_features, train), size),
    }
    if self.edge_head:
      outputs['edge_logits'] = enlarge_probability(self.edge_classifier(features, train), size)
    return outputs


class ScaleAttention(nn.Module):
  """How far this scale's answer is to be trusted: features to a map in (0, 1)."""

  conv: ModuleDef
  norm: ModuleDef
  features: int = 256

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    for i in range(2):
      x = ConvNorm(self.conv, self.norm, self.features, 3, name=f'block{i}')(x, train)
    return nn.sigmoid(self.conv(1, kernel_init=LOGITS_INIT, name='classifier')(x))


def _mix(previous, current, attention, enlarge):
  """Mixes a scale's answer into that of the larger scales, at whichever of both is wanted."""
  if previous is None:
    return current
  if not enlarge:
    previous = resize_bilinear(previous, current.shape[1:3])
    return attention * current + (1 - attention) * previous
  size = previous.shape[1:3]
  weighted = resize_bilinear(attention * current, size)
  return weighted + (1 - resize_bilinear(attention, size)) * previous
