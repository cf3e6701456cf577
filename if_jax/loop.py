"""The loop of every training: from the newest checkpoint to the last step, or to a signal."""

import collections
import contextlib
import fcntl
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from if_jax import parallel, processes
from if_jax.checkpoints import Checkpoint, Checkpoints
from if_jax.data.pipeline import Stream
from if_jax.guard import SkippedSteps
from if_jax.report import METRICS_FILE, MetricWriter, Progress, read_metrics
from if_jax.stopping import Stopped, StopSignal, Watchdog

CONFIG_FILE = 'config.json'
# Settings that may differ among the processes of a run.
_OF_A_MACHINE = ('data.root', 'data.cache_dir', 'data.num_workers', 'cache_dir', 'sources.')
# Settings of every run that may differ when it goes on.
_FREE_TO_CHANGE = (
  'train.checkpoint_every',
  'train.eval_every',
  'train.keep_checkpoints',
  'train.log_every',
  'train.step_timeout',
)
# Of the metrics of a step, by how their names begin: losses of further outputs, see `joint_loss`.
_SIDE_TERM = re.compile(r'aux_|scale_\d')
_SKIPPED = 'skipped_steps'


def _in_words(scores: Mapping[str, float]) -> str:
  return '  '.join(f'{name.replace("_", " ")} {score:.4g}' for name, score in scores.items())


