"""Training of the inverse-transformation network, which the InverseForm loss then holds frozen."""

import collections
import dataclasses
import functools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from if_jax import parallel
from if_jax.boundary_pairs import PairSettings, draw_pairs, label_crops
from if_jax.checkpoints import Checkpoints
from if_jax.data.datasets import Dataset, load_dataset
from if_jax.data.decode import decode_label
from if_jax.data.pipeline import Stream
from if_jax.losses.inverseform import DISTANCES
from if_jax.models.inversenet import create_inversenet
from if_jax.ops.transforms import (
  NUM_PARAMETERS,
  matrix_from_parameters,
  parameters_from_matrix,
)
from if_jax.ops.warp import homography_warp
from if_jax.optimizers import make_optimizer
from if_jax.report import MetricWriter, Progress
from if_jax.weights import save_weights

FOLDER = 'inversenet'
# Label maps of each data set that are held in memory, spread evenly over it.
_MAX_LABEL_MAPS = 500
# Pairs that are drawn at once for evaluation, and how often.
_EVAL_BATCH_SIZE, _NUM_EVAL_BATCHES = 16, 8
# Of the scenes that are drawn, (height, width).
_STREETS_SIZE = (360, 720)
# Tiles with a smaller share of boundary pixels have no transform to find: their answer is 0.
_EMPTY = 1e-3


class TrainState(flax.struct.PyTreeNode):
  """What a step changes.

  Attributes:
    step: int32, how many were taken.
    variables: of the network.
    opt_state: of the optimiser.
  """

  step: jax.Array
  variables: Any
  opt_state: Any


def train_inversenet(config: ConfigDict, workdir: str) -> TrainState:
  """Trains an inverse network on boundary tiles and their transformed copies.

  A run that was interrupted goes on from its newest checkpoint. `workdir` holds `config.json`,
  `metrics.jsonl`, `tensorboard/`, `checkpoints/`, and in `inversenet/` the weights at the last
  evaluation, for `load_inversenet`.

  Args:
    config: see configs/inversenet.py.
    workdir: made if it is not there.
  Returns:
    The last state, on the devices.
  Raises:
    ValueError: a configuration, data set or checkpoint that cannot be used, before the first step.
  """
  _check(config)
  num_steps, batch_size = config.train.num_steps, config.train.batch_size
  settings = PairSettings(
    num_parameters=config.num_outputs,
    tile_size=config.tile_size,
    boundary_radius=config.boundary_radius,
    **config.pairs,
  )
  model = create_inversenet(config.name, config.num_outputs)
  schedule = optax.warmup_cosine_decay_schedule(
    0, config.optimizer.learning_rate, config.optimizer.warmup_steps, num_steps
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    make_optimizer(schedule, name='adamw', weight_decay=config.optimizer.weight_decay),
  )
  state = initial_state(model, optimizer, config.tile_size, config.seed)
  evaluate = Evaluator(model, load_label_maps(config, 'val'), settings, config.distance)
  label_maps = load_label_maps(config, 'train')
  step_fn = functools.partial(
    train_step,
    model=model,
    optimizer=optimizer,
    settings=settings,
    distance=config.distance,
    seed=config.seed,
    axis_name=parallel.AXIS,
  )
  p_train_step = parallel.pmap(step_fn, donate_state=True)

  Path(workdir).mkdir(parents=True, exist_ok=True)
  with Checkpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints:
    start = checkpoints.latest_step() or 0
    if start:
      state = checkpoints.restore(start, state)
      print(f'{workdir}: going on at step {start} of {num_steps}')
    Path(workdir, 'config.json').write_text(config.to_json_best_effort(indent=2) + '\n')
    state = parallel.replicate(state)
    with (
      MetricWriter(workdir, resume_step=start) as writer,
      Progress('train', num_steps, images_per_step=batch_size) as progress,
      crop_batches(label_maps, batch_size, seed=config.seed, start_step=start) as batches,
    ):
      under_way = collections.deque()
      batches = parallel.prefetch(batches)
      for step in range(start + 1, num_steps + 1):
        state, metrics = p_train_step(state, next(batches))
        under_way.append(metrics)
        if len(under_way) > parallel.MAX_STEPS_AHEAD:
          jax.block_until_ready(under_way.popleft())
        if step % config.train.log_every == 0 or step == num_steps:
          scalars = parallel.fetch(metrics) | {'learning_rate': schedule(step - 1)}
          writer.write(step, scalars, 'train')
          progress.update(step, {k: scalars[k] for k in ('loss', 'shift_error', 'scale_error')})
        if step % config.train.checkpoint_every == 0 or step == num_steps:
          checkpoints.save(step, parallel.fetch(state))
        if step % config.train.eval_every == 0 or step == num_steps:
          variables = parallel.fetch(state.variables)
          result = evaluate(variables)
          writer.write(step, result, 'val')
          save_weights(Path(workdir, FOLDER), variables, _card(config, step, result))
  return state


