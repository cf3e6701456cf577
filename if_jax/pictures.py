"""Pictures of label maps: class colours, overlays, errors, and sheets of them with a legend."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PAPER = (255, 255, 255)
_INK = (33, 37, 41)
_FAINT_INK = (108, 117, 125)
_WRONG = (230, 50, 40)


def colorize(train_ids: np.ndarray, colors: np.ndarray) -> np.ndarray:
  """Paints each class in its colour.

  Args:
    train_ids: int [H, W]; a value outside [0, K), such as 255, becomes black.
    colors: uint8 [K, 3], RGB.

  Returns:
    uint8 [H, W, 3], RGB.

  Example:
    >>> colorize(np.array([[1, 255]]), np.array([[9, 9, 9], [128, 64, 0]])).tolist()
    [[[128, 64, 0], [0, 0, 0]]]
  """
  train_ids = np.asarray(train_ids)
  palette = np.concatenate([np.asarray(colors, np.uint8), np.zeros((1, 3), np.uint8)])
  black = len(colors)
  return palette[np.where((train_ids >= 0) & (train_ids < black), train_ids, black)]


def overlay(
  image: np.ndarray, train_ids: np.ndarray, colors: np.ndarray, alpha: float = 0.5
) -> np.ndarray:
  """Lays the class colours over the image, with a thin white line where two classes meet.

  Args:
    image: uint8 [H, W, 3], RGB.
    train_ids: int [H, W]; where a value is outside [0, K), the image is left as it is.
    colors: uint8 [K, 3], RGB.
    alpha: how much of the colour is seen, in [0, 1].

  Returns:
    uint8 [H, W, 3], RGB.

  Raises:
    ValueError: the image and the label map differ in size.
  """
  train_ids = np.asarray(train_ids)
  _same_size(image, train_ids)
  known = (train_ids >= 0) & (train_ids < len(colors))
  painted = cv2.addWeighted(image, 1 - alpha, colorize(train_ids, colors), alpha, 0)
  painted = np.where(known[..., None], painted, image)
  line = np.zeros(train_ids.shape, bool)
  line[:, :-1] |= train_ids[:, :-1] != train_ids[:, 1:]
  line[:-1] |= train_ids[:-1] != train_ids[1:]
  painted[line] = 255
  return painted


def error_map(
  labels: np.ndarray, predictions: np.ndarray, image: np.ndarray | None = None
) -> np.ndarray:
  """Shows wrong pixels in red on a dim grey image, ignored ones in black.

  Args:
    labels: int [H, W]; 255 and negative values are ignored.
    predictions: int [H, W].
    image: uint8 [H, W, 3], seen in dim grey where the prediction is right; plain grey without.

  Returns:
    uint8 [H, W, 3], RGB.

  Raises:
    ValueError: the maps or the image differ in size.
  """
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  _same_size(labels, predictions)
  if image is None:
    picture = np.full((*labels.shape, 3), 110, np.uint8)
  else:
    _same_size(image, labels)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    # Between 40 and 160: darker than paper, lighter than what is ignored.
    picture = np.repeat((40 + grey[..., None] * (120 / 255)).astype(np.uint8), 3, axis=-1)
  picture[labels != predictions] = _WRONG
  picture[(labels == 255) | (labels < 0)] = 0
  return picture


def contact_sheet(
  rows: Sequence[tuple[str, Sequence[np.ndarray]]],
  *,
  titles: Sequence[str],
  class_names: Sequence[str],
  colors: np.ndarray,
  cell_width: int = 400,
) -> np.ndarray:
  """Puts images side by side under titles, with captions and a legend of the classes beneath.

  Args:
    rows: each a caption and as many images as there are titles, uint8 [h, w, 3], RGB, of any size;
      those of a row get the height of its first.
    titles: of the columns, such as image, truth, prediction, errors.
    class_names: K names.
    colors: uint8 [K, 3], RGB.
    cell_width: of a column in pixels.

  Returns:
    uint8 [H, W, 3], RGB.

  Raises:
    ValueError: there are no rows, or one has another number of images than there are titles.
  """
  if not rows:
    raise ValueError('a contact sheet needs at least one row of images')
  for caption, images in rows:
    if len(images) != len(titles):
      raise ValueError(f'row {caption!r} has {len(images)} images for {len(titles)} titles')
  margin, gap, title_height, caption_height = 28, 12, 40, 34
  heights = [round(cell_width * images[0].shape[0] / images[0].shape[1]) for _, images in rows]
  width = 2 * margin + len(titles) * cell_width + (len(titles) - 1) * gap
  legend = _legend([*class_names, 'ignored'], [*np.asarray(colors).tolist(), (0, 0, 0)], width)
  top = margin + title_height
  height = top + sum(heights) + caption_height * len(rows) + legend.height + margin
  sheet = Image.new('RGB', (width, height), _PAPER)
  draw = ImageDraw.Draw(sheet)
  lefts = [margin + column * (cell_width + gap) for column in range(len(titles))]
  for left, title in zip(lefts, titles, strict=True):
    draw.text((left, top - 12), title, _INK, ImageFont.load_default(22), anchor='ls')
  for (caption, images), row_height in zip(rows, heights, strict=True):
    for left, image in zip(lefts, images, strict=True):
      cell = cv2.resize(image, (cell_width, row_height), interpolation=cv2.INTER_AREA)
      sheet.paste(Image.fromarray(cell), (left, top))
    draw.text(
      (margin, top + row_height + 7), caption, _FAINT_INK, ImageFont.load_default(15), anchor='la'
    )
    top += row_height + caption_height
  sheet.paste(legend, (0, top))
  return np.asarray(sheet).copy()


def _legend(names: Sequence[str], colors: Sequence[Sequence[int]], width: int) -> Image.Image:
  """Draws a swatch and a name for each class, in as many columns as fit the width."""
  margin, swatch, line_height, font = 28, 18, 30, ImageFont.load_default(16)
  column_width = swatch + 36 + max(round(font.getlength(name)) for name in names)
  columns = max(1, (width - 2 * margin) // column_width)
  # As few columns as those lines need, so that the last line is about as full as the others.
  lines = -(-len(names) // columns)
  columns = -(-len(names) // lines)
  column_width = (width - 2 * margin) // columns
  legend = Image.new('RGB', (width, lines * line_height + 14), _PAPER)
  draw = ImageDraw.Draw(legend)
  for i, (name, color) in enumerate(zip(names, colors, strict=True)):
    left = margin + i % columns * column_width
    top = 14 + i // columns * line_height
    box = (left, top, left + swatch, top + swatch)
    draw.rounded_rectangle(box, radius=4, fill=tuple(color), outline=_FAINT_INK)
    draw.text((left + swatch + 9, top + swatch // 2), name, _INK, font, anchor='lm')
  return legend


def _same_size(first: np.ndarray, second: np.ndarray) -> None:
  if first.shape[:2] != second.shape[:2]:
    raise ValueError(f'sizes differ: {first.shape[:2]} and {second.shape[:2]} (height, width)')
