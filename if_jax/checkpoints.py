"""Checkpoints of a run, from which it resumes; orbax is used here alone."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

FOLDER = 'checkpoints'


class Checkpoints:
  """The newest states of a run, in `workdir/checkpoints/<step>`.

  Saving goes on in the background; leaving the `with` block waits for it.
  """

  def __init__(self, workdir: str | os.PathLike, *, keep: int = 2):
    self._manager = ocp.CheckpointManager(
      Path(workdir, FOLDER).absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=True,
      ),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_):
    self._manager.close()

  def latest_step(self) -> int | None:
    """The newest finished checkpoint's step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any) -> None:
    """Saves a tree of arrays as that of `step`; a step that is there already is left as it is."""
    if step not in self._manager.all_steps():
      self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, step: int, like: Any) -> Any:
    """The state of `step`.

    Args:
      step: one that was saved.
      like: a tree of arrays, or of their shapes and dtypes, that the state must fit.
    Returns:
      The tree, of NumPy arrays: it can go on any number of devices.
    Raises:
      ValueError: the checkpoint holds something else, or cannot be read.
    """
    template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    try:
      state = self._manager.restore(step, args=ocp.args.StandardRestore(template))
    except Exception as error:  # orbax raises five unrelated kinds.
      raise ValueError(self._does_not_fit(step)) from error
    # orbax compares names, not shapes.
    if [x.shape for x in jax.tree.leaves(state)] != [x.shape for x in jax.tree.leaves(template)]:
      raise ValueError(self._does_not_fit(step))
    return state

  def _does_not_fit(self, step: int) -> str:
    return (
      f'checkpoint {step} in {self._manager.directory} is of another model, or damaged; resume '
      'with the configuration it was made with, or choose another --workdir'
    )
