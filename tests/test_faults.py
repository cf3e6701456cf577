"""What a run survives: signals, kills at any moment, a full disk, numbers that are not finite.

By the real command, in processes that are killed hard. In full:
python -m pytest -rP -m 'slow or not slow' tests/test_faults.py
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from processes import ROOT, Run, metrics_of, run_python, run_tiny

from if_jax.checkpoints import FOLDER, Checkpoints

EVERY_STEP = '--config.train.checkpoint_every=1'
ENDLESS = '--config.train.num_steps=100000', '--config.train.checkpoint_every=100000'


def steps_of(workdir):
  return sorted(int(path.name) for path in (workdir / FOLDER).iterdir() if path.name.isdigit())


def losses_of(workdir):
  """Step -> loss, to the bit."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {x['step']: float(x['train/loss']).hex() for x in lines if 'train/loss' in x}


def hash_of(workdir, step):
  """SHA-256 of all arrays of a checkpoint."""
  checkpointer = ocp.PyTreeCheckpointer()
  state = checkpointer.restore(workdir / FOLDER / str(step) / 'state')
  checkpointer.close()
  digest = hashlib.sha256()
  for path, array in jax.tree_util.tree_leaves_with_path(state):
    digest.update(f'{path} {array.dtype} {array.shape}'.encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_kills_at_random_steps_change_nothing(tmp_path, workers):
  """30 steps over 6 images: 20 epochs, so that the kills fall across their ends."""
  flags = (
    '--config.train.num_steps=30',
    '--config.train.checkpoint_every=4',
    '--config.train.eval_every=10',
    '--config.train.ema_decay=0.9',
    '--config.data.class_uniform=0.5',
  )
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  run_tiny(whole, *flags)
  flags += (f'--config.data.num_workers={workers}',)
  steps = sorted(random.Random(workers).sample(range(2, 28), 3))
  for step in steps:
    with Run(killed, *flags) as run:
      run.wait_for_step(step)
  run = run_tiny(killed, *flags)
  print(f'killed at steps {steps}')
  assert 'going on at step' in run.log
  assert metrics_of(killed) == metrics_of(whole)
  assert losses_of(killed) == losses_of(whole) and len(losses_of(whole)) == 30
  assert hash_of(killed, 30) == hash_of(whole, 30)
  for folder in ('best', 'last'):
    weights = [(run / folder / 'model.safetensors').read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]


SAVING = """
import sys, time
import numpy as np
from if_jax.checkpoints import Checkpoints

with Checkpoints(sys.argv[1], keep=3) as checkpoints:
  found = checkpoints.restore_newest({'w': np.zeros(250_000)})
  assert not found or (found.state['w'] == found.step).all()
  for step in range(found.step + 1 if found else 1, 1000):
    checkpoints.save(step, {'w': np.full(250_000, float(step))}, {})
    print(step, flush=True)
"""


@pytest.mark.parametrize('count', [4, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_while_saving_every_step(tmp_path, count):
  """Every listed checkpoint can be restored, and nothing grows."""
  rng = random.Random(3)
  newest = 0
  for _ in range(count):
    process = subprocess.Popen(
      [sys.executable, '-c', SAVING, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    begun = [int(process.stdout.readline())]
    deadline = time.monotonic() + rng.uniform(0, 0.7)
    while time.monotonic() < deadline:
      begun.append(int(process.stdout.readline()))
    process.kill()
    process.communicate()
    # Saving waits for the save before it.
    assert steps_of(tmp_path)[-1] >= begun[-1] - 2 >= newest - 1
    newest = steps_of(tmp_path)[-1]
    for step in steps_of(tmp_path):
      checkpointer = ocp.PyTreeCheckpointer()
      state = checkpointer.restore(tmp_path / FOLDER / str(step) / 'state')
      checkpointer.close()
      assert (state['w'] == step).all()
    assert len(list((tmp_path / FOLDER).iterdir())) <= 3 + 3
  print(f'{count} kills, up to step {newest}')


ENDING = """
import os, signal, sys, time
import numpy as np
from if_jax.checkpoints import Checkpoints

with Checkpoints(sys.argv[1]) as checkpoints:
  checkpoints.save(7, {'w': np.ones(5_000_000)}, {})
  if sys.argv[2] == 'exception':
    raise RuntimeError('an accident')
  if sys.argv[2] == 'exit':
    sys.exit(5)
  if sys.argv[2] == 'Ctrl-C':
    # A job in the background of a shell ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)  # The signal is heeded somewhere in here.
"""


@pytest.mark.parametrize(
  ('ending', 'status'), [('end', 0), ('exception', 1), ('exit', 5), ('Ctrl-C', -signal.SIGINT)]
)
def test_a_checkpoint_just_begun_is_finished_whatever_ends_the_process(tmp_path, ending, status):
  run = run_python('-c', ENDING, str(tmp_path), ending, timeout=30)
  assert run.returncode == status, run.stderr
  assert steps_of(tmp_path) == [7]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_the_same_command_goes_on(tmp_path, number):
  workdir = tmp_path / 'run'
  with Run(workdir, *ENDLESS) as run:
    run.wait_for_step(3)
    run.process.send_signal(number)
    told = time.monotonic()
    assert run.end() == 143, run.log
    seconds = time.monotonic() - told
    assert seconds < 10
  print(f'saved and ended {seconds:.1f} s after the signal')
  assert f'{number.name}: saving, then stopping' in run.log
  (saved,) = steps_of(workdir)
  assert f'stopped after step {saved} of 100000, which is saved in {workdir}' in run.log
  assert max(losses_of(workdir)) == saved
  with Run(workdir, *ENDLESS) as again:
    again.wait_for_step(saved + 1)
  assert f'going on at step {saved} of' in again.log
  assert sorted(losses_of(workdir))[saved] == saved + 1


def test_a_signal_to_all_processes_of_a_run_saves_the_step(tmp_path):
  """As Ctrl-C in a terminal, Slurm and systemd send it: loader processes get it, too."""
  workdir = tmp_path / 'run'
  with Run(workdir, *ENDLESS, '--config.data.num_workers=2', start_new_session=True) as run:
    run.wait_for_step(3)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.end() == 143, run.log
  assert 'Traceback' not in run.log
  assert steps_of(workdir) == [max(losses_of(workdir))]


def test_loader_processes_end_after_a_run_that_was_killed(tmp_path):
  with Run(tmp_path / 'run', *ENDLESS, '--config.data.num_workers=2') as run:
    run.wait_for_step(2)
    workers = loader_processes(run)
  deadline = time.monotonic() + 10
  while any(os.path.exists(f'/proc/{worker}') for worker in workers):
    assert time.monotonic() < deadline
    time.sleep(0.1)


def loader_processes(run):
  listed = subprocess.check_output(
    ['ps', '-ww', '-o', 'pid,args', '--ppid', str(run.process.pid)], text=True
  ).splitlines()
  workers = [int(line.split()[0]) for line in listed if 'spawn_main' in line]
  assert workers, listed
  return workers


def test_checkpoints_that_are_gone_are_no_fresh_start(tmp_path):
  workdir = tmp_path / 'run'
  flags = '--config.train.num_steps=5', EVERY_STEP
  run_tiny(workdir, *flags)
  before = (workdir / 'metrics.jsonl').read_bytes()
  shutil.rmtree(workdir / FOLDER)
  with Run(workdir, *flags) as run:
    assert run.end() == 2
  assert f'error: {workdir} was trained up to step 5, but its checkpoints are gone' in run.log
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_two_runs_do_not_share_a_folder(tmp_path):
  workdir = tmp_path / 'run'
  with Run(workdir, '--config.train.num_steps=100000') as run:
    run.wait_for_step(1)
    with Run(workdir, '--config.train.num_steps=100000') as other:
      assert other.end() == 2
  assert f'error: another process trains in {workdir}; wait for its end' in other.log


FILLING = """
import resource, sys
import numpy as np
from if_jax import cli
from if_jax.checkpoints import Checkpoints

def main():
  rng = np.random.default_rng(0)
  with Checkpoints(sys.argv[1], keep=9) as checkpoints:
    for step in range(1, 9):
      if step == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
      checkpoints.save(step, {'w': rng.uniform(size=100_000)}, {})
      print('begun', step)

try:
  main()
except OSError as error:
  sys.exit(cli.tell(error))
"""


def test_a_full_disk_ends_the_run_and_the_checkpoints_before_stay(tmp_path):
  """From step 4 on, no file of the process may grow beyond a part of a checkpoint."""
  run = run_python('-c', FILLING, str(tmp_path), timeout=60)
  assert run.returncode == 2
  assert 'begun 5' not in run.stdout
  (line,) = run.stderr.splitlines()
  assert line.startswith(
    f'error: a checkpoint of 0.8 MB could not be written to {tmp_path / FOLDER}, '
  )
  assert 'MB free (' in line
  newest = steps_of(tmp_path)[-1]
  assert newest in (2, 3)  # The third was being written when the disk became full.
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore_newest({'w': np.zeros(100_000)}).step == newest


def test_steps_that_are_not_finite_end_the_run_with_finite_checkpoints(tmp_path):
  workdir = tmp_path / 'run'
  with Run(
    workdir, '--config.train.num_steps=100', '--config.optimizer.learning_rate=1e38', EVERY_STEP
  ) as run:
    assert run.end() == 1, run.log
  assert 'is skipped: its loss or gradient is not finite' in run.log
  assert 'error: the loss or gradient was not finite in 10 steps in a row, up to step' in run.log
  assert 'Traceback' not in run.log
  checkpointer = ocp.PyTreeCheckpointer()
  newest = steps_of(workdir)[-1]
  state = checkpointer.restore(workdir / FOLDER / str(newest) / 'state')
  checkpointer.close()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
  assert state['skipped'] > 0


NAN_PIXEL = """
import functools
import jax
import numpy as np
from tiny_main import Network
from if_jax import parallel
from if_jax.losses import cross_entropy
from if_jax.optimizers import make_optimizer
from if_jax.train_step import TrainState, train_step

model = Network(3, False, parallel.AXIS)
optimizer = make_optimizer(0.1)
rng = np.random.default_rng(0)
images = rng.uniform(0, 255, (4, 8, 8, 3)).astype(np.float32)
labels = rng.integers(0, 3, (4, 8, 8)).astype(np.int32)
variables = parallel.fetch(model.init(jax.random.key(0), images))
state = parallel.fetch(TrainState.create(variables, optimizer))

def loss_fn(outputs, labels, step):
  total, count = cross_entropy(outputs['logits'], labels)
  loss = total / jax.lax.psum(count, parallel.AXIS)
  return loss, {'segmentation': loss}

step = parallel.pmap(functools.partial(
  train_step, loss_fn=loss_fn, model=model, optimizer=optimizer, seed=0, axis_name=parallel.AXIS
))
states = [parallel.replicate(state)]
for k in range(4):
  batch = {'image': images.copy(), 'label': labels}
  if k == 2:
    batch['image'][3, 4, 5, 1] = np.nan
  after, metrics = step(states[-1], parallel.shard(batch))
  states.append(after)
  print(k, 'skipped', int(metrics['skipped_steps']), 'loss', float(metrics['loss']))
hosts = [parallel.fetch(s) for s in states]
before, skipped, after = (state.replace(step=0, skipped=0) for state in hosts[2:])
print('unchanged', all(jax.tree.leaves(jax.tree.map(np.array_equal, before, skipped))))
changed = jax.tree.map(np.any, jax.tree.map(np.not_equal, skipped.params, after.params))
print('changed', all(jax.tree.leaves(changed)))
print('finite', all(np.isfinite(x).all() for x in jax.tree.leaves(after)))
print('replicas', all(
  np.array_equal(shard.data, x.addressable_shards[0].data)
  for x in jax.tree.leaves(states[4]) for shard in x.addressable_shards
))
outputs = model.apply(after.variables, images, train=False)
print('evaluation', bool(np.isfinite(outputs['logits']).all()))
"""


def test_a_nan_pixel_on_one_of_four_devices_skips_the_step_on_all(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(
    f'import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]\n{NAN_PIXEL}'
  )
  run = run_python(str(script), devices=4)
  assert run.returncode == 0, run.stderr
  assert '2 skipped 1 loss nan' in run.stdout and '3 skipped 1' in run.stdout, run.stdout
  for fact in ('unchanged', 'changed', 'finite', 'replicas', 'evaluation'):
    assert f'\n{fact} True' in run.stdout, run.stdout


def test_a_loader_process_that_is_killed_is_told(tmp_path):
  flags = '--config.train.num_steps=100000', '--config.data.num_workers=2'
  with Run(tmp_path / 'run', *flags) as run:
    run.wait_for_step(2)
    os.kill(loader_processes(run)[0], signal.SIGKILL)
    killed = time.monotonic()
    assert run.end() == 2, run.log
    seconds = time.monotonic() - killed
    assert seconds < 10
  print(f'ended {seconds:.1f} s after the kill')
  assert 'error: a process that loads images died (Worker process was terminated' in run.log
