"""The four networks on Cityscapes, one after the name: `--config=configs/cityscapes.py:hrnet18`.

python main.py --mode=evaluate --config=configs/cityscapes.py:ocrnet48 --workdir=runs/ocrnet48 \
  --config.data.root=/data/cityscapes --config.init_from=weights/ocrnet48

The recipes of the networks' authors, to which the boundary terms are added with the weights of
InverseForm's release; how that trained its checkpoints is not public. Both recipes fine-tune: give
pretrained weights as `init_from`. Not run here: training needs accelerators and the data set.
"""

import difflib

from ml_collections import ConfigDict

from if_jax.configs import default

_NUM_IMAGES = 2975
_MODELS = ('hrnet18', 'hrnet16_slim', 'ocrnet48', 'ocrnet48_hms')


def get_config(model: str = 'hrnet18') -> ConfigDict:
  if model not in _MODELS:
    close = ''.join(f' Did you mean {m}?' for m in difflib.get_close_matches(model, _MODELS, n=1))
    raise ValueError(f'no network {model!r}; there are {", ".join(_MODELS)}.{close}')
  config = default.get_config()
  config.model.name = model
  config.data.name = 'cityscapes'
  config.data.num_workers = 8
  config.train.log_every = 100
  config.train.eval_every = 2500
  config.train.checkpoint_every = 1000
  if model.startswith('ocrnet48'):
    # On accelerators also --config.model.dtype=bfloat16.
    config.model.remat = True
  config.loss.weights.boundary = 0.3
  config.loss.weights.attention = 0.1
  config.loss.weights.inverseform = 0.3
  config.loss.inversenet = 'default'
  # 3 x 6 tiles of 224 from crops of 1:2, as in the release.
  config.loss.tile_rows = 3
  recipe = _hms if model == 'ocrnet48_hms' else _hrnet
  recipe(config)
  return config


def _hrnet(config: ConfigDict):
  """HRNet's, from ImageNet weights; for 4 GPUs of 3 crops each.

  Source: HRNet-Semantic-Segmentation, `experiments/cityscapes/`:
  `seg_hrnet_w18_small_v2_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484.yaml` (there is none for our two
  widths) and `seg_hrnet_ocr_w48_train_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484.yaml`, which gives
  ocrnet48 81.6 % on val. Its authors' other repository, openseg.pytorch, has for the latter also
  8 crops, 80,000 steps and hard example mining (`H_48_D_4.json`, `run_h_48_d_4_ocr_ohem.sh`):
  --config.train.batch_size=8 --config.train.num_steps=80000 --config.loss.segmentation=ohem.
  """
  config.augment.crop_size = (512, 1024)
  config.augment.scale_range = (0.5, 2.1)
  config.augment.brightness = 0.0
  config.augment.contrast = 0.0
  config.augment.saturation = 0.0
  config.augment.hue = 0.0
  _set_epochs(config, 484, batch_size=12)
  config.optimizer.learning_rate = 0.01
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 5e-4
  config.optimizer.power = 0.9
  config.loss.segmentation = 'cross_entropy'
  # Of the output before OCR; the other two networks have none.
  config.loss.weights.auxiliary = 0.4


def _hms(config: ConfigDict):
  """NVIDIA's, from weights for Mapillary Vistas; for 16 GPUs of one crop each.

  On fewer, let each work off its crops one by one: on 4, --config.train.accumulation=4.

  Source: NVIDIA/semantic-segmentation, `scripts/train_cityscapes_sota.yml` and the defaults of
  `train.py`; blur from the paper, arXiv 2005.10821, and the script for Mapillary.
  Differs: without the automatic labels of the coarse images; class-uniform sampling goes on to the
  end, theirs ends at epoch 150; the region term counts on the output before OCR as well.
  """
  config.augment.crop_size = (1024, 2048)
  config.augment.scale_range = (0.5, 2.0)
  config.augment.brightness = 0.25
  config.augment.contrast = 0.25
  config.augment.saturation = 0.25
  config.augment.hue = 0.25
  config.augment.blur_probability = 1.0
  config.data.class_uniform = 0.5
  _set_epochs(config, 175, batch_size=16)
  # Half of it for half of the crops, as in `train_cityscapes.yml`.
  config.optimizer.learning_rate = 0.01
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4
  config.optimizer.power = 2.0
  config.loss.segmentation = 'rmi'
  config.loss.weights.auxiliary = 0.4
  config.loss.weights.scales = 0.05


def _set_epochs(config: ConfigDict, epochs: int, *, batch_size: int):
  config.train.batch_size = batch_size
  config.train.num_steps = round(epochs * _NUM_IMAGES / batch_size)
