"""Hundreds of small arrays as a few vectors, for what is done to all of them alike."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

# What weight decay is for; see `if_jax.optimizers.make_optimizer`.
_KERNEL = 'kernel'


def pack(tree: Mapping[str, Any], without: tuple[str, ...] = ()) -> dict[str, jax.Array]:
  """Joins the arrays of a tree end to end.

  An optimiser, a norm or a check is then a few operations, not some for each of hundreds of
  arrays: a training step of `hrnet18` has half as many (docs/performance.md). The vectors take as
  much memory again as the arrays while a step ends.

  Args:
    tree: nested dicts of arrays of one dtype.
    without: paths of modules whose arrays stay out.
  Returns:
    'kernel', the arrays of that name, and 'other', the rest: vectors, or absent if of nothing.
  Example:
    >>> tree = {'conv': {'kernel': jnp.ones((1, 2)), 'bias': jnp.zeros(3)}, 'bn': {'scale': [2.0]}}
    >>> {name: vector.tolist() for name, vector in pack(tree, without=('bn',)).items()}
    {'kernel': [1.0, 1.0], 'other': [0.0, 0.0, 0.0]}

  """
  leaves = flatten_dict(tree)
  packed = {}
  for name, paths in _groups(leaves, without):
    # Else XLA computes what leads to each array within the one operation that joins them all.
    arrays = jax.lax.optimization_barrier([jnp.asarray(leaves[path]) for path in paths])
    packed[name] = jax.lax.concatenate([jax.lax.reshape(x, (x.size,)) for x in arrays], 0)
  return packed


def unpack(
  packed: Mapping[str, jax.Array], tree: Mapping[str, Any], without: tuple[str, ...] = ()
) -> dict[str, Any]:
  """Undoes `pack`.

  Args:
    packed: of `pack`.
    tree: has the shapes, and the arrays of what was left out.
    without: as given to `pack`.
  Returns:
    The tree.
  """
  leaves = dict(flatten_dict(tree))
  for name, paths in _groups(leaves, without):
    parts = jax.lax.split(packed[name], [leaves[path].size for path in paths])
    leaves |= {
      path: jax.lax.reshape(x, leaves[path].shape) for path, x in zip(paths, parts, strict=True)
    }
  return unflatten_dict(leaves)


def is_within(path: tuple[Any, ...], modules: tuple[str, ...]) -> bool:
  """Whether a path, such as ('backbone', 'conv1', 'kernel'), leads into one of the modules.

  Args:
    path: of an array or a module.
    modules: their paths, such as 'backbone' or 'ocr/aux_head'.
  """
  return any(path[: name.count('/') + 1] == tuple(name.split('/')) for name in modules)


def _groups(leaves, without) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
  """Names of vectors, with the paths of what they are made of."""
  # Sorted: JAX's transformations sort the keys of dicts.
  paths = [path for path in sorted(leaves) if not is_within(path, without)]
  for name, are_kernels in ((_KERNEL, True), ('other', False)):
    chosen = [path for path in paths if (path[-1] == _KERNEL) == are_kernels]
    if chosen:
      yield name, chosen
