"""Line charts as SVG; their numbers are shown where a pointer or a finger asks for them."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element

import numpy as np

from if_jax.curves import MANY, running_mean, tick_label, ticks
from if_jax.html_report.elements import element
from if_jax.html_report.tables import swatch

# In units of the picture, each about a pixel of the page.
_SIZE = 380, 200
_BOX = 46, _SIZE[0] - 10, 10, _SIZE[1] - 26
_SPARK_SIZE, _SPARK_BOX = (120, 26), (3, 117, 3, 23)
# Points of a curve, at most: the file stays small however long the training was.
_MAX_POINTS = 200
# Up to how many points each gets a dot.
_FEW = 25


@dataclasses.dataclass(frozen=True)
class Curve:
  """A line of a chart.

  Attributes:
    name: what the legend calls it.
    x: float [N], rising, at least one.
    y: float [N], finite.
    color: of CSS.
    quiet: thin and grey, its colour only beside its name.
  """

  name: str
  x: np.ndarray
  y: np.ndarray
  color: str
  quiet: bool = False


def palette(i: int) -> str:
  """The colour of the curve i of a chart, which the style sheet defines."""
  return f'var(--c{i % 8})'


def line_chart(
  title: str,
  curves: Sequence[Curve],
  *,
  x_title: str = 'step',
  x_ticks: Sequence[tuple[float, str]] | None = None,
  number: Callable[[float], str] = '{:.4g}'.format,
) -> Element:
  """Draws curves over a common axis: of many points the running mean, and faintly the points.

  Args:
    title: of the chart.
    curves: at least one.
    x_title: of the horizontal axis.
    x_ticks: places and texts on it; None: round numbers.
    number: writes a value.
  Returns:
    A figure with a legend.
  """
  means = [running_mean(curve.y) for curve in curves]
  xs = np.concatenate([curve.x for curve in curves])
  y_ticks = ticks(np.concatenate(means), count=5)
  if x_ticks is None:
    places = ticks(xs, count=5)
    # Before the first and after the last step there is nothing to point at.
    x_ticks = [(x, tick_label(x, places)) for x in places if xs.min() <= x <= xs.max()]

  def place(x, y):
    return _placed(x, y, (xs.min(), xs.max()), (y_ticks[0], y_ticks[-1]), _BOX)

  lines = _axes(place, x_ticks, y_ticks, x_title)
  for curve in curves:
    if len(curve.x) >= MANY:
      lines.append(_path(place(*_outline(curve.x, curve.y)), 'raw', curve.color))
  known, above = [], []
  for curve, mean in zip(curves, means, strict=True):
    x, y = _thinned(curve.x), _thinned(mean)
    points = place(x, y)
    known.append(_known(curve, points, x, y, number))
    if curve.quiet:
      lines.append(_path(points, 'quiet', curve.color))
      continue
    above.append(_path(points, 'line', curve.color))
    if len(points) <= _FEW:
      above += [_dot(point, curve.color) for point in points]
  loud = [x for x in zip(curves, means, strict=True) if not x[0].quiet]
  legend = [
    # A line alone needs no name.
    element('span', [swatch(curve.color), curve.name] * (len(loud) > 1), element('b', last))
    for curve, last in ((curve, number(mean[-1])) for curve, mean in loud)
  ]
  head = element('figcaption', element('b', title), element('span', legend, class_='legend'))
  picture = _svg(lines + above, known, title, x_title, _SIZE, 'chart')
  return element('figure', head, picture, class_='card')


def sparkline(curve: Curve, *, number: Callable[[float], str]) -> Element:
  """Draws a curve from 0 to its highest value, no higher than a line of text."""
  x, y = _thinned(curve.x), _thinned(curve.y)
  points = _placed(x, y, (x[0], x[-1]), (0, y.max()), _SPARK_BOX)
  lines = [_path(points, 'line', curve.color), _dot(points[-1], curve.color)]
  known = [_known(curve, points, x, y, number)]
  return _svg(lines, known, curve.name, 'step', _SPARK_SIZE, 'chart spark')


def _placed(x, y, x_range, y_range, box):
  """Places [N, 2] in the picture; what is beyond the vertical range is at its edge."""
  left, right, top, bottom = box
  x = left + (np.asarray(x) - x_range[0]) / (np.ptp(x_range) or 1) * (right - left)
  y = bottom - (np.asarray(y) - y_range[0]) / (np.ptp(y_range) or 1) * (bottom - top)
  return np.stack(np.broadcast_arrays(x, np.clip(y, top, bottom)), axis=-1)


def _thinned(values: np.ndarray) -> np.ndarray:
  """No more of the values than are drawn, evenly; the first and the last are among them."""
  if len(values) <= _MAX_POINTS:
    return values
  return values[np.linspace(0, len(values) - 1, _MAX_POINTS).round().astype(int)]


def _outline(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The lowest and the highest point of each of many short stretches, so that no peak is lost."""
  if len(x) <= 2 * _MAX_POINTS:
    return x, y
  stretches = np.array_split(np.arange(len(x)), _MAX_POINTS)
  ends = [sorted((part[y[part].argmin()], part[y[part].argmax()])) for part in stretches]
  at = np.concatenate(ends)
  return x[at], y[at]


def _axes(place, x_ticks, y_ticks, x_title) -> list[Element]:
  left, right, _, bottom = _BOX
  lines = []
  for tick in y_ticks:
    y = _rounded(place(0, tick)[1])
    lines += [
      element('line', x1=left, x2=right, y1=y, y2=y, class_='grid'),
      element('text', tick_label(tick, y_ticks), x=left - 7, y=y + 3.5, text_anchor='end'),
    ]
  for tick, label in x_ticks:
    x = _rounded(place(tick, y_ticks[0])[0])
    # Those at the ends would leave the picture, or meet the title.
    anchor = 'start' if x < left + 15 else 'end' if x > right - 15 else 'middle'
    lines.append(element('text', label, x=x, y=bottom + 16, text_anchor=anchor))
  lines.append(element('text', x_title, x=left - 7, y=bottom + 16, text_anchor='end'))
  return lines


def _path(points, class_, color) -> Element:
  line = 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in points)
  return element('path', d=line, class_=class_, style=f'stroke:{color}')


def _dot(point, color) -> Element:
  x, y = map(_rounded, point)
  return element('circle', cx=x, cy=y, r=2.2, style=f'fill:{color}')


def _known(curve, points, x, y, number):
  """What the page's script shows of a curve: place, step and value of each point."""
  shown = zip(points, x, y, strict=True)
  return {
    'name': curve.name,
    'color': curve.color,
    'points': [[*map(_rounded, point), f'{at:,.6g}', number(value)] for point, at, value in shown],
  }


def _svg(lines, known, title, x_title, size, class_) -> Element:
  return element(
    'svg',
    element('line', y1=0, y2=size[1], class_='rule'),
    lines,
    viewBox=f'0 0 {size[0]} {size[1]}',
    role='img',
    aria_label=title,
    class_=class_,
    data_x=x_title,
    data_curves=json.dumps(known, ensure_ascii=False, separators=(',', ':')),
  )


def _rounded(x) -> float:
  return round(float(x), 1)
