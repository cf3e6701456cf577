"""Ends of a run that are not its last step: a signal, and a step that never ends."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class StopSignal:
  """Turns SIGTERM and SIGINT into a wish to stop after a step; a second one stops at once.

  Among several processes it is enough that one is told: all stop after the same step.

  Attributes:
    is_told: whether this process has heard a signal.
    show: shows a sentence without printing, where a bar is drawn that it would break; None: the
      sentence is written to standard error.
  Example:
    with StopSignal() as stop:
      for step in range(1, num_steps + 1):
        ...
        if stop.reached(step):
          break
  """

  def __init__(self):
    self.is_told = self._at_once = False
    self._handlers = {}
    self.show: Callable[[str], None] | None = None

  def __enter__(self) -> 'StopSignal':
    if threading.current_thread() is threading.main_thread():
      # JAX listens for SIGTERM where there are several processes.
      mine = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
      self._handlers = {number: signal.signal(number, self._tell) for number in mine}
    return self

  def __exit__(self, *_):
    for number, handler in self._handlers.items():
      signal.signal(number, handler)
    self._handlers = {}

  def reached(self, step: int) -> bool:
    """Whether to stop after this step; to be asked after every step, by every process."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.is_told

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """While the body runs, a signal raises `Stopped` in it; several processes let it end."""
    self._at_once = jax.process_count() == 1
    try:
      if self._at_once and self.is_told:
        raise Stopped
      yield
    finally:
      self._at_once = False

  def _tell(self, number, frame):
    self.is_told = True
    self.__exit__()
    text = f'{signal.Signals(number).name}: saving, then stopping; a second signal stops at once'
    if self.show:
      self.show(text)
    else:
      # `print` may be what was interrupted, and does not do two things at a time.
      os.write(2, f'{text}\n'.encode())
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
    if self._at_once:
      raise Stopped


class Stopped(BaseException):
  """A signal came during work that can be done again; like Ctrl-C, no error that one catches."""


class Watchdog:
  """Ends the process, with a reason and a stack trace, if it hears nothing for too long.

  So a job ends whose processes wait for one that is alive but stuck. Time that the process itself
  was stopped does not count.

  Args:
    seconds: how long a silence may be; 0: for ever.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._silence = 0.0
    self._done = threading.Event()

  def __enter__(self) -> 'Watchdog':
    if self._seconds:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_):
    self._done.set()

  def beat(self) -> None:
    """Says that work goes on."""
    self._silence = 0.0

  def _watch(self):
    interval = min(1.0, self._seconds / 4)
    then = time.monotonic()
    while not self._done.wait(interval):
      now = time.monotonic()
      self._silence += min(now - then, 2 * interval)
      then = now
      if self._silence > self._seconds:
        print(
          f'error: no step ended within {self._seconds:g} s (config.train.step_timeout); another '
          'process may hang, or the step is that slow. Where this one is:',
          file=sys.stderr,
        )
        faulthandler.dump_traceback()
        sys.stderr.flush()
        os._exit(1)
