"""The pictures of a report: of many images, only those few are kept that it shows."""

import base64
import dataclasses
import io
import math
import threading
from collections.abc import Iterable, Mapping
from xml.etree.ElementTree import Element

import cv2
import numpy as np
from einops import rearrange
from PIL import Image

from if_jax import processes
from if_jax.data.labels import LabelSet
from if_jax.html_report.elements import element
from if_jax.html_report.tables import class_label, percent
from if_jax.metrics import count_confusion, iou_from_confusion
from if_jax.outputs import SHEET_TITLES, sheet_row

# Pixels of a picture in TensorBoard, which keeps those of all evaluations, and in a report.
_GRID_WIDTH = 320
_MAX_WIDTH = 640
# Of all pictures of a report together, a few MB of file: of more images, each is smaller.
_MAX_PIXELS = 20 * len(SHEET_TITLES) * 640 * 320
# Stored with every pixel as it is: the colours of classes.
_EXACT = ('truth', 'prediction')


@dataclasses.dataclass(frozen=True)
class Sample:
  """An image of a report.

  Attributes:
    index: its place in the data set.
    name: of its file.
    miou: over the classes in its labels or its prediction, in [0, 1]; NaN without labelled pixels.
    pixel_accuracy: likewise.
    pictures: those of `SHEET_TITLES`, as WebP; without an edge head, all but the last.
  """

  index: int
  name: str
  miou: float
  pixel_accuracy: float
  pictures: tuple[bytes, ...]


class Gallery:
  """Picks the images to show while an evaluation goes through all of them, in several threads.

  Args:
    label_set: of the classes.
    num_extremes: how many of the worst by mIoU are kept, and how many of the best.
    shown: places in the data set of images that are kept in any case.
  """

  def __init__(self, label_set: LabelSet, *, num_extremes: int, shown: Iterable[int] = ()):
    self._label_set = label_set
    self._num_extremes = num_extremes
    self._shown = frozenset(map(int, shown))
    num_images = 2 * num_extremes + len(self._shown)
    self._max_pixels = _MAX_PIXELS // (len(SHEET_TITLES) * max(20, num_images))
    self._lock = threading.Lock()
    self._scores = {}
    self._samples = {}

  def add(self, example: Mapping, outputs: Mapping[str, np.ndarray]) -> None:
    """Looks at an image: an example of `eval_examples`, and its outputs of `predict`."""
    labels, index = example['label'], example['index']
    if not self._num_extremes and index not in self._shown:
      return
    confusion = count_confusion(labels, outputs['label'], self._label_set.num_classes)
    scores = iou_from_confusion(confusion)
    miou, accuracy = float(scores['miou']), float(scores['pixel_accuracy'])
    if not self._keep(index, miou):
      return
    row = sheet_row(example['image'], labels, outputs, self._label_set)
    pictures = tuple(
      _encoded(shrunk(picture, _MAX_WIDTH, self._max_pixels), exact=title in _EXACT)
      for title, picture in zip(SHEET_TITLES, row, strict=False)
    )
    sample = Sample(index, example['name'], miou, accuracy, pictures)
    with self._lock:
      # Others may have been worse and better meanwhile.
      if index in self._scores:
        self._samples[index] = sample

  def _keep(self, index: int, miou: float) -> bool:
    with self._lock:
      self._scores[index] = miou
      worst, best = extremes(self._scores, self._num_extremes)
      kept = self._shown.union(worst, best)
      for other in self._scores.keys() - kept:
        del self._scores[other]
        self._samples.pop(other, None)
      return index in kept

  def gathered(self) -> dict[int, Sample]:
    """Those that are kept by all processes together, by their places; all have to ask."""
    parts = processes.gather(self._samples)
    return dict(sorted(item for part in parts for item in part.items()))


def extremes(scores: Mapping[int, float], count: int) -> tuple[list[int], list[int]]:
  """The places of the lowest scores, the lowest first, and of the highest, the highest first.

  Of few images, none is in both. What is NaN is in neither; equal scores go by their place.
  """
  ranked = sorted((score, i) for i, score in scores.items() if not math.isnan(score))
  ranked = [i for _, i in ranked]
  num_worst = min(count, (len(ranked) + 1) // 2)
  num_best = min(count, len(ranked) - num_worst)
  return ranked[:num_worst], ranked[::-1][:num_best]


def shrunk(picture: np.ndarray, max_width: float, max_pixels: float = math.inf) -> np.ndarray:
  """Makes a picture, uint8 [H, W, 3], as small as that."""
  height, width = picture.shape[:2]
  scale = min(1, max_width / width, math.sqrt(max_pixels / (height * width)))
  size = max(1, round(width * scale)), max(1, round(height * scale))
  return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _encoded(picture: np.ndarray, *, exact: bool) -> bytes:
  file = io.BytesIO()
  Image.fromarray(picture).save(file, 'WEBP', quality=80, lossless=exact, method=4)
  return file.getvalue()


def picture_grid(sample: Sample) -> np.ndarray:
  """The pictures of an image in rows of two, uint8 [H, W, 3], as TensorBoard's narrow cards ask."""
  pictures = [np.asarray(Image.open(io.BytesIO(data)).convert('RGB')) for data in sample.pictures]
  pictures = [shrunk(picture, _GRID_WIDTH) for picture in pictures]
  if len(pictures) % 2:
    pictures.append(np.zeros_like(pictures[0]))
  return rearrange(np.stack(pictures), '(r c) h w k -> (r h) (c w) k', c=2)


def class_legend(label_set: LabelSet) -> Element:
  """The colours of the classes in pictures."""
  names, colors = [*label_set.class_names, 'ignored'], [*label_set.colors, (0, 0, 0)]
  labels = [class_label(*x) for x in zip(names, colors, strict=True)]
  return element('p', labels, class_='classes')


def sample_list(samples: Iterable[Sample]) -> Element:
  """Images one beneath the other, each with its pictures in a row, its name and its score."""
  return element('div', map(_sample, samples), class_='samples')


def _sample(sample: Sample) -> Element:
  scores = [('mIoU', sample.miou), ('pixel accuracy', sample.pixel_accuracy)]
  caption = [
    element('b', sample.name),
    *(element('span', f'{name} ', element('b', percent(score))) for name, score in scores),
  ]
  pictures = [
    element(
      'figure',
      element('img', src=_uri(data), alt=f'{title} of {sample.name}'),
      element('figcaption', title),
    )
    for title, data in zip(SHEET_TITLES, sample.pictures, strict=False)
  ]
  head = element('div', caption, class_='caption')
  return element('article', head, element('div', pictures, class_='row'), class_='card')


def _uri(data: bytes) -> str:
  return f'data:image/webp;base64,{base64.b64encode(data).decode()}'
