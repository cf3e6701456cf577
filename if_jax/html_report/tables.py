"""Tables of classes and of what is taken for what."""

import dataclasses
import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element

import numpy as np

from if_jax.html_report.elements import Child, element

# Classes of a matrix that can still be read; one of 254 would be megabytes of cells.
_MAX_MATRIX = 64


@dataclasses.dataclass(frozen=True)
class Column:
  """Of a table of classes.

  Attributes:
    title: above it.
    values: a number for each class, NaN or None where there is none; what it is sorted by.
    cells: what is shown; None: the values as percent, with a bar each.
    mean: what stands beneath it; None: the mean of the values, unless there are `cells`.
  """

  title: str
  values: Sequence[float | None]
  cells: Sequence[Child] | None = None
  mean: Child = None


def percent(score: float | None) -> str:
  """Writes a score in [0, 1] with two decimals, as the table on the terminal has it."""
  return '-' if score is None or math.isnan(score) else f'{100 * score:.2f}'


def css_color(color: Sequence[int]) -> str:
  """A colour, uint8 [3], RGB, as CSS writes it."""
  return f'rgb({",".join(str(int(channel)) for channel in color)})'


def swatch(color: str) -> Element:
  """A small square of a colour of CSS."""
  return element('i', class_='swatch', style=f'background:{color}')


def class_label(name: str, color: Sequence[int]) -> Element:
  """A class's name behind its colour, uint8 [3], RGB."""
  return element('span', swatch(css_color(color)), name, class_='class')


def class_table(names: Sequence[str], colors: np.ndarray, columns: Sequence[Column]) -> Element:
  """A table with a row for each class, which a click on a title sorts.

  Args:
    names: K names.
    colors: uint8 [K, 3], RGB.
    columns: at least one.
  """
  titles = [element('th', title, scope='col') for title in ('class', *(c.title for c in columns))]
  rows = []
  for i, (name, color) in enumerate(zip(names, colors, strict=True)):
    head = element('th', class_label(name, color), scope='row', data_value=i)
    rows.append(element('tr', head, [_cell(column, i) for column in columns]))
  means = [element('td', _mean(column)) for column in columns]
  foot = element('tr', element('th', 'mean', scope='row'), means)
  table = element(
    'table',
    element('thead', element('tr', titles)),
    element('tbody', rows),
    element('tfoot', foot),
    class_='sortable',
  )
  return element('div', table, class_='card scroll')


def _cell(column, i) -> Element:
  value = column.values[i]
  known = value is not None and not math.isnan(value)
  if column.cells is not None:
    return element('td', column.cells[i], data_value=value if known else '')
  style = f'--v:{value:.4f}' if known else None
  text = element('span', percent(value))
  return element('td', text, data_value=value if known else '', class_='bar', style=style)


def _mean(column) -> Child:
  if column.mean is not None or column.cells is not None:
    return column.mean
  values = np.array(column.values, float)
  return percent(float(np.nanmean(values)) if np.isfinite(values).any() else None)


def confusion_table(
  names: Sequence[str], colors: np.ndarray, confusion: Sequence[Sequence[int]]
) -> Element | None:
  """The confusion matrix in percent of each row, the counts where a pointer asks for them.

  Args:
    names: K names.
    colors: uint8 [K, 3], RGB.
    confusion: K x K, rows are labels.
  Returns:
    None if there are too many classes to be read.
  """
  if len(names) > _MAX_MATRIX:
    return None
  heads = [element('th', class_label(*x), scope='col') for x in zip(names, colors, strict=True)]
  rows = []
  for i, (name, color) in enumerate(zip(names, colors, strict=True)):
    total = sum(confusion[i])
    cells = [_confused(i, j, names, confusion[i][j], total) for j in range(len(names))]
    rows.append(element('tr', element('th', class_label(name, color), scope='row'), cells))
  corner = element('td', 'truth ↓  prediction →', class_='faint')
  head = element('thead', element('tr', corner, heads))
  return element(
    'div', element('table', head, element('tbody', rows), class_='matrix'), class_='card scroll'
  )


def _confused(i, j, names, count, total) -> Element:
  share = count / total if total else 0
  what = f'{names[i]}, met' if i == j else f'{names[i]}, taken for {names[j]}'
  return element(
    'td',
    f'{100 * share:.0f}' if share >= 0.005 else None,
    class_='met' if i == j else None,
    style=f'--v:{share:.3f}' if share >= 0.0005 else None,
    data_tip=f'{what}: {count:,} pixels, {percent(share)} %',
  )
