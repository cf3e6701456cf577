"""Weight folders: the tensors of a network and a card that says what they are."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from if_jax.data.labels import LabelSet, label_set_from_json

WEIGHTS_FILE = 'model.safetensors'
CARD_FILE = 'config.json'


def save_weights(folder: str | os.PathLike, variables: Mapping, card: Mapping[str, Any]) -> None:
  """Writes a weight folder, whole or not at all.

  Args:
    folder: made if it is not there; a weight folder that is there is replaced.
    variables: {'params': ..., 'batch_stats': ...} of arrays.
    card: what a reader needs, see `make_card`, and whatever else JSON can say.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  # The writer of safetensors stores a transposed array wrong, in silence.
  tensors = {k: np.asarray(v, order='C') for k, v in flatten_dict(variables, sep='/').items()}
  unfinished = folder / f'.{WEIGHTS_FILE}.{os.getpid()}'
  try:
    # The card that counts is in the header of the tensors' file; the other is for people.
    save_file(tensors, unfinished, metadata={'card': json.dumps(card)})
    with unfinished.open('rb') as file:
      os.fsync(file.fileno())
    os.replace(unfinished, folder / WEIGHTS_FILE)
    unfinished.write_text(json.dumps(card, indent=2) + '\n')
    os.replace(unfinished, folder / CARD_FILE)
  finally:
    unfinished.unlink(missing_ok=True)


def load_weights(folder: str | os.PathLike) -> tuple[dict, dict[str, Any]]:
  """Reads a weight folder.

  Args:
    folder: as `save_weights` made it.
  Returns:
    (variables, card): nested dicts of NumPy arrays, and what was said of them.
  Raises:
    ValueError: a folder that is not there, not one of ours, or a damaged file.
  """
  path = Path(folder) / WEIGHTS_FILE
  if not path.is_file():
    raise ValueError(
      f'no weights in {folder}: expected {WEIGHTS_FILE}, as `python -m convert` or a training '
      '(in WORKDIR/best) writes it'
    )
  try:
    with safe_open(path, framework='numpy') as file:
      card = json.loads((file.metadata() or {}).get('card', 'null'))
      tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except (SafetensorError, OSError, ValueError) as error:
    raise ValueError(f'{path} cannot be read ({error}); make it again') from error
  if not isinstance(card, dict) or 'model' not in card:
    raise ValueError(f'{path} does not say which model it is of; `python -m convert` makes one')
  return unflatten_dict(tensors, sep='/'), card


def make_card(model_name: str, model, label_set: LabelSet, **more) -> dict[str, Any]:
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
  content = dict(card['label_set'])
  return label_set_from_json(content.pop('name'), content)


def check_fits(model, variables: Mapping, source: str | os.PathLike) -> None:
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
  return unflatten_dict(initial | loaded, sep='/')


def model_shapes(model) -> dict[str, tuple[int, ...]]:
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
