"""Frozen parts of a network: they get no update and compute as they do in evaluation."""

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, path_aware_map

from if_jax.models.layers import BatchNorm
from if_jax.packing import is_within


def check_frozen(params: Mapping[str, Any], frozen: tuple[str, ...]) -> None:
  """Raises ValueError, naming what there is, unless each entry is a module of the network.

  Args:
    params: of the network.
    frozen: paths of modules, all that is in them included, such as 'backbone' or 'ocr/aux_head'.
  """
  modules = {'/'.join(path[:end]) for path in flatten_dict(params) for end in range(1, len(path))}
  for name in frozen:
    if name not in modules:
      close = difflib.get_close_matches(name, sorted(modules), n=1)
      hint = f' Did you mean {close[0]}?' if close else ''
      raise ValueError(
        f'config.train.freeze names {name!r}, which is no module of the network; it consists of '
        f'{", ".join(params)}.{hint}'
      )


def stop_gradients(params: Mapping[str, Any], frozen: tuple[str, ...]) -> Mapping[str, Any]:
  """The same parameters, through the frozen of which no gradient is computed."""
  return path_aware_map(
    lambda path, x: jax.lax.stop_gradient(x) if is_within(path, frozen) else x, params
  )


@contextlib.contextmanager
def running_statistics(frozen: tuple[str, ...]) -> Iterator[None]:
  """Within it, frozen batch normalisation uses its running statistics, and leaves them alone.

  In training mode it would normalise by the batch instead, and what is frozen would drift.
  """

  def intercept(call, arguments, options, context):
    is_norm = isinstance(context.module, BatchNorm) and context.method_name == '__call__'
    if is_norm and is_within(context.module.path, frozen):
      x, _ = arguments
      return call(x, False)
    return call(*arguments, **options)

  with nn.intercept_methods(intercept):
    yield
