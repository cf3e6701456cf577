"""The networks, by name."""

import dataclasses
import difflib

import jax.numpy as jnp

from if_jax.models.hrnet import HRNetSpec
from if_jax.models.layers import Dtype
from if_jax.models.multiscale import MultiScaleSegmenter
from if_jax.models.segmenter import Segmenter

_HRNET18 = HRNetSpec(width=18, modules=(1, 3, 2), blocks=2, stem_blocks=2)
_HRNET16_SLIM = dataclasses.replace(_HRNET18, width=16, patch_stem=True)
_HRNET48 = HRNetSpec(width=48, modules=(1, 4, 3), blocks=4, stem_blocks=4)

# Name -> network type and what tells it from its siblings.
MODELS = {
  'hrnet18': (Segmenter, {'backbone_spec': _HRNET18}),
  'hrnet16_slim': (
    Segmenter,
    {'backbone_spec': _HRNET16_SLIM, 'head_features': 120, 'head_bias': False},
  ),
  'ocrnet48': (Segmenter, {'backbone_spec': _HRNET48, 'head': 'ocr'}),
  'ocrnet48_hms': (MultiScaleSegmenter, {'backbone_spec': _HRNET48}),
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
) -> Segmenter | MultiScaleSegmenter:
  """Makes a network by name.

  Args:
    name: a key of `MODELS`.
    num_classes: K.
    edge_head: with the boundary branch; without it the other outputs are the same.
    dtype: of the computation; parameters, statistics and outputs are float32.
    remat: recompute activations in the backward pass: less memory, about a third more time.
    axis_name: of the devices over which batch statistics are taken; None: each device alone.
    scales: `ocrnet48_hms` only: ratios of the image's size in evaluation, 1.0 among them.
  Returns:
    A Flax Linen module: `variables = model.init(rng, image)`, `model.apply(variables, image)`.
  Raises:
    ValueError: an unknown name (the nearest is proposed), or scales that do not fit.
  Example:
    >>> create_model('hrnet18', num_classes=5).num_classes
    5
  """
  if name not in MODELS:
    close = difflib.get_close_matches(name, MODELS, n=1)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    raise ValueError(f'unknown model {name!r}; there are {", ".join(MODELS)}.{hint}')
  network, options = MODELS[name]
  if scales is not None:
    if network is not MultiScaleSegmenter:
      raise ValueError(f'scales are for ocrnet48_hms; {name} works on one scale')
    if 1.0 not in scales or min(scales) <= 0:
      raise ValueError(f'scales must be positive with 1.0 among them, got {tuple(scales)}')
    options = {**options, 'scales': tuple(sorted(map(float, scales)))}
  return network(
    num_classes=num_classes,
    edge_head=edge_head,
    dtype=dtype,
    remat=remat,
    axis_name=axis_name,
    **options,
  )
