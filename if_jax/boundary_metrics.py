"""Boundary F-score and boundary IoU: how well outlines are met, which mIoU hardly sees.

On the host, per image, with exact Euclidean distances; results are sums that merge over images.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np

Policy = Literal['present', 'gscnn']

# What an ignored pixel becomes in both maps, and what lies beyond the frame of the image.
_IGNORED = -1
_OUTSIDE = -2


class BoundaryScore(NamedTuple):
  """Float64 [T, K] each, tolerances by classes, in [0, 1]; NaN for a class that was left out."""

  f: np.ndarray
  precision: np.ndarray
  recall: np.ndarray


def boundary_f_score(
  labels: np.ndarray,
  predictions: np.ndarray,
  *,
  num_classes: int,
  tolerances: Sequence[float],
  policy: Policy = 'present',
) -> BoundaryScore:
  """Scores how much of each class's outline is met within a few pixels, in one image.

  A class's boundary are the pixels where it meets another class: of a pixel and its right, lower
  or lower right neighbour, one belongs to the class and one does not. Precision is the share of
  the predicted boundary that has true boundary within a disc around it, recall the reverse, and F
  their harmonic mean.

  Args:
    labels: int [H, W]; values outside [0, num_classes) are ignored pixels.
    predictions: int [H, W].
    num_classes: K.
    tolerances: T radii of the disc in pixels; a value below 1 is a share of the image's diagonal,
      rounded up to whole pixels.
    policy: 'present' leaves out (NaN) a class that has no boundary in either map, and sees no
      boundary where a class meets ignored pixels. 'gscnn' scores as Gated-SCNN and NVIDIA do: such
      a class has F = 1, which raises the mean, and ignored pixels are a further class.

  Returns:
    F, precision and recall. A class that has a boundary in only one map has F = 0.

  Raises:
    ValueError: shapes that differ or are not [H, W], values that are not integers, a tolerance
      that is not above 0, an unknown policy.

  Example:
    >>> labels = np.array([[0, 0, 0, 0, 1, 1, 1, 1]])
    >>> predictions = np.array([[0, 0, 1, 1, 1, 1, 1, 1]])
    >>> boundary_f_score(labels, predictions, num_classes=2, tolerances=[1, 2]).f.tolist()
    [[0.0, 0.0], [1.0, 1.0]]

  Source: the boundary measure of DAVIS (Perazzi et al., CVPR 2016), taken for each class as in
    Gated-SCNN (Takikawa et al., ICCV 2019).
  Differs: does not write into the caller's arrays; `policy`.
  """
  if policy not in ('present', 'gscnn'):
    raise ValueError(f"policy is {policy!r}, but must be 'present' or 'gscnn'")
  labels, predictions = _comparable(labels, predictions, num_classes)
  radii = np.array([_in_pixels(tolerance, labels.shape) for tolerance in tolerances])
  true_points, true_classes = _contours(labels, policy)
  found_points, found_classes = _contours(predictions, policy)
  precision = np.full((len(radii), num_classes), 1.0 if policy == 'gscnn' else np.nan)
  recall = precision.copy()
  for c in range(num_classes):
    true = true_points[:, (true_classes == c).any(axis=0)]
    found = found_points[:, (found_classes == c).any(axis=0)]
    if true.size and found.size:
      precision[:, c] = _share_within(radii, found, true)
      recall[:, c] = _share_within(radii, true, found)
    elif true.size or found.size:
      precision[:, c] = 0.0 if found.size else 1.0
      recall[:, c] = 0.0 if true.size else 1.0
  both = precision + recall
  f = np.where(both == 0, 0.0, 2 * precision * recall / np.where(both == 0, 1.0, both))
  return BoundaryScore(f, precision, recall)


def boundary_iou(
  labels: np.ndarray, predictions: np.ndarray, *, num_classes: int, width: float = 0.005
) -> tuple[np.ndarray, np.ndarray]:
  """Counts, per class, where the inner bands along its outline meet, in one image.

  A class's band are its pixels that are at most `width` rows and `width` columns away from another
  class or from the outside of the image. Add up over images, then divide intersection by union.

  Args:
    labels: int [H, W]; values outside [0, num_classes) are ignored pixels: they belong to no band,
      and a class that meets them has no outline there.
    predictions: int [H, W].
    num_classes: K.
    width: of the band in pixels; a value below 1 is a share of the image's diagonal, rounded, at
      least 1 pixel. 0.005 is usual for Cityscapes (11 pixels at 1024 x 2048), 0.02 for COCO.

  Returns:
    Pixels in both bands and pixels in either, int64 [K] each.

  Raises:
    ValueError: shapes that differ or are not [H, W], values that are not integers, a width that is
      not above 0.

  Source: Cheng et al., Boundary IoU, CVPR 2021; bands as in boundary-iou-api.
  Differs: that scores instances; this whole label maps with ignored pixels.
  """
  labels, predictions = _comparable(labels, predictions, num_classes)
  if width <= 0:
    raise ValueError(f'width is {width}, but must be above 0: pixels, or a share of the diagonal')
  diagonal = math.hypot(*labels.shape)
  width = max(1, round(width * diagonal)) if width < 1 else round(width)
  labels, predictions = (
    np.pad(classes, 1, constant_values=_OUTSIDE) for classes in (labels, predictions)
  )
  intersection, union = np.zeros((2, num_classes), np.int64)
  for c in range(num_classes):
    x, y, w, h = cv2.boundingRect(((labels == c) | (predictions == c)).view(np.uint8))
    if w == 0:
      continue
    # What is farther away from the class than a width changes nothing.
    window = np.s_[max(0, y - width) : y + h + width, max(0, x - width) : x + w + width]
    true = _inner_band(labels[window], c, width)
    found = _inner_band(predictions[window], c, width)
    intersection[c] = np.count_nonzero(true & found)
    union[c] = np.count_nonzero(true | found)
  return intersection, union


@dataclasses.dataclass(eq=False)
class BoundaryMetrics:
  """Boundary F-score and boundary IoU of a data set, as sums over its images.

  Threads must not share one: give each image or each thread its own, and merge them.

  Args:
    num_classes: K.
    tolerances: of the F-score, in pixels, or below 1 as shares of the image's diagonal.
    width: of boundary IoU's bands, likewise.
    policy: of the F-score; see `boundary_f_score`.
  """

  num_classes: int
  tolerances: tuple[float, ...]
  width: float = 0.005
  policy: Policy = 'present'

  def __post_init__(self):
    self.tolerances = tuple(self.tolerances)
    self.f_sum = np.zeros((len(self.tolerances), self.num_classes))
    self.f_count = np.zeros(self.num_classes, np.int64)
    self.intersection = np.zeros(self.num_classes, np.int64)
    self.union = np.zeros(self.num_classes, np.int64)

  def update(self, labels: np.ndarray, predictions: np.ndarray) -> None:
    """Adds one image: labels and predictions int [H, W]."""
    score = boundary_f_score(
      labels,
      predictions,
      num_classes=self.num_classes,
      tolerances=self.tolerances,
      policy=self.policy,
    )
    intersection, union = boundary_iou(
      labels, predictions, num_classes=self.num_classes, width=self.width
    )
    self.f_sum += np.nan_to_num(score.f)
    self.f_count += np.isfinite(score.f).all(axis=0)
    self.intersection += intersection
    self.union += union

  def merge(self, other: 'BoundaryMetrics') -> None:
    """Adds the images of `other`; a ValueError if it was made with other settings."""
    if dataclasses.astuple(self) != dataclasses.astuple(other):
      raise ValueError(f'cannot merge measures of different settings: {self} and {other}')
    self.f_sum += other.f_sum
    self.f_count += other.f_count
    self.intersection += other.intersection
    self.union += other.union

  def compute(self) -> dict[str, np.ndarray | float]:
    """Divides the sums.

    Returns:
      `boundary_f@2px` and so on (`boundary_f@0.005` for a share of the diagonal) and
      `boundary_iou`: means over the classes that counted, floats in [0, 1]. The same names with
      `_per_class`: float64 [K]; F is the mean over the images in which the class counted, boundary
      IoU is of all images together; NaN for a class that never counted.
    """
    per_class = {}
    for tolerance, f_sum in zip(self.tolerances, self.f_sum, strict=True):
      unit = 'px' if tolerance >= 1 else ''
      per_class[f'boundary_f@{tolerance:g}{unit}'] = ratio(f_sum, self.f_count)
    per_class['boundary_iou'] = ratio(self.intersection, self.union)
    result: dict[str, np.ndarray | float] = {}
    for name, scores in per_class.items():
      result[name] = mean_of_counted(scores)
      result[f'{name}_per_class'] = scores
    return result


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
  """Divides in float64; what is divided by zero is NaN, without a warning."""
  nothing = np.full(np.shape(denominator), np.nan)
  return np.divide(numerator, denominator, out=nothing, where=denominator != 0)


def mean_of_counted(scores: np.ndarray) -> float:
  """Averages what is not NaN; NaN if nothing is left."""
  counted = scores[~np.isnan(scores)]
  return float(counted.mean()) if counted.size else float('nan')


def _comparable(
  labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Copies both maps to int16 [H, W]; what the labels ignore is ignored in both."""
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  if labels.ndim != 2 or labels.shape != predictions.shape:
    raise ValueError(
      f'labels {labels.shape} and predictions {predictions.shape} must be [H, W] of one size'
    )
  for name, array in (('labels', labels), ('predictions', predictions)):
    if not np.issubdtype(array.dtype, np.integer):
      raise ValueError(f'{name} must be class numbers of an integer type, not {array.dtype}')
  counted = (labels >= 0) & (labels < num_classes)
  # A prediction out of range is a class of its own that nobody asks for.
  in_range = (predictions >= 0) & (predictions < num_classes)
  predictions = np.where(in_range, predictions, num_classes)
  # An array's type is kept beside a Python number, and uint8 has no -1.
  return (
    np.where(counted, labels, np.int16(_IGNORED)).astype(np.int16),
    np.where(counted, predictions, np.int16(_IGNORED)).astype(np.int16),
  )


