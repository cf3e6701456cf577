"""Class-uniform sampling: crops around each class as often as around any other.

A class that fills a thousandth of the pixels is in few random crops. So a share of the crops of
training is drawn class by class: a class, then one of the places where it is, then a crop that
shows the place. The places are found once for a data set, in every tile of every label.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging
from rich.console import Console
from rich.progress import track

from if_jax.data.builder import Records
from if_jax.data.datasets import Dataset
from if_jax.data.decode import decode_label
from if_jax.data.labels import IGNORE


def class_centroids(dataset: Dataset, tile_size: tuple[int, int]) -> tuple[np.ndarray, ...]:
  """Finds where each class of a data set is: one place for every tile that holds it.

  This decodes every label, some minutes for Cityscapes on two cores. The answer is kept beside the
  data that `load_dataset` has prepared; a folder that has changed is prepared anew, elsewhere, and
  so searched anew. Data that are drawn, as `streets`, are searched each time.

  Args:
    dataset: of `load_dataset`.
    tile_size: (height, width), pixels, of about a crop: a large class then has a place in each
      part of an image that a crop can show.

  Returns:
    For each train id, int32 [N, 3]: index of the example, row, column. N is 0 for a class that is
    nowhere.

  Raises:
    ValueError: if a label is broken, with its name.

  Source: Zhu et al., Improving Semantic Segmentation via Video Propagation and Label Relaxation,
  CVPR 2019; NVIDIA/semantic-segmentation, `datasets/uniform.py`.
  Differs: tiles are of the crop's size and cover the whole image, theirs are squares of 1024 and
  leave out what is left over at its right and lower edge; see also `tile_centroids`.
  """
  cache = _cache_file(dataset, tile_size)
  table = _read(cache) if cache else None
  if table is None:
    table = _search(dataset, tile_size)
    if cache:
      _write(cache, table)
  return tuple(table[table[:, 0] == i, 1:] for i in range(dataset.label_set.num_classes))


def tile_centroids(label: np.ndarray, tile_size: tuple[int, int]) -> np.ndarray:
  """Finds the pixel of each class that is nearest to the middle of its pixels, tile by tile.

  Args:
    label: uint8 [H, W], train ids, 255 ignored.
    tile_size: (height, width), pixels; the image is cut evenly into tiles of about that size.

  Returns:
    int64 [N, 3]: train id, row, column.

  Example:
    >>> tile_centroids(np.uint8([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]), (3, 4))
    array([[0, 1, 1],
           [1, 1, 3]])

  Differs: NVIDIA takes the middle itself, which may lie on another class.
  """
  found = []
  for rows in _cut(label.shape[0], tile_size[0]):
    for columns in _cut(label.shape[1], tile_size[1]):
      tile = label[rows, columns]
      for class_id in np.flatnonzero(np.bincount(tile.ravel(), minlength=IGNORE)[:IGNORE]):
        y, x = np.nonzero(tile == class_id)
        nearest = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
        found.append((class_id, rows.start + y[nearest], columns.start + x[nearest]))
  return np.array(found, np.int64).reshape(-1, 3)


def draw_centroid(
  centroids: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[int, tuple[int, int]]:
  """Draws a class, each as likely, and one of its places.

  Args:
    centroids: int [N, 3] for each class, none of them empty: index of the example, row, column.
    rng: decides.

  Returns:
    The index of the example, and (row, column) of a pixel of the class.
  """
  places = centroids[int(rng.integers(len(centroids)))]
  index, row, column = places[rng.integers(len(places))].tolist()
  return index, (row, column)


def _cut(length: int, tile: int) -> list[slice]:
  count = max(1, round(length / tile))
  edges = [round(i * length / count) for i in range(count + 1)]
  return [slice(*span) for span in itertools.pairwise(edges)]


def _search(dataset: Dataset, tile_size: tuple[int, int]) -> np.ndarray:
  """int32 [N, 4] of the whole data set: train id, index of the example, row, column."""
  console = Console(stderr=True)
  with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    tables = track(
      pool.map(functools.partial(_search_one, dataset, tile_size), range(len(dataset))),
      f'Finding the classes of {dataset.name} {dataset.split}',
      total=len(dataset),
      console=console,
      disable=not console.is_terminal,
    )
    return np.concatenate(list(tables)).astype(np.int32)


def _search_one(dataset: Dataset, tile_size: tuple[int, int], index: int) -> np.ndarray:
  example = dataset[index]
  name = example['name']
  label = dataset.label_set.to_train_ids(decode_label(example['label'], name), name)
  return np.insert(tile_centroids(label, tile_size), 1, index, axis=1)


def _cache_file(dataset: Dataset, tile_size: tuple[int, int]) -> Path | None:
  if not isinstance(dataset.source, Records):
    return None
  height, width = tile_size
  return Path(dataset.source.directory, f'centroids-{dataset.source.split}-{height}x{width}.bin')


def _read(path: Path) -> np.ndarray | None:
  """What was written there; None if nothing was, or if the disk gives back something else."""
  try:
    data = path.read_bytes()
  except OSError:
    return None
  checksum, table = data[:4], data[4:]
  if zlib.crc32(table).to_bytes(4) != checksum:
    logging.warning('%s is damaged; the places of the classes are looked for again', path)
    return None
  return np.frombuffer(table, '<i4').reshape(-1, 4)


def _write(path: Path, table: np.ndarray):
  """Writes it whole or not at all: where there is no permission or room, only time is lost."""
  numbers = table.astype('<i4').tobytes()
  with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=path.parent) as folder:
    unfinished = Path(folder, path.name)
    unfinished.write_bytes(zlib.crc32(numbers).to_bytes(4) + numbers)
    os.replace(unfinished, path)