def initial_state(model, optimizer, tile_size: int, seed: int) -> TrainState:
  """The state before the first step, on the host."""
  tile = jnp.zeros((1, tile_size, tile_size, 1))
  variables = parallel.fetch(jax.jit(model.init)(jax.random.key(seed), tile, tile))
  opt_state = parallel.fetch(optimizer.init(variables))
  return TrainState(np.zeros((), np.int32), variables, opt_state)


def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  *,
  model,
  optimizer: optax.GradientTransformation,
  settings: PairSettings,
  distance: str,
  seed: int,
  axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of training, on pairs drawn from this device's crops.

  Args:
    state: the same on all devices.
    batch: this device's part: 'label' uint8 [B, S, S], of `label_crops`.
    model: of `create_inversenet`.
    optimizer: of its variables.
    settings: of the pairs.
    distance: a key of `if_jax.losses.inverseform.DISTANCES`, from the true transform.
    seed: of what is drawn.
    axis_name: of the devices; None: this one holds the whole batch.
  Returns:
    (the next state, {name: its mean over the whole batch}).
  """
  # Threefry, the usual generator, takes as long as the network on a CPU.
  rng = jax.random.fold_in(jax.random.key(seed, impl='rbg'), state.step)
  if axis_name is not None:
    rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
  prediction, target, truth = draw_pairs(rng, batch['label'], settings)
  truth = jnp.where(has_boundary(target)[:, None], truth, 0)

  def loss_of(variables):
    estimates = model.apply(variables, prediction, target, every_round=True)
    distances = jax.vmap(lambda estimate: DISTANCES[distance](estimate, truth))(estimates)
    # The rounds before the last count half.
    loss = (jnp.mean(distances) + jnp.mean(distances[-1]) / len(distances)) / 2
    errors = pair_errors(estimates[-1], truth, settings.tile_size)
    return loss, {'loss': loss, **{name: jnp.mean(x) for name, x in errors.items()}}

  gradients, metrics = jax.grad(loss_of, has_aux=True)(state.variables)
  if axis_name is not None:
    gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
  metrics['gradient_norm'] = optax.tree.norm(gradients)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.variables)
  variables = optax.apply_updates(state.variables, updates)
  return TrainState(state.step + 1, variables, opt_state), metrics


def pair_errors(estimate: jax.Array, truth: jax.Array, tile_size: int) -> dict[str, jax.Array]:
  """Errors [N] of transform parameters [N, P], absolute and means over both axes.

  'shift_error' is in pixels of a tile, 'scale_error' in the logarithm of the scale.
  """
  estimate, truth = (
    parameters_from_matrix(matrix_from_parameters(x), 4) for x in (estimate, truth)
  )
  difference = jnp.abs(estimate - truth)
  return {
    'shift_error': jnp.mean(difference[:, :2], axis=1) * tile_size / 2,
    'scale_error': jnp.mean(difference[:, 2:], axis=1),
  }


def has_boundary(target: jax.Array) -> jax.Array:
  """Whether tiles [N, T, T, 1] show enough of a boundary to tell where it is, bool [N]."""
  return jnp.mean(target, axis=(1, 2, 3)) > _EMPTY


class Evaluator:
  """Scores variables of an inverse network on pairs that are the same each time.

  Args:
    model: of `create_inversenet`.
    label_maps: uint8 [H, W] each, that it is not trained on.
    settings: of the pairs.
    distance: as in `train_step`.
  """

  def __init__(
    self, model, label_maps: Sequence[np.ndarray], settings: PairSettings, distance: str
  ):
    self._label_maps = label_maps
    self._scores = jax.jit(
      functools.partial(_scores, model=model, settings=settings, distance=distance)
    )

  def __call__(self, variables: dict[str, Any]) -> dict[str, float]:
    """Returns means over the tiles that have a boundary.

    Of `pair_errors`, those of predictions that are the warped truth ('clean_...') and of others
    that look as networks predict ('corrupt_...'); and how far from the identity the network finds
    a truth beside itself ('distance_aligned') and shifted by 10 pixels of 224
    ('distance_shifted').
    """
    batches = []
    for i in range(_NUM_EVAL_BATCHES):
      crops = label_crops(self._label_maps, _EVAL_BATCH_SIZE, np.random.default_rng(i))
      batches.append(jax.device_get(self._scores(variables, crops, jax.random.key(i))))
    scores = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    counted = scores.pop('has_boundary')
    if not counted.any():
      raise ValueError('no boundary in any tile of the val split; give sources that have some')
    return {name: float(np.mean(x[counted])) for name, x in scores.items()}


def _scores(variables, labels, rng, *, model, settings, distance):
  """What `Evaluator` gives, [N] each, and which tiles to count."""
  scores = {}
  for kind, clean in (('clean', 1.0), ('corrupt', 0.0)):
    drawn = draw_pairs(rng, labels, dataclasses.replace(settings, clean=clean))
    prediction, target, truth = drawn
    errors = pair_errors(model.apply(variables, prediction, target), truth, settings.tile_size)
    scores |= {f'{kind}_{name}': x for name, x in errors.items()}
  shift = jnp.broadcast_to(jnp.array([10 / 112, 0, 0, 0]), (len(target), 4))
  shifted = homography_warp(target, matrix_from_parameters(shift))
  for kind, prediction in (('aligned', target), ('shifted', shifted)):
    scores[f'distance_{kind}'] = DISTANCES[distance](model.apply(variables, prediction, target))
  return scores | {'has_boundary': has_boundary(target)}


def load_label_maps(config: ConfigDict, split: str) -> list[np.ndarray]:
  """The train ids, uint8 [H, W] each, of the split of all sources of a configuration."""
  label_maps = []
  for name, source in config.sources.items():
    if not source:
      continue
    options = {'root': source, 'cache_dir': config.cache_dir or None}
    if name == 'streets':
      num_examples = source if split == 'train' else -(-source // 5)
      options = {'num_examples': num_examples, 'size': _STREETS_SIZE, 'seed': config.seed}
    label_maps += _read_label_maps(load_dataset(name, split, **options))
  return label_maps


def _read_label_maps(dataset: Dataset) -> list[np.ndarray]:
  def read(index):
    example = dataset[index]
    return dataset.label_set.to_train_ids(
      decode_label(example['label'], example['name']), example['name']
    )

  count = min(len(dataset), _MAX_LABEL_MAPS)
  with ThreadPoolExecutor() as pool:
    return list(pool.map(read, [i * len(dataset) // count for i in range(count)]))


def crop_batches(
  label_maps: Sequence[np.ndarray], batch_size: int, *, seed: int, start_step: int
) -> Stream:
  """The crops of every step from `start_step` on, drawn ahead of time in threads."""

  def draw(step):
    return {'label': label_crops(label_maps, batch_size, np.random.default_rng((seed, step)))}

  steps = grain.MapDataset.range(start_step, np.iinfo(np.int32).max)
  return Stream(steps.map(draw).to_iter_dataset(grain.ReadOptions(2, 4)))


def _card(config: ConfigDict, step: int, result: dict[str, float]) -> dict[str, Any]:
  """Says what the weights are of, what made them and how good they are.

  Weights travel: where the data lay on this machine stays here.
  """
  settings = json.loads(config.to_json_best_effort())
  del settings['cache_dir']
  for name, source in settings['sources'].items():
    settings['sources'][name] = source if name == 'streets' else bool(source)
  return {
    'model': 'inversenet',
    'architecture': config.name,
    'num_outputs': config.num_outputs,
    'tile_size': config.tile_size,
    'step': step,
    'val': result,
    'config': settings,
  }


def _check(config: ConfigDict) -> None:
  """Raises ValueError for what would go wrong only after a while."""
  for key in ('batch_size', 'num_steps', 'log_every', 'eval_every', 'checkpoint_every'):
    if config.train[key] < 1:
      raise ValueError(f'config.train.{key}={config.train[key]}; give at least 1')
  num_devices = parallel.num_devices()
  if config.train.batch_size % num_devices:
    raise ValueError(
      f'config.train.batch_size={config.train.batch_size} does not divide by {num_devices} devices'
    )
  if config.optimizer.warmup_steps >= config.train.num_steps:
    raise ValueError(
      f'config.optimizer.warmup_steps={config.optimizer.warmup_steps} leaves none of '
      f'config.train.num_steps={config.train.num_steps} to train at the full rate'
    )
  if config.num_outputs not in NUM_PARAMETERS:
    raise ValueError(f'config.num_outputs={config.num_outputs}; a transform has 4, 6 or 8')
  if config.distance not in DISTANCES:
    raise ValueError(f'config.distance={config.distance!r}; there are {", ".join(DISTANCES)}')
  if not any(config.sources.values()):
    raise ValueError(
      'config.sources names no data; give the folder of a data set, such as '
      '--config.sources.camvid=DIR, or a number of scenes, --config.sources.streets=150'
    )
