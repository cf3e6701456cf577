"""Street scenes of the 19 Cityscapes classes, drawn by this package: data without a download."""

from if_jax.data.streets.scene import draw
from if_jax.data.streets.source import Streets

__all__ = ['Streets', 'draw']
