"""Several processes of one job: the same results, and an end for all when one of them ends.

In full: python -m pytest -rP -m 'slow or not slow' tests/test_processes.py
"""

import contextlib
import json
import random
import re
import signal
import socket
import time

import numpy as np
import pytest
from processes import Run, metrics_of, run_main, run_tiny, start_together
from safetensors.numpy import load_file

from if_jax.checkpoints import FOLDER
from if_jax.processes import broadcast, check_agreement, gather

ENDLESS = '--config.train.num_steps=100000', '--config.train.checkpoint_every=100000'


def end_of(runs, timeout):
  """Exit statuses of all, and the seconds until the last one ended."""
  begun = time.monotonic()
  statuses = [run.end(timeout) for run in runs]
  seconds = time.monotonic() - begun
  print(f'after {seconds:.1f} s: exit status {" and ".join(map(str, statuses))}')
  return statuses, seconds


@pytest.fixture
def together(tmp_path):
  """Starts jobs, and kills hard what is left of them."""
  started = []

  def start(name, *arguments, **options):
    runs = start_together(tmp_path / name, *arguments, **options)
    started.extend(runs)
    return runs

  yield start
  for run in started:
    run.__exit__()


def test_two_processes_train_as_one(tmp_path, together):
  """2 x 2 devices against 1 x 4, 50 steps; then the job goes on as one process of 2 devices."""
  flags = '--config.train.num_steps=50', '--config.train.eval_every=25'
  runs = together('two', *flags, devices=2)
  assert end_of(runs, 120)[0] == [0, 0], runs[1].log
  run_tiny(tmp_path / 'one', *flags, devices=4)
  two, one = (load_file(tmp_path / name / 'last' / 'model.safetensors') for name in ('two', 'one'))
  difference = max(np.abs(two[name] - one[name]).max() for name in one)
  print(f'largest difference of a weight: {difference:.1e}')
  assert difference <= 1e-6
  for lines in zip(metrics_of(tmp_path / 'two'), metrics_of(tmp_path / 'one'), strict=True):
    scores = [{k: v for k, v in line.items() if v is not None} for line in lines]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
  hashes = re.findall('^state (.*)$', runs[0].log + runs[1].log, re.MULTILINE)
  assert len(hashes) == 4 and len(set(hashes)) == 1
  # The first one talks and writes.
  assert 'train 50/50' in runs[0].log and '50/50' not in runs[1].log
  weights = f'--config.init_from={tmp_path / "two" / "last"}'
  assert end_of(together('evaluated', '--mode=evaluate', weights), 60)[0] == [0, 0]
  run_tiny(tmp_path / 'evaluated_alone', '--mode=evaluate', weights)
  together_, alone = (
    json.loads((tmp_path / name / 'evaluation.json').read_text())
    for name in ('evaluated', 'evaluated_alone')
  )
  assert together_ == alone and alone['images'] == 2
  sheets = (
    tmp_path / name / 'evaluation' / 'sheet.png' for name in ('evaluated', 'evaluated_alone')
  )
  assert len({sheet.read_bytes() for sheet in sheets}) == 1
  reports = (
    (tmp_path / name / 'evaluation' / 'report.html').read_text()
    for name in ('evaluated', 'evaluated_alone')
  )
  first, second = (re.findall('<img src="data:[^>]*', report) for report in reports)
  assert first == second and len(first) == 2 * 2 * 5
  again = run_tiny(tmp_path / 'two', *flags, devices=2)
  assert 'it ran on 4 devices of 2 processes, now on 2 of 1; sums are rounded' in again.log


@pytest.mark.parametrize(
  ('steps', 'devices'), [(100, 8), pytest.param(1000, 8, marks=pytest.mark.slow)]
)
def test_many_devices_on_few_cores_do_not_wait_for_each_other_for_ever(tmp_path, steps, devices):
  """With as many threads as there are cores, as JAX would start by itself."""
  flags = f'--config.train.num_steps={steps}', f'--config.train.batch_size={devices}'
  run_tiny(
    tmp_path / 'run',
    *flags,
    '--config.train.log_every=100',
    devices=devices,
    timeout=60 + steps,
    NPROC='2',
  )


