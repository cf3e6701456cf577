"""Training of the inverse-transformation network, which the InverseForm loss then holds frozen."""

import functools
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from if_jax import parallel, processes
from if_jax.boundary_pairs import PairSettings, label_crops
from if_jax.configs.inversenet import get_config as get_defaults
from if_jax.data.datasets import Dataset, load_dataset
from if_jax.data.decode import decode_image, decode_label
from if_jax.data.pipeline import Stream
from if_jax.html_report import REPORT_FILE, Panel, is_reported, write_training_report
from if_jax.inversenet_step import Evaluator, TrainState, train_step
from if_jax.loop import check_steps, run_steps, try_to_report
from if_jax.losses.inverseform import DISTANCES
from if_jax.models.inversenet import create_inversenet
from if_jax.ops.transforms import NUM_PARAMETERS
from if_jax.optimizers import make_optimizer
from if_jax.predict import Predictor
from if_jax.report import introduce, save_curves
from if_jax.weights import count_parameters, save_weights

# Of the weights, below the run's.
FOLDER = 'inversenet'
# Label maps of each data set that are held in memory, spread evenly over it.
_MAX_LABEL_MAPS = 500
# Of the scenes that are drawn, (height, width).
_STREETS_SIZE = (360, 720)
# As `if_jax.curves.PANELS`.
_PANELS = {
  'Training loss': ('train/loss',),
  'Error of shifts, pixels of a tile': ('train/shift_error', 'val/*_shift_error'),
  'Error of scales, logarithm': ('train/scale_error', 'val/*_scale_error'),
}


def train_inversenet(config: ConfigDict, workdir: str) -> TrainState:
  """Trains an inverse network on boundary tiles and their transformed copies.

  A run that was interrupted goes on from its newest checkpoint. `workdir` holds `config.json`,
  `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `report.html`, and in `inversenet/` the
  weights at the last evaluation, for `load_inversenet`.

  Args:
    config: see configs/inversenet.py.
    workdir: made if it is not there.
  Returns:
    The last state, on the devices.
  Raises:
    ValueError: a configuration, data set or checkpoint that cannot be used, before the first step.
  """
  started = time.monotonic()
  _check(config)
  settings = PairSettings(
    num_parameters=config.num_outputs,
    tile_size=config.tile_size,
    boundary_radius=config.boundary_radius,
    **config.pairs,
  )
  model = create_inversenet(config.name, config.num_outputs)
  schedule = optax.warmup_cosine_decay_schedule(
    0, config.optimizer.learning_rate, config.optimizer.warmup_steps, config.train.num_steps
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    make_optimizer(schedule, name='adamw', weight_decay=config.optimizer.weight_decay),
  )
  state = initial_state(model, optimizer, config.tile_size, config.seed)
  (label_maps, predicted_maps), (unseen_maps, _) = (
    load_maps(config, split, predict) for split, predict in (('train', True), ('val', False))
  )
  introduce(
    processes.console(),
    data=f'{len(label_maps)} label maps to draw from, {len(unseen_maps)} to evaluate on',
    model=f'{config.name}: {count_parameters(state.variables["params"])}',
    device=f'{parallel.describe_devices()}: {config.train.num_steps} steps of '
    f'{config.train.batch_size} pairs of tiles',
  )
  evaluator = Evaluator(model, unseen_maps, settings, config.distance)
  step_fn = functools.partial(
    train_step,
    model=model,
    optimizer=optimizer,
    settings=settings,
    distance=config.distance,
    seed=config.seed,
    axis_name=parallel.axis_name(),
  )

  def evaluate(step, state, beat):
    variables = parallel.fetch(state.variables)
    scores = evaluator(variables)
    if processes.is_first():
      save_weights(Path(workdir, FOLDER), variables, _card(config, step, scores))
    return scores, {}

  def write_report():
    write_training_report(
      workdir,
      title=f'inverse network {config.name}',
      config=config,
      defaults=get_defaults(),
      started=started,
      panels=[Panel(title, patterns) for title, patterns in _PANELS.items()],
    )

  state = run_steps(
    parallel.pmap(step_fn, donate_state=True),
    state,
    functools.partial(
      crop_batches,
      label_maps,
      predicted_maps,
      batch_size=config.train.batch_size,
      seed=config.seed,
    ),
    evaluate,
    config=config,
    workdir=workdir,
    schedule=schedule,
    free_to_change=('cache_dir',),
    on_evaluated=write_report,
  )
  if processes.is_first():
    save_curves(workdir, _PANELS)
    if not is_reported(workdir):
      try_to_report(write_report)
    folder = Path(workdir, FOLDER)
    print(f'The weights are in {folder}; train with them by --config.loss.inversenet={folder}')
    if Path(workdir, REPORT_FILE).is_file():
      print(f'The report is {workdir}/{REPORT_FILE}')
  return state


