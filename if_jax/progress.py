"""How far a loop is, for people: a bar on a terminal, plain lines in a log file."""

import collections
import datetime
import math
import time
from collections.abc import Iterator, Mapping

import numpy as np
from jax.typing import ArrayLike
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

# Columns; on wider terminals a bar gets no longer.
_MAX_WIDTH = 120
# Columns for 'device' and its like.
_NAME_WIDTH = 8


def introduce(console: Console, **lines: str) -> None:
  """Prints what a run has before it, a line each with its name in front."""
  for name, text in lines.items():
    _print(console, f'{name:{_NAME_WIDTH}}{text}')


class Progress:
  """Shows how far a loop is, its numbers, its rate and the time it still needs.

  On a terminal a bar that moves, with the numbers beneath; elsewhere, such as in a log file, a
  plain line at the first update, then every `seconds`, and at the end.

  Args:
    description: a word or two to stand in front, such as 'train'.
    total: how many steps (or images) make a whole.
    completed: how many are done before the first update.
    images_per_step: turns steps into images per second.
    note: what goes on until the first update, see `note`.
    seconds: between two plain lines.
    console: where to; standard error by default.

  Attributes:
    is_bar: whether there is a bar: the output is a terminal that can move its cursor.

  Example:
    with Progress('train', total=400, images_per_step=16) as progress:
      for step in range(1, 401):
        progress.update(step, {'loss': 0.31})
  """

  def __init__(
    self,
    description: str,
    total: int,
    *,
    completed: int = 0,
    images_per_step: int = 1,
    note: str = '',
    seconds: float = 15.0,
    console: Console | None = None,
  ):
    self._description = description
    self._total = total
    self._completed = completed
    self._images_per_step = images_per_step
    self._seconds = seconds
    self._console = console or Console(stderr=True)
    # A terminal that cannot move its cursor (TERM=dumb) gets lines, too.
    is_able = self._console.is_terminal and not self._console.is_dumb_terminal
    self.is_bar = is_able and not self._console.quiet
    self._scalars = {}
    self._start = time.monotonic()
    self._note, self._note_since = note, self._start
    self._bar = _Bar(self._lines_beneath, self._console, disable=not self.is_bar)
    self._task = self._bar.add_task(description, total=total, completed=completed, status='')
    # The rate is that of the last updates, so that neither compilation nor a pause lingers in it.
    self._recent = collections.deque(maxlen=20)
    self._next_line = -math.inf

  def __enter__(self) -> 'Progress':
    self._bar.start()
    self.note(self._note)
    return self

  def __exit__(self, *exception) -> None:
    self._note = ''
    self._bar.stop()

  def note(self, text: str) -> None:
    """Says what goes on instead of steps, such as 'compiling'; an update ends it.

    With a bar this prints nothing itself, so a signal handler may call it.
    """
    self._note, self._note_since = text, time.monotonic()
    if text and not self.is_bar:
      _print(self._console, f'{self._description}: {text}')

  def say(self, text: str) -> None:
    """Prints a line that stays, above the bar."""
    _print(self._console, text)

  def update(self, completed: int, scalars: Mapping[str, ArrayLike] | None = None) -> None:
    """Says how many steps are done, and the numbers to show; without, the last ones stay."""
    now = time.monotonic()
    if self._note:
      self._recent.clear()
    self._note = ''
    self._completed = completed
    self._recent.append((now, completed))
    if scalars is not None:
      self._scalars = {name: float(np.asarray(value)) for name, value in scalars.items()}
    pace = '  '.join(self._pace(now))
    self._bar.update(self._task, completed=completed, status=pace)
    if not self.is_bar and (now >= self._next_line or completed >= self._total):
      self._next_line = now + self._seconds
      parts = [f'{self._description} {completed}/{self._total}', *self._numbers(), pace]
      _print(self._console, '  '.join(parts).rstrip())

  def _numbers(self) -> list[str]:
    return [f'{name} {value:.4g}' for name, value in self._scalars.items()]

  def _pace(self, now: float) -> Iterator[str]:
    then, completed_then = self._recent[0]
    # Positive from the second update on.
    steps_per_second = (self._completed - completed_then) / max(now - then, 1e-9)
    if steps_per_second > 0:
      yield f'{steps_per_second * self._images_per_step:.1f} images/s'
    if self._completed >= self._total:
      yield f'took {_duration(now - self._start)}'
    elif steps_per_second > 0:
      yield f'{_duration((self._total - self._completed) / steps_per_second)} left'

  def _lines_beneath(self, width: int) -> Iterator[str]:
    """The numbers, none of them broken over two lines; then the note."""
    line = ''
    for number in self._numbers():
      if line and len(line) + 2 + len(number) > width:
        yield line
        line = ''
      line += f'{"  " if line else ""}{number}'
    if line:
      yield line
    if note := self._note:
      yield f'{note}, {_duration(time.monotonic() - self._note_since)}'


class _Bar(ProgressBar):
  """A bar with lines beneath, which are asked for anew each time that it is drawn."""

  def __init__(self, lines_beneath, console: Console, *, disable: bool):
    # The base class draws it before it is whole.
    self._width = lambda: min(console.width, _MAX_WIDTH)
    self._lines_beneath = lines_beneath
    super().__init__(
      TextColumn('{task.description}'),
      BarColumn(bar_width=None),
      MofNCompleteColumn(),
      TextColumn('{task.fields[status]}'),
      console=console,
      # Drawing costs time that a computation on few cores could use.
      refresh_per_second=4,
      expand=True,
      disable=disable,
    )

  def get_renderables(self) -> Iterator[RenderableType]:
    table = self.make_tasks_table(self.tasks)
    table.width = self._width()
    yield table
    for line in self._lines_beneath(self._width()):
      yield Text(line, style='dim', no_wrap=True, overflow='ellipsis')


def _print(console: Console, text: str) -> None:
  console.print(text, markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))
