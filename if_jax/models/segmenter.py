"""Whole networks: a backbone, a segmentation head, an optional edge head."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from if_jax.models.heads import ConvHead, enlarge_logits, enlarge_probability, small_outputs
from if_jax.models.hrnet import HRNet, HRNetSpec
from if_jax.models.layers import LOGITS_INIT, BatchNorm, Conv, Dtype, check_mode
from if_jax.models.ocr import OCR


class Segmenter(nn.Module):
  """HRNet with a plain head or with OCR.

  Attributes:
    backbone_spec: which HRNet.
    num_classes: K.
    head: 'plain' or 'ocr'.
    head_features: hidden channels of the plain head; None: as many as the backbone gives.
    head_bias: whether the plain head's convolutions have biases.
    edge_head: adds the boundary branch, which training uses and prediction can show.
    dtype: of the computation; parameters, statistics and outputs are float32.
    remat: recompute activations in the backward pass instead of keeping them.
    axis_name: of the devices over which batch statistics are taken; None: this device alone.
    onednn: convolutions by `if_jax.ops.onednn`, where it works; for evaluation alone.
    small_logits: gives these in evaluation, too; `predict` switches it on, and has them decide.
  """

  backbone_spec: HRNetSpec
  num_classes: int
  head: str = 'plain'
  head_features: int | None = None
  head_bias: bool = True
  edge_head: bool = True
  dtype: Dtype = jnp.float32
  remat: bool = False
  axis_name: str | None = None
  onednn: bool = False
  small_logits: bool = False

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
    """Segments images of any size.

    Args:
      image: float32 [B, H, W, 3], RGB normalised by ImageNet's mean and standard deviation.
      train: batch statistics and dropout; adds the auxiliary outputs.
    Returns:
      'logits' float32 [B, H, W, K] and, with an edge head, 'edge_logits' float32 [B, H, W, 1];
      in training also 'aux_logits' and, with an edge head, 'aux_edge_logits'; and, where the image
      is a whole multiple of them, 'small_logits' and 'small_aux_logits', float32 [B, h, w, K]:
      the same before they are enlarged, which `joint_loss` prefers.
    """
    check_mode(self, train)
    size = image.shape[1:3]
    conv = functools.partial(Conv, dtype=self.dtype, onednn=self.onednn)
    norm = functools.partial(BatchNorm, axis_name=self.axis_name, dtype=self.dtype)
    parts: dict[str, Any] = {'conv': conv, 'norm': norm}
    features = HRNet(self.backbone_spec, **parts, remat=self.remat, name='backbone')(image, train)
    if self.head == 'ocr':
      ocr = OCR(**parts, num_classes=self.num_classes, name='ocr')
      logits, aux_logits, edge_features = ocr(features, train)
    else:
      hidden = self.head_features or features.shape[-1]
      logits = ConvHead(
        **parts, hidden=hidden, features=self.num_classes, use_bias=self.head_bias, name='head'
      )(features, train)
      aux_logits = ConvHead(
        **parts, hidden=features.shape[-1], features=self.num_classes, name='aux_head'
      )(features, train)
      edge_features = features
    by_name = {'logits': logits} | ({'aux_logits': aux_logits} if train else {})
    outputs = {name: enlarge_logits(x, size) for name, x in by_name.items()}
    if train or self.small_logits:
      outputs |= small_outputs(size, **by_name)
    if self.edge_head:
      edge_logits = conv(1, use_bias=True, kernel_init=LOGITS_INIT, name='edge_classifier')(
        edge_features
      )
      aux_edge_logits = ConvHead(**parts, hidden=features.shape[-1], features=1, name='edge_head')(
        features, train
      )
      outputs['edge_logits'] = enlarge_logits(edge_logits, size)
      if train:
        outputs['aux_edge_logits'] = enlarge_probability(aux_edge_logits, size)
    return outputs
