import cv2
import numpy as np
import pytest

from if_jax.video import VideoReader, VideoWriter

# Smooth, so that compression changes little, and other at each place and time.
ROWS, COLUMNS = np.mgrid[:64, :96]


def frame(index):
  return np.stack([3 * ROWS, 2 * COLUMNS, np.full_like(ROWS, 20 * index)], -1).astype(np.uint8)


def write(path, frames, rate=12.5):
  writer = VideoWriter(path, rate)
  for picture in frames:
    writer.write(picture)
  writer.close()
  return path


def test_frames_come_back_in_order_with_their_size_and_rate(tmp_path):
  frames = [frame(i) for i in range(10)]
  video = VideoReader(write(tmp_path / 'new' / 'a.mp4', frames))
  assert (video.rate, video.num_frames) == (12.5, 10)
  again = list(video)
  assert len(again) == 10
  for picture, expected in zip(again, frames, strict=True):
    assert picture.shape == (64, 96, 3) and picture.dtype == np.uint8
    # A neighbour in time differs by 20 in blue; red and blue change places at 60 on average.
    assert np.abs(picture.astype(int) - expected).mean(axis=(0, 1)).max() < 5


def test_grey_frames_are_written_as_grey(tmp_path):
  (again,) = VideoReader(write(tmp_path / 'a.mp4', [frame(0)[..., 0]]))
  assert np.abs(again.astype(int) - frame(0)[..., :1]).mean() < 3


def test_an_odd_row_and_column_are_cut_off(tmp_path):
  (again,) = VideoReader(write(tmp_path / 'a.mp4', [frame(3)[:63, :95]]))
  assert again.shape == (62, 94, 3)
  assert np.abs(again.astype(int) - frame(3)[:62, :94]).mean() < 5


def test_a_video_of_a_phone_held_upright_is_read_upright(tmp_path):
  path = write(tmp_path / 'a.mp4', [frame(2)] * 3)
  data = path.read_bytes()
  # The track's matrix, in 16.16 fixed point: that of no turn, and of one by 90 degrees clockwise.
  plain = np.array([65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30], '>i4').tobytes()
  turned = np.array([0, 65536, 0, -65536, 0, 0, 64 << 16, 0, 1 << 30], '>i4').tobytes()
  track = data.index(b'tkhd')
  path.write_bytes(data[:track] + data[track:].replace(plain, turned, 1))
  pictures = list(VideoReader(path))
  assert len(pictures) == 3
  expected = np.rot90(frame(2), -1)
  assert np.abs(pictures[0].astype(int) - expected).mean() < 5


def test_frames_are_counted_where_the_file_does_not_tell(tmp_path):
  jpegs = [cv2.imencode('.jpg', frame(i))[1].tobytes() for i in range(7)]
  path = tmp_path / 'a.mjpeg'
  path.write_bytes(b''.join(jpegs))
  video = VideoReader(path)
  assert video.num_frames == 7
  assert len(list(video)) == 7


@pytest.mark.parametrize('content', [None, b'', b'no video ' * 100])
def test_what_is_no_video_has_no_frames(tmp_path, content):
  path = tmp_path / 'a.mp4'
  if content is not None:
    path.write_bytes(content)
  video = VideoReader(path)
  assert video.num_frames == 0
  assert list(video) == []


def test_a_video_that_cannot_be_written_is_an_error(tmp_path):
  (tmp_path / 'a.mp4').mkdir()
  with pytest.raises(OSError, match=r'a\.mp4: no video of 64x96 pixels can be written here'):
    write(tmp_path / 'a.mp4', [frame(0)])
