"""Devices: the only file that says pmap, which axis, how many devices.

`jax.pmap` is in maintenance mode upstream; here it is used in its modern form, with the state as
replicated arrays that have no device axis. Whoever replaces it changes this file alone.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from if_jax.compilation_cache import not_kept

# The name that `jax.lax.psum` and batch normalisation know the devices by.
AXIS = 'batch'

# How many steps may be under way. Without a bound, collectives of forced host devices wait for
# each other's threads for ever; on an accelerator it limits what the host queues up.
MAX_STEPS_AHEAD = 8


def num_devices() -> int:
  """How many devices take part in each step of `pmap`, of all processes."""
  return jax.device_count()


def num_local_devices() -> int:
  """How many of them are this process's own."""
  return jax.local_device_count()


def axis_name() -> str | None:
  """What a training step that `pmap` runs calls the devices; None if there is but one.

  XLA's CPU backend leaves in the sums over one device, hundreds in a step.
  """
  return AXIS if num_devices() > 1 else None


def describe_devices() -> str:
  """'2 x NVIDIA H100', or '8 x TPU v4 in 2 processes'."""
  processes = jax.process_count()
  suffix = f' in {processes} processes' if processes > 1 else ''
  return f'{num_devices()} x {jax.devices()[0].device_kind}{suffix}'


def pmap(step: Callable, *, num_constants: int = 0, donate_state: bool = False) -> Callable:
  """Makes a step of one device into one of all devices, of all processes.

  Args:
    step: `(state, batch, *constants) -> result`, which may use `AXIS`. State and constants are the
      same on all devices, the batch is theirs alone, the result must be the same on all.
    num_constants: how many further arguments there are. Large arrays that the step closes over
      would be compiled into it: 12 s and 2.4 GB for 400 MB of them.
    donate_state: reuse the memory of the state; the caller's is gone afterwards.
  Returns:
    A function of a state and constants from `replicate` and a batch from `shard`; its result is a
    replicated tree, without a device axis.
  """
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(None, 0, *[None] * num_constants),
    out_axes=None,
    donate_argnums=(0,) if donate_state else (),
  )


def pmap_per_device(step: Callable, *, keep: bool = True) -> Callable:
  """As `pmap`, for a step whose second result differs by device and keeps a device axis.

  It runs on the devices of this process alone: others may call it more often, or not at all.

  Args:
    step: `(state, batch) -> (result, results by device)`.
    keep: whether the compiled program may be kept on disk.
  """
  mapped = jax.pmap(
    step, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, 0), devices=jax.local_devices()
  )
  return mapped if keep else not_kept()(mapped)


def replicate(tree: Any) -> Any:
  """Puts a tree of host arrays, the same in all processes, onto every device."""
  # From NumPy: putting an array that is on a device may share its memory, and donation frees it.
  return jax.device_put(jax.tree.map(np.asarray, tree), _sharding(PartitionSpec()))


def shard(batch: Any) -> Any:
  """Splits arrays [B, ...] into [devices, B / devices, ...], a part to each of this process."""

  def split(array):
    return array.reshape(num_local_devices(), -1, *array.shape[1:])

  return jax.device_put(jax.tree.map(split, batch), _sharding(PartitionSpec(AXIS)))


def fetch(tree: Any) -> Any:
  """Brings a replicated tree to the host."""
  return jax.tree.map(np.asarray, tree)


def unshard(array: jax.Array) -> np.ndarray:
  """Brings [devices, B / devices, ...] to the host as [B, ...]."""
  return np.asarray(array).reshape(-1, *array.shape[2:])


def prefetch(batches: Iterator[Any], size: int = 2) -> Iterator[Any]:
  """Puts batches onto the devices `size` steps before they are wanted."""
  queue = []
  for batch in batches:
    queue.append(shard(batch))
    if len(queue) > size:
      yield queue.pop(0)
  yield from queue


@functools.cache
def _mesh() -> Mesh:
  return Mesh(np.array(jax.local_devices()), (AXIS,))


def _sharding(spec: PartitionSpec) -> NamedSharding:
  return NamedSharding(_mesh(), spec)
