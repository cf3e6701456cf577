"""Export: a network with its weights as one file, StableHLO or ONNX, that runs alone."""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from if_jax.inference import predict, predict_batch
from if_jax.settings import model_from_card, weights_folder
from if_jax.weights import check_fits, label_set_of, load_weights

# Format -> the package that writes it.
FORMATS = {'stablehlo': 'flatbuffers', 'onnx': 'onnx'}
LABELS_FILE = 'labels.json'
LOADER_FILE = 'predict.py'
PLATFORMS = ('cpu', 'cuda')

# Pixels a side; the network's coarsest branch has a sixty-fourth of them.
_MIN_SIDE = 16
# Below, JAX cannot tell that a pixel is left of the smallest image.
_MIN_SCALE = 0.125
_MAX_SIDE = 16384

_LOADER = '''\
"""python predict.py IMAGE OUTPUT.png: the classes of an image, in their colours.

Needs the packages {packages}, numpy and pillow.
"""

import json
import sys
from pathlib import Path

{imports}
from PIL import Image

FOLDER = Path(__file__).parent
LABELS = json.loads((FOLDER / 'labels.json').read_text(encoding='utf-8'))
SIZE = {size}  # of the images, (height, width); None: any
{network}


if __name__ == '__main__':
  image = Image.open(sys.argv[1]).convert('RGB')
  resized = image.resize(SIZE[::-1], Image.Resampling.BILINEAR) if SIZE else image
  # uint8 [batch, height, width, 3] to the classes, uint8 [batch, height, width].
  classes = predict(np.asarray(resized)[None])['label'][0]
  colors = np.array([label['color'] for label in LABELS['classes']], np.uint8)[classes]
  Image.fromarray(colors).resize(image.size, Image.Resampling.NEAREST).save(sys.argv[2])
'''
_LOADER_PARTS = {
  'stablehlo': {
    'packages': 'jax, flatbuffers',
    'imports': 'import numpy as np\nfrom jax import export, jit',
    'network': """\
network = export.deserialize(bytearray((FOLDER / 'model.stablehlo').read_bytes()))
predict = jit(network.call)""",
  },
  'onnx': {
    'packages': 'onnxruntime',
    'imports': 'import numpy as np\nimport onnxruntime',
    'network': """\
network = onnxruntime.InferenceSession(FOLDER / 'model.onnx')
NAMES = [output.name for output in network.get_outputs()]


def predict(images):
  return dict(zip(NAMES, network.run(NAMES, {'images': images}), strict=True))""",
  },
}


def export_weights(
  config: ConfigDict,
  workdir: str,
  output: str | None = None,
  *,
  size: str | None = None,
  file_format: str = 'stablehlo',
) -> Path:
  """Writes the weights of `config.init_from`, or of `workdir/best`, as a folder that runs alone.

  The folder holds model.stablehlo or model.onnx, labels.json (a class file: names, colours, ids)
  and predict.py, which labels an image by them and says which packages it needs.

  Args:
    config: see configs/default.py; its `model` part says how to compute.
    workdir: of the run whose weights are taken if `config.init_from` is empty.
    output: folder to write to, made if it is not there; None: `workdir/export`.
    size: of the images, 'HEIGHTxWIDTH' in pixels; None: any.
    file_format: of `FORMATS`.
  Returns:
    The folder.
  Raises:
    ValueError: weights that cannot be used, a size or format that is none, a package that is not
      there, a folder that cannot be written to.
  """
  height_and_width = parse_size(size) if size is not None else None
  check_format(file_format)
  folder = weights_folder(config, workdir)
  variables, card = load_weights(folder)
  model = model_from_card(config, card)
  if file_format == 'onnx' and model.dtype != jnp.float32:
    raise ValueError('--format=onnx computes in float32; leave config.model.dtype out')
  if size is None or file_format == 'onnx':
    too_small = [x for x in getattr(model, 'scales', ()) if x < _MIN_SCALE]
    if too_small:
      raise ValueError(
        f'config.model.scales has {too_small[0]:g}; for images of any size, and in ONNX, give '
        f'scales from {_MIN_SCALE} up'
      )
  check_fits(model, variables, folder)
  output = Path(output or Path(workdir, 'export'))
  file = output / f'model.{file_format}'
  try:
    output.mkdir(parents=True, exist_ok=True)
    if file_format == 'onnx':
      content = export_onnx(model, variables, height_and_width)
    else:
      content = export_network(model, variables, height_and_width).serialize()
    file.write_bytes(content)
    label_set = label_set_of(card)
    (output / LABELS_FILE).write_text(json.dumps(label_set.to_json(), indent=2) + '\n')
    loader = _LOADER.format(size=height_and_width, **_LOADER_PARTS[file_format])
    (output / LOADER_FILE).write_text(loader)
  except OSError as error:
    raise ValueError(f'cannot write to --output={output}: {error.strerror}') from None
  print(f'{folder} as {file}, {len(content) / 1e6:.1f} MB, for images of {size or "any size"}')
  print(f'try it: python {output / LOADER_FILE} IMAGE OUTPUT.png')
  return output


