"""Street scenes as a data source: encoded images and labels, as a data set on disk would give."""

import operator
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from if_jax.data.labels import CITYSCAPES
from if_jax.data.streets.scene import draw

# The id of `ego vehicle`, an ignored class, in Cityscapes' label files.
EGO_VEHICLE = 1
# In smaller images nothing but road, sky and houses would be seen.
MIN_SIDE = 16


class Streets:
  """Street scenes drawn on demand: any number, any size, the same ones for the same seed.

  Args:
    num_examples: how many there are; example i is the same in sources of any length.
    size: (height, width) in pixels.
    seed: 0 or more; another seed gives other scenes.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> streets = Streets(1000, size=(64, 128))
    >>> streets[999]['name'], len(streets)
    ('streets_000999', 1000)
  """

  label_set = CITYSCAPES

  def __init__(self, num_examples: int, size: Sequence[int] = (256, 512), seed: int = 0):
    if num_examples < 1:
      raise ValueError(f'num_examples is {num_examples}; streets needs 1 or more')
    if np.shape(size) != (2,) or min(size) < MIN_SIDE:
      raise ValueError(f'size is {size}; streets needs (height, width), both {MIN_SIDE} or more')
    if seed < 0:
      raise ValueError(f'seed is {seed}; streets needs 0 or more')
    self.num_examples, self.seed = int(num_examples), int(seed)
    self.size = (int(size[0]), int(size[1]))

  def __len__(self) -> int:
    return self.num_examples

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Draws one example: PNG bytes `image` and `label` (Cityscapes' label ids), and `name`."""
    index = operator.index(index)
    if not 0 <= index < self.num_examples:
      raise IndexError(f'example {index} of {self.num_examples} street scenes')
    image, train_ids = draw(np.random.default_rng((self.seed, index)), self.size)
    label_ids = np.full(256, EGO_VEHICLE, np.uint8)
    label_ids[: self.label_set.num_classes] = self.label_set.label_ids
    label = label_ids[train_ids]
    return {'image': _png(image[..., ::-1]), 'label': _png(label), 'name': f'streets_{index:06d}'}

  def __repr__(self) -> str:
    return f'Streets(num_examples={self.num_examples}, size={self.size}, seed={self.seed})'


def _png(pixels: np.ndarray) -> bytes:
  return cv2.imencode('.png', pixels)[1].tobytes()
