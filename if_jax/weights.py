"""Weight folders: the tensors of a network and a card that says what they are."""

import itertools
import json
import os
import re
import reprlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from if_jax.data.labels import LabelSet, label_set_from_json
from if_jax.model_card import model_card

WEIGHTS_FILE = 'model.safetensors'
CARD_FILE = 'config.json'
README_FILE = 'README.md'

# Folders of weights that come with the package; the inverse network's are found by its own name.
PACKAGED = Path(__file__).parent / 'pretrained'
INVERSENET = 'inversenet'
# What predicts if nothing is named.
DEFAULT_WEIGHTS = 'hrnet16_slim_camvid'

# Bytes of names, shapes and card in the file; the largest network's have 0.3 MB. A hostile header
# takes up to 40 times its size in memory.
_MAX_HEADER = 4 << 20
_ENTRY = re.compile(r'(params|batch_stats)(/\w{1,100}){1,16}', re.ASCII)


def save_weights(
  folder: str | os.PathLike,
  variables: Mapping,
  card: Mapping[str, Any],
  *,
  dtype: npt.DTypeLike = np.float32,
) -> None:
  """Writes a weight folder, its tensors whole or not at all.

  It is laid out as the Hugging Face hub has it: model.safetensors, config.json and README.md, see
  docs/weights.md.

  Args:
    folder: made if it is not there; a weight folder that is there is replaced.
    variables: {'params': ..., 'batch_stats': ...} of arrays.
    card: what a reader needs, see `make_card`, and whatever else JSON can say.
    dtype: of the file, float32 or float16, which is half as large and keeps three digits.
  Raises:
    ValueError: another dtype, numbers that are too large for it, or a folder with a README.md of
      something else.
  """
  tensors = _tensors(variables, np.dtype(dtype))
  num_parameters = sum(x.size for name, x in tensors.items() if name.startswith('params/'))
  texts = {
    CARD_FILE: json.dumps(card, indent=2) + '\n',
    README_FILE: model_card(card, num_parameters),
  }
  folder = Path(folder)
  if (folder / README_FILE).exists() and not (folder / WEIGHTS_FILE).exists():
    raise ValueError(
      f'{folder} is no weight folder and has a {README_FILE}, which would be replaced; name '
      'another folder'
    )
  folder.mkdir(parents=True, exist_ok=True)
  unfinished = folder / f'.{WEIGHTS_FILE}.{os.getpid()}'
  try:
    # The card that counts is in the header of the tensors' file; the other is for people.
    save_file(tensors, unfinished, metadata={'card': json.dumps(card)})
    with unfinished.open('rb') as file:
      os.fsync(file.fileno())
    os.replace(unfinished, folder / WEIGHTS_FILE)
    for name, text in texts.items():
      unfinished.write_text(text, encoding='utf-8')
      os.replace(unfinished, folder / name)
    # The writer of safetensors lets nobody else read its file.
    shutil.copymode(folder / README_FILE, folder / WEIGHTS_FILE)
  finally:
    unfinished.unlink(missing_ok=True)


def _tensors(variables: Mapping, dtype: np.dtype) -> dict[str, np.ndarray]:
  """What the file is to hold."""
  if dtype not in (np.float32, np.float16):
    raise ValueError(f'weights are stored as float32 or float16, not {dtype}')
  given = flatten_dict(variables, sep='/')
  with np.errstate(over='ignore'):
    # The writer of safetensors stores a transposed array wrong, in silence.
    tensors = {name: np.asarray(x, dtype, order='C') for name, x in given.items()}
  too_large = [k for k, x in tensors.items() if (np.isinf(x) & np.isfinite(given[k])).any()]
  if too_large:
    raise ValueError(f'too large for {dtype}: {", ".join(too_large[:5])}; store them as float32')
  return tensors


def find_weights(name_or_path: str | os.PathLike) -> Path:
  """The folder of that path or, if there is none, of that name in the package."""
  folder = Path(name_or_path).expanduser()
  if not folder.is_dir() and str(name_or_path) in packaged_weights():
    return PACKAGED / name_or_path
  return folder


def packaged_weights() -> list[str]:
  """The names of the weights that come with the package, without the inverse network's."""
  names = sorted(file.parent.name for file in PACKAGED.glob(f'*/{WEIGHTS_FILE}'))
  return [name for name in names if name != INVERSENET]


