"""The weighted sum of losses that a network is trained with."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from if_jax.losses.boundary import boundary_bce
from if_jax.losses.cross_entropy import cross_entropy, edge_attention, ohem_cross_entropy
from if_jax.losses.inverseform import (
  DISTANCES,
  GRADIENTS,
  InverseNet,
  choose,
  inverseform_as_released,
  inverseform_of_probability,
)
from if_jax.losses.nats import pixel_nats
from if_jax.losses.rmi import rmi
from if_jax.ops.boundaries import boundary_map, soft_boundary_map

# A loss's sum on this device and what it is a mean over.
SumAndCount = tuple[jax.Array, jax.Array]
# Name -> (weight, pair).
Terms = dict[str, tuple[float | jax.Array, SumAndCount]]


def _rmi(logits, labels, *, nats, axis_name):
  del nats
  return rmi(logits, labels, axis_name=axis_name)


# Name -> (logits, labels, nats, axis_name) to SumAndCount.
SEGMENTATION_LOSSES: dict[str, Callable[..., SumAndCount]] = {
  'cross_entropy': cross_entropy,
  'ohem': ohem_cross_entropy,
  'rmi': _rmi,
}


def _as_released(predicted, edges, *, inverse_net, tile_size, **_):
  """The release has a grid of its own, one distance, and no pixels that are not valid.

  What is predicted makes no difference to it.
  """
  return inverseform_as_released(predicted, edges, inverse_net, tile_size=tile_size)


# Name of a gradient -> the InverseForm term that has it.
INVERSEFORM_LOSSES: dict[str, Callable[..., SumAndCount]] = {
  **{name: functools.partial(inverseform_of_probability, gradient=name) for name in GRADIENTS},
  'as_released': _as_released,
}


def _of_edge_head(logits, edge_logits, labelled, radius):
  del logits, labelled, radius
  return None if edge_logits is None else jax.nn.sigmoid(edge_logits.astype(jnp.float32))


def _between_classes(logits, edge_logits, labelled, radius):
  del edge_logits
  probabilities = jax.nn.softmax(logits.astype(jnp.float32))
  return soft_boundary_map(probabilities, radius=radius, valid=labelled)


# Name -> (logits, edge_logits or None, labelled, radius) to predicted boundaries [B, H, W, 1].
PREDICTED_BOUNDARIES = {'edge_head': _of_edge_head, 'classes': _between_classes}


@dataclasses.dataclass(frozen=True)
class LossWeights:
  """How much each term counts; the defaults are the release's, see docs/deviations.md.

  Attributes:
    segmentation: the segmentation loss, by name in `joint_loss`.
    boundary: balanced binary cross-entropy of the edge head.
    attention: cross-entropy on pixels that the edge head takes for boundaries.
    inverseform: distance between predicted and true boundaries.
    auxiliary: all of these on the auxiliary outputs, times this.
    scales: cross-entropy of the answer at each scale by itself, each times this; NVIDIA's
      recipe for hierarchical multi-scale attention.

  Raises:
    ValueError: on construction, if a weight is negative.
  """

  segmentation: float = 1.0
  boundary: float = 0.3
  attention: float = 0.1
  inverseform: float = 0.3
  auxiliary: float = 0.4
  scales: float = 0.05

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if not value >= 0:
        raise ValueError(f'the weight of the loss {name} is {value}; give 0 or more')


def joint_loss(
  outputs: Mapping[str, Any],
  labels: jax.Array,
  step: jax.Array | int = 0,
  *,
  weights: LossWeights,
  segmentation: str = 'cross_entropy',
  boundary_radius: int = 2,
  inverse_net: InverseNet | None = None,
  tile_rows: int = 3,
  tile_columns: int | None = None,
  tile_size: int = 224,
  distance: str = 'euclidean',
  gradient: str = 'motion',
  inverseform_on: str = 'edge_head',
  inverseform_from: int = 0,
  axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The total loss of a training step and its terms.

  Terms whose output the model does not have are left out, and those of weight 0 beside the
  segmentation.

  Args:
    outputs: of a model in training: 'logits', 'aux_logits', 'edge_logits', 'aux_edge_logits',
      and by scale 'scale_logits'. Where there are 'small_logits' and 'small_aux_logits', the same
      before they are enlarged, the cross-entropies take these (see `pixel_nats`): whoever changes
      the others takes them out.
    labels: integer [B, H, W]; values outside 0 .. K - 1 count for nothing in any term.
    step: how many steps of the training went before.
    weights: of the terms.
    segmentation: 'cross_entropy' (class-weighted), 'ohem' (hard pixels) or 'rmi' (regions).
    boundary_radius: pixels, of the boundary maps made from the labels and the predicted classes.
    inverse_net: of `inverseform`; None leaves the term out.
    tile_rows: of `inverseform`.
    tile_columns: of `inverseform`.
    tile_size: of `inverseform`.
    distance: of `inverseform`, 'euclidean' or 'geodesic'.
    gradient: of `inverseform`, 'motion' or 'full'; or 'as_released': `inverseform_as_released` in
      its place, from which nothing is learnt.
    inverseform_on: whose boundaries `inverseform` judges: those of the 'edge_head', or between the
      predicted 'classes' (`soft_boundary_map`), which needs no edge head; of the auxiliary outputs,
      too.
    inverseform_from: step from which `inverseform` counts in the total; before, it is but measured.
    axis_name: of the devices that hold the rest of the batch.
  Returns:
    (total, terms): this device's share of the total, float32 (the sum over devices is the loss of
    the whole batch, so that gradients are summed, too), and this device's share of each term's
    unweighted mean; those of the auxiliary outputs start with 'aux_', those by scale read
    'scale_0.5'. A term that finds nothing to count is 0, but 'rmi' keeps the constant that it has
    for classes an image does not show.
  Raises:
    ValueError: at trace time, for an unknown segmentation loss, distance, gradient or
      `inverseform_on` (the nearest is proposed), or shapes that do not fit.
  """
  segmentation_fn = choose('segmentation loss', segmentation, SEGMENTATION_LOSSES)
  choose('distance', distance, DISTANCES)
  inverseform_fn = choose('gradient', gradient, INVERSEFORM_LOSSES)
  predicted_fn = choose('inverseform_on', inverseform_on, PREDICTED_BOUNDARIES)
  num_classes = outputs['logits'].shape[-1]
  edges = boundary_map(labels, radius=boundary_radius, num_classes=num_classes)
  labelled = ((labels >= 0) & (labels < num_classes))[..., None]
  inverse_fn = None
  if inverse_net is not None and weights.inverseform:
    inverse_fn = functools.partial(
      inverseform_fn,
      inverse_net=inverse_net,
      tile_rows=tile_rows,
      tile_columns=tile_columns,
      tile_size=tile_size,
      distance=distance,
    )
  terms_of = functools.partial(
    _terms,
    labels=labels,
    edges=edges,
    labelled=labelled,
    weights=weights,
    segmentation_fn=segmentation_fn,
    inverse_fn=inverse_fn,
    predicted_fn=functools.partial(predicted_fn, radius=boundary_radius),
    inverseform_weight=jnp.where(step < inverseform_from, 0, weights.inverseform),
    axis_name=axis_name,
  )
  terms = terms_of(outputs['logits'], outputs.get('edge_logits'), outputs.get('small_logits'))
  if weights.auxiliary and 'aux_logits' in outputs:
    auxiliary = terms_of(
      outputs['aux_logits'], outputs.get('aux_edge_logits'), outputs.get('small_aux_logits')
    )
    terms |= {f'aux_{name}': (weights.auxiliary * w, pair) for name, (w, pair) in auxiliary.items()}
  if weights.scales:
    for scale, logits in outputs.get('scale_logits', {}).items():
      terms[f'scale_{scale}'] = weights.scales, cross_entropy(logits, labels, axis_name=axis_name)
  shares = {name: _share(pair, axis_name) for name, (_, pair) in terms.items()}
  total = functools.reduce(jnp.add, (weight * shares[name] for name, (weight, _) in terms.items()))
  return total, shares


