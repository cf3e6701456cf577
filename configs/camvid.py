"""hrnet16_slim on CamVid (SegNet's copy, 367 images to train, 101 to validate), full size.

python main.py --mode=train --config=configs/camvid.py --workdir=runs/camvid \
  --config.data.root=/data/camvid
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.data.name = 'camvid'
  config.augment.crop_size = (360, 480)
  config.train.batch_size = 8
  config.train.num_steps = 2500
  config.train.eval_every = 250
  config.train.checkpoint_every = 250
  # From nothing and with few images: a higher rate than for fine-tuning.
  config.optimizer.learning_rate = 0.05
  config.optimizer.warmup_steps = 100
  return config
