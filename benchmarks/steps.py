"""The training step of a configuration, as `if_jax.train` makes it, and a batch for it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from if_jax import parallel
from if_jax.data.labels import CITYSCAPES
from if_jax.data.streets import draw
from if_jax.optimizers import make_optimizer, make_schedule
from if_jax.settings import loss_from_config, model_from_config
from if_jax.train import initial_state
from if_jax.train_step import train_step


def make_step(config: ConfigDict) -> tuple[Callable, Any, jax.tree_util.Partial]:
  """Makes what `train_and_evaluate` repeats.

  Args:
    config: see configs/default.py.
  Returns:
    (step, state, loss_fn): step(state, batch, loss_fn) gives the next state and the metrics, and
    takes the memory of the state; all are on the devices.
  """
  model = model_from_config(config, CITYSCAPES.num_classes, axis_name=parallel.axis_name())
  schedule = make_schedule(config.optimizer.learning_rate, config.train.num_steps)
  optimizer = make_optimizer(schedule, name=config.optimizer.name)
  step = functools.partial(
    train_step,
    model=model,
    optimizer=optimizer,
    seed=config.seed,
    accumulation=config.train.accumulation,
    axis_name=parallel.axis_name(),
  )
  state = parallel.replicate(initial_state(config, model, optimizer))
  loss_fn = parallel.replicate(loss_from_config(config, axis_name=parallel.axis_name()))
  return parallel.pmap(step, num_constants=1, donate_state=True), state, loss_fn


def draw_batch(config: ConfigDict) -> dict[str, np.ndarray]:
  """Draws streets of the crop's size: a batch on the host, as the pipeline gives it."""
  pairs = [
    draw(np.random.default_rng(seed), tuple(config.augment.crop_size))
    for seed in range(config.train.batch_size)
  ]
  images, labels = (np.stack(x) for x in zip(*pairs, strict=True))
  return {'image': images, 'label': labels.astype(np.int32)}
