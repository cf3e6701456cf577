"""Fuzzes the reader of weight folders: python tests/fuzz/fuzz_weights.py -max_total_time=60

See launch.py.
"""

import json
import struct
import tempfile
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

CLASSES = [
  {'name': 'road', 'color': [1, 2, 3], 'id': 0},
  {'name': 'sky', 'color': [4, 5, 6], 'id': 7},
]
CARDS = [
  {
    'model': 'hrnet18',
    'edge_head': True,
    'label_set': {'name': 'town', 'classes': CLASSES, 'ignore': [255, [0, 0, 0]]},
  },
  {'model': 'hrnet18', 'part': 'backbone', 'source': {'file': 'x.pth', 'sha256': '00'}},
  {'model': 'inversenet', 'architecture': 'mlp', 'num_outputs': 4, 'tile_size': 224},
]
VARIABLES = {
  'params': {'conv': {'kernel': np.ones((1, 2), np.float32)}, 'log_blur': np.zeros((), np.float32)},
  'batch_stats': {'bn': {'mean': np.zeros(2, np.float32), 'var': np.ones(2, np.float32)}},
}


def seeds() -> list[bytes]:
  """Whole files; the header of one; a card in a header."""
  from if_jax.weights import WEIGHTS_FILE, save_weights

  files = []
  with tempfile.TemporaryDirectory() as folder:
    for card in CARDS:
      save_weights(folder, VARIABLES, card)
      files.append(Path(folder, WEIGHTS_FILE).read_bytes())
    save_weights(folder, VARIABLES, CARDS[0], dtype=np.float16)
    files.append(Path(folder, WEIGHTS_FILE).read_bytes())
  return [*files, header_of(files[0]), *(json.dumps(card).encode() for card in CARDS)]


def header_of(file: bytes) -> bytes:
  """What a file of safetensors says of its tensors, JSON."""
  return file[8 : 8 + struct.unpack_from('<Q', file)[0]]


def file_of(header: bytes, num_bytes: int = 28) -> bytes:
  """A file with this header, and zeros for its tensors: those of `VARIABLES` have 28 bytes."""
  return struct.pack('<Q', len(header)) + header + bytes(num_bytes)


def check(data: bytes, folder: Path) -> bool:
  """Reads data; whether it was a weight file.

  A card alone is put into a header, a header alone into a file, or few mutations would be read.

  Raises:
    AssertionError: it was refused without a sentence that names the file, or gave what it must not.
    Exception: it was not refused as it should be.
  """
  # Here, for atheris to watch what it imports.
  from if_jax.weights import WEIGHTS_FILE, label_set_of, load_weights

  if data.startswith(b'{"model"'):
    data = json.dumps({'__metadata__': {'card': data.decode(errors='replace')}}).encode()
    data = file_of(data, 0)
  elif data.startswith(b'{'):
    data = file_of(data)
  path = folder / WEIGHTS_FILE
  # A file that is emptied to be written anew goes to the disk at once, in milliseconds.
  path.unlink(missing_ok=True)
  path.write_bytes(data)
  try:
    variables, card = load_weights(folder)
  except ValueError as error:
    assert str(path) in str(error) and str(error).isprintable(), str(error)
    return False
  assert variables.keys() <= {'params', 'batch_stats'}
  for name, array in flatten_dict(variables, sep='/').items():
    assert array.dtype == np.float32, name
    assert np.isfinite(array).all(), name
    assert not name.endswith('/var') or (array >= 0).all(), name
  if 'label_set' in card and card['model'] != 'inversenet':
    assert label_set_of(card).num_classes
    assert isinstance(card['edge_head'], bool)
  return True


if __name__ == '__main__':
  from launch import fuzz

  fuzz('weights', check, seeds, ['if_jax.data.labels', 'if_jax.weights'])
