"""From a configuration (configs/default.py) to the objects it describes."""

import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict

from if_jax.data.datasets import Dataset, load_dataset
from if_jax.inference import Looks
from if_jax.losses import LossWeights, joint_loss
from if_jax.losses.inverseform import choose
from if_jax.losses.joint import PREDICTED_BOUNDARIES
from if_jax.models import Network, create_model
from if_jax.models.inversenet import load_inversenet
from if_jax.weights import DEFAULT_WEIGHTS, PACKAGED, find_weights, label_set_of


def model_from_config(config: ConfigDict, num_classes: int, **options: Any) -> Network:
  """The network of `config.model`, for so many classes."""
  return create_model(
    config.model.name,
    num_classes,
    edge_head=config.model.edge_head,
    dtype=_dtype(config),
    remat=config.model.remat,
    scales=tuple(config.model.scales) or None,
    **options,
  )


def model_from_card(config: ConfigDict, card: dict[str, Any]) -> Network:
  """The network that weights are of; how it computes is the configuration's to say."""
  return create_model(
    card['model'],
    label_set_of(card).num_classes,
    edge_head=card['edge_head'],
    dtype=_dtype(config),
    scales=tuple(config.model.scales) or None,
  )


def loss_from_config(config: ConfigDict, *, axis_name: str | None = None) -> Partial:
  """The loss of `config.loss`, `(outputs, labels, step) -> (total, terms)`; see `joint_loss`.

  The inverse network is loaded if the loss uses it; its parameters are the leaves of the result.
  """
  start = config.loss.inverseform_start
  if not 0 <= start < 1:
    raise ValueError(f'config.loss.inverseform_start={start}; give 0 (at once) to below 1')
  choose('config.loss.inverseform_on', config.loss.inverseform_on, PREDICTED_BOUNDARIES)
  weights = LossWeights(**config.loss.weights)
  inverse_net = None
  has_boundaries = config.model.edge_head or config.loss.inverseform_on == 'classes'
  if weights.inverseform and config.loss.inversenet and has_boundaries:
    num_outputs = config.loss.num_outputs or None
    inverse_net = Partial(*load_inversenet(config.loss.inversenet, num_outputs=num_outputs))
  loss_fn = functools.partial(
    joint_loss,
    weights=weights,
    segmentation=config.loss.segmentation,
    boundary_radius=config.loss.boundary_radius,
    tile_rows=config.loss.tile_rows,
    tile_size=config.loss.tile_size,
    distance=config.loss.distance,
    gradient=config.loss.gradient,
    inverseform_on=config.loss.inverseform_on,
    inverseform_from=round(start * config.train.num_steps),
    axis_name=axis_name,
  )
  return Partial(loss_fn, inverse_net=inverse_net)


def weights_folder(config: ConfigDict, workdir: str) -> Path:
  """Where the weights to evaluate are: `config.init_from`, or the best of the run in `workdir`.

  With neither, those that come with the package.

  Raises:
    ValueError: both are there, and differ: the weights a training started from are easily taken
      for those it ended with.
  """
  if not config.init_from:
    return Path(workdir, 'best') if workdir else PACKAGED / DEFAULT_WEIGHTS
  folder = find_weights(config.init_from)
  if not workdir:
    return folder
  best = Path(workdir, 'best')
  if best.is_dir() and folder.resolve() != best.resolve():
    raise ValueError(
      f'both {folder} (config.init_from) and {best} hold weights; for those of the run give '
      f'--config.init_from={best}, for the others another --workdir'
    )
  return folder


def load_split(config: ConfigDict, split: str) -> Dataset:
  """The split of `config.data` of that name."""
  options = {'root': config.data.root or None, 'cache_dir': config.data.cache_dir or None}
  if config.data.name == 'streets':
    streets = config.data.streets
    num_examples = streets.num_train if split == 'train' else streets.num_val
    options |= {'num_examples': num_examples, 'size': streets.size, 'seed': streets.seed}
  return load_dataset(config.data.name, split, **options)


def looks_from_config(config: ConfigDict) -> Looks:
  """The looks at each image that `config.eval` asks for."""
  return Looks(
    scales=tuple(config.eval.scales),
    flip=config.eval.flip,
    window=tuple(config.eval.window) or None,
    stride=tuple(config.eval.stride) or None,
  )


def _dtype(config: ConfigDict) -> jnp.dtype:
  # float16 would need its gradients scaled.
  if config.model.dtype not in ('float32', 'bfloat16'):
    raise ValueError(f'config.model.dtype={config.model.dtype!r}; give float32 or bfloat16')
  return jnp.dtype(config.model.dtype)
