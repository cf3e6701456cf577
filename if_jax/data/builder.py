"""Pairs of files as a prepared TFDS data set, written and read without TensorFlow.

TFDS's `GeneratorBasedBuilder` will not do: beyond 1000 MiB in a split its shuffler goes through
TensorFlow's file system. `ShardBasedBuilder` writes in order, straight from the files.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from if_jax.data import decode
from if_jax.data.checks import check_pairs
from if_jax.data.labels import LabelSet
from if_jax.data.pairs import Pair

_SHARD_BYTES = 256 << 20
_REMEDY = (
  'delete this folder and prepare the data set again (a run does so by itself, except for '
  'tfds:cityscapes)'
)


# TFDS has no types.
class FolderBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A TFDS builder of one split from pairs of files, in their order and with their bytes.

  The features are `image`, `segmentation_label`, both as in the files, and `name`. Only a label
  file that is coded by colours changes: it is written as a PNG of label ids.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(
    self, name: str, split: str, pairs: Sequence[Pair], label_set: LabelSet, data_dir: Path
  ):
    self.name = name
    self._split, self._pairs, self._label_set = split, pairs, label_set
    # Called as each pair is written.
    self.on_pair: Callable[[], None] = lambda: None
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'segmentation_label': tfds.features.Image(shape=(None, None, 1)),
      'name': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable]]:
    per_shard = math.ceil(len(self._pairs) / (_num_bytes(self._pairs) // _SHARD_BYTES + 1))
    starts = range(0, len(self._pairs), per_shard)
    return {self._split: [functools.partial(self._examples, i, i + per_shard) for i in starts]}

  def _examples(self, start: int, stop: int) -> Iterator[tuple[str, dict]]:
    for pair in self._pairs[start:stop]:
      assert pair.image and pair.label, 'those that lack one are not among them'
      example = {
        # A path and not its bytes: TFDS keeps the examples of a shard until the shard is written.
        'image': os.fspath(pair.image),
        'segmentation_label': self._label_bytes(pair.label),
        'name': pair.name,
      }
      yield pair.name, example
      self.on_pair()

  def _label_bytes(self, path: Path) -> bytes:
    data, source = path.read_bytes(), str(path)
    if not decode.is_color_label(data, source):
      return data
    ids = self._label_set.color_to_ids(decode.decode_color_label(data, source), source)
    png = io.BytesIO()
    Image.fromarray(ids).save(png, 'PNG')
    return png.getvalue()

  def _log_download_bytes(self):
    """TFDS would print that it downloads."""

  def _log_download_done(self):
    """As above."""


@dataclasses.dataclass(frozen=True)
class Records:
  """Random access to the examples of a prepared TFDS data set, images undecoded.

  Every process that reads opens its own files: what is pickled is where they are.

  Attributes:
    directory: the version folder of the TFDS data set.
    split: its split.
    fingerprint: what identifies the data, in `repr`.
    to_sample: a module-level function from the features of an example to a sample.
  """

  directory: str
  split: str
  fingerprint: str
  to_sample: Callable[[dict], Any]

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Any:
    try:
      example = self._examples[index]
      # Of a file that ends early, array_record gives empty records.
      reason = 'cut off' if any(value is None for value in example.values()) else ''
    except (RuntimeError, DecodeError) as error:  # array_record's own, and that of a TFRecord.
      reason = str(error).splitlines()[0]
    if reason:
      raise ValueError(
        f'{self.directory}: example {index} of {self.split} cannot be read ({reason}); {_REMEDY}'
      )
    return self.to_sample(example)

  def __getstate__(self) -> dict:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  def __repr__(self) -> str:
    return f'Records({self.split!r}, {self.fingerprint!r})'

  @functools.cached_property
  def _examples(self):
    builder = open_prepared(self.directory)
    features = builder.info.features
    undecoded = {
      name: tfds.decode.SkipDecoding()
      for name, feature in features.items()
      if isinstance(feature, tfds.features.Image)
    }
    if builder.info.file_format.value == 'tfrecord':
      parse = functools.partial(features.deserialize_example_np, decoders=undecoded)
      return _TFRecords(builder.info.splits[self.split].filepaths, parse)
    return builder.as_data_source(self.split, decoders=undecoded)


def open_prepared(directory: str | os.PathLike) -> tfds.core.DatasetBuilder:
  """Opens a data set that TFDS has prepared.

  Args:
    directory: its version folder.

  Raises:
    ValueError: what it says of itself, dataset_info.json and features.json, cannot be read.
  """
  with _damage_told(directory):
    return tfds.builder_from_directory(directory)


@contextlib.contextmanager
def _damage_told(directory: str | os.PathLike) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # Of eight types: TFDS parses JSON into messages, and asserts.
    reason = str(error).partition('\n')[0][:200]
    raise ValueError(f'{directory}: cannot be read ({reason}); {_REMEDY}') from error


class _TFRecords:
  """Random access to TFRecord files, TFDS's usual format, which TFDS reads with TensorFlow only.

  A record is its length in 8 bytes, 4 bytes of checksum, the data, 4 bytes of checksum.
  """

  def __init__(self, paths: Sequence[os.PathLike], parse: Callable[[bytes], dict]):
    self._parse = parse
    self._places = [place for path in paths for place in self._scan(path)]

  @staticmethod
  def _scan(path: os.PathLike) -> Iterator[tuple[os.PathLike, int, int]]:
    size = os.stat(path).st_size
    with open(path, 'rb') as file:
      while header := file.read(12):
        start = file.tell()
        length = struct.unpack('<Q', header[:8])[0] if len(header) == 12 else size
        if start + length + 4 > size:
          raise ValueError(f'{path}: cut off or no TFRecord file; {_REMEDY}')
        yield path, start, length
        file.seek(length + 4, os.SEEK_CUR)

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> dict:
    path, start, length = self._places[index]
    with open(path, 'rb') as file:
      file.seek(start)
      return self._parse(file.read(length))


def prepare(
  name: str,
  split: str,
  pairs: Sequence[Pair],
  problems: Sequence[str],
  label_set: LabelSet,
  cache_dir: str | Path | None = None,
) -> Records:
  """Checks every pair of a split and writes it as a TFDS data set, unless that has been done.

  What was written is found again by a fingerprint of the files' paths, sizes and times and of the
  label set, so a folder that has changed is checked and written anew. One process prepares and
  others wait for it; what an interrupted run left is removed.

  Args:
    name: the data set, in letters, digits and '_'.
    split: the split, in letters, digits, '-' and '_'.
    pairs: the files.
    problems: what is known already to be wrong with the folder.
    label_set: what the label files may hold.
    cache_dir: where to write; None for TFDS's own place, `$TFDS_DATA_DIR` or
      `~/tensorflow_datasets`.

  Returns:
    The records, giving `{'image': bytes, 'label': bytes, 'name': str}`.

  Raises:
    ValueError: listing everything that is wrong with the files, or naming what was prepared and
      has been damaged since.
    OSError: if the disk has no room for them.
  """
  fingerprint = _fingerprint(name, split, pairs, label_set)
  cache_dir = cache_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  data_dir = Path(cache_dir).expanduser().absolute() / 'if_jax' / f'{split}-{fingerprint}'
  data_dir.mkdir(parents=True, exist_ok=True)
  # TFDS keeps the name 'all' for the union of all splits.
  written_split = 'data' if split == 'all' else split
  with _locked(data_dir / 'lock'):
    with _damage_told(data_dir):
      builder = FolderBuilder(name, written_split, pairs, label_set, data_dir)
      is_prepared = builder.data_path.exists()
      if is_prepared and builder.info.splits[written_split].num_examples != len(pairs):
        raise ValueError('it holds another number of examples')
    if problems or not is_prepared:
      check_pairs(f'{name} {split}', pairs, problems, label_set)
      for unfinished in (data_dir / name).glob('incomplete.*'):
        shutil.rmtree(unfinished)
      needed, free = _num_bytes(pairs), shutil.disk_usage(data_dir).free
      if needed > free:
        raise OSError(
          f'{name} {split} takes {needed >> 20} MiB in {cache_dir}, where {free >> 20} MiB are '
          'free; make room or give another cache_dir'
        )
      with _bar(f'Writing {name} {split}', len(pairs)) as builder.on_pair:
        builder.download_and_prepare(download_dir=data_dir / 'downloads')
  return Records(str(builder.data_path), written_split, fingerprint, _sample_of_folder)


@contextlib.contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[[], None]]:
  """Shows a bar, on a terminal, that what it gives moves on by one."""
  console = Console(stderr=True)
  with Progress(console=console, disable=not console.is_terminal) as progress:
    yield functools.partial(progress.advance, progress.add_task(description, total=total))


def _sample_of_folder(example: dict) -> dict:
  return {
    'image': example['image'],
    'label': example['segmentation_label'],
    'name': example['name'].decode(),
  }


def _files(pair: Pair) -> list[Path]:
  return [path for path in (pair.image, pair.label) if path]


def _num_bytes(pairs: Sequence[Pair]) -> int:
  return sum(path.stat().st_size for pair in pairs for path in _files(pair))


def _fingerprint(name: str, split: str, pairs: Sequence[Pair], label_set: LabelSet) -> str:
  digest = hashlib.sha256(repr((name, split)).encode())
  digest.update(label_set.colors.tobytes() + label_set.label_ids.tobytes())
  digest.update(repr((label_set.ignored_ids, label_set.ignored_colors)).encode())
  for pair in pairs:
    for path in _files(pair):
      stat = path.stat()
      digest.update(repr((os.path.abspath(path), stat.st_size, stat.st_mtime_ns)).encode())
  return digest.hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
  """Lets one process in at a time; when a process dies, the system frees its lock."""
  with open(path, 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
