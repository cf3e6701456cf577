"""Training: the loop around the step."""

import collections
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from PIL import Image

from if_jax import parallel
from if_jax.checkpoints import Checkpoints
from if_jax.data.augment import Augmentation
from if_jax.data.class_uniform import class_centroids
from if_jax.data.pipeline import train_batches
from if_jax.evaluate import Evaluator
from if_jax.freezing import check_frozen, freeze_updates
from if_jax.optimizers import make_optimizer, make_schedule
from if_jax.report import MetricWriter, Progress, learning_curves, read_metrics
from if_jax.settings import load_split, loss_from_config, model_from_config
from if_jax.train_step import TrainState, train_step
from if_jax.weights import load_weights, make_card, merge_weights, save_weights

CONFIG_FILE = 'config.json'
# Settings that may differ when a run goes on.
_FREE_TO_CHANGE = (
  'data.root',
  'data.cache_dir',
  'data.num_workers',
  'eval.',
  'model.remat',
  'train.checkpoint_every',
  'train.eval_every',
  'train.keep_checkpoints',
  'train.log_every',
)


def train_and_evaluate(config: ConfigDict, workdir: str) -> TrainState:
  """Trains a model, evaluates it on the way, and leaves everything in `workdir`.

  A run that was interrupted goes on from its newest checkpoint. `workdir` holds `config.json`,
  `metrics.jsonl`, `tensorboard/`, `checkpoints/`, and in `best/` the weights that scored best.

  Args:
    config: see configs/default.py.
    workdir: made if it is not there.
  Returns:
    The last state, on the devices.
  Raises:
    ValueError: a configuration, data set or checkpoint that cannot be used, before the first step.
  """
  num_steps, batch_size = config.train.num_steps, config.train.batch_size
  _check(config)
  train_set = load_split(config, config.data.train_split)
  eval_set = load_split(config, config.data.eval_split)
  centroids = ()
  if config.data.class_uniform:
    centroids = class_centroids(train_set, config.augment.crop_size)
  model = model_from_config(config, train_set.label_set.num_classes, axis_name=parallel.AXIS)
  schedule = make_schedule(
    config.optimizer.learning_rate,
    num_steps,
    power=config.optimizer.power,
    warmup_steps=config.optimizer.warmup_steps,
  )
  optimizer = make_optimizer(
    schedule,
    name=config.optimizer.name,
    momentum=config.optimizer.momentum,
    weight_decay=config.optimizer.weight_decay,
  )
  optimizer = freeze_updates(optimizer, config.train.freeze)
  loss_fn = parallel.replicate(loss_from_config(config, axis_name=parallel.AXIS))
  step_fn = functools.partial(
    train_step,
    model=model,
    optimizer=optimizer,
    seed=config.seed,
    accumulation=config.train.accumulation,
    ema_decay=config.train.ema_decay,
    frozen=config.train.freeze,
    axis_name=parallel.AXIS,
  )
  p_train_step = parallel.pmap(step_fn, num_constants=1, donate_state=True)

  Path(workdir).mkdir(parents=True, exist_ok=True)
  with Checkpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints:
    state = initial_state(config, model, optimizer)
    start = checkpoints.latest_step() or 0
    if start:
      _check_same_run(config, workdir)
      state = checkpoints.restore(start, state)
      print(f'{workdir}: going on at step {start} of {num_steps}')
    Path(workdir, CONFIG_FILE).write_text(config.to_json_best_effort(indent=2) + '\n')
    evaluator = Evaluator(model, eval_set, config)
    card = make_card(config.model.name, model, train_set.label_set)
    best = Best(workdir, is_new_run=not start)
    state = parallel.replicate(state)
    with (
      MetricWriter(workdir, resume_step=start) as writer,
      Progress('train', num_steps, images_per_step=batch_size) as progress,
      train_batches(
        train_set,
        Augmentation(**config.augment),
        batch_size=batch_size,
        seed=config.seed,
        start_step=start,
        num_workers=config.data.num_workers,
        class_uniform=config.data.class_uniform,
        centroids=centroids,
      ) as batches,
    ):

      def is_due(step, every):
        return step > 0 and (step % every == 0 or step == num_steps)

      def evaluate_at(step):
        result = evaluator(state.evaluated)
        writer.write(step, {k: v for k, v in result.items() if np.ndim(v) == 0}, 'val')
        best.offer(step, result['miou'], parallel.fetch(state.evaluated), card)

      if is_due(start, config.train.eval_every) and not _is_evaluated(workdir, start):
        evaluate_at(start)
      under_way = collections.deque()
      batches = parallel.prefetch(batches)
      for step in range(start + 1, num_steps + 1):
        state, metrics = p_train_step(state, next(batches), loss_fn)
        under_way.append(metrics)
        if len(under_way) > parallel.MAX_STEPS_AHEAD:
          jax.block_until_ready(under_way.popleft())
        if is_due(step, config.train.log_every):
          scalars = parallel.fetch(metrics) | {'learning_rate': schedule(step - 1)}
          writer.write(step, scalars, 'train')
          progress.update(step, {'loss': scalars['loss']})
        # Before the evaluation: whatever ends that, the steps are kept.
        if is_due(step, config.train.checkpoint_every):
          checkpoints.save(step, parallel.fetch(state))
        if is_due(step, config.train.eval_every):
          evaluate_at(step)
  save_curves(workdir)
  return state


