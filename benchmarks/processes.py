"""Measuring in a process of its own: other devices, and memory that nothing else has touched."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Mapping
from typing import Any


def in_fresh_process(
  function: Callable, *arguments: Any, environment: Mapping[str, str] | None = None
) -> Any:
  """Calls a function of a module where JAX has not started yet.

  Args:
    function: found by its name, as are the classes of its arguments and of its result.
    *arguments: for it.
    environment: variables set before JAX looks for devices.
  Returns:
    What it returns; what it raises is raised here.
  """
  with concurrent.futures.ProcessPoolExecutor(
    1,
    multiprocessing.get_context('spawn'),
    initializer=_set_variables,
    initargs=(dict(environment or {}),),
  ) as pool:
    return pool.submit(function, *arguments).result()


def environment_of_devices(num_devices: int) -> dict[str, str]:
  """Forces so many devices out of the host, or shows as many of the GPUs."""
  flags = os.environ.get('XLA_FLAGS', '')
  environment = {
    'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={num_devices}',
    'CUDA_VISIBLE_DEVICES': ','.join(map(str, range(num_devices))),
  }
  if num_devices > os.cpu_count():
    # Collectives of several devices on fewer cores need threads to wait in.
    environment['NPROC'] = str(2 * num_devices)
  return environment


def _set_variables(environment):
  os.environ.update(environment)
