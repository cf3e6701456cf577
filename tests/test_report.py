"""Pictures by their pixels, tables by their text, files by what can be read back from them."""

import io
import json
import re
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from if_jax.curves import tick_label, ticks
from if_jax.data.labels import CITYSCAPES
from if_jax.metrics import BoundaryMetrics, iou_from_confusion
from if_jax.report import (
  MetricWriter,
  colorize,
  contact_sheet,
  error_map,
  learning_curves,
  metrics_table,
  overlay,
  print_table,
  read_metrics,
)

COLORS = np.array([[128, 64, 128], [244, 35, 232], [70, 70, 70]], np.uint8)
NAMES = ['road', 'sidewalk', 'building']


@pytest.mark.parametrize('dtype', [np.uint8, np.int32])
def test_colorize_paints_each_class_and_leaves_the_rest_black(dtype):
  train_ids = np.array([[0, 1, 2], [3, 255, 1]], dtype)
  painted = colorize(train_ids, COLORS)
  assert painted.dtype == np.uint8
  expected = [[*COLORS], [[0, 0, 0], [0, 0, 0], COLORS[1]]]
  np.testing.assert_array_equal(painted, expected)


def test_overlay_mixes_colours_keeps_the_unknown_and_draws_outlines():
  image = np.full((6, 8, 3), 100, np.uint8)
  train_ids = np.zeros((6, 8), np.int32)
  train_ids[:, 3:] = 1
  train_ids[:, 6:] = 255
  image.setflags(write=False)
  mixed = overlay(image, train_ids, COLORS, alpha=0.25)
  np.testing.assert_allclose(mixed[0, 0], 75 + 0.25 * COLORS[0], atol=1)
  np.testing.assert_allclose(mixed[3, 4], 75 + 0.25 * COLORS[1], atol=1)
  np.testing.assert_array_equal(mixed[:, 6:], image[:, 6:])
  white = (mixed == 255).all(axis=-1)
  np.testing.assert_array_equal(np.flatnonzero(white.all(axis=0)), [2, 5])
  assert white.sum() == 12
  with pytest.raises(ValueError, match=r'\(6, 8\) and \(6, 7\)'):
    overlay(image, train_ids[:, :-1], COLORS)


def test_error_map_is_red_where_wrong_grey_where_right_black_where_ignored():
  labels = np.array([[0, 1, 255, -1]])
  predictions = np.array([[0, 2, 1, 1]])
  image = np.array([[[255, 255, 255], [0, 0, 0], [9, 9, 9], [9, 9, 9]]], np.uint8)
  for picture in (error_map(labels, predictions), error_map(labels, predictions, image)):
    right, wrong, *ignored = picture[0].astype(int)
    assert right[0] == right[1] == right[2] and 60 < right[0] < 200
    assert wrong[0] > 2 * max(wrong[1:])
    np.testing.assert_array_equal(ignored, np.zeros((2, 3)))
  with pytest.raises(ValueError, match='sizes differ'):
    error_map(labels, predictions[:, 1:])


def test_contact_sheet_holds_images_legend_and_text():
  plain = np.full((30, 60, 3), (10, 200, 30), np.uint8)
  tall = np.full((90, 60, 3), (200, 10, 30), np.uint8)
  rows = [('first', [plain, plain]), ('second', [tall, plain])]
  settings = {'titles': ['image', 'truth'], 'class_names': NAMES, 'colors': COLORS}
  sheet = contact_sheet(rows, cell_width=120, **settings)
  assert sheet.dtype == np.uint8 and sheet.ndim == 3
  # Row heights follow the first image: 120 x 60 twice, then 120 x 180 twice.
  assert (sheet == plain[0, 0]).all(axis=-1).sum() == 2 * 120 * 60 + 120 * 180
  assert (sheet == tall[0, 0]).all(axis=-1).sum() == 120 * 180
  for color in [*COLORS, (0, 0, 0)]:
    assert (sheet == color).all(axis=-1).sum() > 200
  wider = contact_sheet(rows, cell_width=150, **settings)
  assert wider.shape[1] == sheet.shape[1] + 2 * 30
  other_words = contact_sheet(
    [('first', rows[0][1]), ('third', rows[1][1])], cell_width=120, **settings
  )
  assert other_words.shape == sheet.shape and (other_words != sheet).any()


def test_contact_sheet_names_a_row_that_does_not_fit():
  settings = {'titles': ['image', 'truth'], 'class_names': NAMES, 'colors': COLORS}
  with pytest.raises(ValueError, match='at least one row'):
    contact_sheet([], **settings)
  with pytest.raises(ValueError, match="'a' has 1 images for 2 titles"):
    contact_sheet([('a', [np.zeros((4, 4, 3), np.uint8)])], **settings)


