"""Export: a network with its weights as one StableHLO file, which runs without this package."""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.export
import numpy as np
from ml_collections import ConfigDict

from if_jax.inference import predict
from if_jax.settings import model_from_card, weights_folder
from if_jax.weights import check_fits, label_set_of, load_weights

MODEL_FILE = 'model.stablehlo'
LABELS_FILE = 'labels.json'
LOADER_FILE = 'predict.py'
PLATFORMS = ('cpu', 'cuda')

# Pixels a side; the network's coarsest branch has a sixty-fourth of them.
_MIN_SIDE = 16
_MAX_SIDE = 16384

_LOADER = '''\
"""python predict.py IMAGE OUTPUT.png: the classes of an image, in their colours.

Needs the packages jax, flatbuffers, numpy and pillow.
"""

import json
import sys
from pathlib import Path

import numpy as np
from jax import export, jit
from PIL import Image

FOLDER = Path(__file__).parent
LABELS = json.loads((FOLDER / 'labels.json').read_text(encoding='utf-8'))
network = export.deserialize(bytearray((FOLDER / 'model.stablehlo').read_bytes()))
SIZE = network.in_avals[0].shape[1:3]  # (height, width)
predict = jit(network.call)  # uint8 [batch, *SIZE, 3] to the classes and, if any, the edges


if __name__ == '__main__':
  image = Image.open(sys.argv[1]).convert('RGB')
  resized = np.asarray(image.resize(SIZE[::-1], Image.Resampling.BILINEAR))
  classes = np.asarray(predict(resized[None])['label'][0])
  colors = np.array([label['color'] for label in LABELS['classes']], np.uint8)[classes]
  Image.fromarray(colors).resize(image.size, Image.Resampling.NEAREST).save(sys.argv[2])
'''


def export_weights(config: ConfigDict, workdir: str, size: str, output: str | None = None) -> Path:
  """Writes the weights of `config.init_from`, or of `workdir/best`, as a folder that runs alone.

  The folder holds model.stablehlo, labels.json (a class file: names, colours, ids) and predict.py,
  which labels an image by them and needs JAX, flatbuffers, NumPy and Pillow.

  Args:
    config: see configs/default.py; its `model` part says how to compute.
    workdir: of the run whose weights are taken if `config.init_from` is empty.
    size: of the images, 'HEIGHTxWIDTH' in pixels.
    output: folder to write to, made if it is not there; None: `workdir/export`.
  Returns:
    The folder.
  Raises:
    ValueError: weights that cannot be used, a size that is none, a package that is not there.
  """
  height_and_width = parse_size(size)
  if importlib.util.find_spec('flatbuffers') is None:
    raise ValueError('--mode=export needs the package flatbuffers: pip install flatbuffers')
  folder = weights_folder(config, workdir)
  variables, card = load_weights(folder)
  model = model_from_card(config, card)
  check_fits(model, variables, folder)
  output = Path(output or Path(workdir, 'export'))
  try:
    output.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'--output={output} cannot be made a folder: {error.strerror}') from None
  content = export_network(model, variables, height_and_width).serialize()
  (output / MODEL_FILE).write_bytes(content)
  label_set = label_set_of(card)
  (output / LABELS_FILE).write_text(json.dumps(label_set.to_json(), indent=2) + '\n')
  (output / LOADER_FILE).write_text(_LOADER)
  print(f'{folder} as {output / MODEL_FILE}, {len(content) / 1e6:.1f} MB, for {size} pixels')
  print(f'try it: python {output / LOADER_FILE} IMAGE OUTPUT.png')
  return output


def export_network(
  model: nn.Module, variables: Mapping, size: tuple[int, int]
) -> jax.export.Exported:
  """Makes a network with its weights one StableHLO program, for CPUs and NVIDIA GPUs.

  Args:
    model: of `create_model`.
    variables: its parameters and statistics, which become constants of the program.
    size: (height, width) of the images, in pixels.
  Returns:
    Its `call` takes images uint8 [B, height, width, 3], RGB, of any B, and gives 'label' uint8
    [B, height, width], the best class, and with an edge head 'edge_probability' float32
    [B, height, width, 1] in [0, 1].
  """

  def segment(images):
    outputs = predict(model, variables, images)
    return outputs | {'label': outputs['label'].astype(np.uint8)}

  (batch,) = jax.export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct((batch, *size, 3), np.uint8)
  return jax.export.export(jax.jit(segment), platforms=PLATFORMS)(images)


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
