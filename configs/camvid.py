"""hrnet16_slim on CamVid (SegNet's copy, 367 images to train, 101 to validate), full size.

python main.py --mode=train --config=configs/camvid.py --workdir=runs/camvid \
  --config.data.root=/data/camvid

18 epochs from random weights: under 40 minutes on two cores, see docs/results.md. On CPUs, two
forced devices (XLA_FLAGS=--xla_force_host_platform_device_count=2) keep both cores busy.
"""

from ml_collections import ConfigDict

from if_jax.configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.data.name = 'camvid'
  # With the InverseForm loss, as default.py has it; without: --config.loss.inversenet=
  config.augment.crop_size = (360, 480)
  # Smaller scales would fill half of the crop with ignored padding.
  config.augment.scale_range = (0.75, 1.75)
  config.train.batch_size = 8
  config.train.num_steps = 850
  config.train.log_every = 20
  config.train.eval_every = 425
  config.train.checkpoint_every = 425
  # From random weights and with few steps: a higher rate than for fine-tuning.
  config.optimizer.learning_rate = 0.05
  config.optimizer.warmup_steps = 50
  return config
