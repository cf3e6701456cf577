"""The loop of a training, around steps that take no time: what it shows, and what cannot end it."""

import io
import os
import signal
import time

import numpy as np
import pytest
from flax import struct
from rich.console import Console

from if_jax import loop, processes
from if_jax.checkpoints import Checkpoints
from if_jax.configs import default
from if_jax.progress import Progress
from if_jax.stopping import StopSignal


@struct.dataclass
class State:
  """What every state has."""

  skipped: np.ndarray


class Batches:
  """As many as are asked for."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def __iter__(self):
    return self

  def __next__(self):
    return {'image': np.zeros((4, 1))}


@pytest.fixture
def console(monkeypatch):
  """A terminal, of which the text is kept."""
  console = Console(file=io.StringIO(), width=100, force_terminal=True, _environ={})
  monkeypatch.setattr(processes, 'console', lambda: console)
  return console


def run(workdir, *, signal_at=None, on_evaluated=lambda: None):
  """Takes six steps, with a signal in one of them, or before them all at 0."""
  config = default.get_config()
  config.train.num_steps = 6
  config.train.log_every = 1
  config.train.eval_every = 6
  count = 0

  def make_batches(**_):
    if signal_at == 0:
      os.kill(os.getpid(), signal.SIGTERM)
    return Batches()

  def step_fn(state, batch):
    nonlocal count
    count += 1
    if count == signal_at:
      os.kill(os.getpid(), signal.SIGTERM)
    return state, {'loss': np.float32(1), 'skipped_steps': np.int32(0)}

  loop.run_steps(
    step_fn,
    State(np.int32(0)),
    make_batches,
    lambda step, state, beat: ({'miou': 0.5}, {}),
    config=config,
    workdir=str(workdir),
    schedule=lambda step: 0.1,
    on_evaluated=on_evaluated,
  )


def test_a_bar_says_that_a_step_is_being_saved(tmp_path, console, monkeypatch):
  wait = Checkpoints.wait

  def wait_for_the_bar(checkpoints):
    """The bar is drawn a few times a second."""
    for _ in range(200):
      if 'saving step 3, then stopping; a second signal' in console.file.getvalue():
        break
      time.sleep(0.05)
    wait(checkpoints)

  monkeypatch.setattr(Checkpoints, 'wait', wait_for_the_bar)
  with pytest.raises(SystemExit) as caught:
    run(tmp_path, signal_at=3)
  assert caught.value.code == processes.STOPPED
  _, _, after = console.file.getvalue().partition('saving step 3, then stopping; a second signal')
  assert 'stopped after step 3 of 6' in after


def test_a_signal_while_loading_is_not_hidden_and_later_ones_are_printed(
  tmp_path, console, monkeypatch
):
  notes, signals = [], []
  note = Progress.note

  def kept(progress, text):
    notes.append(text)
    note(progress, text)

  class Kept(StopSignal):
    def __exit__(self, *_):
      signals.append((self.is_told, self.show))
      super().__exit__()

  monkeypatch.setattr(Progress, 'note', kept)
  monkeypatch.setattr(loop, 'StopSignal', Kept)
  with pytest.raises(SystemExit):
    run(tmp_path, signal_at=0)
  assert [text.partition(',')[0] for text in notes] == [
    'loading the first images',
    'SIGTERM: saving',
    'saving step 1',
  ]
  # The bar has ended before.
  assert signals[-1] == (True, None)


def test_a_report_that_fails_ends_no_training(tmp_path, console, caplog):
  run(tmp_path, on_evaluated=lambda: 1 / 0)
  assert 'The report is not written: division by zero' in caplog.text
  assert '6/6' in console.file.getvalue()


def test_the_terms_of_side_outputs_are_not_shown():
  side = ('aux_segmentation', 'aux_boundary', 'scale_0.5', 'scale_1.0', 'scale_2.0')
  others = ('loss', 'segmentation', 'boundary', 'inverseform', 'shift_error', 'scale_error')
  unshown = ('gradient_norm', 'images_per_second', 'skipped_steps')
  shown = loop._shown(dict.fromkeys((*side, *others, *unshown, 'learning_rate'), 0.0))
  assert list(shown) == [*others, 'learning rate']