@pytest.mark.parametrize('killed', [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_takes_the_other_with_it(together, killed):
  runs = together('run', *ENDLESS)
  runs[0].wait_for_step(3)
  runs[killed].process.kill()
  (status,), seconds = end_of([runs[1 - killed]], 30)
  assert status != 0 and seconds < 15
  # Whichever comes first: the collective's error, or JAX's own when the coordinator is gone.
  assert re.search('error: a step failed|Socket closed', runs[1 - killed].log)


@pytest.mark.parametrize('process', [1, pytest.param(0, marks=pytest.mark.slow)])
def test_an_error_on_one_ends_both_and_is_told(together, process):
  runs = together('run', *ENDLESS, FAULT=f'raise 5 {process}')
  statuses, _ = end_of([runs[process]], 60)
  assert statuses == [2], runs[process].log
  (status,), seconds = end_of([runs[1 - process]], 30)
  assert status != 0 and seconds < 15
  assert 'error: street_7.png: broken image; replace the file' in runs[process].log


def test_a_process_that_stands_still_ends_both(together):
  """Alive, and so with a heartbeat: each one's own watchdog ends it."""
  runs = together('run', *ENDLESS, '--config.train.step_timeout=8', FAULT='stall 5 1')
  runs[0].wait_for_step(2)
  statuses, seconds = end_of(runs, 60)
  assert 1 in statuses and 0 not in statuses and seconds < 8 + 15
  log = runs[0].log + runs[1].log
  assert 'error: no step ended within 8 s' in log and 'most recent call first' in log


@pytest.mark.parametrize(
  ('number', 'process'),
  [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow)],
)
def test_a_signal_to_one_stops_both_after_the_same_step(tmp_path, together, number, process):
  runs = together('run', *ENDLESS)
  runs[0].wait_for_step(3)
  runs[process].process.send_signal(number)
  statuses, seconds = end_of(runs, 60)
  assert statuses == [143, 143] and seconds < 10, runs[0].log + runs[1].log
  (saved,) = (int(path.name) for path in (tmp_path / 'run' / FOLDER).iterdir())
  for run in runs:
    assert f'stopped after step {saved} of' in run.log
  again = together('run', *ENDLESS)
  again[0].wait_for_step(saved + 1)
  assert f'going on at step {saved} of' in again[0].log


def _slurm(port, process):
  return {
    'SLURM_JOB_ID': str(port - 61440),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_STEP_NUM_NODES': '1',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': str(process),
    'SLURM_LOCALID': str(process),
  }


def _open_mpi(port, process):
  return {
    'OMPI_MCA_orte_hnp_uri': f'{(port - 61440) * 4096}.0;tcp://127.0.0.1:34911',
    'OMPI_COMM_WORLD_SIZE': '2',
    'OMPI_COMM_WORLD_RANK': str(process),
    'OMPI_COMM_WORLD_LOCAL_RANK': str(process),
  }


@pytest.mark.parametrize('cluster', [_slurm, pytest.param(_open_mpi, marks=pytest.mark.slow)])
def test_a_cluster_says_who_takes_part(tmp_path, cluster):
  """By the variables that Slurm and Open MPI set, of which JAX makes a port above 61440."""
  ports = random.sample(range(61440, 65536), 20)
  port = next(port for port in ports if _is_free(port))
  flags = '--coordinator=auto', '--config.train.num_steps=2'
  with contextlib.ExitStack() as stack:
    runs = [
      stack.enter_context(Run(tmp_path / 'run', *flags, **cluster(port, i))) for i in range(2)
    ]
    assert end_of(runs, 60)[0] == [0, 0], runs[0].log
  assert 'waiting up to 60 s for the others at the coordinator' in runs[1].log
  assert 'train 2/2' in runs[0].log and 'train 2/2' not in runs[1].log


def _is_free(port):
  try:
    with socket.create_server(('', port)):
      return True
  except OSError:
    return False


def test_a_peer_that_does_not_come_is_told(tmp_path):
  flags = '--coordinator=127.0.0.1:{}', '--num_processes=2', '--initialization_timeout=2'
  for process in (0, 1):
    with socket.create_server(('127.0.0.1', 0)) as probe:
      port = probe.getsockname()[1]
    run = run_main(
      '--mode=train',
      f'--workdir={tmp_path / "run"}',
      f'--process_id={process}',
      *(flag.format(port) for flag in flags),
      timeout=60,
    )
    assert run.returncode == 1, run.stderr
    assert run.stderr.splitlines()[-1].startswith(
      f'error: not all processes came to 127.0.0.1:{port} within 2 s, or two with one '
    )


def test_a_port_in_use_is_told(tmp_path):
  with socket.create_server(('', 0)) as taken:
    port = taken.getsockname()[1]
    run = run_main(
      '--mode=train',
      f'--workdir={tmp_path / "run"}',
      f'--coordinator=127.0.0.1:{port}',
      '--num_processes=2',
      '--process_id=0',
    )
  assert run.returncode == 2
  assert run.stderr.startswith(f'error: port {port} of --coordinator=127.0.0.1:{port} cannot be')


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('--process_id=2', '--num_processes=2'), '--process_id=2 with --num_processes=2; it is 0 on'),
    (('--num_processes=2',), '--coordinator=h:1 needs --num_processes and --process_id'),
    (('--coordinator=h', '--num_processes=2', '--process_id=0'), '--coordinator=h; give HOST:PORT'),
    (('--coordinator=auto', '--process_id=0'), '--coordinator=auto finds --num_processes and'),
    (('--coordinator=auto',), 'no cluster was found (coordinator_address should be defined'),
    (('--coordinator=', '--process_id=0'), '--num_processes and --process_id need --coordinator'),
    (('--heartbeat_timeout=0',), 'heartbeat_timeout'),
    (('--mode=predict', '--input=x'), '--mode=predict runs alone; give each process a folder'),
  ],
)
def test_wrong_flags_are_told_in_a_line(tmp_path, flags, message):
  run = run_main(
    '--mode=train', f'--workdir={tmp_path / "run"}', '--coordinator=h:1', *flags, timeout=60
  )
  assert run.returncode == 2, run.stderr
  assert message in run.stderr and 'Traceback' not in run.stderr


def test_processes_that_were_started_differently_are_told(together):
  key = 'config.train.eval_every'
  runs = together('run', each=(f'--{key}=5', f'--{key}=7'))
  statuses, _ = end_of(runs, 60)
  assert statuses == [2, 2], runs[0].log + runs[1].log
  for run in runs:
    assert f'error: {key} is 5 on process 0 and 7 on process 1; start all' in run.log


def test_alone_a_process_agrees_with_itself():
  assert broadcast({'a': 1}) == {'a': 1}
  assert gather('x') == ['x']
  check_agreement({'seed': 1})