def load_weights(name_or_path: str | os.PathLike) -> tuple[dict, dict[str, Any]]:
  """Reads a weight folder, which may come from anyone.

  Memory is taken for the tensors after names, types and sizes have been looked at.

  Args:
    name_or_path: a folder as `save_weights` made it, or one of `packaged_weights()`.
  Returns:
    (variables, card): nested dicts of float32 NumPy arrays, all finite and with no variance
    below 0, and what was said of them: the entries that this package reads are as they should be.
  Raises:
    ValueError: a folder that is not there, not one of ours, or holds a damaged file or numbers
      that no network can have.
  """
  path = weights_file(name_or_path)
  try:
    _check_header_size(path)
    with safe_open(path, framework='numpy') as file:
      card = json.loads((file.metadata() or {}).get('card', 'null'))
      _check_card(card)
      names = list(file.keys())
      _check_entries({name: file.get_slice(name).get_dtype() for name in names})
      tensors = {name: file.get_tensor(name).astype(np.float32, copy=False) for name in names}
  except RecursionError:
    raise ValueError(f'{path} cannot be read (its card is nested too deeply)') from None
  except (SafetensorError, OSError, ValueError) as error:
    raise ValueError(f'{path} cannot be read ({_one_line(error)}); make it again') from error
  _check_numbers(tensors, path)
  return unflatten_dict(tensors, sep='/'), card


def weights_file(name_or_path: str | os.PathLike) -> Path:
  """The file of `load_weights`, unread; raises ValueError if it is not there."""
  path = find_weights(name_or_path) / WEIGHTS_FILE
  if not path.is_file():
    names = ', '.join(packaged_weights()) or 'none'
    raise ValueError(
      f'no weights in {name_or_path}: expected {WEIGHTS_FILE}, as `python -m convert` or a '
      f'training (in WORKDIR/best) writes it; by name, the package has {names}'
    )
  return path


def count_parameters(params: Any) -> str:
  """How many numbers a tree of arrays holds, in words: '4.02 M parameters'."""
  count = sum(np.size(x) for x in jax.tree.leaves(params))
  return f'{count:,} parameters' if count < 1e5 else f'{count / 1e6:.2f} M parameters'


def _check_header_size(path: Path) -> None:
  with path.open('rb') as file:
    claimed = int.from_bytes(file.read(8), 'little')
  size = path.stat().st_size
  if claimed > size - 8:
    raise ValueError(f'cut short: a header of {claimed} bytes in a file of {size}')
  if claimed > _MAX_HEADER:
    raise ValueError(f'its header has {claimed} bytes, more than {_MAX_HEADER}')


def _check_card(card: Any) -> None:
  if not isinstance(card, dict) or 'model' not in card:
    raise ValueError('it does not say which model it is of')
  rules = {
    'model': (_is_name, 'the name of a network'),
    'architecture': (_is_name, 'the name of an inverse network'),
    'part': (lambda x: x == 'backbone', '"backbone"'),
    'edge_head': (lambda x: isinstance(x, bool), 'true or false'),
    'num_outputs': (lambda x: type(x) is int and x in (4, 6, 8), '4, 6 or 8'),
    'tile_size': (lambda x: type(x) is int and 0 < x <= 2048, 'a whole number from 1 to 2048'),
  }
  for key, (is_right, wanted) in rules.items():
    if key in card and not is_right(card[key]):
      raise ValueError(f'"{key}" on its card is {reprlib.repr(card[key])}, not {wanted}')
  if 'label_set' in card and card['model'] != 'inversenet':
    label_set_of(card)
    if 'edge_head' not in card:
      raise ValueError('its card does not say whether there is an edge head')


def _check_entries(types: Mapping[str, str]) -> None:
  for name, kind in types.items():
    if not _ENTRY.fullmatch(name):
      raise ValueError(f'it has an entry {ascii(name)[:100]}, which no network has')
    if kind not in ('F32', 'F16'):
      raise ValueError(f'{name} is of type {kind}; weights are F32 or F16')
  for name in types:
    parents = itertools.accumulate(name.split('/')[:-1], '{}/{}'.format)
    if not types.keys().isdisjoint(parents):
      raise ValueError(f'{name} is in an entry that is itself an array')


def _check_numbers(tensors: Mapping[str, np.ndarray], path: Path) -> None:
  problems = {
    'the weights are not finite': [k for k, x in tensors.items() if not np.isfinite(x).all()],
    'the running variances are negative': [
      k
      for k, x in tensors.items()
      if k.startswith('batch_stats/') and k.endswith('/var') and (x < 0).any()
    ],
  }
  for problem, names in problems.items():
    if names:
      more = f' and {len(names) - 5} more' if len(names) > 5 else ''
      raise ValueError(f'{path}: {problem}: {", ".join(names[:5])}{more}; take other weights')


