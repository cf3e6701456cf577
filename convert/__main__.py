"""The converter's command line.

python -m convert --checkpoint=X.pth --model=hrnet18 --output=DIR
python -m convert --reverse --checkpoint=DIR --model=hrnet18 --output=X.pth

Once the package is installed, `if-jax-convert` is the same command.
"""

import collections
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from convert import pytorch_file
from convert.mapping import backbone_from_torch, from_torch, to_torch
from convert.names import MODEL_NAMES
from if_jax import cli
from if_jax.data.labels import CITYSCAPES, LabelSet, load_label_set
from if_jax.models import create_model
from if_jax.weights import WEIGHTS_FILE, find_weights, load_weights, make_card, save_weights

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A .pth file; with --reverse, our folder.')
_MODEL = flags.DEFINE_enum('model', None, MODEL_NAMES, 'Which network the weights are of.')
_OUTPUT = flags.DEFINE_string('output', None, 'A weight folder; with --reverse, a .pth file.')
_REVERSE = flags.DEFINE_bool('reverse', False, 'From our weights to PyTorch; needs if_jax[torch].')
_BACKBONE = flags.DEFINE_bool(
  'backbone', False, "The file is an ImageNet classifier of HRNet's authors: take its backbone."
)
_CLASSES = flags.DEFINE_string(
  'classes', None, 'Class file (JSON) of the weights; the 19 of Cityscapes need none.'
)


def main() -> None:
  """Converts, or writes nothing."""
  for flag in (_CHECKPOINT, _MODEL, _OUTPUT):
    if not flag.value:
      raise ValueError(f'--{flag.name} is missing; see python -m convert --help')
  convert = _to_pytorch if _REVERSE.value else _to_weights
  source, target = (Path(flag.value or '').expanduser() for flag in (_CHECKPOINT, _OUTPUT))
  convert(source, _MODEL.value or '', target)


def _to_weights(checkpoint: Path, name: str, output: Path) -> None:
  file = pytorch_file.read(checkpoint)
  entries = pytorch_file.state_dict(file)
  left_out = []
  if _BACKBONE.value:
    variables, left_out = backbone_from_torch(entries, name)
  else:
    variables = from_torch(entries, name)
  source = {'file': checkpoint.name, 'sha256': file.sha256}
  save_weights(output, variables, _card(name, variables, source))
  _report(f'{checkpoint} ({file.format} format)', file.sha256, entries, left_out)
  use = 'train from it' if _BACKBONE.value else 'use it'
  key = 'config.loss.inversenet' if name == 'inversenet' else 'config.init_from'
  print(f'Written to {output}; {use} with --{key}={output}')


def _to_pytorch(folder: Path, name: str, output: Path) -> None:
  folder = find_weights(folder)
  variables, card = load_weights(folder)
  if card['model'] != name:
    raise ValueError(f'the weights in {folder} are of {card["model"]}, not of --model={name}')
  entries = to_torch(variables, name)
  pytorch_file.write(output, entries)
  with (folder / WEIGHTS_FILE).open('rb') as file:
    sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
  _report(str(folder), sha256, entries, [])
  print(f'Written to {output}; load it with torch.load({str(output)!r}, weights_only=True)')


def _card(name: str, variables: Mapping, source: dict[str, str]) -> dict:
  if name == 'inversenet':
    layout = {'architecture': 'mlp', 'num_outputs': 4, 'tile_size': 224}
    return {'model': name, **layout, 'source': source}
  if _BACKBONE.value:
    return {'model': name, 'part': 'backbone', 'source': source}
  params = variables['params']
  head = params.get('ocr', params.get('head'))
  num_classes = head['classifier']['kernel'].shape[-1]
  model = create_model(name, num_classes, edge_head='edge_head' in params)
  return make_card(name, model, _label_set(num_classes), source=source)


def _label_set(num_classes: int) -> LabelSet:
  label_set = load_label_set(_CLASSES.value) if _CLASSES.value else CITYSCAPES
  if label_set.num_classes != num_classes:
    raise ValueError(
      f'the weights have {num_classes} classes, {label_set.name} has {label_set.num_classes}; '
      'name them in a class file, --classes=classes.json'
    )
  return label_set


def _report(
  source: str, sha256: str, entries: Mapping[str, np.ndarray], left_out: list[str]
) -> None:
  """Prints what was read, by module."""
  tensors, numbers = collections.Counter(), collections.Counter()
  for name, array in entries.items():
    parts = name.split('.')
    module = '.'.join(parts[:2]) if parts[0] == 'backbone' else parts[0]
    tensors[module] += 1
    numbers[module] += array.size
  table = Table('module', title=source)
  table.add_column('tensors', justify='right')
  table.add_column('numbers', justify='right')
  for module in tensors:
    table.add_row(module, f'{tensors[module]:,}', f'{numbers[module]:,}')
  table.add_section()
  table.add_row('all', f'{tensors.total():,}', f'{numbers.total():,}')
  Console().print(table)
  print(f'SHA-256 {sha256}')
  if left_out:
    modules = sorted({entry.removeprefix('backbone.').partition('.')[0] for entry in left_out})
    print(f'Left out on purpose: {len(left_out)} entries of {", ".join(modules)}')


def start() -> None:
  """Runs the program with the command line's arguments, and exits."""
  cli.run(main)


if __name__ == '__main__':
  start()