def run_steps(
  step_fn: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]],
  state: Any,
  make_batches: Callable[..., Stream],
  evaluate: Callable[
    [int, Any, Callable[[], None]], tuple[Mapping[str, float], Mapping[str, np.ndarray]]
  ],
  *,
  config: ConfigDict,
  workdir: str,
  schedule: Callable[[int], float],
  free_to_change: tuple[str, ...] = (),
  in_words: Callable[[Mapping[str, float]], str] = _in_words,
  on_evaluated: Callable[[], None] = lambda: None,
) -> Any:
  """Takes the steps of a training that are still to take.

  Metrics and checkpoints are written on the way, as often as `config.train` says, into
  `metrics.jsonl`, `tensorboard/` and `checkpoints/` in `workdir`, beside `config.json`. Of several
  processes, all take the steps and the first one writes.

  Args:
    step_fn: (state, batch) -> (next state, metrics), of `parallel.pmap`. The state counts the steps
      that were `skipped`, and so do the metrics, as 'skipped_steps'.
    state: before the first step, a tree of host arrays.
    make_batches: (start_step=..., process_index=..., process_count=...) -> the batches that follow
      so many steps, as far as they are this process's.
    evaluate: (step, state on the devices, beat) -> scores, and pictures by their names, uint8
      [H, W, 3], for TensorBoard. It may leave files in `workdir`: where it was interrupted, it is
      called again. It calls `beat()` at least every `config.train.step_timeout` seconds.
    config: of the run; its `train` says how many steps, and what is due when.
    workdir: made if it is not there.
    schedule: step to learning rate, to be written.
    free_to_change: keys of `config`, or how they begin, that may differ when a run goes on.
    in_words: of the scores of an evaluation, what is shown.
    on_evaluated: called on the first process when the scores have been written.
  Returns:
    The last state, on the devices.
  Raises:
    ValueError: `workdir` holds a run with other settings, of another model, or nothing but damaged
      checkpoints.
    OSError: a checkpoint cannot be written, or another process trains in `workdir`.
    FloatingPointError: the loss is not finite, step after step.
    SystemExit: a signal ended the run, and its state is saved; with `processes.STOPPED`.
  """
  train = config.train
  record = {
    'config': json.loads(config.to_json_best_effort()),
    'processes': jax.process_count(),
    'devices': parallel.num_devices(),
  }
  with contextlib.ExitStack() as stack:
    enter = stack.enter_context
    processes.check_agreement(
      _settings(record, _OF_A_MACHINE) | {'the number of devices': parallel.num_local_devices()}
    )
    stop = enter(StopSignal())
    checkpoints = writer = None

    def begin():
      nonlocal checkpoints, writer
      enter(_only_run_in(workdir))
      checkpoints = enter(Checkpoints(workdir, keep=train.keep_checkpoints))
      begun = _begin(checkpoints, state, record, workdir, _FREE_TO_CHANGE + free_to_change)
      writer = enter(MetricWriter(workdir, resume_step=begun[0]))
      return begun

    start, state = processes.from_first(begin)
    skipped_steps = SkippedSteps(int(state.skipped))
    state = parallel.replicate(state)
    progress = enter(
      Progress(
        'train',
        train.num_steps,
        completed=start,
        images_per_step=train.batch_size,
        note='loading the first images' if start < train.num_steps else '',
        console=processes.console(),
      )
    )
    # Until the bar ends.
    stack.callback(setattr, stop, 'show', None)
    stop.show = progress.note if progress.is_bar else None
    batches = enter(
      make_batches(
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      )
    )
    watchdog = enter(Watchdog(train.step_timeout))

    def is_due(step, every):
      return step > 0 and (step % every == 0 or step == train.num_steps)

    def write(step, scalars, prefix):
      if writer:
        writer.write(step, scalars, prefix)

    def show(step, pictures):
      if writer:
        for name, picture in pictures.items():
          writer.image(step, f'val/{name}', picture)

    def evaluate_at(step):
      progress.note(f'evaluating at step {step}')
      try:
        with stop.at_once():
          scores, pictures = evaluate(step, state, watchdog.beat)
          show(step, pictures)
          write(step, scores, 'val')
      except Stopped:
        save_and_exit(step)
      progress.say(f'step {step}: {in_words(scores)}')
      if writer:
        try_to_report(on_evaluated)
      watchdog.beat()

    def save(step):
      if checkpoints:
        checkpoints.save(step, parallel.fetch(state), record)

    def save_and_exit(step):
      if progress.is_bar:  # Steps that ended since the signal have cleared what it said there.
        progress.note(f'saving step {step}, then stopping; a second signal stops at once')
      save(step)
      processes.from_first(lambda: checkpoints and checkpoints.wait())
      progress.update(step)
      print(
        f'stopped after step {step} of {train.num_steps}, which is saved in {workdir}; the same '
        'command goes on from there',
        file=sys.stderr,
      )
      sys.exit(processes.STOPPED)

    is_evaluated = processes.from_first(lambda: _is_evaluated(workdir, start))
    if is_due(start, train.eval_every) and not is_evaluated:
      evaluate_at(start)
    under_way = collections.deque()
    batches = parallel.prefetch(batches)
    # The rate is that of the steps alone, since one of these was due.
    pauses = train.log_every, train.checkpoint_every, train.eval_every
    timed_from, timed_since = start, time.perf_counter()
    # Metrics that are written are of a later step than those that are waited for.
    latest_shown = start
    for step in range(start + 1, train.num_steps + 1):
      batch = next(batches)
      if step == start + 1 and not stop.is_told:
        progress.note('compiling the training step')
      state, metrics = step_fn(state, batch)
      under_way.append((step, metrics['skipped_steps']))
      while len(under_way) > (parallel.MAX_STEPS_AHEAD if step < train.num_steps else 0):
        done, skipped = under_way.popleft()
        skipped_steps.update(done, int(skipped))
        if latest_shown < done < train.num_steps:
          progress.update(done)
      watchdog.beat()
      if is_due(step, train.log_every):
        scalars = parallel.fetch(metrics)
        # The optimiser counts the steps that were taken.
        scalars['learning_rate'] = schedule(step - 1 - scalars['skipped_steps'])
        images = (step - timed_from) * train.batch_size
        scalars['images_per_second'] = images / (time.perf_counter() - timed_since)
        write(step, scalars, 'train')
        progress.update(step, _shown(scalars))
        latest_shown = step
      if stop.reached(step):
        save_and_exit(step)
      # Before the evaluation: whatever ends that, the steps are kept.
      if is_due(step, train.checkpoint_every):
        save(step)
      if is_due(step, train.eval_every):
        evaluate_at(step)
      if any(is_due(step, every) for every in pauses):
        timed_from, timed_since = step, time.perf_counter()
  return state


def try_to_report(write: Callable[[], None]) -> None:
  """Writes a report; whatever goes wrong with it is nothing that a training should end for."""
  try:
    write()
  except Exception as error:
    # A disk that is full is no riddle.
    is_riddle = not isinstance(error, OSError)
    logging.warning('The report is not written: %s', error, exc_info=is_riddle)


def _shown(scalars: Mapping[str, float]) -> dict[str, float]:
  """The loss, its terms and the learning rate, of all that is written."""
  left_out = ('gradient_norm', 'images_per_second', 'learning_rate')
  terms = {
    name: value
    for name, value in scalars.items()
    # Those of side outputs are many; skipped steps are rare.
    if name not in left_out and not _SIDE_TERM.match(name) and (name != _SKIPPED or value)
  }
  return {'loss': scalars['loss']} | terms | {'learning rate': scalars['learning_rate']}


