"""Which module of the PyTorch networks is which of ours: one table per network, in their order."""

from collections.abc import Iterator

from if_jax.models import MODELS
from if_jax.models.hrnet import HRNetSpec

Pair = tuple[str, str]

# PyTorch numbers the parts of a container; ours say what they are.
_CONV_BN = [('0', 'conv'), ('1', 'bn')]
_HEAD = [('0', 'hidden/conv'), ('1.0', 'hidden/bn'), ('2', 'classifier')]

_PLAIN_HEADS = [
  *((f'aux_head.{theirs}', f'aux_head/{ours}') for theirs, ours in _HEAD),
  *((f'hrhead.last_layer.{theirs}', f'head/{ours}') for theirs, ours in _HEAD),
]

_ATTENTION = 'ocr.ocr_distri_head.object_context_block'
_OCR_HEADS = [
  ('ocr.conv3x3_ocr.0', 'ocr/conv3x3/conv'),
  ('ocr.conv3x3_ocr.1.0', 'ocr/conv3x3/bn'),
  (f'{_ATTENTION}.f_pixel.0', 'ocr/query0/conv'),
  (f'{_ATTENTION}.f_pixel.1.0', 'ocr/query0/bn'),
  (f'{_ATTENTION}.f_pixel.2', 'ocr/query1/conv'),
  (f'{_ATTENTION}.f_pixel.3.0', 'ocr/query1/bn'),
  (f'{_ATTENTION}.f_object.0', 'ocr/key0/conv'),
  (f'{_ATTENTION}.f_object.1.0', 'ocr/key0/bn'),
  (f'{_ATTENTION}.f_object.2', 'ocr/key1/conv'),
  (f'{_ATTENTION}.f_object.3.0', 'ocr/key1/bn'),
  (f'{_ATTENTION}.f_down.0', 'ocr/value/conv'),
  (f'{_ATTENTION}.f_down.1.0', 'ocr/value/bn'),
  (f'{_ATTENTION}.f_up.0', 'ocr/out/conv'),
  (f'{_ATTENTION}.f_up.1.0', 'ocr/out/bn'),
  ('ocr.ocr_distri_head.conv_bn_dropout.0', 'ocr/join/conv'),
  ('ocr.ocr_distri_head.conv_bn_dropout.1.0', 'ocr/join/bn'),
  ('ocr.cls_head', 'ocr/classifier'),
  *((f'ocr.aux_head.{theirs}', f'ocr/aux_head/{ours}') for theirs, ours in _HEAD),
]

_SCALE_ATTENTION = [
  ('scale_attn.conv0', 'scale_attention/block0/conv'),
  ('scale_attn.bn0', 'scale_attention/block0/bn'),
  ('scale_attn.conv1', 'scale_attention/block1/conv'),
  ('scale_attn.bn1', 'scale_attention/block1/bn'),
  ('scale_attn.conv2', 'scale_attention/classifier'),
]

_EDGE_HEAD = [
  ('edge_head.last_layer.0', 'edge_head/hidden/conv'),
  ('edge_head.last_layer.1', 'edge_head/hidden/bn'),
  ('edge_head.last_layer.3', 'edge_head/classifier'),
]
_EDGE_CLASSIFIER = [('edgeocr_cls_head', 'edge_classifier')]

_INVERSENET = [('fc.0', 'hidden0'), ('fc.2', 'hidden1'), ('fc.4', 'out')]

_HEADS = {
  'hrnet18': _PLAIN_HEADS + _EDGE_HEAD + _EDGE_CLASSIFIER,
  'hrnet16_slim': _PLAIN_HEADS + _EDGE_HEAD + _EDGE_CLASSIFIER,
  'ocrnet48': _OCR_HEADS + _EDGE_HEAD + _EDGE_CLASSIFIER,
  'ocrnet48_hms': _OCR_HEADS + _SCALE_ATTENTION + _EDGE_HEAD,
}

# All that can be converted.
MODEL_NAMES = (*_HEADS, 'inversenet')

# What HRNet's ImageNet classifiers hold beside the backbone, left out on purpose.
CLASSIFIER_ONLY = ('incre_modules.', 'downsamp_modules.', 'final_layer.', 'classifier.')


def module_names(name: str) -> list[Pair]:
  """The (PyTorch, Flax) paths of all modules with weights, in PyTorch's order.

  Args:
    name: a key of `if_jax.models.MODELS`, or 'inversenet'.
  Returns:
    PyTorch's paths have dots between their parts, ours slashes. Edge heads are included.
  Raises:
    ValueError: an unknown name.
  """
  if name == 'inversenet':
    return list(_INVERSENET)
  if name not in _HEADS:
    raise ValueError(f'no name table for {name!r}; there are {", ".join(MODEL_NAMES)}')
  backbone = _backbone(MODELS[name].options['backbone_spec'])
  return [(f'backbone.{theirs}', f'backbone/{ours}') for theirs, ours in backbone] + _HEADS[name]


def _backbone(spec: HRNetSpec) -> Iterator[Pair]:
  if spec.patch_stem:
    yield 'conv0', 'conv0'
  for part in ('conv1', 'bn1', 'conv2', 'bn2'):
    yield part, part
  for i in range(spec.stem_blocks):
    for part in ('conv1', 'bn1', 'conv2', 'bn2', 'conv3', 'bn3'):
      yield f'layer1.{i}.{part}', f'layer1_{i}/{part}'
    if i == 0:
      yield f'layer1.{i}.downsample.0', f'layer1_{i}/downsample_conv'
      yield f'layer1.{i}.downsample.1', f'layer1_{i}/downsample_bn'
  for stage, num_modules in enumerate(spec.modules, start=2):
    transition = f'transition{stage - 1}'
    if stage == 2:
      yield from _conv_bn(f'{transition}.0', f'{transition}_0')
    yield from _conv_bn(f'{transition}.{stage - 1}.0', f'{transition}_{stage - 1}')
    for i in range(num_modules):
      yield from _exchange_module(f'stage{stage}.{i}', f'stage{stage}_{i}', stage, spec.blocks)


def _exchange_module(theirs: str, ours: str, num_branches: int, blocks: int) -> Iterator[Pair]:
  for branch in range(num_branches):
    for block in range(blocks):
      for part in ('conv1', 'bn1', 'conv2', 'bn2'):
        yield f'{theirs}.branches.{branch}.{block}.{part}', f'{ours}/branch{branch}_{block}/{part}'
  for target in range(num_branches):
    for source in range(num_branches):
      path = f'{theirs}.fuse_layers.{target}.{source}', f'{ours}/fuse{target}_{source}'
      if source > target:
        yield from _conv_bn(*path)
      for step in range(target - source):
        yield from _conv_bn(f'{path[0]}.{step}', f'{path[1]}_{step}')


def _conv_bn(theirs: str, ours: str) -> Iterator[Pair]:
  for number, part in _CONV_BN:
    yield f'{theirs}.{number}', f'{ours}/{part}'