def initial_state(
  model: nn.Module, optimizer: optax.GradientTransformation, tile_size: int, seed: int
) -> TrainState:
  """The state before the first step, on the host."""
  tile = jnp.zeros((1, tile_size, tile_size, 1))
  variables = parallel.fetch(jax.jit(model.init)(jax.random.key(seed), tile, tile))
  opt_state = parallel.fetch(optimizer.init(variables))
  return TrainState(np.zeros((), np.int32), variables, opt_state)


def load_maps(
  config: ConfigDict, split: str, predict: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """What there is to draw pairs from in the split of all sources of a configuration.

  Returns:
    (label_maps, predicted_maps): train ids, and the boundary probability that
    `config.predictions` sees there, in 1 / 255; uint8 [H, W] each. Without such a network, or
    unless `predict`, the second is empty.
  """
  predictor = None
  if config.predictions and predict:
    predictor = Predictor(config.predictions)
    if not predictor.edge_head:
      raise ValueError(
        f'config.predictions={config.predictions!r} has no edge head; name a network with one'
      )
  label_maps: list[np.ndarray] = []
  predicted_maps: list[np.ndarray] = []
  for name, source in config.sources.items():
    if not source:
      continue
    options = {'root': source, 'cache_dir': config.cache_dir or None}
    if name == 'streets':
      num_examples = source if split == 'train' else -(-source // 5)
      options = {'num_examples': num_examples, 'size': _STREETS_SIZE, 'seed': config.seed}
    dataset = load_dataset(name, split, **options)
    count = min(len(dataset), _MAX_LABEL_MAPS)
    indices = [i * len(dataset) // count for i in range(count)]
    with ThreadPoolExecutor() as pool:
      label_maps += pool.map(functools.partial(_read_label_map, dataset), indices)
    if predictor is not None:
      predicted_maps += [_predict_boundaries(predictor, dataset[i]) for i in indices]
  return label_maps, predicted_maps


def _read_label_map(dataset: Dataset, index: int) -> np.ndarray:
  example = dataset[index]
  return dataset.label_set.to_train_ids(
    decode_label(example['label'], example['name']), example['name']
  )


def _predict_boundaries(predictor: Predictor, example: Mapping[str, Any]) -> np.ndarray:
  outputs = predictor(decode_image(example['image'], example['name']))
  return np.round(255 * outputs['edge_probability'][..., 0]).astype(np.uint8)


def crop_batches(
  label_maps: Sequence[np.ndarray],
  predicted_maps: Sequence[np.ndarray] = (),
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Stream:
  """This process's crops of every step from `start_step` on, drawn ahead of time in threads."""
  size = batch_size // process_count
  mine = slice(process_index * size, (process_index + 1) * size)

  def draw(step):
    # The same generator for both: a crop's labels and predictions are of the same place.
    cut = functools.partial(label_crops, num_crops=batch_size)
    batch = {'label': cut(label_maps, rng=np.random.default_rng((seed, step)))[mine]}
    if predicted_maps:
      rng = np.random.default_rng((seed, step))
      batch['predicted'] = cut(predicted_maps, rng=rng, outside=0)[mine]
    return batch

  steps = grain.MapDataset.range(start_step, np.iinfo(np.int32).max)
  return Stream(steps.map(draw).to_iter_dataset(grain.ReadOptions(2, 4)))


def _card(config: ConfigDict, step: int, result: dict[str, float]) -> dict[str, Any]:
  """Says what the weights are of, what made them and how good they are.

  Weights travel: where the data lay on this machine stays here.
  """
  settings = json.loads(config.to_json_best_effort())
  del settings['cache_dir']
  settings['predictions'] = bool(settings['predictions'])
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
  check_steps(config)
  if config.num_outputs not in NUM_PARAMETERS:
    raise ValueError(f'config.num_outputs={config.num_outputs}; a transform has 4, 6 or 8')
  if config.distance not in DISTANCES:
    raise ValueError(f'config.distance={config.distance!r}; there are {", ".join(DISTANCES)}')
  if not any(config.sources.values()):
    raise ValueError(
      'config.sources names no data; give the folder of a data set, such as '
      '--config.sources.camvid=DIR, or a number of scenes, --config.sources.streets=150'
    )