def save_curves(workdir: str) -> None:
  """Draws what `metrics.jsonl` holds into `curves.png`."""
  curves = learning_curves(Path(workdir, 'metrics.jsonl'))
  Image.fromarray(curves).save(Path(workdir, 'curves.png'))


class Best:
  """The weights that scored best so far, in `workdir/best`; a new run replaces an older one's."""

  def __init__(self, workdir: str, *, is_new_run: bool):
    self._folder = Path(workdir, 'best')
    self._score = -np.inf
    if not is_new_run and self._folder.is_dir():
      self._score = load_weights(self._folder)[1].get('miou', -np.inf)

  def offer(self, step: int, score: float, variables: dict, card: dict) -> None:
    """Keeps the weights if they score higher than those kept."""
    if score > self._score:
      self._score = score
      save_weights(self._folder, variables, {**card, 'step': step, 'miou': float(score)})


def initial_state(config: ConfigDict, model, optimizer) -> TrainState:
  """The state before the first step: fresh, or from the weights of `config.init_from`."""
  rng = jax.random.key(config.seed)
  image = jnp.zeros((1, 64, 64, 3))
  variables = parallel.fetch(jax.jit(model.init)(rng, image))
  if config.init_from:
    variables = merge_weights(variables, load_weights(config.init_from)[0], config.init_from)
  check_frozen(variables['params'], config.train.freeze)
  return TrainState(
    step=np.zeros((), np.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=parallel.fetch(optimizer.init(variables['params'])),
    average=variables if config.train.ema_decay else None,
  )


def _check(config: ConfigDict) -> None:
  """Raises ValueError for what would go wrong only after minutes."""
  train = config.train
  counts = (
    'batch_size',
    'num_steps',
    'accumulation',
    'log_every',
    'eval_every',
    'checkpoint_every',
  )
  for key in counts:
    if train[key] < 1:
      raise ValueError(f'config.train.{key}={train[key]}; give at least 1')
  num_devices = parallel.num_devices()
  if train.batch_size % (num_devices * train.accumulation):
    raise ValueError(
      f'config.train.batch_size={train.batch_size} does not divide by {num_devices} devices '
      f'times config.train.accumulation={train.accumulation}'
    )
  if not 0 <= train.ema_decay < 1:
    raise ValueError(f'config.train.ema_decay={train.ema_decay}; give 0 (none) to below 1')
  if config.optimizer.warmup_steps >= train.num_steps:
    raise ValueError(
      f'config.optimizer.warmup_steps={config.optimizer.warmup_steps} leaves none of '
      f'config.train.num_steps={train.num_steps} to train at the full rate'
    )
  Augmentation(**config.augment)


def _check_same_run(config: ConfigDict, workdir: str) -> None:
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
    if before.get(key) != now.get(key) and not key.startswith(_FREE_TO_CHANGE)
  ]
  if differing:
    raise ValueError(
      f'the run in {workdir} has other settings: {"; ".join(differing)}; choose another --workdir, '
      'or give the settings it was started with'
    )


def _is_evaluated(workdir: str, step: int) -> bool:
  lines = read_metrics(Path(workdir, 'metrics.jsonl'))
  return any(line['step'] == step and 'val/miou' in line for line in lines)