def check_steps(config: ConfigDict) -> None:
  """Raises ValueError for numbers in `config.train` that no training can have."""
  train = config.train
  at_least_1 = ('num_steps', 'log_every', 'eval_every', 'checkpoint_every', 'keep_checkpoints')
  for key in ('batch_size', *at_least_1):
    if train[key] < 1:
      raise ValueError(f'config.train.{key}={train[key]}; give at least 1')
  if train.step_timeout < 0:
    raise ValueError(
      f'config.train.step_timeout={train.step_timeout}; give seconds, 0 for no limit'
    )
  num_devices = parallel.num_devices()
  if train.batch_size % num_devices:
    raise ValueError(
      f'config.train.batch_size={train.batch_size} does not divide by {num_devices} devices'
    )
  if config.optimizer.warmup_steps >= train.num_steps:
    raise ValueError(
      f'config.optimizer.warmup_steps={config.optimizer.warmup_steps} leaves none of '
      f'config.train.num_steps={train.num_steps} to train at the full rate'
    )


@contextlib.contextmanager
def _only_run_in(workdir: str) -> Iterator[None]:
  """Holds a lock on the folder of a run, which the system lets go of however the process ends."""
  Path(workdir).mkdir(parents=True, exist_ok=True)
  with Path(workdir, '.lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise OSError(
        f'another process trains in {workdir}; wait for its end, or choose another --workdir '
        '(several processes of one run need --coordinator)'
      ) from None
    except OSError as error:  # Some network file systems have no locks.
      logging.warning('%s cannot be locked (%s): start no second run in it.', workdir, error)
    yield


def _begin(
  checkpoints: Checkpoints, state: Any, record: dict, workdir: str, free_to_change: tuple[str, ...]
) -> tuple[int, Any]:
  """The step and the state to go on from."""
  now = _settings(record, free_to_change)
  found = checkpoints.restore_newest(
    state, lambda before: _check_same_run(_settings(before, free_to_change), now, workdir)
  )
  if found:
    _say_how_it_goes_on(found, record, workdir)
  else:
    _check_fresh(workdir, record['config']['train']['checkpoint_every'])
    checkpoints.check_space(state)
  text = json.dumps(record['config'], indent=2)
  part = Path(workdir, f'{CONFIG_FILE}.part')
  part.write_text(text + '\n')
  part.replace(Path(workdir, CONFIG_FILE))
  return (found.step, found.state) if found else (0, state)


def _settings(record: Mapping[str, Any], left_out: tuple[str, ...]) -> dict[str, Any]:
  """What a record says of a run, by key, but for some keys, or how they begin."""
  config = {f'config.{k}': v for k, v in flatten_dict(record['config'], sep='.').items()}
  return {k: v for k, v in config.items() if not k.removeprefix('config.').startswith(left_out)}


def _say_how_it_goes_on(found: Checkpoint, record: Mapping[str, Any], workdir: str) -> None:
  print(f'{workdir}: going on at step {found.step} of {record["config"]["train"]["num_steps"]}')
  (were, of), (are, now_of) = ((x['devices'], x['processes']) for x in (found.record, record))
  if (were, of) != (are, now_of):
    print(
      f'{workdir}: it ran on {were} devices of {of} processes, now on {are} of {now_of}; sums are '
      'rounded in another order, and what a step draws at random differs'
    )


def _check_fresh(workdir: str, checkpoint_every: int) -> None:
  """Raises ValueError if a run without checkpoints must have had some."""
  path = Path(workdir, METRICS_FILE)
  steps = [line['step'] for line in read_metrics(path)] if path.exists() else []
  if not steps:
    return
  # The first is finished before the second begins.
  if max(steps) > 2 * checkpoint_every:
    raise ValueError(
      f'{workdir} was trained up to step {max(steps)}, but its checkpoints are gone; bring them '
      f'back, choose another --workdir, or take {METRICS_FILE} away to start from the beginning'
    )
  print(f'{workdir}: the run before was ended before its first checkpoint; starting anew')


def _check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], workdir: str) -> None:
  """Raises ValueError if the run in `workdir` was started with settings that give other results."""
  differing = [
    f'{key.removeprefix("config.")} was {before.get(key)!r}, is {now.get(key)!r}'
    for key in sorted({*before, *now})
    if before.get(key) != now.get(key)
  ]
  if differing:
    raise ValueError(
      f'the run in {workdir} has other settings: {"; ".join(differing)}; choose another --workdir, '
      'or give the settings it was started with'
    )


def _is_evaluated(workdir: str, step: int) -> bool:
  if not step:
    return False
  lines = read_metrics(Path(workdir, METRICS_FILE))
  return any(line['step'] == step and any(k.startswith('val/') for k in line) for line in lines)
