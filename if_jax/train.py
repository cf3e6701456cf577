"""Training of segmentation networks."""

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from if_jax import parallel, processes
from if_jax.configs.default import get_config as get_defaults
from if_jax.data.augment import Augmentation
from if_jax.data.class_uniform import class_centroids
from if_jax.data.pipeline import train_batches
from if_jax.evaluate import Evaluator
from if_jax.freezing import check_frozen
from if_jax.html_report import (
  REPORT_FILE,
  Gallery,
  is_reported,
  picture_grid,
  write_training_report,
)
from if_jax.loop import check_steps, run_steps, try_to_report
from if_jax.optimizers import make_optimizer, make_schedule
from if_jax.report import METRICS_FILE, introduce, read_metrics, save_curves
from if_jax.settings import load_split, loss_from_config, model_from_config
from if_jax.train_step import TrainState, train_step
from if_jax.weights import (
  count_parameters,
  load_weights,
  make_card,
  merge_weights,
  save_weights,
  weights_file,
)

# Settings that may differ when a run goes on.
_FREE_TO_CHANGE = ('data.root', 'data.cache_dir', 'data.num_workers', 'eval.', 'model.remat')
# Images that are shown at each evaluation, at most: TensorBoard keeps all pictures of a run.
_MAX_SHOWN = 4


def train_and_evaluate(config: ConfigDict, workdir: str) -> TrainState:
  """Trains a model, evaluates it on the way, and leaves everything in `workdir`.

  A run that was interrupted goes on from its newest checkpoint. `workdir` holds `config.json`,
  `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `report.html`, in `best/` the weights that scored
  best, and in `last/` those it ended with.

  Args:
    config: see configs/default.py.
    workdir: made if it is not there.
  Returns:
    The last state, on the devices.
  Raises:
    ValueError: a configuration, data set or checkpoint that cannot be used, before the first step.
  """
  started = time.monotonic()
  _check(config)
  schedule = make_schedule(
    config.optimizer.learning_rate,
    config.train.num_steps,
    power=config.optimizer.power,
    warmup_steps=config.optimizer.warmup_steps,
  )
  optimizer = make_optimizer(
    schedule,
    name=config.optimizer.name,
    momentum=config.optimizer.momentum,
    weight_decay=config.optimizer.weight_decay,
  )
  loss_fn = parallel.replicate(loss_from_config(config, axis_name=parallel.axis_name()))
  train_set = load_split(config, config.data.train_split)
  eval_set = load_split(config, config.data.eval_split)
  console = processes.console()
  introduce(
    console,
    data=f'{config.data.name}: {len(train_set)} images to train on, {len(eval_set)} to evaluate on',
  )
  centroids: Sequence[np.ndarray] = ()
  if config.data.class_uniform:
    centroids = class_centroids(train_set, config.augment.crop_size)
  processes.check_agreement({'the number of images': (len(train_set), len(eval_set))})
  model = model_from_config(config, train_set.label_set.num_classes, axis_name=parallel.axis_name())
  step_fn = functools.partial(
    train_step,
    model=model,
    optimizer=optimizer,
    seed=config.seed,
    accumulation=config.train.accumulation,
    ema_decay=config.train.ema_decay,
    frozen=config.train.freeze,
    axis_name=parallel.axis_name(),
  )
  p_train_step = parallel.pmap(step_fn, num_constants=1, donate_state=True)
  make_batches = functools.partial(
    train_batches,
    train_set,
    Augmentation(**config.augment),
    batch_size=config.train.batch_size,
    seed=config.seed,
    num_workers=config.data.num_workers,
    class_uniform=config.data.class_uniform,
    centroids=centroids,
  )
  evaluator = Evaluator(model, eval_set, config)
  origin = {'init_from': config.init_from} if config.init_from else {}
  card = make_card(config.model.name, model, train_set.label_set, **origin)

  num_shown = min(_MAX_SHOWN, config.eval.sheet_images)
  shown = np.linspace(0, len(eval_set) - 1, num_shown).round().astype(int)
  samples = {}

  def evaluate(step, state, beat):
    nonlocal samples
    gallery = Gallery(eval_set.label_set, num_extremes=0, shown=shown)
    result = evaluator(state.evaluated, on_image=gallery.add, on_batch=beat)
    samples = gallery.gathered()
    if processes.is_first() and is_best(workdir, result['miou']):
      best = {**card, 'step': step, 'miou': float(result['miou'])}
      save_weights(Path(workdir, 'best'), parallel.fetch(state.evaluated), best)
    per_class = zip(train_set.label_set.class_names, result['iou'], strict=True)
    scalars = {name: score for name, score in result.items() if np.ndim(score) == 0}
    scores = scalars | {f'iou/{name}': iou for name, iou in per_class}
    return scores, {f'pictures/{x.name}': picture_grid(x) for x in samples.values()}

  def write_report():
    write_training_report(
      workdir,
      title=f'{config.model.name} on {config.data.name}',
      config=config,
      defaults=get_defaults(),
      started=started,
      label_set=train_set.label_set,
      samples=samples,
    )

  initial = initial_state(config, model, optimizer)
  size = 'x'.join(map(str, config.augment.crop_size))
  introduce(
    console,
    model=f'{config.model.name}: {count_parameters(initial.params)}, '
    f'begun from {config.init_from or "random weights"}',
    device=f'{parallel.describe_devices()}: {config.train.num_steps} steps of '
    f'{config.train.batch_size} crops of {size}',
  )
  state = run_steps(
    lambda state, batch: p_train_step(state, batch, loss_fn),
    initial,
    make_batches,
    evaluate,
    config=config,
    workdir=workdir,
    schedule=schedule,
    free_to_change=_FREE_TO_CHANGE,
    in_words=_miou_in_words,
    on_evaluated=write_report,
  )
  if processes.is_first():
    last = {**card, 'step': config.train.num_steps}
    save_weights(Path(workdir, 'last'), parallel.fetch(state.evaluated), last)
    save_curves(workdir)
    if not is_reported(workdir):
      try_to_report(write_report)
    _say_where_it_is(workdir)
  return state


