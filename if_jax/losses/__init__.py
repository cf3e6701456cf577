"""Losses: arrays in, (sum, count) out; none knows a model or a configuration."""

from if_jax.losses.boundary import boundary_bce
from if_jax.losses.cross_entropy import cross_entropy, edge_attention, ohem_cross_entropy
from if_jax.losses.inverseform import (
  inverseform,
  inverseform_as_released,
  inverseform_of_probability,
)
from if_jax.losses.joint import LossWeights, joint_loss
from if_jax.losses.nats import pixel_nats
from if_jax.losses.rmi import rmi

__all__ = [
  'LossWeights',
  'boundary_bce',
  'cross_entropy',
  'edge_attention',
  'inverseform',
  'inverseform_as_released',
  'inverseform_of_probability',
  'joint_loss',
  'ohem_cross_entropy',
  'pixel_nats',
  'rmi',
]
