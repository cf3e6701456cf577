"""Several processes of one job, on one machine or on many: how they meet, agree and part.

Each process has devices of its own; `parallel.pmap` spans those of all. JAX lets a job live and die
together: one process that ends takes the others with it, and a new start goes on from the newest
checkpoint. What is done here is that this happens soon, and with a reason in the log.
"""

import contextlib
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from rich.console import Console

# As `--coordinator`: ask Slurm, Open MPI or Kubernetes.
AUTO = 'auto'
# The exit status of a run that was asked to stop and has saved its state, on all processes alike:
# as a shell gives it for SIGTERM.
STOPPED = 128 + signal.SIGTERM


@contextlib.contextmanager
def joined(
  coordinator: str | None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  tell: Callable[[BaseException], int],
  initialization_timeout: int = 60,
  heartbeat_timeout: int = 20,
  shutdown_timeout: int = 15,
) -> Iterator[None]:
  """Connects this process with the others of its job for as long as the body runs.

  An error in the body ends the process at once: left to itself, JAX would first wait for the
  others, and they for this one.

  Args:
    coordinator: 'HOST:PORT' of process 0, 'auto' to ask the cluster, or None for a process alone.
    num_processes: how many there are; None with 'auto'.
    process_id: which of them this is, from 0; None with 'auto'.
    tell: prints an error and gives the exit status.
    initialization_timeout: seconds to wait for the others.
    heartbeat_timeout: seconds after which a silent process counts as dead.
    shutdown_timeout: seconds to wait for the others at the end.
  Raises:
    ValueError: arguments that cannot be, or a port that is in use.
  """
  if not coordinator:
    if num_processes is not None or process_id is not None:
      raise ValueError('--num_processes and --process_id need --coordinator=HOST:PORT')
    yield
    return
  _check(coordinator, num_processes, process_id)
  where = 'the coordinator that the cluster names' if coordinator == AUTO else coordinator
  # If two come with the same number, JAX aborts without saying so.
  this = '' if process_id is None else f'process {process_id} of {num_processes}, '
  print(
    f'{this}waiting up to {initialization_timeout} s for the others at {where}; each needs a '
    '--process_id of its own',
    file=sys.stderr,
  )
  # JAX aborts with a page of C++ when its own time is up.
  late = threading.Timer(
    initialization_timeout,
    _leave,
    (1, f'not all processes came to {where} within {initialization_timeout} s, or two with one '
     '--process_id; start every one, look into their logs, or raise --initialization_timeout'),
  )  # fmt: skip
  late.daemon = True
  late.start()
  try:
    is_auto = coordinator == AUTO
    jax.distributed.initialize(
      coordinator_address=None if is_auto else coordinator,
      num_processes=None if is_auto else num_processes,
      process_id=None if is_auto else process_id,
      coordinator_bind_address=_bind_address(coordinator, process_id),
      initialization_timeout=2 * initialization_timeout,
      heartbeat_timeout_seconds=heartbeat_timeout,
      shutdown_timeout_seconds=shutdown_timeout,
    )
  except ValueError as error:
    raise ValueError(
      f'no cluster was found ({error}); give --coordinator=HOST:PORT, --num_processes and '
      '--process_id'
    ) from None
  finally:
    late.cancel()
  try:
    yield
    _wait_for_all()
  except SystemExit as end:
    # Where all end for one reason, the last file may take longer than a shutdown.
    if end.code == STOPPED:
      _wait_for_all()
    jax.distributed.shutdown()
    raise
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' in str(error):
      _leave(tell(error))
    # What a collective says whose other end is gone.
    logging.debug('The error in full:', exc_info=error)
    _leave(
      1,
      f'a step failed ({" ".join(str(error).split())[:300]}); where another process has ended, its '
      'log says why. Start all again: the run goes on from its newest checkpoint',
    )
  except BaseException as error:
    status = tell(error)
    if is_first():
      # Its end aborts the others, which may be about to tell the same.
      time.sleep(1)
    _leave(status)
  jax.distributed.shutdown()


def is_first() -> bool:
  """Whether this is the process that writes files and talks to people."""
  return jax.process_index() == 0


def console() -> Console:
  """Where progress is shown: standard error of the first process."""
  return Console(stderr=True, quiet=not is_first())


def from_first(function: Callable[[], Any]) -> Any:
  """Calls a function on the first process alone and gives all what it returns, or its error.

  Raises:
    ValueError, OSError: raised by the function, on all processes.
  """
  result = None
  if is_first():
    try:
      result = function()
    except (ValueError, OSError) as error:
      result = error
  result = broadcast(result)
  if isinstance(result, Exception):
    raise result
  return result


def broadcast(value: Any) -> Any:
  """Gives every process the value of the first one, anything that can be pickled."""
  if jax.process_count() == 1:
    return value
  data = np.frombuffer(pickle.dumps(value), np.uint8) if is_first() else np.zeros(0, np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  data = data if is_first() else np.zeros(size, np.uint8)
  return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes())


def gather(value: Any) -> list[Any]:
  """Gives every process the values of all, in their order."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(pickle.dumps(value), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded)
  return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def check_agreement(facts: Mapping[str, Any]) -> None:
  """Raises ValueError, on all processes, unless each comes with the same facts.

  What differs would otherwise end in a step for which some wait for ever.

  Args:
    facts: name -> what must be equal, such as the number of steps.
  """
  first, *others = gather(dict(facts))
  for process, theirs in enumerate(others, 1):
    for name, value in theirs.items():
      if value != first[name]:
        raise ValueError(
          f'{name} is {first[name]} on process 0 and {value} on process {process}; '
          'start all processes with the same arguments, data and kind of machine'
        )


def _check(coordinator, num_processes, process_id):
  if coordinator == AUTO:
    if num_processes is not None or process_id is not None:
      raise ValueError('--coordinator=auto finds --num_processes and --process_id; leave them away')
    return
  host, colon, port = coordinator.rpartition(':')
  if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
    raise ValueError(f'--coordinator={coordinator}; give HOST:PORT of process 0, or auto')
  if num_processes is None or process_id is None:
    raise ValueError(f'--coordinator={coordinator} needs --num_processes and --process_id')
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f'--process_id={process_id} with --num_processes={num_processes}; '
      'it is 0 on the first process, and one below their number on the last'
    )
  if process_id == 0:
    try:
      # JAX would end in a segmentation fault.
      with socket.create_server(('', int(port))):
        pass
    except OSError as error:
      raise ValueError(
        f'port {port} of --coordinator={coordinator} cannot be opened ({error.strerror}); '
        'choose another one, on all processes'
      ) from None


def _bind_address(coordinator, process_id):
  """On one machine, nobody else needs to reach the coordinator; by default, everybody can."""
  local = coordinator.rpartition(':')[0] in ('127.0.0.1', 'localhost')
  return coordinator if local and process_id == 0 else None


def _wait_for_all():
  multihost_utils.sync_global_devices('the end')


def _leave(status: int, message: str = ''):
  """Ends the process without waiting for anybody."""
  if message:
    print('error:', message, file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
