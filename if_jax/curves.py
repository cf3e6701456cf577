"""Learning curves as a picture, from the JSON lines that training writes."""

import fnmatch
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# In the working directory of a run.
METRICS_FILE = 'metrics.jsonl'

# Which values are drawn together: shell patterns by the panel's title. The parts of an auxiliary
# loss follow those of the main one, and would only crowd the picture.
PANELS = {
  'Training loss': (
    'train/*loss',
    'train/segmentation',
    'train/boundary',
    'train/attention',
    'train/inverseform',
  ),
  'Validation': ('val/miou', 'val/pixel_accuracy', 'val/class_accuracy', 'val/boundary_*'),
}

# Okabe and Ito's colours, which colour-blind people tell apart too, and a grey and a brown.
_COLORS = (
  (0, 114, 178),
  (213, 94, 0),
  (0, 158, 115),
  (204, 121, 167),
  (230, 159, 0),
  (86, 180, 233),
  (90, 90, 90),
  (140, 86, 75),
)
_INK = (33, 37, 41)
_FAINT_INK = (108, 117, 125)
_GRID = (226, 230, 234)
_HEIGHT, _WIDTH = 430, 720
_LEFT, _RIGHT = 78, _WIDTH - 24
# From how many points on a curve is smoothed, and up to how many each gets a dot.
MANY, _FEW = 60, 40
_LEGEND_FONT = ImageFont.load_default(14)


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """Reads a file of JSON lines, each an object of numbers with a 'step'.

  A crash may have left the last line half written; it is left out.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: another line is not such an object; a number that was not finite is null.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'there are no metrics at {path}: training and evaluation write them')
  lines = path.read_bytes().split(b'\n')
  records = []
  # What follows the last line break, if anything, was never finished, and need not be text.
  for number, line in enumerate(lines[:-1], start=1):
    try:
      record = json.loads(line)
      finite = all(math.isfinite(value) for value in record.values() if value is not None)
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
      finite = False
    if not finite or record.get('step') is None:
      raise ValueError(
        f'{path}, line {number} is no JSON object of numbers with a "step": remove the line'
      )
    records.append(record)
  return records


def learning_curves(
  path: str | pathlib.Path, panels: Mapping[str, Sequence[str]] = PANELS
) -> np.ndarray:
  """Draws what training wrote down, one panel beside the other.

  Where a curve has many points, a faint line shows them and a strong one their running mean. The
  number beside its name is where that ends.

  Args:
    path: of the JSON lines, `metrics.jsonl` in the working directory of a run.
    panels: shell patterns of the names in each panel, by its title; one without values is left
      out.

  Returns:
    uint8 [430, 720 * number of panels, 3], RGB.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is broken, or no value has a name that fits.
  """
  records = read_metrics(path)
  filled = {title: select_curves(records, patterns) for title, patterns in panels.items()}
  filled = {title: curves for title, curves in filled.items() if curves}
  if not filled:
    raise ValueError(f'{path} has no value to draw; looked for {dict(panels)}')
  return np.concatenate([_panel(*item) for item in filled.items()], axis=1)


def select_curves(
  records: Sequence[Mapping[str, float | None]], patterns: Sequence[str]
) -> dict[str, np.ndarray]:
  """Steps and values [2, N] of every name that fits a pattern, in the order of appearance."""
  points = {}
  names = {name for record in records for name in record}
  fitting = {name for name in names if any(fnmatch.fnmatchcase(name, x) for x in patterns)}
  for record in records:
    for name, value in record.items():
      if name in fitting and isinstance(value, int | float):
        points.setdefault(name, []).append((record['step'], value))
  return {name: np.array(pairs, np.float64).T for name, pairs in points.items()}


def _panel(title: str, curves: dict[str, np.ndarray]) -> np.ndarray:
  """Draws one panel: lines by OpenCV, which smooths their edges, then the text by Pillow."""
  smooth = {name: running_mean(values) for name, (_, values) in curves.items()}
  x_ticks = ticks(np.concatenate([steps for steps, _ in curves.values()]), count=7)
  y_ticks = ticks(np.concatenate(list(smooth.values())), count=6)
  labels = [f'{name.split("/", 1)[-1]}  {values[-1]:.3g}' for name, values in smooth.items()]
  legend = _legend_places(labels)
  top, bottom = legend[-1][1] + 24, _HEIGHT - 54

  def place(steps, values):
    x = _LEFT + (steps - x_ticks[0]) / np.ptp(x_ticks) * (_RIGHT - _LEFT)
    y = bottom - (values - y_ticks[0]) / np.ptp(y_ticks) * (bottom - top)
    # Only the faint line can leave the range, which is that of the strong ones.
    return np.stack(np.broadcast_arrays(x, np.clip(y, top, bottom)), axis=-1)

  canvas = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
  tick_places = place(x_ticks, y_ticks[0]), place(x_ticks[0], y_ticks)
  for _, y in tick_places[1]:
    _line(canvas, [(_LEFT, y), (_RIGHT, y)], _GRID)
  for x, _ in tick_places[0]:
    _line(canvas, [(x, bottom), (x, bottom + 5)], _FAINT_INK)
  _line(canvas, [(_LEFT, bottom), (_RIGHT, bottom)], _FAINT_INK)
  colors = [_COLORS[i % len(_COLORS)] for i in range(len(curves))]
  for color, (steps, values) in zip(colors, curves.values(), strict=True):
    if len(steps) >= MANY:
      _line(canvas, place(steps, values), [255 - (255 - channel) // 4 for channel in color])
  for color, (x, y), (name, (steps, _)) in zip(colors, legend, curves.items(), strict=True):
    points = place(steps, smooth[name])
    _line(canvas, points, color, thickness=2)
    for point in points if len(points) <= _FEW else ():
      cv2.circle(canvas, np.round(point * 16).astype(int), 56, color, -1, cv2.LINE_AA, shift=4)
    canvas[y - 1 : y + 2, x : x + 18] = color

  image = Image.fromarray(canvas)
  draw = ImageDraw.Draw(image)
  small = ImageFont.load_default(13)
  draw.text((_LEFT, 32), title, _INK, ImageFont.load_default(20), anchor='ls')
  for (x, y), label in zip(legend, labels, strict=True):
    draw.text((x + 25, y), label, _INK, _LEGEND_FONT, anchor='lm')
  for (x, _), tick in zip(tick_places[0], x_ticks, strict=True):
    draw.text((x, bottom + 9), tick_label(tick, x_ticks), _FAINT_INK, small, anchor='ma')
  for (_, y), tick in zip(tick_places[1], y_ticks, strict=True):
    draw.text((_LEFT - 9, y), tick_label(tick, y_ticks), _FAINT_INK, small, anchor='rm')
  draw.text(((_LEFT + _RIGHT) / 2, _HEIGHT - 10), 'step', _FAINT_INK, small, anchor='ms')
  return np.asarray(image)


def _legend_places(labels: Sequence[str]) -> list[tuple[int, int]]:
  """Where each label's line begins: side by side, in as many rows as it takes."""
  x, y, places = _LEFT, 54, []
  for label in labels:
    width = 25 + round(_LEGEND_FONT.getlength(label))
    if x > _LEFT and x + width > _RIGHT:
      x, y = _LEFT, y + 21
    places.append((x, y))
    x += width + 22
  return places


