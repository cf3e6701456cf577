"""The way to every data set by its name."""

import dataclasses
import re
from pathlib import Path
from typing import Protocol, TypedDict

from if_jax.data import builder, camvid, cityscapes, folder, streets
from if_jax.data.labels import CAMVID, CITYSCAPES, LabelSet, load_label_set

DATASETS = ('cityscapes', 'cityscapes_coarse', 'camvid', 'folder', 'streets', 'tfds:cityscapes')


class Sample(TypedDict):
  """An image and its label as the bytes of their files, for `decode_image` and `decode_label`."""

  image: bytes
  label: bytes
  name: str


class Source(Protocol):
  """Random access to samples; picklable, and with a `repr` that holds no address."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Sample: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """One split of a data set, for random access from any number of processes.

  `dataset[i]` gives `{'image': bytes, 'label': bytes, 'name': str}`. The label holds label ids:
  `label_set.to_train_ids(decode_label(...))` are the ids to train on. The name is the path of the
  image below the folder of its split, without ending.

  Attributes:
    name: as given to `load_dataset`.
    split: as given to `load_dataset`.
    label_set: its classes.
    source: where the samples come from.
  """

  name: str
  split: str
  label_set: LabelSet
  source: Source

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> Sample:
    # A range knows negative indices, the types of indices, and when to raise IndexError.
    return self.source[range(len(self))[index]]

  def __repr__(self) -> str:
    return f'Dataset({self.name!r}, {self.split!r}, {len(self)} samples, {self.source!r})'


def load_dataset(
  name: str,
  split: str,
  *,
  root: str | Path | None = None,
  cache_dir: str | Path | None = None,
  **options,
) -> Dataset:
  """Loads a split of a data set; the first time, checks its files and writes them as TFDS does.

  Args:
    name: one of `DATASETS`.
    split: 'train', 'val', or another that the data set has.
    root: the folder of the data; for 'tfds:cityscapes', TFDS's `data_dir`; 'streets' needs none.
    cache_dir: where prepared data go; None for TFDS's own place, `$TFDS_DATA_DIR` or
      `~/tensorflow_datasets`.
    **options: for 'streets' only: num_examples, size (height, width), seed.

  Returns:
    The data set.

  Raises:
    FileNotFoundError: if there is no such folder, file or class file.
    ValueError: if the name or an option is unknown, or with everything that is wrong with the
      files.
  """
  if name == 'streets':
    return Dataset(name, split, *_streets(split, **options))
  if name not in DATASETS:
    raise ValueError(f'no data set {name!r}; there are {", ".join(DATASETS)}')
  if options:
    raise ValueError(f'the data set {name} takes no option {", ".join(options)}')
  if not root:
    raise ValueError(f'the data set {name} needs root, the folder that holds it')
  if not re.fullmatch(r'[\w-]+', split):
    raise ValueError(f"split {split!r}: only letters, digits, '-' and '_' can name a split")
  root = Path(root).expanduser()
  if not root.is_dir():
    raise FileNotFoundError(f'root {root}: no such folder; give the one that holds {name}')

  if name == 'tfds:cityscapes':
    return Dataset(name, split, CITYSCAPES, cityscapes.open_tfds(root, split))
  if name == 'camvid':
    label_set, found = CAMVID, camvid.find_pairs(root, split)
  elif name == 'folder':
    label_set = load_label_set(root / folder.CLASS_FILE)
    found = folder.find_pairs(root, split)
  else:
    annotation = 'gtFine' if name == 'cityscapes' else 'gtCoarse'
    label_set, found = CITYSCAPES, cityscapes.find_pairs(root, split, annotation)
  return Dataset(name, split, label_set, builder.prepare(name, split, *found, label_set, cache_dir))


def _streets(
  split: str, *, num_examples: int = 100, size: tuple[int, int] = (256, 512), seed: int = 0
) -> tuple[LabelSet, Source]:
  # Different scenes for each split, whatever seed the other split is drawn with.
  splits = ('train', 'val')
  if split not in splits:
    raise ValueError(f'streets has no split {split!r}; it has {", ".join(splits)}')
  source = streets.Streets(num_examples, tuple(size), len(splits) * seed + splits.index(split))
  return source.label_set, source
