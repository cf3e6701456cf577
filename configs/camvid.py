"""hrnet16_slim on CamVid (SegNet's copy, 367 images to train, 101 to validate), full size.

python main.py --mode=train --config=configs/camvid.py --workdir=runs/camvid \
  --config.data.root=/data/camvid

As many crops as 35 epochs have, from random weights; docs/train.md says how long it takes, and
docs/results.md what its losses do. On CPUs, two forced devices
(XLA_FLAGS=--xla_force_host_platform_device_count=2) keep both cores busy.
"""

from ml_collections import ConfigDict

from if_jax.configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.data.name = 'camvid'
  # Half of the crops are drawn class by class: without it, fences and cyclists are hardly learnt.
  config.data.class_uniform = 0.5
  # Of images of 360 x 480: small enough for crops around single things.
  config.augment.crop_size = (240, 320)
  config.augment.scale_range = (0.5, 1.5)
  # With the InverseForm loss, as default.py has it; without: --config.loss.inversenet=
  # One tile: of the grids tried no other was better, and this is the cheapest.
  config.loss.tile_rows = 1
  config.train.batch_size = 16
  config.train.num_steps = 800
  config.train.eval_every = 400
  config.train.checkpoint_every = 400
  # From random weights and in few steps: AdamW gets farther than SGD.
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 0.003
  config.optimizer.weight_decay = 0.01
  config.optimizer.warmup_steps = 50
  return config
