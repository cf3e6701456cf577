"""The networks in PyTorch, as a user who wants speed writes them: what ours are timed against.

Their entries have the names of the InverseForm release. Sums are taken in place and attention is
PyTorch's own. Images and maps are [B, C, H, W].
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from if_jax.models.hrnet import HRNetSpec

_TRAINING_SCALES = (1.0, 0.5)
_EVALUATION_SCALES = (2.0, 1.0, 0.5, 0.25)


class PlainSegmenter(nn.Module):
  """HRNet with two 1x1 convolutions."""

  def __init__(self, spec: HRNetSpec, num_classes: int, head_features: int, head_bias: bool):
    super().__init__()
    width = 15 * spec.width
    self.backbone = HRNet(spec)
    self.aux_head = _head(width, width, num_classes)
    self.hrhead = _LastLayer(_head(width, head_features, num_classes, bias=head_bias))
    self.edge_head = _edge_head(width)
    self.edgeocr_cls_head = nn.Conv2d(width, 1, 1)

  def forward(self, image: Tensor) -> dict[str, Tensor]:
    size = image.shape[2:]
    features = self.backbone(image)
    outputs = {
      'logits': _resize(self.hrhead(features), size),
      'edge_logits': _resize(self.edgeocr_cls_head(features), size),
    }
    if self.training:
      outputs['aux_logits'] = _resize(self.aux_head(features), size)
      outputs['aux_edge_probabilities'] = _both_sides(self.edge_head(features), size)
    return outputs


class OCRSegmenter(nn.Module):
  """HRNet with object-contextual representations."""

  def __init__(self, spec: HRNetSpec, num_classes: int):
    super().__init__()
    width = 15 * spec.width
    self.backbone = HRNet(spec)
    self.ocr = OCR(width, num_classes)
    self.edge_head = _edge_head(width)
    self.edgeocr_cls_head = nn.Conv2d(512, 1, 1)

  def forward(self, image: Tensor) -> dict[str, Tensor]:
    size = image.shape[2:]
    features = self.backbone(image)
    logits, aux_logits, ocr_features = self.ocr(features)
    outputs = {
      'logits': _resize(logits, size),
      'edge_logits': _resize(self.edgeocr_cls_head(ocr_features), size),
    }
    if self.training:
      outputs['aux_logits'] = _resize(aux_logits, size)
      outputs['aux_edge_probabilities'] = _both_sides(self.edge_head(features), size)
    return outputs


class MultiScaleSegmenter(nn.Module):
  """HRNet with OCR at several scales, mixed by attention."""

  def __init__(self, spec: HRNetSpec, num_classes: int):
    super().__init__()
    width = 15 * spec.width
    self.backbone = HRNet(spec)
    self.ocr = OCR(width, num_classes)
    self.scale_attn = nn.Sequential(
      OrderedDict(
        conv0=_conv(512, 256, 3),
        bn0=nn.BatchNorm2d(256),
        relu0=nn.ReLU(inplace=True),
        conv1=_conv(256, 256, 3),
        bn1=nn.BatchNorm2d(256),
        relu1=nn.ReLU(inplace=True),
        conv2=_conv(256, 1),
        sigmoid=nn.Sigmoid(),
      )
    )
    self.edge_head = _edge_head(width)

  def forward(self, image: Tensor) -> dict[str, Tensor]:
    size = image.shape[2:]
    outputs = {'scale_logits': {}}
    mixed = None
    for scale in _TRAINING_SCALES if self.training else _EVALUATION_SCALES:
      scaled = _resize(image, [int(length * scale) for length in size])
      features = self.backbone(scaled)
      logits, aux_logits, ocr_features = self.ocr(features)
      attention = _resize(self.scale_attn(ocr_features), scaled.shape[2:])
      answer = [_resize(x, scaled.shape[2:]) for x in (logits, aux_logits)]
      if scale == 1:
        outputs['edge_probabilities'] = _both_sides(self.edge_head(features), size)
      if self.training:
        outputs['scale_logits'][scale] = _resize(answer[0], size)
      mixed = answer if mixed is None else _mix(mixed, answer, attention, enlarge=scale < 1)
    outputs['logits'], aux_logits = (_resize(x, size) for x in mixed)
    if self.training:
      outputs['aux_logits'] = aux_logits
    else:
      del outputs['scale_logits']
    return outputs


def _mix(previous, current, attention, enlarge):
  if enlarge:
    size = previous[0].shape[2:]
    current = [_resize(attention * x, size) for x in current]
    attention = _resize(attention, size)
  else:
    previous = [_resize(x, attention.shape[2:]) for x in previous]
    current = [attention * x for x in current]
  return [x + (1 - attention) * y for x, y in zip(current, previous, strict=True)]


class HRNet(nn.Module):
  """The backbone."""

  def __init__(self, spec: HRNetSpec):
    super().__init__()
    self.conv0 = nn.Conv2d(3, 3, 2, 2, bias=False) if spec.patch_stem else nn.Identity()
    self.conv1, self.bn1 = _conv(3, 64, 3, 2), nn.BatchNorm2d(64)
    self.conv2, self.bn2 = _conv(64, 64, 3, 2), nn.BatchNorm2d(64)
    self.relu = nn.ReLU(inplace=True)
    blocks = [Bottleneck(64 if i == 0 else 256, 64) for i in range(spec.stem_blocks)]
    self.layer1 = nn.Sequential(*blocks)
    w = spec.width
    self.transition1 = nn.ModuleList(
      [_conv_bn(256, w, 3), nn.Sequential(_conv_bn(256, 2 * w, 3, stride=2))]
    )
    # The branches that are there already have no transition.
    self.transition2 = nn.ModuleDict({'2': nn.Sequential(_conv_bn(2 * w, 4 * w, 3, stride=2))})
    self.transition3 = nn.ModuleDict({'3': nn.Sequential(_conv_bn(4 * w, 8 * w, 3, stride=2))})
    self.stage2, self.stage3, self.stage4 = (
      nn.ModuleList(ExchangeModule(w, num_branches, spec.blocks) for _ in range(num_modules))
      for num_branches, num_modules in enumerate(spec.modules, start=2)
    )

  def forward(self, x: Tensor) -> Tensor:
    x = self.conv0(x)
    x = self.relu(self.bn1(self.conv1(x)))
    x = self.relu(self.bn2(self.conv2(x)))
    x = self.layer1(x)
    branches = [transition(x) for transition in self.transition1]
    for module in self.stage2:
      branches = module(branches)
    branches = [*branches, self.transition2['2'](branches[-1])]
    for module in self.stage3:
      branches = module(branches)
    branches = [*branches, self.transition3['3'](branches[-1])]
    for module in self.stage4:
      branches = module(branches)
    size = branches[0].shape[2:]
    return torch.cat([_resize(branch, size) for branch in branches], 1)


class ExchangeModule(nn.Module):
  """Residual blocks on every branch, then every branch receives the sum of all of them."""

  def __init__(self, width: int, num_branches: int, num_blocks: int):
    super().__init__()
    widths = [width * 2**i for i in range(num_branches)]
    self.branches = nn.ModuleList(
      nn.Sequential(*(BasicBlock(w) for _ in range(num_blocks))) for w in widths
    )
    self.fuse_layers = nn.ModuleList(
      nn.ModuleList(_exchange(widths, source, target) for source in range(num_branches))
      for target in range(num_branches)
    )

  def forward(self, branches: list[Tensor]) -> list[Tensor]:
    branches = [blocks(x) for blocks, x in zip(self.branches, branches, strict=True)]
    fused = []
    for target, layers in enumerate(self.fuse_layers):
      size = branches[target].shape[2:]
      others = [i for i in range(len(branches)) if i != target]
      # The first is a tensor of its own, into which the others can be added.
      total = _resize(layers[others[0]](branches[others[0]]), size)
      for source in others[1:]:
        total += _resize(layers[source](branches[source]), size)
      total += branches[target]
      fused.append(total.relu_())
    return fused


def _exchange(widths, source, target):
  if source == target:
    return nn.Identity()
  if source > target:
    return _conv_bn(widths[source], widths[target], relu=False)
  steps = [_conv_bn(widths[source], widths[source], 3, 2) for _ in range(target - source - 1)]
  return nn.Sequential(*steps, _conv_bn(widths[source], widths[target], 3, 2, relu=False))


class BasicBlock(nn.Module):
  """Two 3x3 convolutions around which the input passes."""

  def __init__(self, width: int):
    super().__init__()
    self.conv1, self.bn1 = _conv(width, width, 3), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)

  def forward(self, x: Tensor) -> Tensor:
    y = self.bn1(self.conv1(x)).relu_()
    y = self.bn2(self.conv2(y))
    y += x
    return y.relu_()


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions around which the input passes, widened if need be."""

  def __init__(self, in_width: int, width: int):
    super().__init__()
    out = 4 * width
    self.conv1, self.bn1 = _conv(in_width, width), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
    self.conv3, self.bn3 = _conv(width, out), nn.BatchNorm2d(out)
    widened = in_width != out
    self.downsample = _conv_bn(in_width, out, relu=False) if widened else nn.Identity()

  def forward(self, x: Tensor) -> Tensor:
    y = self.bn1(self.conv1(x)).relu_()
    y = self.bn2(self.conv2(y)).relu_()
    y = self.bn3(self.conv3(y))
    y += self.downsample(x)
    return y.relu_()


