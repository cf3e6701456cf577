"""Pairs of an image file and a label file: finding them in folders, and checking what they hold."""

import collections
import concurrent.futures
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from if_jax.data import decode
from if_jax.data.labels import LabelSet

IMAGE_ENDINGS = ('.png', '.jpg', '.jpeg', '.bmp', '.ppm', '.tif', '.tiff', '.webp')
_MAX_LISTED = 20


class Pair(NamedTuple):
  """An image file and its label file; `name` is what a prediction for it is called."""

  name: str
  image: Path
  label: Path


def find_files(folder: Path, endings: Sequence[str]) -> dict[str, list[Path]]:
  """Finds the files below a folder that have one of the endings, in capitals or not.

  Returns:
    The files by key: their path below `folder` without the ending.
  """
  found = collections.defaultdict(list)
  for directory, _, names in os.walk(folder, followlinks=True):
    for name in names:
      ending = next((e for e in endings if name.lower().endswith(e.lower())), None)
      # A leading dot: hidden files, and the twin that macOS puts beside a file on foreign disks.
      if ending and not name.startswith('.'):
        path = Path(directory, name)
        found[path.relative_to(folder).as_posix().removesuffix(name[-len(ending) :])].append(path)
  return found


def match_files(
  images: Mapping[str, Sequence[Path]],
  labels: Mapping[str, Sequence[Path]],
  image_pattern: str,
  label_pattern: str,
  name_pattern: str = '{}',
) -> tuple[list[Pair], list[str]]:
  """Pairs the image and label files that have the same key.

  Args:
    images: image files by key, from `find_files`.
    labels: label files by key.
    image_pattern: where the image of a key belongs, for messages; '{}' stands for the key.
    label_pattern: where the label of a key belongs.
    name_pattern: the name of a pair.

  Returns:
    The pairs in the order of their keys, and a sentence for each file that has no partner or
    shares its key with another file.
  """
  pairs, problems = [], []
  for key in sorted(images.keys() | labels.keys()):
    image_files, label_files = images.get(key, ()), labels.get(key, ())
    for files in (image_files, label_files):
      if len(files) > 1:
        names = ' and '.join(sorted(path.name for path in files))
        problems.append(f'{files[0].parent}: {names} differ only in their ending; keep one')
    if not label_files:
      wanted = label_pattern.format(key)
      problems.append(f'{image_files[0]}: has no label; add {wanted} or take the image away')
    elif not image_files:
      wanted = image_pattern.format(key)
      problems.append(f'{label_files[0]}: has no image; add {wanted} or take the label away')
    else:
      pairs.append(Pair(name_pattern.format(key), image_files[0], label_files[0]))
  return pairs, problems


def require_files(files: Mapping, wanted: str, folder: Path):
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
  raise FileNotFoundError(
    f'no {wanted} under {folder}; {there} holds: {", ".join(entries[:8]) or "nothing"}{more}'
  )


def check_pairs(
  what: str, pairs: Sequence[Pair], problems: Sequence[str], label_set: LabelSet
) -> None:
  """Decodes every file, so that nothing is found wrong after the first training step.

  Args:
    what: the data set and split, for the message.
    pairs: the files.
    problems: what is known already to be wrong.
    label_set: what the label files may hold.

  Raises:
    ValueError: with every problem of the set, the first 20 in words: broken files, labels of
      another size than their image, ids that the label set does not know, and `problems`.
  """
  console = Console(stderr=True)
  with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    results = track(
      pool.map(functools.partial(_problems_of, label_set=label_set), pairs),
      f'Checking {what}',
      total=len(pairs),
      console=console,
      disable=not console.is_terminal,
    )
    problems = [*problems, *(problem for result in results for problem in result)]
  if problems:
    count = f'{len(problems)} problem{"s" if len(problems) > 1 else ""}'
    more = len(problems) - _MAX_LISTED
    lines = problems[:_MAX_LISTED] + ([f'and {more} more'] if more > 0 else [])
    raise ValueError(f'{what}: {count} with its files\n  ' + '\n  '.join(lines))


def _problems_of(pair: Pair, label_set: LabelSet) -> list[str]:
  problems, sizes = [], []
  try:
    sizes.append(decode.decode_image(pair.image.read_bytes(), str(pair.image)).shape[:2])
  except (OSError, ValueError) as error:
    problems.append(str(error))
  try:
    ids = read_label_ids(pair.label, label_set)
    sizes.append(ids.shape)
    label_set.to_train_ids(ids, str(pair.label))
  except (OSError, ValueError) as error:
    problems.append(str(error))
  if len(set(sizes)) > 1:
    (height, width), (label_height, label_width) = sizes
    problems.append(
      f'{pair.label}: the label is {label_height}x{label_width}, its image {height}x{width} '
      '(height x width); a label needs one id for each pixel of its image'
    )
  return problems


def read_label_ids(path: Path, label_set: LabelSet) -> np.ndarray:
  """Reads a label file that holds ids, or the colours of the label set.

  Returns:
    uint8 or int32 [H, W], label ids.

  Raises:
    ValueError: if the file is broken or holds a colour that the label set does not know.
  """
  data, source = path.read_bytes(), str(path)
  if decode.is_color_label(data, source):
    return label_set.color_to_ids(decode.decode_color_label(data, source), source)
  return decode.decode_label(data, source)
