"""A few minutes on two cores: hrnet16_slim on 400 drawn street scenes; `make demo` runs it."""

from ml_collections import ConfigDict

from if_jax.configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.data.streets.num_train = 400
  config.data.streets.num_val = 40
  config.data.streets.size = (192, 384)
  # Few steps: small crops, many of them, not much changed.
  config.augment.crop_size = (128, 256)
  config.augment.scale_range = (0.7, 1.3)
  config.augment.brightness = 0.1
  config.augment.contrast = 0.1
  config.augment.saturation = 0.1
  config.augment.hue = 0.05
  config.train.batch_size = 8
  config.train.num_steps = 150
  config.train.log_every = 10
  config.train.eval_every = 150
  config.train.checkpoint_every = 150
  # Two tiles to each crop instead of 18, which enlarge it less and cost less.
  config.loss.tile_rows = 1
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 0.003
  config.optimizer.weight_decay = 0.01
  config.optimizer.warmup_steps = 20
  return config