def export_network(
  model: nn.Module, variables: Mapping, size: tuple[int, int] | None = None
) -> jax.export.Exported:
  """Makes a network with its weights one StableHLO program, for CPUs and NVIDIA GPUs.

  Args:
    model: of `create_model`.
    variables: its parameters and statistics, which become constants of the program.
    size: (height, width) of the images, in pixels; None: any of 16 to 16384 a side, at which the
      program does without the short cuts of whole factors.
  Returns:
    Its `call` takes images uint8 [B, height, width, 3], RGB, of any B, and gives 'label' uint8
    [B, height, width], the best class, and with an edge head 'edge_probability' float32
    [B, height, width, 1] in [0, 1].
  """

  def segment(images):
    return _with_small_labels(predict(model, variables, images))

  if size:
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('batch'), *size, 3), np.uint8)
  else:
    images = any_images()
  return jax.export.export(jax.jit(segment), platforms=PLATFORMS)(images)


def export_onnx(model, variables, size: tuple[int, int] | None = None) -> bytes:
  """The same as ONNX, with the input 'images'; arguments as those of `export_network`."""
  # Not in the default install.
  from if_jax.onnx_translation import to_onnx

  def segment(variables, images):
    return _with_small_labels(predict_batch(model, variables, images))

  known = dict(zip(('height', 'width'), size, strict=True)) if size else {}
  return to_onnx(segment, variables, any_images(), known).SerializeToString()


def check_format(file_format: str) -> None:
  """Raises a ValueError for a format that is none, or whose package is not there."""
  if file_format not in FORMATS:
    raise ValueError(f'--format={file_format}: give {" or ".join(FORMATS)}')
  package = FORMATS[file_format]
  if importlib.util.find_spec(package) is None:
    raise ValueError(
      f'--mode=export --format={file_format} needs the package {package}: pip install {package}'
    )


def any_images() -> jax.ShapeDtypeStruct:
  """Images of any number and size, as `jax.export` has them: symbols for three of four axes."""
  names = ('height', 'width')
  limits = [f'{x} >= {_MIN_SIDE}' for x in names] + [f'{x} <= {_MAX_SIDE}' for x in names]
  sizes = jax.export.symbolic_shape('batch, height, width', constraints=limits)
  return jax.ShapeDtypeStruct((*sizes, 3), np.uint8)


def _with_small_labels(outputs):
  return outputs | {'label': outputs['label'].astype(np.uint8)}


def parse_size(text: str) -> tuple[int, int]:
  """Reads a size from a command line.

  Args:
    text: 'HEIGHTxWIDTH', in pixels.
  Returns:
    (height, width).
  Raises:
    ValueError: another text, or a size that no image for a network has.
  Example:
    >>> parse_size('512x1024')
    (512, 1024)
  """
  match = re.fullmatch(r'(\d{1,6})x(\d{1,6})', text, re.ASCII)
  size = (int(match[1]), int(match[2])) if match else (0, 0)
  if not all(_MIN_SIDE <= side <= _MAX_SIDE for side in size):
    raise ValueError(
      f'--size={text}: give HEIGHTxWIDTH in pixels, each {_MIN_SIDE} to {_MAX_SIDE}, '
      'such as --size=512x1024'
    )
  return size
