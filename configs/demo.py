"""A few minutes on two cores: hrnet16_slim on 400 drawn street scenes; `make demo` runs it."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.data.streets.num_train = 400
  config.data.streets.num_val = 40
  config.data.streets.size = (192, 384)
  config.augment.crop_size = (192, 384)
  config.augment.scale_range = (0.75, 1.5)
  config.train.batch_size = 4
  config.train.num_steps = 300
  config.train.log_every = 10
  config.train.eval_every = 150
  config.train.checkpoint_every = 150
  config.optimizer.learning_rate = 0.05
  config.optimizer.warmup_steps = 20
  return config
