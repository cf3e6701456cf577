"""Checking a data set: every file is read once, and all that is wrong is told in one go."""

import collections
import functools
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import rich.box
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from if_jax.data.checks import Finding, examine, examine_pair
from if_jax.data.datasets import IN_FOLDERS, Dataset, find_pairs, open_root
from if_jax.data.labels import IGNORE, LabelSet

# Image sizes that the summary names.
_NUM_SIZES = 4


class _Split(NamedTuple):
  name: str
  label_set: LabelSet
  findings: list[Finding]
  problems: list[str]
  notes: list[str]


def check_data(config: ConfigDict) -> int:
  """Reads every file of both splits of `config.data` and prints each problem, or a summary.

  Args:
    config: see configs/default.py; nothing is prepared, and nothing is written.
  Returns:
    How many problems there are.
  Raises:
    FileNotFoundError: there is no such folder or class file.
    ValueError: an unknown data set or split, or a class file that is wrong.
  """
  _silence_decoders()
  check = _check_files if config.data.name in IN_FOLDERS else _check_examples
  names = dict.fromkeys((config.data.train_split, config.data.eval_split))
  splits = [check(config, name) for name in names]
  num_problems = sum(len(split.problems) for split in splits)
  for split in splits:
    for problem in split.problems:
      _print_line(problem)
    if not num_problems:
      _print_summary(config.data.name, split)
  for warning in [*(note for split in splits for note in split.notes), *_repeated(splits)]:
    _print_line(f'warning: {warning}')
  counts = [f'{_count(len(x.problems), "problem")} in {config.data.name} {x.name}' for x in splits]
  print(', '.join(counts))
  return num_problems


def _silence_decoders():
  """Libraries print what they stumble over, without the file's name; ours are the words for it."""
  cv2.utils.logging.setLogLevel(0)
  logging.getLogger('PIL').setLevel(logging.CRITICAL)
  warnings.filterwarnings('ignore', module='PIL')
  warnings.simplefilter('error', Image.DecompressionBombWarning)


def _check_files(config: ConfigDict, split: str) -> _Split:
  root, label_set = open_root(config.data.name, config.data.root)
  try:
    found = find_pairs(config.data.name, split, root)
  except OSError as error:
    return _Split(split, label_set, [], [str(error)], [])
  examine_one = functools.partial(examine_pair, label_set=label_set)
  findings = examine(f'{config.data.name} {split}', examine_one, [*found.pairs, *found.alone])
  problems = [*found.problems, *(problem for x in findings for problem in x.problems)]
  unread = collections.defaultdict(list)
  for path in found.unread:
    unread[path.suffix].append(path)
  notes = [
    f'{paths[0]}{_and_more(len(paths) - 1)}: not read, since the name is not that of an image'
    for paths in unread.values()
  ]
  return _Split(split, label_set, findings, problems, notes)


def _check_examples(config: ConfigDict, split: str) -> _Split:
  """Of a data set that has no files of its own: drawn, or prepared by TFDS."""
  from if_jax.settings import load_split  # Takes seconds, for it imports jax.

  dataset = load_split(config, split)
  try:
    indices = range(len(dataset))
  except (OSError, ValueError) as error:  # A file of TFDS's is gone or cut off.
    return _Split(split, dataset.label_set, [], [str(error)], [])
  examine_one = functools.partial(_examine_example, dataset)
  findings = examine(f'{config.data.name} {split}', examine_one, indices)
  problems = [problem for x in findings for problem in x.problems]
  return _Split(split, dataset.label_set, findings, problems, [])


def _examine_example(dataset: Dataset, index: int) -> Finding:
  finding = Finding()
  with finding.noting():
    example = dataset[index]
    name = f'{dataset.split}/{example["name"]}'
    with finding.noting():
      finding.see_image(example['image'], f'{name} (image)')
    finding.see_label(example['label'], f'{name} (label)', dataset.label_set)
  return finding


def _repeated(splits: Sequence[_Split]) -> Iterator[str]:
  """A sentence for each image whose content is that of an earlier one."""
  seen = {}
  for split in splits:
    for finding in split.findings:
      if finding.digest is None:
        continue
      image, name = seen.setdefault(finding.digest, (finding.image, split.name))
      if name != split.name:
        yield f'{finding.image}: trained on as {image}, too; take it out of one of the splits'
      elif image != finding.image:
        yield f'{finding.image}: the same image as {image}; take one away, or it counts twice'


def _print_summary(name: str, split: _Split):
  class_names, ids = split.label_set.class_names, split.label_set.label_ids
  counts = [finding.pixels for finding in split.findings if finding.pixels is not None]
  pixels, images = np.sum(counts, axis=0), np.sum([count > 0 for count in counts], axis=0)
  ignored, labelled = pixels[IGNORE], pixels[: len(ids)].sum()
  print(
    f'{name} {split.name}: {_count(len(split.findings), "image")} of {_sizes(split.findings)} '
    f'(height x width), {ignored / pixels.sum():.1%} of the pixels ignored'
  )
  is_terminal = sys.stdout.isatty()
  table = Table(box=rich.box.SIMPLE_HEAD if is_terminal else rich.box.MARKDOWN)
  table.add_column('class')
  for title in ('id', 'pixels', 'share', 'images'):
    table.add_column(title, justify='right', no_wrap=True)
  for i, class_name in enumerate(class_names):
    share = f'{pixels[i] / max(labelled, 1):.2%}'
    table.add_row(escape(class_name), str(ids[i]), f'{pixels[i]:,}', share, str(images[i]))
  # What is no terminal is not as wide as one, either.
  Console(width=None if is_terminal else 1000).print(table)
  if missing := [class_names[i] for i in range(len(ids)) if not pixels[i]]:
    print(f'never in {split.name}: {", ".join(missing)}')
  print()


def _sizes(findings: Sequence[Finding]) -> str:
  """'1024x2048', or '1024x2048 (499), 512x1024 (1)'."""
  sizes = (x.size for x in findings if x.size)
  counts = collections.Counter(f'{height}x{width}' for height, width in sizes).most_common()
  if len(counts) == 1:
    return counts[0][0]
  listed = [f'{size} ({count})' for size, count in counts[:_NUM_SIZES]]
  return f'{", ".join(listed)}{_and_more(len(counts) - len(listed))}'


def _and_more(count: int) -> str:
  return f' and {count} more' if count else ''


def _count(count: int, noun: str) -> str:
  return f'{count or "no"} {noun}{"s" * (count != 1)}'


def _print_line(text: str):
  """One line on any terminal, whatever the names of the files are made of."""
  print(''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text))