def is_best(workdir: str, score: float) -> bool:
  """Whether a score, of mean IoU, is above all those that the run has written down."""
  return score > _best(workdir)[0]


def _best(workdir: str) -> tuple[float, int]:
  """The best mean IoU that the run has written down, and its step."""
  lines = read_metrics(Path(workdir, METRICS_FILE))
  scores = ((line['val/miou'], line['step']) for line in lines if line.get('val/miou') is not None)
  return max(scores, key=lambda pair: pair[0], default=(-np.inf, 0))


def _miou_in_words(scores: Mapping[str, float]) -> str:
  return f'mIoU {100 * scores["miou"]:.2f} %  pixel accuracy {100 * scores["pixel_accuracy"]:.2f} %'


def _say_where_it_is(workdir: str) -> None:
  score, step = _best(workdir)
  # Without a mIoU that is a number, none was best.
  if np.isfinite(score) and Path(workdir, 'best').is_dir():
    print(f'best    {workdir}/best, mIoU {100 * score:.2f} % at step {step}')
  print(f'last    {workdir}/last')
  if Path(workdir, REPORT_FILE).is_file():
    print(f'report  {workdir}/{REPORT_FILE}')


def initial_state(
  config: ConfigDict, model: nn.Module, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step: fresh, or from the weights of `config.init_from`."""
  rng = jax.random.key(config.seed)
  image = jnp.zeros((1, 64, 64, 3))
  # It runs once: hrnet18's compiles in 18 s where its best program takes 41.
  init = jax.jit(model.init, compiler_options={'xla_backend_optimization_level': 0})
  variables = parallel.fetch(init(rng, image))
  if config.init_from:
    variables = merge_weights(variables, load_weights(config.init_from)[0], config.init_from)
  check_frozen(variables['params'], config.train.freeze)
  state = TrainState.create(
    variables, optimizer, frozen=config.train.freeze, averaged=config.train.ema_decay > 0
  )
  return parallel.fetch(state)


def _check(config: ConfigDict) -> None:
  """Raises ValueError for what would go wrong only after minutes, of preparing the data first."""
  check_steps(config)
  train, num_devices = config.train, parallel.num_devices()
  if train.accumulation < 1:
    raise ValueError(f'config.train.accumulation={train.accumulation}; give at least 1')
  if train.batch_size % (num_devices * train.accumulation):
    raise ValueError(
      f'config.train.batch_size={train.batch_size} does not divide by {num_devices} devices '
      f'times config.train.accumulation={train.accumulation}'
    )
  if not 0 <= train.ema_decay < 1:
    raise ValueError(f'config.train.ema_decay={train.ema_decay}; give 0 (none) to below 1')
  Augmentation(**config.augment)
  model_from_config(config, num_classes=1)
  if config.init_from:
    weights_file(config.init_from)
