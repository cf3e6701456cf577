"""What TensorBoard shows of a run; tensorboardX brings PyTorch along wherever that is installed."""

import os
import re
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class EventFile:
  """A file of events in a folder.

  Args:
    folder: made if it is not there.
    resume_step: the step a run takes up again; TensorBoard then hides what older files say of this
      step's successors.
  """

  def __init__(self, folder: str | os.PathLike, resume_step: int | None = None):
    os.makedirs(folder, exist_ok=True)
    # Not `SummaryWriter`: its thread dies of a full disk in silence, and its queue then blocks.
    self._writer = EventsWriter(os.path.join(folder, 'events'))
    if resume_step is not None:
      self._add(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

  def add_scalar(self, step: int, name: str, value: float) -> None:
    self._add(step, summary=summary.scalar(_tag(name), value))

  def add_image(self, step: int, name: str, array: np.ndarray) -> None:
    """Adds a picture, uint8 [H, W, 3], RGB."""
    self._add(step, summary=summary.image(_tag(name), array, dataformats='HWC'))

  def _add(self, step, **content):
    self._writer.write_event(Event(step=step, wall_time=time.time(), **content))

  def flush(self) -> None:
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


def _tag(name):
  """TensorBoard's names hold no @, which tensorboardX would warn of at every write."""
  return re.sub(r'[^-/\w.]', '_', name)
