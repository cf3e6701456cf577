"""A data set and its loader as a PyTorch user writes them, who decodes and augments as we do."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from if_jax.data.augment import Augmentation
from if_jax.data.decode import decode_image, decode_label
from if_jax.data.labels import CITYSCAPES


class FileDataset:
  """Pairs of files of Cityscapes as arrays, for `torch.utils.data.DataLoader`.

  Args:
    files: image and label file of each pair.
    augmentation: makes a crop of it; None: whole images.
  """

  def __init__(self, files: Sequence[tuple[Path, Path]], augmentation: Augmentation | None = None):
    self._files, self._augmentation = files, augmentation

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    image_file, label_file = self._files[index]
    image = decode_image(image_file.read_bytes(), image_file.name)
    label_ids = decode_label(label_file.read_bytes(), label_file.name)
    label = CITYSCAPES.to_train_ids(label_ids, label_file.name)
    if self._augmentation:
      image, label = self._augmentation(image, label, np.random.default_rng())
    return {'image': image, 'label': label.astype(np.int32)}


def make_loader(dataset: FileDataset, num_workers: int, **options):
  """PyTorch's `DataLoader` with its own prefetching; each worker has one core, as ours have."""
  from torch.utils.data import DataLoader

  if num_workers:
    # Forked workers would inherit JAX's threads as they stand, locks held.
    options |= {'multiprocessing_context': 'spawn', 'worker_init_fn': _use_one_core}
  return DataLoader(dataset, num_workers=num_workers, **options)


def endless_batches(
  dataset: FileDataset, batch_size: int, num_workers: int
) -> Iterator[dict[str, np.ndarray]]:
  """Random batches without end, as `if_jax.data.pipeline.train_batches` gives them."""
  from torch.utils.data import RandomSampler

  sampler = RandomSampler(dataset, replacement=True, num_samples=1 << 40)
  for batch in make_loader(dataset, num_workers, batch_size=batch_size, sampler=sampler):
    yield {name: x.numpy() for name, x in batch.items()}


def _use_one_core(worker):
  del worker
  cv2.setNumThreads(1)
