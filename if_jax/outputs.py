"""What evaluation and prediction write for an image: label ids and pictures."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from if_jax.data.labels import LabelSet
from if_jax.pictures import colorize, error_map, overlay

# What can be asked for: folder name -> what the files in it show.
KINDS = {
  'label_ids': 'the ids of the data set, one channel, as the Cityscapes server takes them',
  'color': 'each class in its colour',
  'overlay': 'the colours over the image',
  'edges': 'the boundary probability, 255 for 1; needs an edge head',
  'errors': 'wrong pixels in red; needs labels',
}


def check_kinds(kinds: Collection[str], *, edge_head: bool, labelled: bool) -> None:
  """Raises ValueError for kinds of output that there are not, or not here."""
  for kind in kinds:
    if kind not in KINDS:
      raise ValueError(f'cannot save {kind!r}; there are {", ".join(KINDS)}')
  if 'edges' in kinds and not edge_head:
    raise ValueError("cannot save 'edges': these weights have no edge head")
  if 'errors' in kinds and not labelled:
    raise ValueError("cannot save 'errors': that needs labels; use --mode=evaluate")


def draw_output(
  kind: str,
  image: np.ndarray,
  outputs: Mapping[str, np.ndarray],
  label_set: LabelSet,
  labels: np.ndarray | None = None,
) -> np.ndarray:
  """One output of an image.

  Args:
    kind: a key of `KINDS`.
    image: uint8 [H, W, 3], RGB.
    outputs: of `predict`, of this image: 'label' [H, W], 'edge_probability' [H, W, 1].
    label_set: of the classes.
    labels: uint8 [H, W], the truth, for 'errors'.
  Returns:
    uint8 [H, W] or [H, W, 3].
  """
  predicted = np.asarray(outputs['label'], np.uint8)
  if kind == 'label_ids':
    return label_set.to_label_ids(predicted)
  if kind == 'color':
    return colorize(predicted, label_set.colors)
  if kind == 'overlay':
    return overlay(image, predicted, label_set.colors)
  if kind == 'edges':
    return np.round(255 * np.asarray(outputs['edge_probability'])[..., 0]).astype(np.uint8)
  assert labels is not None, 'check_kinds was not asked'
  return error_map(labels, predicted, image)


# The columns of the sheet of pictures that an evaluation leaves.
SHEET_TITLES = ('image', 'truth', 'prediction', 'errors', 'boundary probability')


def sheet_row(
  image: np.ndarray,
  labels: np.ndarray,
  outputs: Mapping[str, np.ndarray],
  label_set: LabelSet,
) -> list[np.ndarray]:
  """The pictures of one image under `SHEET_TITLES`; without an edge head, all but the last."""
  row = [
    image,
    colorize(labels, label_set.colors),
    draw_output('color', image, outputs, label_set),
    draw_output('errors', image, outputs, label_set, labels),
  ]
  if 'edge_probability' in outputs:
    row.append(np.repeat(draw_output('edges', image, outputs, label_set)[..., None], 3, -1))
  return row


def save_outputs(
  folder: Path,
  name: str,
  image: np.ndarray,
  outputs: Mapping[str, np.ndarray],
  label_set: LabelSet,
  kinds: Collection[str],
  labels: np.ndarray | None = None,
) -> None:
  """Writes `folder/kind/name.png` for each kind; arguments as `draw_output`."""
  for kind in kinds:
    path = Path(folder, kind, f'{name}.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_output(kind, image, outputs, label_set, labels)).save(path)
