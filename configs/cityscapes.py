"""The four networks on Cityscapes, one after the name: `--config=configs/cityscapes.py:hrnet18`.

python main.py --mode=evaluate --config=configs/cityscapes.py:ocrnet48 --workdir=runs/ocrnet48 \
  --config.data.root=/data/cityscapes --config.init_from=weights/ocrnet48

Schedule and crop of HRNet's recipe (batch 12, 484 epochs of 2975 images, crop 512x1024, rate 0.01,
power 0.9, decay 5e-4). Not run here: training needs accelerators and the data set.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(model: str = 'hrnet18') -> ConfigDict:
  config = default.get_config()
  config.model.name = model
  config.data.name = 'cityscapes'
  config.data.num_workers = 8
  config.augment.crop_size = (512, 1024)
  config.train.batch_size = 12
  config.train.num_steps = 120_000
  config.train.log_every = 100
  config.train.eval_every = 2500
  config.train.checkpoint_every = 1000
  if model.startswith('ocrnet48'):
    # On accelerators also --config.model.dtype=bfloat16.
    config.model.remat = True
  return config