def _in_pixels(tolerance: float, size: tuple[int, int]) -> float:
  if tolerance <= 0:
    raise ValueError(
      f'a tolerance is {tolerance}, but must be above 0: pixels, or a share of the diagonal'
    )
  return tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*size))


def _contours(classes: np.ndarray, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
  """Finds the boundary pixels of all classes at once, and the four classes that meet in each.

  A pixel is on a class's boundary exactly if it is in this list and the class is among its four.

  Args:
    classes: int16 [H, W].
    policy: whether ignored pixels are a class like another ('gscnn').

  Returns:
    Positions int [2, N], rows and columns; classes int16 [4, N].
  """
  padded = np.pad(classes, ((0, 1), (0, 1)), mode='edge')
  here, right, below, across = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
  found = np.nonzero((here != right) | (here != below) | (here != across))
  meeting = np.stack([here[found], right[found], below[found], across[found]])
  points = np.stack(found)
  if policy == 'gscnn':
    return points, meeting
  meeting = np.where(meeting == _IGNORED, meeting[0], meeting)
  kept = (meeting[0] != _IGNORED) & (meeting != meeting[0]).any(axis=0)
  return points[:, kept], meeting[:, kept]


def _share_within(radii: np.ndarray, points: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """The share of points [2, N] that have a target [2, M] within each radius, float64 [T]."""
  # The box around both holds every distance asked for, at a fraction of the image's cost.
  corner = np.minimum(points.min(axis=1), targets.min(axis=1))[:, None]
  end = np.maximum(points.max(axis=1), targets.max(axis=1))[:, None]
  elsewhere = np.ones((end - corner + 1).ravel(), np.uint8)
  elsewhere[tuple(targets - corner)] = 0
  distance = cv2.distanceTransform(elsewhere, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  return (distance[tuple(points - corner)] <= radii[:, None]).mean(axis=1)


def _inner_band(classes: np.ndarray, c: int, width: int) -> np.ndarray:
  """Finds the pixels of class c within `width` of another class, bool [H, W]."""
  inside = classes == c
  # Ignored pixels are filled in, so that a class has no outline against them.
  solid = (inside | (classes == _IGNORED)).view(np.uint8)
  square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
  return inside & (cv2.erode(solid, square) == 0)
