"""What is shown of a loop: plain lines by their text, the bar by what a terminal is sent."""

import io
import re

import pytest
from rich.console import Console

from if_jax import progress as progress_module
from if_jax.progress import Progress


@pytest.fixture
def clock(monkeypatch):
  """A clock that tests set."""

  class Clock:
    now = 100.0

    def monotonic(self):
      return self.now

  clock = Clock()
  monkeypatch.setattr(progress_module, 'time', clock)
  return clock


def test_progress_without_a_terminal_writes_a_line_every_few_seconds(clock):
  console = Console(file=io.StringIO(), width=30)
  with Progress('train', 100, images_per_step=8, seconds=10, console=console) as progress:
    clock.now += 60  # Compilation, which is not to count in the rate.
    for step in range(1, 101):
      progress.update(step, {'loss': 1 / step} if step % 2 else None)
      clock.now += 2
  lines = console.file.getvalue().splitlines()
  assert lines[0] == 'train 1/100  loss 1'
  assert lines[1] == 'train 6/100  loss 0.2  4.0 images/s  0:03:08 left'
  assert lines[-1] == 'train 100/100  loss 0.0101  4.0 images/s  took 0:04:18'
  assert len(lines) == 21


def test_progress_forgets_an_old_rate(clock):
  console = Console(file=io.StringIO(), width=30)
  with Progress('eval', 1000, seconds=0, console=console) as progress:
    for step in range(100, 200):
      progress.update(step)
      clock.now += 1 if step < 150 else 0.5
  last = console.file.getvalue().splitlines()[-1]
  assert last == 'eval 199/1000  2.0 images/s  0:06:40 left'


def test_a_pause_does_not_linger_in_the_rate(clock):
  console = Console(file=io.StringIO(), width=30)
  with Progress('train', 100, seconds=0, console=console) as progress:
    for step in range(1, 21):
      if step == 10:
        progress.note('evaluating')
        clock.now += 1000
      progress.update(step)
      clock.now += 0.5
  lines = console.file.getvalue().splitlines()
  assert lines[9] == 'train: evaluating' and lines[10] == 'train 10/100'
  assert lines[-1] == 'train 20/100  2.0 images/s  0:00:40 left'


def test_a_terminal_that_moves_no_cursor_gets_lines(clock):
  console = Console(file=io.StringIO(), width=80, force_terminal=True, _environ={'TERM': 'dumb'})
  with Progress('train', 9, note='compiling', console=console) as progress:
    progress.update(9)
  lines = console.file.getvalue().splitlines()
  assert lines == ['train: compiling', 'train 9/9  took 0:00:00']


def test_a_note_is_told_until_the_first_update(clock):
  console = Console(file=io.StringIO(), width=30)
  with Progress('train', 9, completed=4, note='compiling', console=console) as progress:
    progress.update(5)
    progress.say('step 5: mIoU 41.20 %')
  lines = console.file.getvalue().splitlines()
  assert lines == ['train: compiling', 'train 5/9', 'step 5: mIoU 41.20 %']


def on_terminal(width):
  return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def test_progress_on_a_terminal_moves_a_bar():
  console = on_terminal(100)
  with Progress('train', 3, console=console) as progress:
    for step in range(1, 4):
      progress.update(step, {'loss': 0.25})
  text = console.file.getvalue()
  assert '3/3' in text and 'loss 0.25' in text and 'took 0:00:00' in text and '━' in text


@pytest.mark.parametrize('width', [40, 80, 120, 300])
def test_what_is_on_a_terminal_fits_it(width, clock):
  terms = ('loss', 'attention', 'boundary', 'inverseform', 'segmentation', 'learning rate')
  console = on_terminal(width)
  with Progress('train', 123456, images_per_step=16, console=console) as progress:
    for step in range(1, 4):
      progress.update(step, {name: -1.234e-05 * step for name in terms})
      clock.now += 0.1
    progress.note('evaluating at step 3')
    clock.now += 83
    progress._bar.refresh()
    text = console.file.getvalue()
  last = text.rpartition('train')[2].splitlines()
  assert last[-1].rstrip() == 'evaluating at step 3, 0:01:23'
  # A name stays together with its number.
  numbers = [number for line in last[1:-1] for number in re.split('  +', line.strip())]
  assert numbers == [f'{name} -3.702e-05' for name in terms]
  lines = [re.sub('\x1b\\[[0-9;?]*[a-zA-Z]', '', line) for line in text.splitlines()]
  assert max(len(line.rpartition('\r')[2]) for line in lines) <= min(width, 120)
  assert '160.0 images/s' in text


def test_a_line_that_stays_is_above_the_bar():
  console = on_terminal(80)
  with Progress('train', 3, console=console) as progress:
    progress.update(1)
    progress.say('step 1: mIoU 41.20 %')
  before, said, after = console.file.getvalue().partition('step 1: mIoU 41.20 %')
  assert 'train' in before and said and '1/3' in after
