"""Confusion matrix on the device, intersection over union on the host.

Everything is a sum that adds up over devices, batches and processes, and is divided once, at the
end. The boundary measures live in `boundary_metrics`; their names can be imported from here too.
"""

import jax
import jax.numpy as jnp
import numpy as np

from if_jax.boundary_metrics import (
  BoundaryMetrics,
  boundary_f_score,
  boundary_iou,
  mean_of_counted,
  ratio,
)

__all__ = [
  'BoundaryMetrics',
  'boundary_f_score',
  'boundary_iou',
  'confusion_matrix',
  'count_confusion',
  'iou_from_confusion',
]


def confusion_matrix(
  labels: jax.Array,
  predictions: jax.Array,
  *,
  num_classes: int,
  valid: jax.Array | None = None,
) -> jax.Array:
  """Counts how often a pixel of one class was given another, exactly.

  Args:
    labels: int [..., H, W]; a value outside [0, num_classes), such as 255, counts for nothing.
    predictions: int [..., H, W], in [0, num_classes); a pixel outside counts for nothing too.
    num_classes: K.
    valid: bool, shaped like the leading axes of `labels` (one per image, or one per pixel); what
      is False counts for nothing.

  Returns:
    int32 [K, K], rows are labels, columns predictions. It holds 2^31 pixels (1023 Cityscapes
    images); add up batches in int64 on the host.

  Raises:
    ValueError: shapes that do not fit, or labels or predictions that are not integers.

  Example:
    >>> confusion_matrix(jnp.array([[0, 1, 255]]), jnp.array([[0, 0, 1]]), num_classes=2).tolist()
    [[1, 0], [1, 0]]
  """
  if labels.shape != predictions.shape:
    raise ValueError(f'labels have shape {labels.shape}, but predictions {predictions.shape}')
  for name, array in (('labels', labels), ('predictions', predictions)):
    if not jnp.issubdtype(array.dtype, jnp.integer):
      raise ValueError(f'{name} must be class numbers of an integer type, not {array.dtype}')
  labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
  counted = (labels >= 0) & (labels < num_classes)
  counted &= (predictions >= 0) & (predictions < num_classes)
  if valid is not None:
    if valid.shape != labels.shape[: valid.ndim]:
      raise ValueError(f'valid has shape {valid.shape}, but the labels begin with {labels.shape}')
    counted &= valid.reshape(valid.shape + (1,) * (labels.ndim - valid.ndim))
  cell = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
  # 1024 x 2048 pixels and 19 classes on a CPU: bincount 4 ms; NumPy's 13, one-hot matrix products
  # 43 to 210, a sort 90, a comparison for every cell 110.
  counts = jnp.bincount(cell.ravel(), length=num_classes**2 + 1)
  return counts[:-1].reshape(num_classes, num_classes).astype(jnp.int32)


def count_confusion(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
  """As `confusion_matrix`, on the host: of one image, of whatever size, without a compilation.

  Args:
    labels: int [H, W].
    predictions: int [H, W].
    num_classes: K.

  Returns:
    int64 [K, K], rows are labels.
  """
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  counted = (labels >= 0) & (labels < num_classes)
  counted &= (predictions >= 0) & (predictions < num_classes)
  cell = labels[counted].astype(np.int64) * num_classes + predictions[counted]
  return np.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou_from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray | float]:
  """Turns a confusion matrix into the scores that people compare.

  A score that would divide by zero is NaN and left out of the means: the IoU of a class that
  occurs neither in labels nor predictions, the recall of one without labels, the precision of one
  never predicted. A class that occurs in one of the two only has an IoU of 0, and that counts.

  Args:
    confusion: int [K, K], rows are labels.

  Returns:
    `iou`, `precision`, `recall`: float64 [K]; `miou`, `pixel_accuracy`, `class_accuracy` (the mean
    recall) and `frequency_weighted_iou` (by each class's share of the labels): floats in [0, 1].

  Raises:
    ValueError: `confusion` is not a square matrix of integers.

  Source: `iou` and `miou` are those of `getIouScoreForLabel` and `getScoreAverage` in
    cityscapesscripts.
  """
  confusion = np.asarray(confusion)
  square = confusion.ndim == 2 and confusion.shape[0] == confusion.shape[1]
  if not square or not np.issubdtype(confusion.dtype, np.integer):
    raise ValueError(
      f'confusion must be a square matrix of integers, not {confusion.dtype} {confusion.shape}'
    )
  confusion = confusion.astype(np.int64)
  correct = np.diagonal(confusion)
  labelled = confusion.sum(axis=1)
  predicted = confusion.sum(axis=0)
  iou = ratio(correct, labelled + predicted - correct)
  recall = ratio(correct, labelled)
  return {
    'iou': iou,
    'precision': ratio(correct, predicted),
    'recall': recall,
    'miou': mean_of_counted(iou),
    'pixel_accuracy': float(ratio(correct.sum(), labelled.sum())),
    'class_accuracy': mean_of_counted(recall),
    'frequency_weighted_iou': float(ratio(np.nansum(labelled * iou), labelled.sum())),
  }