def _line(canvas: np.ndarray, points, color: Sequence[int], thickness: int = 1) -> None:
  """Draws through points (x, y), to a sixteenth of a pixel."""
  points = np.round(np.asarray(points) * 16).astype(np.int32)
  cv2.polylines(canvas, [points], False, tuple(color), thickness, cv2.LINE_AA, shift=4)


def running_mean(values: np.ndarray) -> np.ndarray:
  """The mean over the last thirtieth of the points, at each of many; few stay as they are."""
  if len(values) < MANY:
    return values
  sums = np.cumsum(np.concatenate([[0.0], values]))
  end = np.arange(1, len(values) + 1)
  start = np.maximum(0, end - len(values) // 30)
  return (sums[end] - sums[start]) / (end - start)


def ticks(values: np.ndarray, count: int) -> np.ndarray:
  """About `count` round numbers, the first not above any value and the last not below."""
  low, high = float(values.min()), float(values.max())
  # Between numbers that are almost the same there are no round ones.
  if math.isclose(low, high, rel_tol=1e-9):
    low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
  rough = (high - low) / (count - 1)
  magnitude = 10.0 ** math.floor(math.log10(rough))
  step = next(magnitude * m for m in (1, 2, 5, 10) if magnitude * m >= rough)
  return np.arange(math.floor(low / step), math.ceil(high / step) + 1) * step


def tick_label(tick: float, ticks: np.ndarray) -> str:
  """Writes a tick with as many decimals as tell it from its neighbours."""
  decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
  if decimals > 6:
    digits = decimals + 1 + math.floor(math.log10(np.abs(ticks).max()))
    return f'{tick:.{digits}g}'
  return f'{tick:,.{decimals}f}'
