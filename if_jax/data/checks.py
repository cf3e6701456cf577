"""Decoding every file of a data set once, and telling everything that is wrong with them."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from if_jax.data import decode
from if_jax.data.labels import LabelSet
from if_jax.data.pairs import Pair

# What the largest image takes without compression: four channels of 16 bits, and its header.
_MAX_BYTES = 8 * decode.MAX_PIXELS + (1 << 20)
_MAX_LISTED = 20


@dataclasses.dataclass
class Finding:
  """What is in an image and its label, and a sentence for everything that is wrong with them.

  Attributes:
    problems: the sentences.
    image: the name of the image.
    size: (height, width) of the image; None if it is broken.
    pixels: int64 [256], how many pixels have each train id; None if the label is broken or holds
      other ids.
    digest: of the image's bytes, the same for images of the same content; None if it is broken.
  """

  problems: list[str] = dataclasses.field(default_factory=list)
  image: str = ''
  size: tuple[int, int] | None = None
  pixels: np.ndarray | None = None
  digest: bytes | None = None

  @contextlib.contextmanager
  def noting(self) -> Iterator[None]:
    """What is raised within becomes a problem."""
    try:
      yield
    except OSError as error:
      reason = error.strerror or error
      self.problems.append(f'{error.filename}: cannot be read ({reason}); mend or replace it')
    except ValueError as error:
      self.problems.append(str(error))

  def see_image(self, data: bytes, source: str) -> None:
    """Decodes an image; raises ValueError for what is wrong with it."""
    self.image = source
    self.size = decode.decode_image(data, source).shape[:2]
    self.digest = hashlib.sha256(data).digest()
    decode.require_upright(data, source)

  def see_label(self, data: bytes, source: str, label_set: LabelSet) -> None:
    """Decodes the label of the image seen before; raises ValueError as that does."""
    is_color = decode.is_color_label(data, source)
    pixels = (decode.decode_color_label if is_color else decode.decode_label)(data, source)
    if self.size and self.size != pixels.shape[:2]:
      (height, width), (label_height, label_width) = self.size, pixels.shape[:2]
      self.problems.append(
        f'{source}: the label is {label_height}x{label_width}, its image {height}x{width} '
        '(height x width); a label needs one id for each pixel of its image'
      )
    with self.noting():
      decode.require_upright(data, source)
    ids = label_set.color_to_ids(pixels, source) if is_color else pixels
    self.pixels = np.bincount(label_set.to_train_ids(ids, source).ravel(), minlength=256)


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
  findings = examine(what, functools.partial(examine_pair, label_set=label_set), pairs)
  problems = [*problems, *(problem for finding in findings for problem in finding.problems)]
  if problems:
    count = f'{len(problems)} problem{"s" if len(problems) > 1 else ""}'
    more = len(problems) - _MAX_LISTED
    lines = problems[:_MAX_LISTED] + ([f'and {more} more'] if more > 0 else [])
    raise ValueError(f'{what}: {count} with its files\n  ' + '\n  '.join(lines))


def examine(what: str, examine_one: Callable[..., Finding], items: Sequence) -> list[Finding]:
  """Examines all items in threads; on a terminal, a bar shows how far it is, elsewhere a line."""
  console = Console(stderr=True)
  if not console.is_terminal:
    print(f'Checking {what}: {len(items)} images and labels', file=sys.stderr, flush=True)
  pool = concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))
  try:
    findings = track(
      pool.map(examine_one, items),
      f'Checking {what}',
      total=len(items),
      console=console,
      disable=not console.is_terminal,
    )
    return list(findings)
  finally:
    # After Ctrl-C, without the thousands of items that wait.
    pool.shutdown(cancel_futures=True)


def examine_pair(pair: Pair, label_set: LabelSet) -> Finding:
  """Decodes the files of a pair, or the one file there is of it."""
  finding = Finding()
  if pair.image:
    with finding.noting():
      finding.see_image(_read(pair.image), str(pair.image))
  if pair.label:
    with finding.noting():
      finding.see_label(_read(pair.label), str(pair.label), label_set)
  return finding


def _read(path: Path) -> bytes:
  """Reads a file that may be anything: a pipe that never ends, or more than fits into memory."""
  status = path.stat()
  if not stat.S_ISREG(status.st_mode):
    raise ValueError(f'{path}: a pipe or device and no file; take it away')
  if status.st_size > _MAX_BYTES:
    raise ValueError(
      f'{path}: {status.st_size >> 20} MiB, more than an image of {decode.MAX_PIXELS} pixels can '
      'have; replace the file'
    )
  return path.read_bytes()
