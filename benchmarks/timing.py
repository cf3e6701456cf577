"""Paired timings: ways of doing the same thing, turn by turn in one process.

What else the machine does changes from minute to minute; ratios within a round hardly feel it.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Of the matrices whose product a backend's peak is measured with; others take larger ones.
_PRODUCT_SIZES = {'cpu': 2048}


def alternate(
  functions: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
  """Times functions turn by turn, in the reverse order every other round.

  Args:
    functions: by name. A call ends when what it returns is computed, by JAX or by PyTorch.
    rounds: how often each is timed.
    warm_up: rounds before, which compile and are not timed.
  Returns:
    Seconds of each call, by name.
  """
  seconds = {name: [] for name in functions}
  for i in range(-warm_up, rounds):
    for name in list(functions)[:: 1 if i % 2 == 0 else -1]:
      start = time.perf_counter()
      _wait_for(functions[name]())
      if i >= 0:
        seconds[name].append(time.perf_counter() - start)
  return seconds


def compare(seconds: Mapping[str, Sequence[float]], *, ours: str) -> list[dict]:
  """One table row per function.

  Args:
    seconds: of `alternate`.
    ours: the name of the one that the others are compared with.
  Returns:
    Rows of 'name', 'median ms', 'min ms' and 'ratio', the median over the rounds of its time over
    ours (above 1: ours is faster), with the 'lowest' and the 'highest' of these ratios.
  """
  rows = []
  for name, times in seconds.items():
    ratios = [time / our_time for time, our_time in zip(times, seconds[ours], strict=True)]
    rows.append({
      'name': name,
      'median ms': 1e3 * statistics.median(times),
      'min ms': 1e3 * min(times),
      'ratio': statistics.median(ratios),
      'lowest': min(ratios),
      'highest': max(ratios),
    })  # fmt: skip
  return rows


def check_close(what: str, ours: object, theirs: object, *, tolerance: float) -> float:
  """Makes sure that two ways compute the same, before their times are compared.

  Args:
    what: they compute, for the message.
    ours: an array, or anything NumPy makes one of.
    theirs: as `ours`.
    tolerance: as a share of the largest of `theirs`.
  Returns:
    The largest difference, as such a share.
  Raises:
    ValueError: they differ in shape or by more.
  """
  ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
  if ours.shape != theirs.shape:
    raise ValueError(f'{what}: ours is {ours.shape}, the peer gives {theirs.shape}')
  error = float(np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-12))
  # Also false for NaN.
  if not error <= tolerance:
    raise ValueError(
      f'{what}: ours and the peer differ by {error:.1e} of the largest value, above {tolerance:g}; '
      'their times cannot be compared'
    )
  return error


def prepare_torch() -> dict[str, object]:
  """Gives PyTorch what it is fastest with; returns what a record should say of it."""
  import torch

  # As many threads as XLA: the cores that this process may use.
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  # As JAX multiplies float32 by default, on GPUs.
  torch.set_float32_matmul_precision('high')
  torch.backends.cudnn.benchmark = True
  return {
    'version': torch.__version__,
    'threads': torch.get_num_threads(),
    'device': torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu',
  }


def product_peak(dtype: jax.typing.DTypeLike) -> float:
  """Measures the FLOP/s of a large matrix product, by JAX or by PyTorch, whichever is faster.

  Args:
    dtype: float32 or bfloat16.
  """
  import torch

  size = _PRODUCT_SIZES.get(jax.default_backend(), 8192)
  a = jnp.ones((size, size), dtype)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  b = torch.ones((size, size), dtype=getattr(torch, jnp.dtype(dtype).name), device=device)
  seconds = alternate({'jax': lambda: jnp.dot(a, a), 'torch': lambda: b @ b}, rounds=5)
  return 2 * size**3 / min(min(times) for times in seconds.values())


def _wait_for(result):
  jax.block_until_ready(result)
  torch = sys.modules.get('torch')
  if torch is not None and torch.cuda.is_initialized():
    torch.cuda.synchronize()
