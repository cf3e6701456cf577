"""The training losses and the InverseForm loss in PyTorch, equal to ours in value and gradient."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.names import module_names
from if_jax.losses import LossWeights

# The logit of a probability of 0.8.
_ATTENTION_LOGIT = math.log(4)


def joint_loss(
  outputs: Mapping[str, Tensor | Mapping], labels: Tensor, edges: Tensor, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
  """The total loss and its terms, as `if_jax.losses.joint_loss` without InverseForm.

  Args:
    outputs: of a network of `create_peer` in training.
    labels: int64 [B, H, W]; values outside 0 .. K - 1 count for nothing.
    edges: float32 [B, 1, H, W], the boundary map of the labels.
    weights: of the terms.
  """
  num_classes = outputs['logits'].shape[1]
  labelled = (labels >= 0) & (labels < num_classes)
  labels = torch.where(labelled, labels, num_classes)
  terms = _terms(
    outputs['logits'], outputs.get('edge_logits'), outputs.get('edge_probabilities'), labels, edges
  )
  auxiliary = _terms(
    outputs['aux_logits'], None, outputs.get('aux_edge_probabilities'), labels, edges
  )
  factors = {name: getattr(weights, name) for name in ('segmentation', 'boundary', 'attention')}
  total = sum(factors[name] * term for name, term in terms.items())
  total = total + weights.auxiliary * sum(factors[name] * x for name, x in auxiliary.items())
  terms |= {f'aux_{name}': term for name, term in auxiliary.items()}
  for scale, logits in outputs.get('scale_logits', {}).items():
    terms[f'scale_{scale}'] = _cross_entropy(_log_p(logits), labels)
    total = total + weights.scales * terms[f'scale_{scale}']
  return total, terms


def _terms(logits, edge_logits, edge_probabilities, labels, edges):
  """Labels that do not count are K here."""
  num_classes = logits.shape[1]
  log_p = _log_p(logits)
  terms = {'segmentation': _cross_entropy(log_p, labels)}
  if edge_logits is None and edge_probabilities is None:
    return terms
  labelled = (labels < num_classes)[:, None]
  count = labelled.sum().clamp(min=1)
  share = (edges * labelled).sum() / count
  pixel_weights = torch.where(edges > 0.5, 1 - share, share) * labelled
  if edge_logits is not None:
    nats = F.binary_cross_entropy_with_logits(
      edge_logits.float(), edges, pixel_weights, reduction='sum'
    )
    near = edge_logits > _ATTENTION_LOGIT
  else:
    likelihood = torch.where(edges > 0.5, *edge_probabilities.float().split(1, 1))
    nats = -(pixel_weights * likelihood.clamp(min=torch.finfo(torch.float32).tiny).log()).sum()
    near = edge_probabilities[:, :1] > 0.8
  terms['boundary'] = nats / count
  terms['attention'] = _cross_entropy(log_p, torch.where(near[:, 0], labels, num_classes))
  return terms


def _log_p(logits):
  return F.log_softmax(logits.float(), 1)


def _cross_entropy(log_p, labels):
  """Mean over the images of means weighted by class."""
  num_classes = log_p.shape[1]
  # Unlike bincount it needs no look at the data: it compiles, and a GPU does not wait for it.
  counts = torch.histc(labels.float(), num_classes + 1, 0, num_classes + 1)[:-1]
  class_weights = F.pad(2 - counts / counts.sum().clamp(min=1), (0, 1))
  weights = class_weights[labels]
  nats = F.nll_loss(log_p, labels, reduction='none', ignore_index=num_classes)
  per_image = (weights * nats).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1e-12)
  return per_image.mean()


class InverseMLP(nn.Module):
  """The release's inverse network; its weights stay as they are."""

  def __init__(self, variables: Mapping):
    """`variables` are those of `if_jax.models.inversenet.InverseMLP`."""
    super().__init__()
    layers = []
    for _, ours in module_names('inversenet'):
      kernel, bias = (variables['params'][ours][leaf] for leaf in ('kernel', 'bias'))
      # PyTorch's layout, [out, in]: a view would be read in columns.
      layer = nn.Linear(*kernel.shape, device='meta')
      layer.weight, layer.bias = (
        nn.Parameter(torch.tensor(x).contiguous(), requires_grad=False) for x in (kernel.T, bias)
      )
      layers += [layer, nn.ReLU(inplace=True)]
    self.fc = nn.Sequential(*layers[:-1])

  def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
    return self.fc(torch.cat([prediction, target], 1).flatten(1))


def inverseform(
  edge_logits: Tensor,
  edges: Tensor,
  inverse_net: nn.Module,
  *,
  tile_rows: int,
  tile_columns: int,
  tile_size: int = 224,
) -> Tensor:
  """The mean distance over tiles with a boundary: `if_jax.losses.inverseform`, full gradient.

  Args:
    edge_logits: float32 [B, 1, H, W].
    edges: float32 [B, 1, H, W] in {0, 1}.
    inverse_net: (prediction, target) -> [N, P], both [N, 1, tile_size, tile_size].
    tile_rows: tiles over the height.
    tile_columns: tiles over the width.
    tile_size: pixels of a tile's side.
  """

  def cut(maps):
    size = tile_rows * tile_size, tile_columns * tile_size
    maps = F.interpolate(maps, size=size, mode='bilinear', align_corners=False)
    maps = maps.view(-1, tile_rows, tile_size, tile_columns, tile_size).transpose(2, 3)
    return maps.reshape(-1, 1, tile_size, tile_size)

  prediction, target = cut(edge_logits.sigmoid()), cut(edges)
  distances = torch.linalg.vector_norm(inverse_net(prediction, target), dim=1)
  has_boundary = (target > 0.5).flatten(1).any(1)
  return (distances * has_boundary).sum() / has_boundary.sum().clamp(min=1)
