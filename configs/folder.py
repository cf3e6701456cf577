"""Your own images and masks: root/images/{train,val}, root/labels/{train,val}, root/classes.json.

python main.py --mode=train --config=configs/folder.py --workdir=runs/mine \
  --config.data.root=/data/mine
"""

from ml_collections import ConfigDict

from if_jax.configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.data.name = 'folder'
  # With the InverseForm loss, as default.py has it; without: --config.loss.inversenet=
  # If some classes are rare: --config.data.class_uniform=0.5.
  config.augment.crop_size = (512, 512)
  config.train.batch_size = 8
  config.train.num_steps = 5000
  config.train.eval_every = 500
  config.train.checkpoint_every = 500
  return config
