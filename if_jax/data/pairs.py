"""Pairs of an image file and a label file: finding them in folders."""

import collections
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

IMAGE_ENDINGS = ('.png', '.jpg', '.jpeg', '.bmp', '.ppm', '.tif', '.tiff', '.webp')
_ARCHIVE_ENDINGS = ('.zip', '.tar', '.tar.gz', '.tgz')


class Pair(NamedTuple):
  """An image file and its label file; `name` is what a prediction for it is called."""

  name: str
  image: Path | None
  label: Path | None


class Found(NamedTuple):
  """The files of a split.

  Attributes:
    pairs: the images and labels that belong together, in the order of their names.
    problems: a sentence for each file that has no partner or shares its name with another.
    alone: those files, as pairs that lack one.
    unread: files that lie among them under names that are read as neither.
  """

  pairs: list[Pair]
  problems: list[str]
  alone: list[Pair]
  unread: list[Path]


def find_files(folder: Path, endings: Sequence[str]) -> dict[str, list[Path]]:
  """Finds the files below a folder that have one of the endings, in capitals or not.

  Returns:
    The files by key: their path below `folder` without the ending.
  """
  found = collections.defaultdict(list)
  for path in _files_below(folder):
    if ending := _ending(path, endings):
      key = path.relative_to(folder).as_posix()[: -len(ending)]
      found[key].append(path)
  return found


def find_unread(folder: Path, endings: Sequence[str]) -> list[Path]:
  """Finds the files below a folder that `find_files` leaves out."""
  return sorted(path for path in _files_below(folder) if not _ending(path, endings))


def _files_below(folder: Path) -> Iterator[Path]:
  for directory, _, names in os.walk(folder, onerror=_raise_unless_absent, followlinks=True):
    # A leading dot: hidden files, and the twin that macOS puts beside a file on foreign disks.
    yield from (Path(directory, name) for name in names if not name.startswith('.'))


def _raise_unless_absent(error: OSError):
  # Else os.walk leaves out a folder that it may not read, in silence.
  if not isinstance(error, FileNotFoundError):
    raise error


def _ending(path: Path, endings: Sequence[str]) -> str | None:
  return next((e for e in endings if path.name.lower().endswith(e.lower())), None)


def match_files(
  images: Mapping[str, Sequence[Path]],
  labels: Mapping[str, Sequence[Path]],
  image_pattern: str,
  label_pattern: str,
  name_pattern: str = '{}',
) -> Found:
  """Pairs the image and label files that have the same key.

  Args:
    images: image files by key, from `find_files`.
    labels: label files by key.
    image_pattern: where the image of a key belongs, for messages; '{}' stands for the key.
    label_pattern: where the label of a key belongs.
    name_pattern: the name of a pair.

  Returns:
    The pairs, in the order of their keys, and what is wrong with the others.
  """
  found = Found([], [], [], [])
  for key in sorted(images.keys() | labels.keys()):
    name = name_pattern.format(key)
    image_files, label_files = sorted(images.get(key, ())), sorted(labels.get(key, ()))
    for files in (image_files, label_files):
      if len(files) > 1:
        names = ' and '.join(path.name for path in files)
        found.problems.append(f'{files[0].parent}: {names} differ only in their ending; keep one')
    if not label_files:
      wanted = label_pattern.format(key)
      found.problems.append(f'{image_files[0]}: has no label; add {wanted} or take the image away')
    elif not image_files:
      wanted = image_pattern.format(key)
      found.problems.append(f'{label_files[0]}: has no image; add {wanted} or take the label away')
    else:
      found.pairs.append(Pair(name, image_files.pop(0), label_files.pop(0)))
    found.alone.extend(Pair(name, path, None) for path in image_files)
    found.alone.extend(Pair(name, None, path) for path in label_files)
  return found


def require_files(files: Mapping, wanted: str, folder: Path) -> None:
  """Raises if not a single file was found, and tells what is there instead.

  Raises:
    FileNotFoundError: naming `wanted`, `folder` and what its nearest existing parent holds.
  """
  if files:
    return
  there = folder
  while not there.is_dir() and there != there.parent:
    there = there.parent
  entries = sorted(path.name for path in there.iterdir() if not path.name.startswith('.'))
  more = f' and {len(entries) - 8} more' if len(entries) > 8 else ''
  packed = any(name.lower().endswith(_ARCHIVE_ENDINGS) for name in entries)
  unpack = '; unpack the archive first' if packed else ''
  raise FileNotFoundError(
    f'no {wanted} under {folder}; {there} holds: '
    f'{", ".join(entries[:8]) or "nothing"}{more}{unpack}'
  )
