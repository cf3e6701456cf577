"""The inverse-transformation network: trained once, then frozen inside the InverseForm loss.

python main.py --mode=train_inversenet --config=configs/inversenet.py --workdir=runs/inversenet \
  --config.sources.camvid=/data/camvid

The weights end in WORKDIR/inversenet; a training takes them by --config.loss.inversenet=FOLDER.

The default in the package is of this command with --config.sources.streets=200: 15 minutes on two
cores beside other work; shift error 1.75 pixels per axis and 0.023 in log-scale on clean crops of
both validation splits. More in docs/inversenet.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Street scenes that we draw are the only source at first: needs no data."""
  config = ConfigDict()
  # Decides initial weights, the crops and what is drawn from them.
  config.seed = 0
  # matcher, ours; or mlp, the release's: 100 M weights at this tile size.
  config.name = 'matcher'
  # 4: shifts and scales; 6: affine; 8: homography.
  config.num_outputs = 4
  # Pixels of a tile's side: what the loss cuts its tiles to.
  config.tile_size = 224
  # Pixels of the label map; boundaries are twice as wide, times the enlargement of a tile.
  config.boundary_radius = 2
  # euclidean or geodesic, as in the loss.
  config.distance = 'euclidean'

  # Label maps to draw boundaries from: the folder of each data set, '' where it is not used.
  config.sources = ConfigDict()
  config.sources.camvid = ''
  config.sources.cityscapes = ''
  config.sources.folder = ''
  # How many street scenes to draw; 0: none.
  config.sources.streets = 150
  # A weight folder of a segmentation network with an edge head, or the name of one in the package:
  # half of the predictions that are not the truth itself are then what it sees in the images of
  # these sources. Empty: all of them are made up.
  config.predictions = ''
  # Where data sets are kept once their files are checked. Empty: where TFDS keeps its own.
  config.cache_dir = ''

  # Fields of if_jax.boundary_pairs.PairSettings.
  config.pairs = ConfigDict()
  # Half tiles: 26 of 224 pixels, somewhat beyond what the loss is to measure.
  config.pairs.max_shift = 0.232
  # Logarithm of a scale: 25 %; off the diagonal, rotation and shear.
  config.pairs.max_scale = 0.22
  config.pairs.max_perspective = 0.1
  # Share of the pairs that are aligned, and of those whose prediction is the truth itself.
  config.pairs.identity = 0.1
  config.pairs.clean = 0.25

  config.train = ConfigDict()
  # Pairs of tiles, over all devices together.
  config.train.batch_size = 32
  config.train.num_steps = 2000
  config.train.log_every = 20
  config.train.eval_every = 500
  config.train.checkpoint_every = 500
  config.train.keep_checkpoints = 2
  # Seconds without the end of a step, or of an evaluation, after which the run ends with a reason:
  # longer than compiling takes. 0: never.
  config.train.step_timeout = 3600

  # AdamW with a linear warm-up and a cosine to 0.
  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 2e-3
  config.optimizer.weight_decay = 1e-4
  config.optimizer.warmup_steps = 50
  # A key that is not here is a mistake.
  return config.lock()
