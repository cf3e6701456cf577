"""Checkpoints that a run can go on from, whatever has happened to it; orbax is used here alone."""

import json
import logging as standard_logging
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

FOLDER = 'checkpoints'
_TRASH, _DAMAGED = '.trash', '.damaged'


class Checkpoint(NamedTuple):
  """What was saved: the step, the state, a tree of NumPy arrays, and the record, as JSON."""

  step: int
  state: Any
  record: dict[str, Any]


class Checkpoints:
  """The newest states of a run, in `workdir/checkpoints/<step>`; for one process alone.

  Saving goes on in the background; leaving the `with` block waits for it, whatever the reason.

  orbax writes a checkpoint whole or not at all, but reads flipped bits without a word, and deletes
  file by file. So each array has a checksum here, a checkpoint that does not match is put aside,
  and what is deleted is renamed first.

  Args:
    workdir: of the run; made if it is not there.
    keep: how many checkpoints stay.
  """

  def __init__(self, workdir: str | os.PathLike, *, keep: int = 2):
    self._folder = Path(workdir, FOLDER).absolute()
    self._keep = keep
    self._size = 0
    self._folder.mkdir(parents=True, exist_ok=True)
    # orbax would do it in a thread that nobody waits for.
    for unfinished in self._folder.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(unfinished, ignore_errors=True)
    self._empty_trash()
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        create=False,
        max_to_keep=keep,
        todelete_subdir=_TRASH,
        # The other processes of a job take no part.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          primary_host=jax.process_index(), active_processes={jax.process_index()}
        ),
      ),
    )

  def __enter__(self) -> 'Checkpoints':
    for name in ('asyncio', 'absl'):
      standard_logging.getLogger(name).addFilter(_is_of_interest)
    return self

  def __exit__(self, kind, error, _):
    try:
      self._manager.close()
    except Exception as failure:
      # A run that stops on a signal promises a checkpoint.
      if error is None or isinstance(error, SystemExit):
        raise self._not_written(failure) from failure
      logging.error('%s', self._not_written(failure))
    finally:
      for name in ('asyncio', 'absl'):
        standard_logging.getLogger(name).removeFilter(_is_of_interest)
    shutil.rmtree(self._folder / _TRASH, ignore_errors=True)

  @property
  def steps(self) -> list[int]:
    """Of all that are there, the newest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def check_space(self, state: Any) -> None:
    """Raises OSError if the checkpoints of a run would not fit onto the disk."""
    size = _size_of(state)
    # A new one is written before the oldest is deleted.
    needed = size * max(2, self._keep + 1 - len(self.steps))
    free = shutil.disk_usage(self._folder).free
    if free < needed:
      raise OSError(
        f'{self._folder} has {_megabytes(free)} free, and the checkpoints of this run need '
        f'{_megabytes(needed)}; make room, lower config.train.keep_checkpoints, or choose another '
        '--workdir'
      )

  def save(self, step: int, state: Any, record: Mapping[str, Any]) -> None:
    """Saves a state; one of the same step that is there already is left as it is.

    Args:
      step: its number.
      state: a tree of arrays, none of which may hold NaN or infinity.
      record: what else a run needs to go on, of JSON's types.
    Raises:
      OSError: this state or the one before it could not be written.
      ValueError: a state that is not finite.
    """
    if step in self.steps:
      return
    arrays = _by_path(state)
    self._size = _size_of(state)
    for path, array in arrays.items():
      if not np.isfinite(array).all():
        raise ValueError(f'the state after step {step} is not finite at {path}; it is not saved')
    text = json.dumps({
      'step': step,
      'arrays': {path: _fingerprint(array) for path, array in arrays.items()},
      'record': dict(record),
    })  # fmt: skip
    try:
      begun = self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          record=ocp.args.JsonSave({'text': text, 'crc32': zlib.crc32(text.encode())}),
        ),
      )
    except Exception as failure:  # orbax raises unrelated kinds, of the save before, too.
      raise self._not_written(failure) from failure
    if not begun:
      raise RuntimeError(f'orbax left step {step} out beside {self.steps}')
    self._empty_trash()

  def wait(self) -> None:
    """Waits for the save under way.

    Raises:
      OSError: it could not be written.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as failure:
      raise self._not_written(failure) from failure

  def restore_newest(
    self, like: Any, check: Callable[[dict[str, Any]], None] = lambda record: None
  ) -> Checkpoint | None:
    """Reads the newest checkpoint that is whole.

    Newer ones, which are damaged, are put aside into `checkpoints/.damaged`, and a warning says so.

    Args:
      like: a tree of arrays that the state must fit.
      check: sees the record before the state is read; what it raises is raised here.
    Returns:
      The checkpoint, or None if there is none at all. It can go on any number of devices.
    Raises:
      ValueError: of another model, or there are checkpoints and all are damaged.
    """
    damaged = {}
    for step in self.steps:
      try:
        content = self._read_record(step)
      except Exception as error:  # orbax raises five unrelated kinds for damaged files.
        damaged[step] = _first_line(error)
        continue
      check(content['record'])
      self._check_fits(step, content['arrays'], like)
      try:
        state = self._read_state(step, content['arrays'], like)
      except Exception as error:
        damaged[step] = _first_line(error)
        continue
      if damaged:
        self._put_aside(damaged)
      return Checkpoint(step, state, content['record'])
    if damaged:
      raise ValueError(
        f'all checkpoints in {self._folder} are damaged: {_reasons(damaged)}; bring back a copy, '
        'or choose another --workdir to start from the beginning'
      )
    return None

  def _put_aside(self, damaged):
    """In their places, they would keep the same steps from being saved again."""
    aside = self._folder / _DAMAGED
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for step in damaged:
      os.rename(self._folder / str(step), aside / str(step))
    self._manager.reload()
    logging.warning(
      'Damaged, and put aside from %s into %s: %s.', self._folder, _DAMAGED, _reasons(damaged)
    )

  def _read_record(self, step):
    stored = self._manager.restore(
      step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
    ).record  # fmt: skip
    text = stored['text']
    if zlib.crc32(text.encode()) != stored['crc32']:
      raise ValueError('its record does not match its checksum')
    content = json.loads(text)
    if content['step'] != step:
      raise ValueError(f'it is that of step {content["step"]}')
    return content

  def _check_fits(self, step, arrays, like):
    stored = {path: (tuple(x['shape']), x['dtype']) for path, x in arrays.items()}
    if stored != {path: (x.shape, str(x.dtype)) for path, x in _by_path(like).items()}:
      raise ValueError(
        f'checkpoint {step} in {self._folder} is of another model or of another version of '
        'if_jax; resume with the configuration and the version it was made with, or choose another '
        '--workdir'
      )

  def _read_state(self, step, arrays, like):
    template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    state = self._manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore(template))
    ).state
    for path, array in _by_path(state).items():
      if _fingerprint(array) != arrays[path]:
        raise ValueError(f'{path} does not match its checksum')
    return state

  def _not_written(self, error):
    try:
      free = _megabytes(shutil.disk_usage(self._folder).free)
    except OSError:
      free = 'nothing'
    return OSError(
      f'a checkpoint of {_megabytes(self._size)} could not be written to {self._folder}, which has '
      f'{free} free ({_first_line(error)}); make room, and the same command goes on from the last '
      'one written'
    )

  def _empty_trash(self):
    # Not the folder itself: a thread of orbax's may be about to rename something into it.
    for path in (self._folder / _TRASH).glob('*'):
      shutil.rmtree(path, ignore_errors=True)


def _reasons(damaged: Mapping[int, str]) -> str:
  return ', '.join(f'{step} ({reason})' for step, reason in damaged.items())


def _is_of_interest(record: standard_logging.LogRecord) -> bool:
  """Whether a log record is more than the traceback of what orbax raises as well."""
  return record.name != 'asyncio' and 'orbax' not in record.pathname


def _by_path(tree: Any) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _fingerprint(array: np.ndarray) -> dict[str, Any]:
  data = np.ascontiguousarray(array).view(np.uint8).data if array.ndim else array.tobytes()
  return {'shape': list(array.shape), 'dtype': str(array.dtype), 'crc32': zlib.crc32(data)}


def _size_of(tree: Any) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def _megabytes(size: float) -> str:
  return f'{size / 1e6:,.1f} MB'


def _first_line(error: Exception) -> str:
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
