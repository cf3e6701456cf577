"""Running code in processes of its own: other device counts, the real command line."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_python(*arguments: str, devices: int = 1, timeout: float = 300):
  """Runs this Python on forced host devices, killed hard if it hangs.

  Compiles with few optimisations: that takes a third of the time.
  """
  flags = f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0'
  # Collectives of several devices on few cores need threads to wait in.
  environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'NPROC': '16'}
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=timeout,
  )


def metrics_of(workdir: Path) -> list[dict]:
  """What a run wrote down, but for how fast it was."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [{k: v for k, v in line.items() if k != 'train/images_per_second'} for line in lines]


def run_main(*arguments: str, **options):
  """Runs `python main.py` with these flags."""
  return run_python('main.py', *arguments, **options)


# A training by the real command that starts in seconds: of tiny_main.py, on scenes of 32 x 64.
TINY = (
  '--mode=train',
  '--config.data.streets.num_train=6',
  '--config.data.streets.num_val=2',
  '--config.data.streets.size=(32,64)',
  '--config.augment.crop_size=(32,64)',
  '--config.loss.inversenet=',
  '--config.train.batch_size=4',
  '--config.train.log_every=1',
  '--config.train.eval_every=1000',
)


class Run:
  """`python main.py` with a tiny network, going on in the background; leaving it kills it hard.

  Args:
    workdir: of the run; beside it a log file for each start.
    *arguments: further flags.
    devices: to force out of the host.
    start_new_session: so that its process group can be sent a signal.
    **environment: variables.
  """

  def __init__(
    self,
    workdir: Path,
    *arguments: str,
    devices: int = 1,
    start_new_session: bool = False,
    **environment: str,
  ):
    self.workdir = workdir
    count = len(list(workdir.parent.glob(f'{workdir.name}.*.log')))
    self.log_file = workdir.parent / f'{workdir.name}.{count}.log'
    flags = f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0'
    with self.log_file.open('w') as log:
      self.process = subprocess.Popen(
        [sys.executable, 'tests/tiny_main.py', *TINY, f'--workdir={workdir}', *arguments],
        cwd=ROOT,
        env={**os.environ, 'XLA_FLAGS': flags, 'NPROC': '16', **environment},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=start_new_session,
      )

  def __enter__(self) -> 'Run':
    return self

  def __exit__(self, *_):
    self.process.kill()
    self.process.wait()

  @property
  def log(self) -> str:
    return self.log_file.read_text(errors='replace')

  def wait_for(self, condition, timeout: float = 60):
    """Waits until `condition()`; an error if the run ends or the time is up before it."""
    deadline = time.monotonic() + timeout
    while not condition():
      assert self.process.poll() is None and time.monotonic() < deadline, self.log
      time.sleep(0.01)

  def wait_for_step(self, step: int):
    """Waits until a step is written down."""
    path = self.workdir / 'metrics.jsonl'
    self.wait_for(lambda: path.exists() and len(path.read_text().splitlines()) >= step)

  def end(self, timeout: float = 60) -> int:
    """Waits for its end and gives the exit status."""
    return self.process.wait(timeout)


def run_tiny(workdir: Path, *arguments: str, timeout: float = 60, **options) -> Run:
  """Runs it to a successful end."""
  with Run(workdir, *arguments, **options) as run:
    assert run.end(timeout) == 0, run.log
  return run


def start_together(
  workdir: Path, *arguments: str, each: Sequence[str] = ('--config.seed=0',) * 2, **options
) -> list[Run]:
  """Starts the processes of one job, as many as there are flags of one `each`."""
  with socket.create_server(('127.0.0.1', 0)) as probe:
    port = probe.getsockname()[1]
  return [
    Run(
      workdir,
      f'--coordinator=127.0.0.1:{port}',
      f'--num_processes={len(each)}',
      f'--process_id={i}',
      '--heartbeat_timeout=10',
      flag,
      *arguments,
      **options,
    )
    for i, flag in enumerate(each)
  ]
