"""The networks, by name."""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from if_jax.models.hrnet import HRNetSpec
from if_jax.models.layers import Dtype
from if_jax.models.multiscale import MultiScaleSegmenter
from if_jax.models.segmenter import Segmenter
from if_jax.ops.normalize import MEAN, STD
from if_jax.ops.onednn import why_not
from if_jax.weights import check_fits, label_set_of, load_weights

Network = Segmenter | MultiScaleSegmenter

_HRNET18 = HRNetSpec(width=18, modules=(1, 3, 2), blocks=2, stem_blocks=2)
_HRNET16_SLIM = dataclasses.replace(_HRNET18, width=16, patch_stem=True)
_HRNET48 = HRNetSpec(width=48, modules=(1, 4, 3), blocks=4, stem_blocks=4)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """How a network is made, and what is published of it.

  The published weights are those of InverseForm's authors (repository
  Qualcomm-AI-research/InverseForm, release v1.0), which are not part of this package;
  `python -m convert` reads them.

  Attributes:
    network: its Flax module.
    options: what tells it from its siblings.
    source: the paper that describes it.
    num_parameters: with 19 classes and an edge head.
    checkpoint: the file of its published weights.
    published_miou: what their authors state for them on Cityscapes val.
    license: of these weights.
    num_classes: that they know, in Cityscapes' order.
    mean: of the images they were trained on, RGB in [0, 1]; `normalize` uses it.
    std: their standard deviation.
  """

  network: type[Network]
  options: Mapping[str, Any]
  source: str = ''
  num_parameters: int | None = None
  checkpoint: str | None = None
  published_miou: float | None = None
  license: str = 'BSD-like, grants no patent rights: LICENSE of Qualcomm-AI-research/InverseForm'
  num_classes: int = 19
  mean: tuple[float, ...] = tuple(MEAN.tolist())
  std: tuple[float, ...] = tuple(STD.tolist())


_HRNET = 'Wang et al., Deep High-Resolution Representation Learning, 2019, arXiv:1908.07919'
_OCR = 'Yuan et al., Object-Contextual Representations, 2019, arXiv:1909.11065'
_HMS = 'Tao et al., Hierarchical Multi-Scale Attention, 2020, arXiv:2005.10821'

MODELS: dict[str, ModelSpec] = {
  'hrnet18': ModelSpec(
    Segmenter,
    {'backbone_spec': _HRNET18},
    source=_HRNET,
    num_parameters=4_092_690,
    checkpoint='hrnet18_IF_checkpoint.pth',
    published_miou=0.776,
  ),
  'hrnet16_slim': ModelSpec(
    Segmenter,
    {'backbone_spec': _HRNET16_SLIM, 'head_features': 120, 'head_bias': False},
    source=_HRNET,
    num_parameters=3_255_809,
    checkpoint='hr16s_4k_slim.pth',
    published_miou=0.778,
  ),
  'ocrnet48': ModelSpec(
    Segmenter,
    {'backbone_spec': _HRNET48, 'head': 'ocr'},
    source=_OCR,
    num_parameters=70_894_472,
    checkpoint='hrnet48_OCR_IF_checkpoint.pth',
    published_miou=0.863,
  ),
  'ocrnet48_hms': ModelSpec(
    MultiScaleSegmenter,
    {'backbone_spec': _HRNET48},
    source=_HMS,
    num_parameters=72_664_711,
    checkpoint='hrnet48_OCR_HMS_IF_checkpoint.pth',
    published_miou=0.870,
  ),
}


def create_model(
  name: str,
  num_classes: int = 19,
  *,
  edge_head: bool = True,
  dtype: Dtype = jnp.float32,
  remat: bool = False,
  axis_name: str | None = None,
  scales: tuple[float, ...] | None = None,
  onednn: bool = False,
) -> Network:
  """Makes a network by name.

  Args:
    name: a key of `MODELS`.
    num_classes: K.
    edge_head: with the boundary branch; without it the other outputs are the same.
    dtype: of the computation; parameters, statistics and outputs are float32.
    remat: recompute activations in the backward pass: less memory, about a third more time.
    axis_name: of the devices over which batch statistics are taken; None: each device alone.
    scales: `ocrnet48_hms` only: ratios of the image's size in evaluation, 1.0 among them.
    onednn: convolutions by `if_jax.ops.onednn`: on x86 CPUs, for evaluation in float32, without
      gradients, vmap or export. Compile within `if_jax.compilation_cache.not_kept`.
  Returns:
    A Flax Linen module: `variables = model.init(rng, image)`, `model.apply(variables, image)`.
  Raises:
    ValueError: an unknown name (the nearest is proposed), scales that do not fit, or `onednn`
      where it does not work.
  Example:
    >>> create_model('hrnet18', num_classes=5).num_classes
    5
  """
  if name not in MODELS:
    close = difflib.get_close_matches(name, MODELS, n=1)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    raise ValueError(f'unknown model {name!r}; there are {", ".join(MODELS)}.{hint}')
  network, options = MODELS[name].network, MODELS[name].options
  if scales is not None:
    if network is not MultiScaleSegmenter:
      raise ValueError(f'scales are for ocrnet48_hms; {name} works on one scale')
    if 1.0 not in scales or min(scales) <= 0:
      raise ValueError(f'scales must be positive with 1.0 among them, got {tuple(scales)}')
    options = {**options, 'scales': tuple(sorted(map(float, scales)))}
  if onednn:
    if reason := why_not(dtype):
      raise ValueError(f'onednn=True does not work here: {reason}; leave it out')
    options = {**options, 'onednn': True}
  return network(
    num_classes=num_classes,
    edge_head=edge_head,
    dtype=dtype,
    remat=remat,
    axis_name=axis_name,
    **options,
  )


def from_pretrained(
  name_or_path: str | os.PathLike, **options: Any
) -> tuple[Network, dict, dict[str, Any]]:
  """Loads a network with its weights.

  Args:
    name_or_path: a weight folder, of a training (WORKDIR/best), of `python -m convert` or of the
      Hugging Face hub (docs/weights.md); or a name of `if_jax.weights.packaged_weights`.
    **options: of `create_model`, how to compute: dtype, remat, axis_name, scales.
  Returns:
    (model, variables, card): what `create_model` makes, the NumPy arrays that its `apply` takes,
    and what was said of them: 'label_set' has the classes.
  Raises:
    ValueError: weights that are not there, cannot be read, or are those of another network.
  """
  variables, card = load_weights(name_or_path)
  num_classes = label_set_of(card).num_classes
  model = create_model(card['model'], num_classes, edge_head=card['edge_head'], **options)
  check_fits(model, variables, name_or_path)
  return model, variables, card
