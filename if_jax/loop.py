"""The loop of every training: from the newest checkpoint to the last step."""

import collections
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from if_jax import parallel
from if_jax.checkpoints import Checkpoints
from if_jax.data.pipeline import Stream
from if_jax.report import MetricWriter, Progress, read_metrics

CONFIG_FILE = 'config.json'
METRICS_FILE = 'metrics.jsonl'
# Settings of every run that may differ when it goes on.
_FREE_TO_CHANGE = (
  'train.checkpoint_every',
  'train.eval_every',
  'train.keep_checkpoints',
  'train.log_every',
)


def run_steps(
  step_fn: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]],
  state: Any,
  make_batches: Callable[..., Stream],
  evaluate: Callable[[int, Any], Mapping[str, float]],
  *,
  config: ConfigDict,
  workdir: str,
  schedule: Callable[[int], float],
  free_to_change: tuple[str, ...] = (),
) -> Any:
  """Takes the steps of a training that are still to take.

  Metrics and checkpoints are written on the way, as often as `config.train` says, into
  `metrics.jsonl`, `tensorboard/` and `checkpoints/` in `workdir`, beside `config.json`.

  Args:
    step_fn: (state, batch) -> (next state, metrics), of `parallel.pmap`.
    state: before the first step, a tree of host arrays.
    make_batches: (start_step=...) -> the batches that follow so many steps.
    evaluate: (step, state on the devices) -> scores. It may leave files in `workdir`: where it
      was interrupted, it is called again.
    config: of the run; its `train` says how many steps, and what is due when.
    workdir: made if it is not there.
    schedule: step to learning rate, to be written.
    free_to_change: keys of `config`, or how they begin, that may differ when a run goes on.
  Returns:
    The last state, on the devices.
  Raises:
    ValueError: `workdir` holds a run with other settings, or of another model.
  """
  train = config.train
  Path(workdir).mkdir(parents=True, exist_ok=True)
  with Checkpoints(workdir, keep=train.keep_checkpoints) as checkpoints:
    start = checkpoints.latest_step() or 0
    if start:
      _check_same_run(config, workdir, _FREE_TO_CHANGE + free_to_change)
      state = checkpoints.restore(start, state)
      print(f'{workdir}: going on at step {start} of {train.num_steps}')
    Path(workdir, CONFIG_FILE).write_text(config.to_json_best_effort(indent=2) + '\n')
    state = parallel.replicate(state)
    with (
      MetricWriter(workdir, resume_step=start) as writer,
      Progress('train', train.num_steps, images_per_step=train.batch_size) as progress,
      make_batches(start_step=start) as batches,
    ):

      def is_due(step, every):
        return step > 0 and (step % every == 0 or step == train.num_steps)

      def evaluate_at(step):
        writer.write(step, evaluate(step, state), 'val')

      if is_due(start, train.eval_every) and not _is_evaluated(workdir, start):
        evaluate_at(start)
      under_way = collections.deque()
      batches = parallel.prefetch(batches)
      # The rate is that of the steps alone, since one of these was due.
      pauses = train.log_every, train.checkpoint_every, train.eval_every
      timed_from, timed_since = start, time.perf_counter()
      for step in range(start + 1, train.num_steps + 1):
        state, metrics = step_fn(state, next(batches))
        under_way.append(metrics)
        if len(under_way) > parallel.MAX_STEPS_AHEAD:
          jax.block_until_ready(under_way.popleft())
        if is_due(step, train.log_every):
          scalars = parallel.fetch(metrics) | {'learning_rate': schedule(step - 1)}
          images = (step - timed_from) * train.batch_size
          scalars['images_per_second'] = images / (time.perf_counter() - timed_since)
          writer.write(step, scalars, 'train')
          progress.update(step, {'loss': scalars['loss']})
        # Before the evaluation: whatever ends that, the steps are kept.
        if is_due(step, train.checkpoint_every):
          checkpoints.save(step, parallel.fetch(state))
        if is_due(step, train.eval_every):
          evaluate_at(step)
        if any(is_due(step, every) for every in pauses):
          timed_from, timed_since = step, time.perf_counter()
  return state


def check_steps(config: ConfigDict) -> None:
  """Raises ValueError for numbers in `config.train` that no training can have."""
  train = config.train
  for key in ('batch_size', 'num_steps', 'log_every', 'eval_every', 'checkpoint_every'):
    if train[key] < 1:
      raise ValueError(f'config.train.{key}={train[key]}; give at least 1')
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


def _check_same_run(config: ConfigDict, workdir: str, free_to_change: tuple[str, ...]) -> None:
  """Raises ValueError if the run in `workdir` was started with settings that give other results."""
  path = Path(workdir, CONFIG_FILE)
  if not path.is_file():
    return
  before, now = (
    flatten_dict(json.loads(text), sep='.')
    for text in (path.read_text(), config.to_json_best_effort())
  )
  differing = [
    f'{key} was {before.get(key)!r}, is {now.get(key)!r}'
    for key in sorted(before | now)
    if before.get(key) != now.get(key) and not key.startswith(free_to_change)
  ]
  if differing:
    raise ValueError(
      f'the run in {workdir} has other settings: {"; ".join(differing)}; choose another --workdir, '
      'or give the settings it was started with'
    )


def _is_evaluated(workdir: str, step: int) -> bool:
  lines = read_metrics(Path(workdir, METRICS_FILE))
  return any(line['step'] == step and any(k.startswith('val/') for k in line) for line in lines)