class OCR(nn.Module):
  """Every pixel attends to a description of each class."""

  def __init__(self, width: int, num_classes: int):
    super().__init__()
    self.conv3x3_ocr = nn.Sequential(nn.Conv2d(width, 512, 3, padding=1), _bn_relu(512))
    self.ocr_distri_head = _ObjectAttention()
    self.cls_head = nn.Conv2d(512, num_classes, 1)
    self.aux_head = _head(width, width, num_classes)

  def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features to logits, coarse logits, and features for edges and attention."""
    coarse_logits = self.aux_head(features)
    pixels = self.conv3x3_ocr(features)
    weights = coarse_logits.flatten(2).softmax(2)
    classes = weights @ pixels.flatten(2).transpose(1, 2)
    out = self.ocr_distri_head(pixels, classes.transpose(1, 2).unsqueeze(3))
    return self.cls_head(out), coarse_logits, out


class _ObjectAttention(nn.Module):
  def __init__(self):
    super().__init__()
    self.object_context_block = nn.ModuleDict({
      'f_pixel': nn.Sequential(_conv(512, 256), _bn_relu(256), _conv(256, 256), _bn_relu(256)),
      'f_object': nn.Sequential(_conv(512, 256), _bn_relu(256), _conv(256, 256), _bn_relu(256)),
      'f_down': nn.Sequential(_conv(512, 256), _bn_relu(256)),
      'f_up': nn.Sequential(_conv(256, 512), _bn_relu(512)),
    })  # fmt: skip
    self.conv_bn_dropout = nn.Sequential(_conv(1024, 512), _bn_relu(512), nn.Dropout2d(0.05))

  def forward(self, pixels: Tensor, classes: Tensor) -> Tensor:
    block = self.object_context_block
    # [B, C, H, W] to [B, 1, pixels, C], what PyTorch's attention takes.
    query, key, value = (
      x.flatten(2).transpose(1, 2).unsqueeze(1)
      for x in (block['f_pixel'](pixels), block['f_object'](classes), block['f_down'](classes))
    )
    context = F.scaled_dot_product_attention(query, key, value)
    context = context.squeeze(1).transpose(1, 2).unflatten(2, pixels.shape[2:])
    return self.conv_bn_dropout(torch.cat([block['f_up'](context), pixels], 1))


class _LastLayer(nn.Module):
  def __init__(self, layers: nn.Module):
    super().__init__()
    self.last_layer = layers

  def forward(self, x: Tensor) -> Tensor:
    return self.last_layer(x)


def _head(in_width, hidden, out, bias=True):
  first, last = _conv(in_width, hidden, bias=bias), _conv(hidden, out, bias=bias)
  return nn.Sequential(first, _bn_relu(hidden), last)


def _edge_head(width):
  first, last = _conv(width, width, bias=True), _conv(width, 1, bias=True)
  return _LastLayer(nn.Sequential(first, *_bn_relu(width), last))


def _conv(in_width, out, kernel_size=1, stride=1, bias=False):
  return nn.Conv2d(in_width, out, kernel_size, stride, padding=kernel_size // 2, bias=bias)


def _bn_relu(width):
  return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _conv_bn(in_width, out, kernel_size=1, stride=1, relu=True):
  layers = [_conv(in_width, out, kernel_size, stride), nn.BatchNorm2d(out)]
  return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def _both_sides(edge_logits, size):
  """Enlarged probabilities [B, 2, H, W] that there is an edge and that there is none.

  Their logarithms are the loss; that of 1 - p would be infinite where the sigmoid saturates.
  """
  return _resize(torch.cat([edge_logits, -edge_logits], 1).sigmoid(), size)


def _resize(x, size):
  if x.shape[2:] == torch.Size(size):
    return x
  return F.interpolate(x, size=size, mode='bilinear', align_corners=False)