def write_lines(path, records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return path


def color_rows(picture, color):
  """The mean row in which a colour stands, by column, within the area of the curves."""
  area = (np.abs(picture[90:370, 70:690].astype(int) - color) < 40).all(axis=-1)
  rows = np.arange(area.shape[0])[:, None]
  return (area * rows).sum(axis=0)[area.any(axis=0)] / area.sum(axis=0)[area.any(axis=0)]


def test_learning_curves_fall_where_the_values_fall(tmp_path):
  records = [{'step': s, 'train/loss': 3 - s / 50, 'train/learning_rate': 7.0} for s in range(100)]
  records += [{'step': 99, 'val/miou': 0.4, 'val/pixel_accuracy': None}]
  picture = learning_curves(write_lines(tmp_path / 'metrics.jsonl', records))
  assert picture.dtype == np.uint8 and picture.shape == (430, 2 * 720, 3)
  rows = color_rows(picture[:, :720], (0, 114, 178))
  assert len(rows) > 500 and (np.diff(rows) >= -1).all() and rows[-1] > rows[0] + 200
  # One curve a panel: the second colour is nowhere.
  assert not (picture == (213, 94, 0)).all(axis=-1).any()
  assert (picture[:, 720:] == (0, 114, 178)).all(axis=-1).any()


@pytest.mark.parametrize(
  'values',
  [[2.0], [1.5, 1.5], [0.0, 0.0], [1e-9, 3e-9], [-4e6, 9e6], [0, 1], [0.1, np.nextafter(0.1, 1)]],
)
def test_learning_curves_take_any_range(tmp_path, values):
  records = [{'step': 10 * (i + 1), 'train/loss': value} for i, value in enumerate(values)]
  picture = learning_curves(write_lines(tmp_path / 'metrics.jsonl', records))
  assert picture.shape == (430, 720, 3)
  assert (picture[90:370] == (0, 114, 178)).all(axis=-1).sum() > 20


@pytest.mark.parametrize('low', [0.1, 0.3, 1.0, -7e5, 3e-8])
@pytest.mark.parametrize('apart', [2e-16, 4e-16, 1e-15, 1e-12, 1e-8, 1e-4, 1])
@pytest.mark.parametrize('count', [5, 6, 7])
def test_ticks_enclose_the_values_and_are_told_apart_in_few_digits(low, apart, count):
  values = np.array([low, low + abs(low) * apart])
  places = ticks(values, count)
  rounding = 1e-15 * abs(low)
  assert places[0] <= values.min() + rounding and values.max() <= places[-1] + rounding
  labels = [tick_label(place, places) for place in places]
  assert len(set(labels)) == len(labels) >= 2
  assert max(len(re.sub(r'e.*|\D', '', label)) for label in labels) <= 12


def test_learning_curves_say_what_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no metrics at .*metrics\.jsonl'):
    learning_curves(tmp_path / 'metrics.jsonl')
  path = write_lines(tmp_path / 'metrics.jsonl', [{'step': 1, 'other': 2.0}])
  with pytest.raises(ValueError, match='no value to draw'):
    learning_curves(path)
  path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
  with pytest.raises(ValueError, match='line 2 is no JSON object'):
    learning_curves(path)


def scores(boundary=True):
  confusion = np.array([[90, 10, 0], [0, 100, 0], [0, 0, 0]])
  result = iou_from_confusion(confusion)
  if boundary:
    labels = np.zeros((20, 20), int)
    labels[:, 10:] = 1
    metrics = BoundaryMetrics(3, tolerances=(2, 0.01))
    metrics.update(labels, labels)
    result |= metrics.compute()
  return result


def printed(result, **terminal):
  console = Console(file=io.StringIO(), **terminal)
  print_table(result, NAMES, console)
  return console.file.getvalue()


def cells(line):
  return [cell.strip() for cell in line.strip().strip('|').split('|')]


def test_table_is_markdown_where_there_is_no_terminal():
  text = printed(scores(), width=20)
  assert '\x1b' not in text and text.isascii()
  lines = [line for line in text.splitlines() if line.startswith('|')]
  assert cells(lines[0]) == [
    'class', 'IoU', 'precision', 'recall', 'F@2px', 'F@0.01', 'boundary IoU',
  ]  # fmt: skip
  assert set(lines[1]) == {'|', '-'}
  assert cells(lines[2]) == ['road', '90.00', '100.00', '90.00', '100.00', '100.00', '100.00']
  assert cells(lines[4]) == ['building', *'------']
  assert cells(lines[5])[:4] == ['mean', '90.45', '95.45', '95.00'] and len(lines) == 6
  assert 'mIoU 90.45   pixel accuracy 95.00   frequency-weighted IoU 90.45' in text


def test_table_on_a_terminal_has_style_and_no_boundary_columns_without_scores():
  text = printed(scores(boundary=False), force_terminal=True, width=80)
  assert '\x1b[1m' in text and '|' not in text
  assert 'boundary' not in text and 'F@' not in text


def test_the_table_of_cityscapes_fits_a_terminal_of_80():
  names = CITYSCAPES.class_names
  ones = np.ones(len(names))
  columns = ['iou', 'precision', 'recall', 'boundary_iou_per_class']
  columns += [f'boundary_f@{tolerance}px_per_class' for tolerance in (1, 2, 3, 5)]
  means = dict.fromkeys(('miou', 'pixel_accuracy', 'frequency_weighted_iou'), 1.0)
  console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
  print_table(dict.fromkeys(columns, ones) | means, names, console)
  lines = [line.split() for line in console.file.getvalue().splitlines()]
  for name in (*names, 'mean'):
    assert [*name.split(), *['100.00'] * len(columns)] in lines


def test_a_class_name_is_no_markup():
  console = Console(file=io.StringIO(), width=80)
  print_table(scores(), ['[/b]', '[red]sky', 'building'], console)
  text = console.file.getvalue()
  assert '[/b]' in text and '[red]sky' in text


def test_table_names_a_wrong_number_of_classes():
  with pytest.raises(ValueError, match='2 class names for scores of 3 classes'):
    metrics_table(scores(), NAMES[:2])


def read_events(workdir):
  """All events of TensorBoard's files, of which each record is framed by lengths and checksums."""
  events = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (length,) = struct.unpack_from('<Q', data, at)
      events.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))
      at += 12 + length + 4
  return events


