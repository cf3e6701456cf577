"""The weighted sum of losses that a network is trained with."""

import dataclasses
from collections.abc import Mapping

import jax

from if_jax.losses.boundary import boundary_bce
from if_jax.losses.cross_entropy import cross_entropy, edge_attention
from if_jax.ops.boundaries import boundary_map

# A loss's sum on this device and what it is a mean over.
SumAndCount = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossWeights:
  """How much each term counts; the defaults are the release's, see docs/deviations.md.

  Attributes:
    segmentation: class-weighted cross-entropy.
    boundary: balanced binary cross-entropy of the edge head.
    attention: cross-entropy on pixels that the edge head takes for boundaries.
    auxiliary: all of these on the auxiliary outputs, times this.

  Raises:
    ValueError: on construction, if a weight is negative.
  """

  segmentation: float = 1.0
  boundary: float = 0.3
  attention: float = 0.1
  auxiliary: float = 0.4

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 0:
        raise ValueError(f'the weight of the loss {name} is {value}; give 0 or more')


def joint_loss(
  outputs: Mapping[str, jax.Array],
  labels: jax.Array,
  *,
  weights: LossWeights,
  boundary_radius: int = 2,
  axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The total loss of a training step and its terms.

  Terms whose output the model does not have are left out, and edge terms of weight 0.

  Args:
    outputs: of a model in training: 'logits', 'aux_logits', 'edge_logits', 'aux_edge_logits'.
    labels: integer [B, H, W]; values outside 0 .. K - 1 are ignored, which for the boundary term
      means that they are no boundary.
    weights: of the terms.
    boundary_radius: pixels, of the boundary maps made from the labels.
    axis_name: of the devices that hold the rest of the batch.
  Returns:
    (total, terms): this device's share of the total, float32 (the sum over devices is the loss of
    the whole batch, so that gradients are summed, too), and this device's share of each term's
    unweighted mean.
  """
  terms = _terms(
    outputs['logits'], outputs.get('edge_logits'), labels, weights, boundary_radius, axis_name
  )
  if weights.auxiliary and 'aux_logits' in outputs:
    auxiliary = _terms(
      outputs['aux_logits'],
      outputs.get('aux_edge_logits'),
      labels,
      weights,
      boundary_radius,
      axis_name,
    )
    terms |= {f'aux_{name}': (weights.auxiliary * w, pair) for name, (w, pair) in auxiliary.items()}
  shares = {name: _share(pair, axis_name) for name, (_, pair) in terms.items()}
  total = sum(weight * shares[name] for name, (weight, _) in terms.items())
  return total, shares


def _terms(logits, edge_logits, labels, weights, boundary_radius, axis_name):
  """Name -> (weight, (sum, count))."""
  terms = {
    'segmentation': (weights.segmentation, cross_entropy(logits, labels, axis_name=axis_name))
  }
  if edge_logits is None:
    return terms
  if weights.boundary:
    edges = boundary_map(labels, radius=boundary_radius, num_classes=logits.shape[-1])
    terms['boundary'] = weights.boundary, boundary_bce(edge_logits, edges, axis_name=axis_name)
  if weights.attention:
    attention = edge_attention(logits, labels, edge_logits, axis_name=axis_name)
    terms['attention'] = weights.attention, attention
  return terms


def _share(pair: SumAndCount, axis_name: str | None) -> jax.Array:
  """A device's sum over the count of all devices."""
  total, count = pair
  if axis_name is not None:
    count = jax.lax.psum(count, axis_name)
  return total / count
