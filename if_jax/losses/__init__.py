"""Losses: arrays in, (sum, count) out; none knows a model or a configuration."""

from if_jax.losses.boundary import boundary_bce
from if_jax.losses.cross_entropy import cross_entropy, edge_attention
from if_jax.losses.joint import LossWeights, joint_loss

__all__ = ['LossWeights', 'boundary_bce', 'cross_entropy', 'edge_attention', 'joint_loss']
