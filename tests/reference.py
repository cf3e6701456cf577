"""Weights and images as functions of a seed, as the reference outputs were made with."""

import gzip
import json
import zlib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / 'data'


def load(name: str):
  """The arrays of tests/data/`name`.npz."""
  return np.load(DATA / f'{name}.npz')


def entries(model: str) -> list[tuple[str, list[int], str]]:
  """Name, shape and dtype of every entry of the PyTorch file, in its order."""
  with gzip.open(DATA / 'state_dicts.json.gz') as file:
    return json.load(file)[model]


def state_dict(model: str, seed: int = 0) -> dict[str, np.ndarray]:
  """PyTorch's names to seeded weights."""
  return {name: _weight(name, shape, seed) for name, shape, _ in entries(model)}


def image() -> np.ndarray:
  """float32 [2, 96, 160, 3]."""
  drawn = np.random.RandomState(1000).standard_normal((2, 3, 96, 160))
  return drawn.astype(np.float32).transpose(0, 2, 3, 1)


def nhwc(array: np.ndarray) -> np.ndarray:
  return array.transpose(0, 2, 3, 1)


def _weight(name, shape, seed):
  leaf = name.rpartition('.')[2]
  if leaf == 'num_batches_tracked':
    return np.zeros(shape, np.int64)
  rng = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
  if leaf in ('running_mean', 'bias'):
    values = 0.1 * rng.standard_normal(shape)
  elif leaf == 'running_var':
    values = rng.uniform(0.5, 1.5, shape)
  elif len(shape) == 1:
    values = rng.uniform(0.5, 1.0, shape)
  else:
    values = rng.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
  return values.astype(np.float32)
