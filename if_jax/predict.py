"""Prediction: an image, a folder of them, or a video becomes pictures of its classes."""

import collections
import concurrent.futures
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from rich.console import Console

from if_jax import parallel
from if_jax.data.decode import decode_image
from if_jax.data.pairs import IMAGE_ENDINGS, find_files
from if_jax.evaluate import by_size
from if_jax.inference import can_be_kept, for_many_images, predict
from if_jax.outputs import KINDS, check_kinds, draw_output, save_outputs
from if_jax.report import Progress, introduce
from if_jax.settings import looks_from_config, model_from_card, weights_folder
from if_jax.video import VIDEO_ENDINGS, VideoReader, VideoWriter
from if_jax.weights import check_fits, label_set_of, load_weights

# What configs/default.py says, as far as it concerns a prediction.
_DEFAULTS = ConfigDict({
  'model': {'dtype': 'float32', 'scales': ()},
  'eval': {'batch_size': 1, 'scales': (1.0,), 'flip': False, 'window': (), 'stride': ()},
})  # fmt: skip
# What is written if the configuration names nothing; with an edge head, the edges, too.
_KINDS = ('color', 'overlay', 'label_ids')
# Batches that the devices may still be working on while the host draws earlier ones.
_BATCHES_UNDER_WAY = 2
# Image sizes; the time that it takes to compile for more of them is explained.
_FEW_SIZES = 3
# Images that are read, and pictures that are written, at a time.
_THREADS = min(8, os.cpu_count() or 1)
# Pixels; smaller pictures, such as the dots of web pages, vanish on the way through the network.
_MIN_SIDE = 16
# What goes on until the first picture is there.
_COMPILING = 'loading, and compiling for this size'
# Classes that the summary names.
_NUM_SHARES = 5


class Predictor:
  """Segments images by the weights in a folder, on all devices; compiled once per image size.

  Args:
    folder: of weights, as `python -m convert` or a training (in WORKDIR/best) writes it; or a name
      of `if_jax.weights.packaged_weights`.
    config: its `model` and `eval` parts say how to compute; None: as configs/default.py does.
    num_images: how many will come. For `if_jax.ops.onednn.MANY_IMAGES` or more, on x86 CPUs, it
      takes a faster program, which is compiled anew in each run.
  Raises:
    ValueError: weights that cannot be used.
  Example:
    predictor = Predictor('runs/streets/best')
    label = predictor(image)['label']
    names = [predictor.label_set.class_names[i] for i in np.unique(label)]
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    config: ConfigDict | None = None,
    *,
    num_images: int = 0,
  ):
    config = config or _DEFAULTS
    variables, card = load_weights(folder)
    model = model_from_card(config, card)
    check_fits(model, variables, folder)
    model = for_many_images(model, num_images)
    self.label_set = label_set_of(card)
    self.edge_head = model.edge_head
    self._variables = parallel.replicate(variables)
    self._batch_size = config.eval.batch_size * parallel.num_local_devices()
    self._sizes = set()
    looks = looks_from_config(config)

    def step(variables, images):
      outputs = predict(model, variables, images, looks)
      return (), outputs | {'label': outputs['label'].astype(np.uint8)}

    self._p_step = parallel.pmap_per_device(step, keep=can_be_kept(model))

  def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
    """Segments one image.

    Args:
      image: uint8 [H, W, 3], RGB.
    Returns:
      'label' uint8 [H, W], the best class, a place in `label_set.class_names`; with an edge head
      'edge_probability' float32 [H, W, 1] in [0, 1].
    Raises:
      ValueError: an array that is no such image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
      raise ValueError(f'an image is uint8 [H, W, 3], RGB; got {image.dtype} {image.shape}')
    outputs = next(self.stream([{'image': image}]))[1]
    # What comes from a device may not be written to.
    return {name: x.copy() for name, x in outputs.items()}

  def stream(self, examples: Iterable[dict]) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
    """Segments images as they come, a few at a time in memory.

    Args:
      examples: dicts with an 'image' as for a call, and whatever else.
    Returns:
      Pairs of an example and its outputs, images of one size in the order they came in.
    """
    under_way = collections.deque()
    for group in by_size(examples, self._batch_size):
      under_way.append((group, self._start([example['image'] for example in group])))
      if len(under_way) > _BATCHES_UNDER_WAY:
        yield from _finish(*under_way.popleft())
    while under_way:
      yield from _finish(*under_way.popleft())

  def _start(self, images: list[np.ndarray]):
    known = len(self._sizes)
    self._sizes.add(images[0].shape)
    if known < len(self._sizes) == _FEW_SIZES + 1:
      logging.warning(
        'The images have more than %d sizes, and the network is compiled for each. Resize them to '
        'a few sizes.',
        _FEW_SIZES,
      )
    missing = self._batch_size - len(images)
    batch = np.stack(images + [np.zeros_like(images[0])] * missing)
    return self._p_step(self._variables, parallel.shard(batch))[1]


