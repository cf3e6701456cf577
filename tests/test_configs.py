"""Every configuration is loaded, and everything that it describes is built."""

import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from if_jax.data.augment import Augmentation
from if_jax.losses import LossWeights, joint_loss
from if_jax.models import MODELS
from if_jax.optimizers import make_schedule
from if_jax.settings import looks_from_config, model_from_config

# That of the inverse network is in test_train_inversenet.py.
NAMES = sorted(
  {p.stem for p in Path(__file__).parent.parent.glob('configs/*.py')} - {'__init__', 'inversenet'}
)
VARIANTS = [(name, ()) for name in NAMES] + [('cityscapes', (model,)) for model in MODELS]


@pytest.mark.parametrize(('name', 'arguments'), VARIANTS)
def test_config_describes_what_can_be_built(name, arguments):
  config = importlib.import_module(f'configs.{name}').get_config(*arguments)
  model = model_from_config(config, 5)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  assert shapes['params']
  if arguments:
    assert config.model.name == arguments[0]
  Augmentation(**config.augment)
  assert 0 <= config.data.class_uniform <= 1
  assert config.train.batch_size % config.train.accumulation == 0
  looks_from_config(config)
  schedule = make_schedule(
    config.optimizer.learning_rate,
    config.train.num_steps,
    power=config.optimizer.power,
    warmup_steps=config.optimizer.warmup_steps,
  )
  assert schedule(config.optimizer.warmup_steps) == pytest.approx(config.optimizer.learning_rate)
  assert schedule(config.train.num_steps) == 0


@pytest.mark.parametrize(('name', 'arguments'), VARIANTS)
def test_config_describes_a_loss(name, arguments):
  config = importlib.import_module(f'configs.{name}').get_config(*arguments)
  assert config.loss.inversenet in ('', 'default')
  loss = functools.partial(
    joint_loss,
    weights=LossWeights(**config.loss.weights),
    segmentation=config.loss.segmentation,
    boundary_radius=config.loss.boundary_radius,
    inverse_net=lambda prediction, target: jnp.zeros((len(target), 4)),
    tile_rows=config.loss.tile_rows,
    distance=config.loss.distance,
  )
  outputs = {
    'logits': jnp.zeros((1, 32, 64, 5)),
    'aux_logits': jnp.zeros((1, 32, 64, 5)),
    'edge_logits': jnp.zeros((1, 32, 64, 1)),
    'aux_edge_logits': jnp.zeros((1, 32, 64, 1)),
  }
  total, terms = jax.eval_shape(loss, outputs, jnp.zeros((1, 32, 64), jnp.int32))
  assert total.shape == ()
  assert {'segmentation', 'boundary', 'attention', 'inverseform'} <= terms.keys()


@pytest.mark.parametrize('model', MODELS)
def test_recipes_for_cityscapes_are_as_long_as_their_sources(model):
  module = importlib.import_module('configs.cityscapes')
  config = module.get_config(model)
  epochs = 175 if model == 'ocrnet48_hms' else 484
  assert config.train.num_steps * config.train.batch_size == pytest.approx(epochs * 2975, abs=16)
  assert 'Not run here' in module.__doc__


@pytest.mark.parametrize('name', NAMES)
def test_config_opens_with_its_command(name):
  text = importlib.import_module(f'configs.{name}').__doc__
  assert 'python main.py' in text or 'make demo' in text
