"""Inverse-transformation networks: two boundary maps to the transform between them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange


class InverseMLP(nn.Module):
  """The fully connected network of the InverseForm release.

  Attributes:
    num_outputs: 4 in the release: normalised shifts and scales, all 0 for equal maps.
    hidden: widths of the layers between; the first holds nearly all of the 100 M weights.

  Source: Borse et al., InverseForm (2021); layers of the released
  `distance_measures_regressor.pth`.
  """

  num_outputs: int = 4
  hidden: tuple[int, ...] = (1000, 32)

  @nn.compact
  def __call__(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Estimates the transform between tiles.

    Args:
      prediction: float32 [N, 224, 224, 1] in [0, 1], predicted boundary probability.
      target: float32 [N, 224, 224, 1] in [0, 1], true boundaries.
    Returns:
      float32 [N, num_outputs].
    """
    tiles = jnp.concatenate([prediction, target], axis=-1)
    x = rearrange(tiles, 'n h w c -> n (c h w)')
    for i, width in enumerate(self.hidden):
      x = nn.relu(nn.Dense(width, name=f'hidden{i}')(x))
    return nn.Dense(self.num_outputs, name='out')(x)
