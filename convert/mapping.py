"""State dicts of the PyTorch networks to our variables and back."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from convert.names import CLASSIFIER_ONLY, module_names
from if_jax.models import create_model
from if_jax.models.inversenet import InverseMLP
from if_jax.weights import list_problems, shape_differences

# PyTorch's name of a leaf -> (collection, our name); a `weight` of one axis is a norm's scale.
_LEAVES = {
  'weight': ('params', 'kernel'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}
# PyTorch's count of training steps in each batch norm, of which nothing of ours depends.
_COUNTER = 'num_batches_tracked'
_CLASSIFIERS = [('params', head, 'classifier', 'kernel') for head in ('ocr', 'head')]


def from_torch(state_dict: Mapping[str, np.ndarray], name: str) -> dict:
  """Turns a state dict into variables for `create_model(name).apply`.

  The number of classes and whether there is an edge head are read from the entries.

  Args:
    state_dict: PyTorch's name to array, without the prefixes of wrappers.
    name: a key of `if_jax.models.MODELS`, or 'inversenet'.
  Returns:
    {'params': ..., 'batch_stats': ...} of float32 NumPy arrays, C-contiguous.
  Raises:
    ValueError: naming every entry that is missing, unexpected, mis-shaped, not of floats, not
      finite, or a negative running variance.
  Source: the names of github.com/Qualcomm-AI-research/InverseForm.
  """
  expected = _expected(name, **_options(state_dict, name))
  given = {k: v for k, v in state_dict.items() if not k.endswith(_COUNTER)}
  return _convert(given, expected, name)


def backbone_from_torch(state_dict: Mapping[str, np.ndarray], name: str) -> tuple[dict, list[str]]:
  """Turns an ImageNet classifier of HRNet's authors into the variables of a backbone.

  Args:
    state_dict: as `from_torch`; the entries stand alone or under `backbone.`.
    name: the segmentation network that the backbone is for.
  Returns:
    ({'params': {'backbone': ...}, 'batch_stats': {'backbone': ...}}, the entries left out: those
    of the classifier behind the backbone, see `names.CLASSIFIER_ONLY`).
  Raises:
    ValueError: as `from_torch`.
  """
  given = {
    'backbone.' + k.removeprefix('backbone.'): v
    for k, v in state_dict.items()
    if not k.endswith(_COUNTER)
  }
  left_out = [k for k in given if k.removeprefix('backbone.').startswith(CLASSIFIER_ONLY)]
  expected = {k: v for k, v in _expected(name).items() if k.startswith('backbone.')}
  given = {k: v for k, v in given.items() if k not in left_out}
  return _convert(given, expected, name), left_out


def to_torch(variables: Mapping, name: str) -> dict[str, np.ndarray]:
  """Turns variables back into a state dict with PyTorch's names, in PyTorch's order.

  Args:
    variables: as `from_torch` gives them.
    name: as `from_torch`.
  Returns:
    PyTorch's name to array, C-contiguous; `num_batches_tracked` of every batch norm is 0.
  Raises:
    ValueError: naming every leaf that is missing, too many or mis-shaped.
  """
  flat = flatten_dict(jax.tree.map(np.asarray, dict(variables)))
  edge_head = any(path[1] == 'edge_head' for path in flat)
  num_classes = _num_classes((flat[path] for path in _CLASSIFIERS if path in flat), axis=-1)
  expected = _expected(name, num_classes=num_classes, edge_head=edge_head)
  problems = shape_differences(
    {'/'.join(path): _flax_shape(shape) for path, shape in expected.values()},
    {'/'.join(path): x.shape for path, x in flat.items()},
  )
  _raise_if_any(name, problems)
  state_dict = {}
  for theirs, (path, _) in expected.items():
    state_dict[theirs] = _to_torch_layout(flat[path])
    module, _, leaf = theirs.rpartition('.')
    if leaf == 'running_var':
      state_dict[f'{module}.{_COUNTER}'] = np.zeros((), np.int64)
  return state_dict


def _convert(given, expected, name):
  problems = shape_differences(
    {k: shape for k, (_, shape) in expected.items()}, {k: v.shape for k, v in given.items()}
  )
  arrays = {}
  with np.errstate(over='ignore'):  # Too large for float32 is not finite, and told below.
    for k in expected:
      if k in given and jnp.issubdtype(given[k].dtype, jnp.floating):
        arrays[k] = np.asarray(given[k], np.float32)
  problems |= {
    'not of floats': [k for k in expected if k in given and k not in arrays],
    'not finite': [k for k, x in arrays.items() if not np.isfinite(x).all()],
    'negative': [k for k, x in arrays.items() if k.endswith('running_var') and (x < 0).any()],
  }
  _raise_if_any(name, problems)
  return unflatten_dict({path: _to_flax_layout(arrays[k]) for k, (path, _) in expected.items()})


@functools.cache
def _expected(name, num_classes=19, edge_head=True):
  """PyTorch's name -> (our path, PyTorch's shape) of every entry, in PyTorch's order."""
  if name == 'inversenet':
    model, inputs = InverseMLP(), [jnp.zeros((1, 224, 224, 1))] * 2
  else:
    model = create_model(name, num_classes, edge_head=edge_head)
    inputs = [jnp.zeros((1, 64, 64, 3))]
  shapes = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), *inputs))
  expected = {}
  for theirs, ours in module_names(name):
    for leaf, (collection, our_leaf) in _LEAVES.items():
      for candidate in (our_leaf, 'scale') if leaf == 'weight' else (our_leaf,):
        path = (collection, *ours.split('/'), candidate)
        if path in shapes:
          expected[f'{theirs}.{leaf}'] = path, _torch_shape(shapes[path].shape)
  return expected


def _options(state_dict, name):
  if name == 'inversenet':
    return {}
  names = ('ocr.cls_head.weight', 'hrhead.last_layer.2.weight')
  classifiers = (state_dict[name] for name in names if name in state_dict)
  return {
    'num_classes': _num_classes(classifiers, axis=0),
    'edge_head': any(k.startswith('edge_head.') for k in state_dict),
  }


def _num_classes(classifiers, axis):
  """Of the first that is a classifier; 19 where none is, which is then told by its shape."""
  return next((x.shape[axis] for x in classifiers if x.ndim == 4 and x.shape[axis]), 19)


def _to_flax_layout(array):
  return np.ascontiguousarray(array.transpose(_FLAX_AXES.get(array.ndim)))


def _to_torch_layout(array):
  return np.ascontiguousarray(array.transpose(_TORCH_AXES.get(array.ndim)))


# Convolutions: [out, in, height, width] and [height, width, in, out]; dense layers likewise.
_FLAX_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
_TORCH_AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


def _torch_shape(shape):
  return tuple(shape[axis] for axis in _TORCH_AXES[len(shape)])


def _flax_shape(shape):
  return tuple(shape[axis] for axis in _FLAX_AXES[len(shape)])


def _raise_if_any(name, problems):
  text = list_problems(problems)
  if text:
    raise ValueError(f'these weights do not fit {name}: {text}')