def test_writer_writes_lines_and_tensorboard(tmp_path, caplog):
  with MetricWriter(tmp_path / 'new' / 'run') as writer:
    writer.write(10, {'loss': 0.1, 'images': 48}, prefix='train')
    # On disk at once, not only after closing.
    on_disk = (tmp_path / 'new' / 'run' / 'metrics.jsonl').read_text()
    assert on_disk == '{"step": 10, "train/loss": 0.1, "train/images": 48}\n'
    writer.write(np.int64(20), {'boundary_f@2px': jnp.float32(0.5), 'loss': np.nan, 'x': jnp.inf})
    writer.image(20, 'val/overlay', np.full((4, 6, 3), 7, np.uint8))
    with pytest.raises(ValueError, match=r'val/iou has shape \(3,\)'):
      writer.write(30, {'iou': np.zeros(3)}, prefix='val')
  records = read_metrics(tmp_path / 'new' / 'run' / 'metrics.jsonl')
  assert records[1] == {'step': 20, 'boundary_f@2px': 0.5, 'loss': None, 'x': None}
  assert len(records) == 2

  values = {}
  for event in read_events(tmp_path / 'new' / 'run'):
    for value in event.summary.value:
      values[event.step, value.tag] = value
  assert values[10, 'train/loss'].simple_value == pytest.approx(0.1)
  assert values[10, 'train/images'].simple_value == 48
  assert values[20, 'boundary_f_2px'].simple_value == 0.5
  assert (values[20, 'val/overlay'].image.height, values[20, 'val/overlay'].image.width) == (4, 6)
  assert len(values) == 4
  assert not caplog.records


def test_writer_resumes_without_the_later_steps_and_the_broken_line(tmp_path):
  with MetricWriter(tmp_path) as writer:
    for step in (10, 20, 30, 40):
      writer.write(step, {'loss': 1 / step})
  path = tmp_path / 'metrics.jsonl'
  before = path.read_text().splitlines(keepends=True)
  with path.open('a') as file:
    file.write('{"step": 50, "lo')
  with MetricWriter(tmp_path, resume_step=20) as writer:
    assert path.read_text() == ''.join(before[:2])
    writer.write(30, {'loss': 5.0})
  assert [record['step'] for record in read_metrics(path)] == [10, 20, 30]
  assert read_metrics(path)[-1]['loss'] == 5.0
  starts = [event.step for event in read_events(tmp_path) if event.HasField('session_log')]
  assert starts == [21]


def test_writer_tells_of_a_full_disk(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer._lines.close()
    # The device that is always full.
    writer._lines = open('/dev/full', 'w')  # noqa: SIM115
    with pytest.raises(OSError, match=r'/dev cannot be written to \(No space left on device\)'):
      writer.write(1, {'loss': 0.5})


def test_writer_goes_on_after_a_broken_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "a": 0.3}\n{"step": 2, "a')
  with MetricWriter(tmp_path) as writer:
    writer.write(3, {'a': 0.5})
  assert path.read_text() == '{"step": 1, "a": 0.3}\n{"step": 3, "a": 0.5}\n'