def predict_paths(
  config: ConfigDict, workdir: str, input_path: str, output: str | None = None
) -> list[str]:
  """Segments an image, a video, or all of them below a folder, and writes what is to be seen.

  An image becomes `output/KIND/NAME.png`, a video `output/KIND/NAME.mp4`, for each KIND of
  `config.eval.save`; without any, for all that the weights give. NAME is that of the input, with
  its path below the folder but without its ending. An input that cannot be read is left out.

  Args:
    config: see configs/default.py; the weights are those of `config.init_from`.
    workdir: of the run whose weights are taken if `config.init_from` is empty; '': without
      `config.init_from`, weights that come with the package.
    input_path: an image, a video, or a folder.
    output: folder to write to, made if it is not there; None: `workdir/predictions`, without a
      workdir `predictions`.
  Returns:
    A sentence for each input that could not be read.
  Raises:
    FileNotFoundError: there is nothing at `input_path`.
    ValueError: nothing to predict, weights that cannot be used, or pictures they cannot give.
  """
  folder = Path(output or Path(workdir, 'predictions'))
  inputs = find_inputs(Path(input_path), folder)
  weights = weights_folder(config, workdir)
  has_video = any(map(_is_video, inputs.values()))
  num_images = sys.maxsize if has_video else len(inputs)
  predictor = Predictor(weights, config, num_images=num_images)
  if not workdir and not config.init_from:
    print(
      f'by the weights {weights.name} of the package, for its classes and for research; '
      'for others, --workdir=RUN or --config.init_from=FOLDER'
    )
  kinds = tuple(config.eval.save) or _KINDS + ('edges',) * predictor.edge_head
  check_kinds(kinds, edge_head=predictor.edge_head, labelled=False)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'--output={folder} cannot be made a folder: {error.strerror}') from None
  introduce(
    Console(stderr=True),
    input=f'{input_path}: {len(inputs)} {"files" if len(inputs) > 1 else "file"}',
    model=str(weights) if workdir or config.init_from else weights.name,
    device=parallel.describe_devices(),
  )
  run = _Run(predictor, folder, kinds)
  images = {name: path for name, path in inputs.items() if not _is_video(path)}
  if images:
    run.predict_images(images)
  for name, path in inputs.items():
    if _is_video(path):
      run.predict_video(name, path)
  print(f'{run.done} of {len(inputs)} {"inputs" if len(inputs) > 1 else "input"} done')
  if run.done:
    print(f'{", ".join(kinds)} in {folder}')
    print(_shares(run.pixels, predictor.label_set.class_names))
  for failure in run.failures:
    print(f'failed: {failure}')
  return run.failures


def find_inputs(source: Path, output: Path) -> dict[str, Path]:
  """Finds what to predict, and what to call it.

  Names are paths below `source` without ending; inputs that would share one, and so overwrite each
  other's outputs, keep their ending: `a.jpg` and `a.png`. What earlier runs wrote is no input.

  Args:
    source: an image, a video, or a folder.
    output: folder that predictions are written to.
  Returns:
    Name -> file, sorted.
  Raises:
    FileNotFoundError: there is nothing at `source`.
    ValueError: `source` holds no image and no video, or lies where predictions are written.
  """
  written = [(output / kind).resolve() for kind in KINDS]

  def is_written(path):
    return any(path.resolve().is_relative_to(folder) for folder in written)

  if not source.is_file() and not source.is_dir():
    raise FileNotFoundError(f'{source}: no such file or folder to predict; check --input')
  if is_written(source):
    raise ValueError(f'{source} lies where predictions go; choose another --output than {output}')
  if source.is_file():
    return {source.stem: source}
  endings = IMAGE_ENDINGS + VIDEO_ENDINGS
  files = [path for paths in find_files(source, endings).values() for path in paths]
  # From the path below the folder with its ending.
  found = {path.relative_to(source).as_posix(): path for path in files if not is_written(path)}
  if not found:
    raise ValueError(f'no image or video in {source}; their names end in {", ".join(endings)}')
  stems = {name: Path(name).with_suffix('').as_posix() for name in found}
  uses = collections.Counter(stems.values())
  # Names taken by others: the frames of a video fill a folder.
  folders = {parent.as_posix() for name in found for parent in Path(name).parents}
  inputs = {}
  for name, path in sorted(found.items()):
    stem = stems[name]
    is_taken = uses[stem] > 1 or stem in found or (_is_video(path) and stem in folders)
    inputs[name if is_taken else stem] = path
  return inputs


