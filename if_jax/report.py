"""What people see of a run: tables and metrics on disk; pictures, progress come from next door."""

import contextlib
import functools
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
from jax.typing import ArrayLike
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from if_jax.curves import METRICS_FILE, PANELS, learning_curves, read_metrics
from if_jax.pictures import colorize, contact_sheet, error_map, overlay
from if_jax.progress import Progress, introduce

__all__ = [
  'METRICS_FILE',
  'MetricWriter',
  'Progress',
  'colorize',
  'contact_sheet',
  'error_map',
  'introduce',
  'learning_curves',
  'metrics_table',
  'overlay',
  'print_table',
  'read_metrics',
  'save_curves',
]

# Columns of a class's name that stay, however narrow the terminal.
_MIN_CLASS_WIDTH = 8


def metrics_table(
  result: Mapping[str, Any],
  class_names: Sequence[str],
  *,
  markdown: bool = False,
) -> Table:
  """Lays out the scores of each class in percent, and their means beneath.

  Args:
    result: of `iou_from_confusion`, with that of `BoundaryMetrics.compute` where there is one:
      scores in [0, 1], NaN where a class has none.
    class_names: K names.
    markdown: gives it the frame of a Markdown table.

  Returns:
    The table; `print_table` prints it.

  Raises:
    ValueError: the scores are of another number of classes.
  """
  columns = {'IoU': result['iou'], 'precision': result['precision'], 'recall': result['recall']}
  for name in result:
    if name.endswith('_per_class'):
      title = name.removeprefix('boundary_').removesuffix('_per_class')
      columns['boundary IoU' if title == 'iou' else title.capitalize()] = result[name]
  if len(class_names) != len(result['iou']):
    raise ValueError(f'{len(class_names)} class names for scores of {len(result["iou"])} classes')
  if markdown:
    table = Table(box=rich.box.MARKDOWN)
  else:
    # Narrow: all columns of Cityscapes fit a terminal of 80.
    table = Table(box=rich.box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
  table.add_column('class', no_wrap=True, min_width=_MIN_CLASS_WIDTH)
  for title in columns:
    # 'boundary IoU' may take two lines.
    table.add_column(title, justify='right', no_wrap=' ' not in title)
  for i, class_name in enumerate(class_names):
    table.add_row(escape(class_name), *(_percent(scores[i]) for scores in columns.values()))
  if not markdown:
    table.add_section()
  counted = [scores[~np.isnan(scores)] for scores in columns.values()]
  means = [_percent(scores.mean() if scores.size else np.nan) for scores in counted]
  table.add_row('mean', *means, style='bold')
  return table


def print_table(
  result: Mapping[str, Any],
  class_names: Sequence[str],
  console: Console | None = None,
) -> None:
  """Prints `metrics_table` and the scores that have no class.

  Where the output is no terminal, the table is Markdown, without colours and never cut off.

  Args:
    result: as for `metrics_table`.
    class_names: K names.
    console: where to; standard output by default.
  """
  console = console or Console()
  table = metrics_table(result, class_names, markdown=not console.is_terminal)
  if console.is_terminal:
    console.print()
  else:
    console = Console(file=console.file, width=1000, color_system=None)
  console.print(table)
  console.print(
    f'mIoU {_percent(result["miou"])}   '
    f'pixel accuracy {_percent(result["pixel_accuracy"])}   '
    f'frequency-weighted IoU {_percent(result["frequency_weighted_iou"])}   (percent)',
    highlight=False,
  )


def _percent(score: float) -> str:
  return '-' if np.isnan(score) else f'{100 * score:.2f}'


class MetricWriter:
  """Writes numbers to `metrics.jsonl` and, with pictures, to TensorBoard, in a run's directory.

  Each write is one line of JSON, {"step": 20, "train/loss": 0.31}, on disk at once. What is not a
  finite number becomes null. Only one process may write.

  Args:
    workdir: of the run; made if it is not there.
    resume_step: the step a run takes up again. What an earlier, crashed run wrote about later
      steps is cut away; so is a line that it left half written, with or without this step.

  Example:
    with MetricWriter(workdir) as writer:
      writer.write(20, {'loss': 0.31}, prefix='train')
  """

  def __init__(self, workdir: str | os.PathLike, *, resume_step: int | None = None):
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / METRICS_FILE
    if path.exists():
      _cut_away(path, math.inf if resume_step is None else resume_step)
    self._lines = path.open('a', encoding='utf-8')
    self._folder, self._resume_step = workdir / 'tensorboard', resume_step

  @functools.cached_property
  def _events(self):
    # Not sooner: it may take PyTorch two seconds to be imported, and the first step need not wait.
    from if_jax.tensorboard import EventFile

    return EventFile(self._folder, self._resume_step)

  def write(self, step: int, scalars: Mapping[str, ArrayLike], prefix: str = '') -> None:
    """Writes one line; `prefix` stands before each name, with a slash between.

    Raises:
      OSError: the disk is full.
    """
    record: dict[str, float | None] = {'step': int(step)}
    for name, value in scalars.items():
      name = f'{prefix}/{name}' if prefix else name
      if np.ndim(value):
        raise ValueError(f'{name} has shape {np.shape(value)}, but only single numbers are written')
      array = np.asarray(value)
      number = int(array) if np.issubdtype(array.dtype, np.integer) else float(array)
      record[name] = number if math.isfinite(number) else None
    with self._told():
      self._lines.write(json.dumps(record, allow_nan=False) + '\n')
      self._lines.flush()
      for name, value in record.items():
        if name != 'step' and value is not None:
          self._events.add_scalar(step, name, value)
      self._events.flush()

  def image(self, step: int, name: str, array: np.ndarray) -> None:
    """Shows a picture, uint8 [H, W, 3], RGB, in TensorBoard."""
    with self._told():
      self._events.add_image(step, name, array)
      self._events.flush()

  @contextlib.contextmanager
  def _told(self):
    try:
      yield
    except OSError as error:
      raise OSError(
        f'{pathlib.Path(self._lines.name).parent} cannot be written to ({error.strerror}); make '
        'room, and the same command goes on from the newest checkpoint'
      ) from None

  def close(self) -> None:
    """Brings everything to disk."""
    # Each write is on disk already, or has been told to have failed.
    for name in ('_lines', '_events'):
      with contextlib.suppress(OSError):
        # The events may never have been opened.
        if name in self.__dict__:
          getattr(self, name).close()

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *exception) -> None:
    self.close()


def _cut_away(path: pathlib.Path, last_step: float) -> None:
  """Keeps the whole lines up to a step; a crash in between leaves the old file or the new one."""
  kept = [record for record in read_metrics(path) if record['step'] <= last_step]
  text = ''.join(json.dumps(record) + '\n' for record in kept)
  # A file that stays the same also keeps its time, by which a report of it is up to date.
  if text.encode() != path.read_bytes():
    part = path.with_suffix('.part')
    part.write_text(text, encoding='utf-8')
    os.replace(part, path)


def save_curves(workdir: str | os.PathLike, panels: Mapping[str, Sequence[str]] = PANELS) -> None:
  """Draws what `metrics.jsonl` holds into `curves.png`, see `learning_curves`."""
  curves = learning_curves(pathlib.Path(workdir, METRICS_FILE), panels)
  Image.fromarray(curves).save(pathlib.Path(workdir, 'curves.png'))
