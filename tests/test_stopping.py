"""Signals as wishes, and a watchdog that hears no lies."""

import os
import signal
import time

import pytest
from processes import run_python

from if_jax.stopping import Stopped, StopSignal


@pytest.fixture
def ctrl_c():
  """Raises KeyboardInterrupt; a job in the background of a shell would ignore it."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('ctrl_c')
def test_a_signal_is_a_wish_and_a_second_one_is_heeded_at_once(capfd):
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with StopSignal() as stop:
    assert not stop.reached(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    assert stop.reached(2)
    assert capfd.readouterr().err.startswith('SIGTERM: saving, then stopping; a second signal')
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(1)
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_work_that_can_be_done_again_is_left_at_once(capfd):
  with StopSignal() as stop:
    with stop.at_once():
      pass
    with pytest.raises(Stopped), stop.at_once():
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(1)
    # Told before: it is not begun.
    with pytest.raises(Stopped), stop.at_once():
      raise AssertionError


WATCHED = """
import time
from if_jax.stopping import Watchdog

with Watchdog(0):
  time.sleep(0.5)
with Watchdog(0.4) as watchdog:
  for _ in range(10):
    time.sleep(0.1)
    watchdog.beat()
print('alive', flush=True)
with Watchdog(0.4):
  time.sleep(30)
"""


def test_a_watchdog_ends_what_is_silent_and_nothing_else():
  run = run_python('-c', WATCHED, timeout=25)
  assert (run.returncode, run.stdout) == (1, 'alive\n')
  assert 'error: no step ended within 0.4 s (config.train.step_timeout)' in run.stderr
  assert 'line 13 in <module>' in run.stderr