def _is_name(value: Any) -> bool:
  return isinstance(value, str) and value.isidentifier() and len(value) <= 100


def _one_line(error: Exception) -> str:
  # What it says may quote the file.
  text = str(error)
  return text if text.isprintable() and len(text) <= 500 else ascii(text[:500])


def make_card(model_name: str, model: Any, label_set: LabelSet, **more: Any) -> dict[str, Any]:
  """Says what weights are of: the network, its options and its classes."""
  return {
    'model': model_name,
    'edge_head': model.edge_head,
    'label_set': {'name': label_set.name, **label_set.to_json()},
    **more,
  }


def label_set_of(card: Mapping[str, Any]) -> LabelSet:
  """The classes that weights know, from their card."""
  if card['model'] == 'inversenet':
    raise ValueError(
      'these weights are those of an inverse network, which measures boundaries for the '
      'InverseForm loss: --mode=train --config.loss.inversenet=FOLDER'
    )
  if 'label_set' not in card:
    kind = card.get('part', 'network that is no segmentation model')
    raise ValueError(
      f'these weights are those of a {kind} ({card["model"]}), which predicts no classes by '
      'itself; a training can start from a backbone: --mode=train --config.init_from=FOLDER'
    )
  content = card['label_set']
  name = content.get('name') if isinstance(content, dict) else None
  if not isinstance(name, str) or not name.isprintable() or len(name) > 100:
    raise ValueError(f'"label_set" is {reprlib.repr(content)}, not an object with a "name"')
  return label_set_from_json(name, {k: v for k, v in content.items() if k != 'name'})


def check_fits(model: nn.Module, variables: Mapping, source: str | os.PathLike) -> None:
  """Raises ValueError, naming every entry that differs, unless the weights are the model's."""
  expected = model_shapes(model)
  given = {path: x.shape for path, x in flatten_dict(variables, sep='/').items()}
  _raise_on_difference(expected, given, source, allow_missing=False)


def merge_weights(initial: Mapping, loaded: Mapping, source: str | os.PathLike) -> dict:
  """Takes what fits from loaded weights, to start a training from.

  Left at their initial values, and logged: modules that the loaded weights do not have (those
  behind a backbone), and classifiers of another number of classes.

  Args:
    initial: freshly initialised variables.
    loaded: of `load_weights`.
    source: for messages.
  Raises:
    ValueError: naming entries that the model does not have or whose shapes differ elsewhere.
  """
  initial, loaded = (flatten_dict(tree, sep='/') for tree in (initial, loaded))
  other_classes = [
    path
    for path, x in loaded.items()
    if '/classifier/' in path and path in initial and initial[path].shape != x.shape
  ]
  loaded = {path: x for path, x in loaded.items() if path not in other_classes}
  _raise_on_difference(
    {path: x.shape for path, x in initial.items()},
    {path: x.shape for path, x in loaded.items()},
    source,
    allow_missing=True,
  )
  fresh = sorted({path.rpartition('/')[0] for path in initial if path not in loaded})
  if fresh:
    logging.info('Not in %s, freshly initialised: %s', source, ', '.join(fresh))
  return unflatten_dict({**initial, **loaded}, sep='/')


def model_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
  """'collection/module/leaf' -> shape of all of a model's variables."""
  image = jnp.zeros((1, 64, 64, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  return {path: x.shape for path, x in flatten_dict(shapes, sep='/').items()}


def shape_differences(
  expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> dict[str, list[str]]:
  """Compares the shapes of named entries: kind of difference -> every entry that has it."""
  return {
    'missing': [name for name in expected if name not in given],
    'unexpected': [name for name in given if name not in expected],
    'mis-shaped': [
      f'{name} {given[name]} (expected {shape})'
      for name, shape in expected.items()
      if name in given and given[name] != shape
    ],
  }


def list_problems(problems: Mapping[str, list[str]]) -> str:
  """'2 missing: a, b; 1 unexpected: c', or nothing where there are none."""
  return '; '.join(
    f'{len(entries)} {kind}: {", ".join(entries)}' for kind, entries in problems.items() if entries
  )


def _raise_on_difference(expected, given, source, *, allow_missing):
  problems = shape_differences(expected, given)
  if allow_missing:
    del problems['missing']
  text = list_problems(problems)
  if text:
    raise ValueError(f'the weights in {source} do not fit the model: {text}')
