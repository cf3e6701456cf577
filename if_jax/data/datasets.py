"""The way to every data set by its name."""

import dataclasses
import re
from pathlib import Path
from typing import Any, Protocol, TypedDict

from if_jax.data import builder, camvid, cityscapes, folder, streets
from if_jax.data.labels import CAMVID, CITYSCAPES, LabelSet, load_label_set
from if_jax.data.pairs import Found

IN_FOLDERS = ('cityscapes', 'cityscapes_coarse', 'camvid', 'folder')
DATASETS = (*IN_FOLDERS, 'streets', 'tfds:cityscapes')


class Sample(TypedDict):
  """An image and its label as the bytes of their files, for `decode_image` and `decode_label`."""

  image: bytes
  label: bytes
  name: str


class Source(Protocol):
  """Random access to samples; picklable, and with a `repr` that holds no address."""

  def __len__(self) -> int: ...

  # A dict as `Sample`.
  def __getitem__(self, index: int) -> Any: ...


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
  **options: Any,
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
  if name in DATASETS and options:
    raise ValueError(f'the data set {name} takes no option {", ".join(options)}')
  root, label_set = open_root(name, root)
  if name == 'tfds:cityscapes':
    return Dataset(name, split, label_set, cityscapes.open_tfds(root, split))
  found = find_pairs(name, split, root)
  source = builder.prepare(name, split, found.pairs, found.problems, label_set, cache_dir)
  return Dataset(name, split, label_set, source)


def open_root(name: str, root: str | Path | None) -> tuple[Path, LabelSet]:
  """Finds the folder of a data set, and its classes.

  Args:
    name: one of `DATASETS` but 'streets', which has no folder.
    root: as for `load_dataset`.

  Returns:
    The folder, and the label set.

  Raises:
    FileNotFoundError: if there is no such folder or class file.
    ValueError: if the name is unknown, the root is missing or a file, or the class file is wrong.
  """
  if name not in DATASETS:
    raise ValueError(f'no data set {name!r}; there are {", ".join(DATASETS)}')
  if not root:
    raise ValueError(f'the data set {name} needs root, the folder that holds it')
  root = Path(root).expanduser()
  if root.is_file():
    raise ValueError(f'root {root}: a file, not a folder; if it is an archive, unpack it first')
  if not root.is_dir():
    raise FileNotFoundError(f'root {root}: no such folder; give the one that holds {name}')
  if name == 'folder':
    return root, load_label_set(root / folder.CLASS_FILE)
  return root, CAMVID if name == 'camvid' else CITYSCAPES


def find_pairs(name: str, split: str, root: Path) -> Found:
  """Finds the files of a split, unread.

  Args:
    name: one of `DATASETS` that is read from files.
    split: as for `load_dataset`.
    root: of `open_root`.

  Returns:
    The pairs, and what is wrong with the other files.

  Raises:
    FileNotFoundError: if there is no image or no label.
    ValueError: if the split has no name for a folder.
  """
  if not re.fullmatch(r'[\w-]+', split):
    raise ValueError(f"split {split!r}: only letters, digits, '-' and '_' can name a split")
  if name == 'camvid':
    return camvid.find_pairs(root, split)
  if name == 'folder':
    return folder.find_pairs(root, split)
  return cityscapes.find_pairs(root, split, 'gtFine' if name == 'cityscapes' else 'gtCoarse')


def _streets(
  split: str, *, num_examples: int = 100, size: tuple[int, int] = (256, 512), seed: int = 0
) -> tuple[LabelSet, Source]:
  # Different scenes for each split, whatever seed the other split is drawn with.
  splits = ('train', 'val')
  if split not in splits:
    raise ValueError(f'streets has no split {split!r}; it has {", ".join(splits)}')
  source = streets.Streets(num_examples, tuple(size), len(splits) * seed + splits.index(split))
  return source.label_set, source
