"""From bytes of an image file to what the networks expect."""

import jax
import jax.numpy as jnp
import numpy as np

# Of ImageNet, RGB, in [0, 1]; every published HRNet was trained with them.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalize(image: jax.Array) -> jax.Array:
  """uint8 RGB [..., 3] to float32 of about zero mean and unit variance.

  Example:
    >>> abs(normalize(jnp.uint8([[124, 116, 104]]))).round(1).tolist()  # ImageNet's mean
    [[0.0, 0.0, 0.0]]

  """
  # One multiplication and one addition, on the device: images travel as bytes.
  return image.astype(jnp.float32) * (1 / (255 * STD)) - MEAN / STD
