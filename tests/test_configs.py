"""Every configuration is loaded, and everything that it describes is built."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from if_jax.data.augment import Augmentation
from if_jax.losses import LossWeights
from if_jax.models import MODELS
from if_jax.optimizers import make_schedule
from if_jax.settings import looks_from_config, model_from_config

NAMES = [p.stem for p in Path(__file__).parent.parent.glob('configs/*.py') if p.stem != '__init__']
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
  LossWeights(**config.loss.weights)
  looks_from_config(config)
  schedule = make_schedule(
    config.optimizer.learning_rate,
    config.train.num_steps,
    power=config.optimizer.power,
    warmup_steps=config.optimizer.warmup_steps,
  )
  assert schedule(config.optimizer.warmup_steps) == pytest.approx(config.optimizer.learning_rate)
  assert schedule(config.train.num_steps) == 0


@pytest.mark.parametrize('name', NAMES)
def test_config_opens_with_its_command(name):
  text = importlib.import_module(f'configs.{name}').__doc__
  assert 'python main.py' in text or 'make demo' in text
