"""Every key there is, with its reason; the other files change a few.

python main.py --mode=train --config=configs/default.py --workdir=runs/streets
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """hrnet16_slim on street scenes that we draw: needs no data and no accelerator."""
  config = ConfigDict()
  # Decides initial weights, order of the images, augmentation and dropout.
  config.seed = 0
  # A weight folder, of `python -m convert` or of a training (WORKDIR/best), or the name of one in
  # the package: what training starts from, what evaluation and prediction use. Empty: random
  # weights, and WORKDIR/best.
  config.init_from = ''

  config.model = ConfigDict()
  # hrnet18, hrnet16_slim, ocrnet48 or ocrnet48_hms.
  config.model.name = 'hrnet16_slim'
  # The boundary branch: sharpens the rest in training, shows boundaries in prediction.
  config.model.edge_head = True
  # Of the computation: bfloat16 halves memory and is fast on accelerators, slow on CPUs.
  config.model.dtype = 'float32'
  # Recompute activations in the backward pass: less memory, about a third more time.
  config.model.remat = False
  # ocrnet48_hms in evaluation: ratios of the image's size. Empty: 0.25, 0.5, 1, 2.
  config.model.scales = ()

  config.data = ConfigDict()
  # cityscapes, cityscapes_coarse, camvid, folder, streets or tfds:cityscapes.
  config.data.name = 'streets'
  # The folder that holds the data set; streets needs none.
  config.data.root = ''
  # Where data sets are kept once their files are checked. Empty: where TFDS keeps its own.
  config.data.cache_dir = ''
  config.data.train_split = 'train'
  config.data.eval_split = 'val'
  # Processes that load images; 0 loads in threads of this one, enough for small models on CPUs.
  config.data.num_workers = 0
  # Share of the training crops that are drawn class by class, so that rare classes are seen as
  # often as common ones; NVIDIA takes 0.5. The first run looks through all labels for it.
  config.data.class_uniform = 0.0
  # What `streets` draws; the scenes of the two splits differ.
  config.data.streets = ConfigDict()
  config.data.streets.num_train = 500
  config.data.streets.num_val = 50
  config.data.streets.size = (256, 512)
  config.data.streets.seed = 0

  # Fields of if_jax.data.augment.Augmentation.
  config.augment = ConfigDict()
  config.augment.crop_size = (256, 512)
  config.augment.scale_range = (0.5, 2.0)
  config.augment.flip = True
  config.augment.brightness = 0.25
  config.augment.contrast = 0.25
  config.augment.saturation = 0.25
  config.augment.hue = 0.25
  # Share of the crops that are blurred a little; 1 in NVIDIA's recipe, 0 in HRNet's.
  config.augment.blur_probability = 0.0

  config.train = ConfigDict()
  # Over all devices together.
  config.train.batch_size = 4
  # Parts that each device works its images off in, for lack of memory. On CPUs much slower.
  config.train.accumulation = 1
  config.train.num_steps = 1000
  config.train.log_every = 20
  config.train.eval_every = 250
  config.train.checkpoint_every = 250
  config.train.keep_checkpoints = 2
  # Seconds without the end of a step, or of an evaluation, after which the run ends with a reason:
  # longer than compiling takes. 0: never.
  config.train.step_timeout = 3600
  # Of a moving average of the weights, which is then what is evaluated and kept as the best; 0.999
  # averages over about the last thousand steps. 0: none.
  config.train.ema_decay = 0.0
  # Modules that stay as init_from has them, such as ('backbone',) or ('backbone', 'ocr/aux_head').
  config.train.freeze = ()

  # SGD with momentum and polynomial decay, as HRNet's recipe has it.
  config.optimizer = ConfigDict()
  # sgd or adamw; the latter gets going faster from random weights.
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.01
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 5e-4
  config.optimizer.power = 0.9
  config.optimizer.warmup_steps = 0

  config.loss = ConfigDict()
  # Fields of if_jax.losses.LossWeights; a weight of 0 leaves a term out.
  config.loss.weights = ConfigDict()
  config.loss.weights.segmentation = 1.0
  config.loss.weights.boundary = 0.3
  config.loss.weights.attention = 0.1
  config.loss.weights.inverseform = 0.3
  config.loss.weights.auxiliary = 0.4
  # Of each scale's own answer, for ocrnet48_hms.
  config.loss.weights.scales = 0.05
  # cross_entropy, ohem (of the hard pixels) or rmi (of regions, dearer).
  config.loss.segmentation = 'cross_entropy'
  # Pixels; boundaries are twice as wide.
  config.loss.boundary_radius = 2
  # What measures boundaries: 'default', or a weight folder of --mode=train_inversenet or of
  # `python -m convert --model=inversenet`. Empty: no InverseForm term.
  config.loss.inversenet = 'default'
  # The crop's height in tiles; as many columns as make them nearly square.
  config.loss.tile_rows = 3
  # Pixels of a tile's side as the inverse network sees it: what it was trained with.
  config.loss.tile_size = 224
  # euclidean, or geodesic, which is blind to scales: give it 8 outputs, as the paper does.
  config.loss.distance = 'euclidean'
  # motion: the InverseForm term only moves boundaries; full: it also draws what pleases the inverse
  # network; as_released: nothing learns from it.
  config.loss.gradient = 'motion'
  # The boundaries that the InverseForm term judges: those of the edge_head, or those between the
  # predicted classes.
  config.loss.inverseform_on = 'edge_head'
  # Share of the steps that are taken before the InverseForm term counts.
  config.loss.inverseform_start = 0.0
  # Transform parameters: 4 (shifts and scales), 6 (affine) or 8 (homography). 0: as trained.
  config.loss.num_outputs = 0

  config.eval = ConfigDict()
  # Images handed to each device at once; it computes them one after the other.
  config.eval.batch_size = 1
  # Averages of probabilities over scales and mirror images; dearer, usually better.
  config.eval.scales = (1.0,)
  config.eval.flip = False
  # (height, width) of windows that slide over images too large for memory. Empty: whole images.
  config.eval.window = ()
  # (height, width) between windows. Empty: two thirds of the window.
  config.eval.stride = ()
  # Pixels, or below 1 shares of the image's diagonal. Empty: no boundary scores.
  config.eval.boundary_tolerances = (1.0, 2.0, 3.0, 5.0)
  # What to write for each image: label_ids, color, overlay, edges, errors.
  config.eval.save = ()
  # How many images, spread over the data set, `evaluation/sheet.png` and the report show; training
  # shows up to 4 of them in TensorBoard and in its report.
  config.eval.sheet_images = 6
  # How many of the worst images the report of an evaluation shows, and how many of the best.
  config.eval.report_images = 5
  # A key that is not here is a mistake.
  return config.lock()