class _Run:
  """Writes the outputs of one input after another, and counts."""

  def __init__(self, predictor: Predictor, output: Path, kinds: tuple[str, ...]):
    self._predictor = predictor
    self._output = output
    self._kinds = kinds
    self.done = 0
    self.failures = []
    # How many of each class.
    self.pixels = np.zeros(predictor.label_set.num_classes, np.int64)

  def predict_images(self, inputs: Mapping[str, Path]) -> None:
    def readable():
      for example in _ahead(_read_image, inputs.items()):
        if isinstance(example, str):
          self.failures.append(example)
        else:
          yield example

    def write(pair):
      example, outputs = pair
      self._save(example, outputs, self._kinds)
      return self._count(outputs)

    with Progress('predict', len(inputs), note=_COMPILING) as progress:
      for pixels in _ahead(write, self._predictor.stream(readable())):
        self.pixels += pixels
        self.done += 1
        progress.update(self.done + len(self.failures))

  def predict_video(self, name: str, path: Path) -> None:
    # Compression would change ids: these become a PNG for each frame.
    saved = [kind for kind in self._kinds if kind == 'label_ids']
    drawn = [kind for kind in self._kinds if kind != 'label_ids']
    label_set = self._predictor.label_set

    def draw(pair):
      example, outputs = pair
      self._save(example, outputs, saved)
      pictures = [draw_output(kind, example['image'], outputs, label_set) for kind in drawn]
      return pictures, self._count(outputs)

    video = VideoReader(path)
    examples = (
      {'image': frame, 'name': f'{name}/{index:06d}'} for index, frame in enumerate(video)
    )
    done = 0
    with contextlib.ExitStack() as stack:
      progress = stack.enter_context(Progress('predict frames', video.num_frames, note=_COMPILING))
      writers = [VideoWriter(self._output / kind / f'{name}.mp4', video.rate) for kind in drawn]
      for writer in writers:
        stack.callback(writer.close)
      for pictures, pixels in _ahead(draw, self._predictor.stream(examples)):
        for writer, picture in zip(writers, pictures, strict=True):
          writer.write(picture)
        self.pixels += pixels
        done += 1
        # The file may tell too few, and the end is shown once.
        progress.update(min(done, video.num_frames - 1))
      if done:
        progress.update(done)
    if not done:
      self.failures.append(f'{path}: no video that can be read; replace the file')
    # A second: some files tell the length of their sound, which may outlast the pictures.
    elif video.num_frames - done > video.rate:
      frames = f'{done} of {video.num_frames} frames'
      self.failures.append(f'{path}: only {frames} can be read; replace the file')
    else:
      self.done += 1

  def _save(self, example, outputs, kinds):
    label_set = self._predictor.label_set
    save_outputs(self._output, example['name'], example['image'], outputs, label_set, kinds)

  def _count(self, outputs):
    return np.bincount(outputs['label'].ravel(), minlength=len(self.pixels))


def _read_image(item: tuple[str, Path]) -> dict | str:
  """Gives an example, or what is wrong with the file."""
  name, path = item
  try:
    image = decode_image(path.read_bytes(), str(path), upright=True)
  except OSError as error:
    return f'{path}: {error.strerror}'
  except ValueError as error:
    return str(error)
  if min(image.shape[:2]) < _MIN_SIDE:
    return f'{path}: {image.shape[0]}x{image.shape[1]} pixels, {_MIN_SIDE} a side are needed'
  return {'image': image, 'name': name}


def _ahead(function: Callable, items: Iterable) -> Iterator:
  """As `map`, in threads that are a few items ahead."""
  waiting = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > _THREADS:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


def _finish(group: list[dict], outputs: Mapping) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
  outputs = {name: parallel.unshard(x) for name, x in outputs.items()}
  for i, example in enumerate(group):
    yield example, {name: x[i] for name, x in outputs.items()}


def _is_video(path: Path) -> bool:
  return path.suffix.lower() in VIDEO_ENDINGS


def _shares(pixels: np.ndarray, class_names: Sequence[str]) -> str:
  """What covers most, in words."""
  order = [i for i in np.argsort(-pixels) if pixels[i]]
  shares = [f'{class_names[i]} {pixels[i] / pixels.sum():.1%}' for i in order[:_NUM_SHARES]]
  more = pixels[order[_NUM_SHARES:]]
  if more.size:
    shares.append(f'{more.size} more {more.sum() / pixels.sum():.1%}')
  return f'pixels: {", ".join(shares)}'