def _terms(
  logits: jax.Array,
  edge_logits: jax.Array | None,
  small_logits: jax.Array | None,
  *,
  labels: jax.Array,
  edges: jax.Array,
  labelled: jax.Array,
  weights: LossWeights,
  segmentation_fn: Callable[..., SumAndCount],
  inverse_fn: Callable[..., SumAndCount] | None,
  predicted_fn: Callable[..., jax.Array | None],
  inverseform_weight: jax.Array,
  axis_name: str | None,
) -> Terms:
  """Name -> (weight, (sum, count)) of one pair of outputs."""
  nats = pixel_nats(logits if small_logits is None else small_logits, labels)
  segmentation = segmentation_fn(logits, labels, nats=nats, axis_name=axis_name)
  terms: Terms = {'segmentation': (weights.segmentation, segmentation)}
  if edge_logits is not None and weights.boundary:
    boundary = boundary_bce(edge_logits, edges, valid=labelled, axis_name=axis_name)
    terms['boundary'] = weights.boundary, boundary
  if edge_logits is not None and weights.attention:
    attention = edge_attention(logits, labels, edge_logits, nats=nats, axis_name=axis_name)
    terms['attention'] = weights.attention, attention
  if inverse_fn is not None:
    predicted = predicted_fn(logits, edge_logits, labelled)
    if predicted is not None:
      terms['inverseform'] = inverseform_weight, inverse_fn(predicted, edges, valid=labelled)
  return terms


def _share(pair: SumAndCount, axis_name: str | None) -> jax.Array:
  """A device's sum over the count of all devices."""
  total, count = pair
  if axis_name is not None:
    count = jax.lax.psum(count, axis_name)
  return total / jnp.maximum(count, 1)
