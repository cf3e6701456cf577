"""Videos, frame by frame: any that OpenCV reads, and mp4 files."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

VIDEO_ENDINGS = (
  '.mp4', '.m4v', '.mov', '.3gp', '.avi', '.mkv', '.webm', '.wmv', '.mpg', '.mpeg', '.mjpeg'
)  # fmt: skip

# Frames per second for files that do not tell, or that give the ticks of their clock instead.
_RATE, _MAX_RATE = 25.0, 1000.0


class VideoReader:
  """The frames of a video, upright, one at a time; none if the file is no video.

  Attributes:
    rate: frames per second.
    num_frames: as the file tells it, which may be a few too many or too few, or if it does not, as
      they are counted.

  Args:
    path: of the file.
  """

  def __init__(self, path: Path):
    self._capture = cv2.VideoCapture(str(path))
    rate = self._capture.get(cv2.CAP_PROP_FPS)
    self.rate = rate if 0 < rate <= _MAX_RATE else _RATE
    count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if count <= 0:
      count = sum(1 for _ in iter(cv2.VideoCapture(str(path)).grab, False))
    self.num_frames = count

  def __iter__(self) -> Iterator[np.ndarray]:
    """Gives uint8 [H, W, 3], RGB, of one size, up to the end or to where the file is broken."""
    is_frame, frame = self._capture.read()
    while is_frame:
      yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
      is_frame, frame = self._capture.read()


class VideoWriter:
  """Writes an mp4 file, whose size is that of the first frame.

  Of an odd height or width the last row or column is lost: mp4 keeps one colour for 2 x 2 pixels.

  Args:
    path: of the file; its folder is made if it is not there.
    rate: frames per second.
  """

  def __init__(self, path: Path, rate: float):
    self._path = path
    self._rate = rate
    self._writer: cv2.VideoWriter | None = None

  def write(self, frame: np.ndarray) -> None:
    """Adds a frame, uint8 [H, W, 3], RGB, or [H, W], grey.

    Raises:
      OSError: the file cannot be made.
    """
    height, width = frame.shape[:2]
    if self._writer is None:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      code = cv2.VideoWriter.fourcc(*'mp4v')
      self._writer = cv2.VideoWriter(str(self._path), code, self._rate, (width, height))
      if not self._writer.isOpened():
        raise OSError(f'{self._path}: no video of {height}x{width} pixels can be written here')
    self._writer.write(
      cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR if frame.ndim == 2 else cv2.COLOR_RGB2BGR)
    )

  def close(self) -> None:
    """Ends the file."""
    if self._writer is not None:
      self._writer.release()
