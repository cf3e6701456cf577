"""The report of an evaluation."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from ml_collections import ConfigDict

from if_jax.data.labels import LabelSet
from if_jax.html_report.charts import Curve, line_chart, palette
from if_jax.html_report.elements import element, section, write_page
from if_jax.html_report.frame import (
  as_dict,
  as_percent,
  configuration_section,
  page_header,
  run_section,
)
from if_jax.html_report.samples import Sample, class_legend, extremes, sample_list
from if_jax.html_report.tables import (
  Column,
  class_label,
  class_table,
  confusion_table,
  css_color,
  percent,
)

_TITLES = {
  'iou': 'IoU',
  'boundary_iou': 'boundary IoU',
  'miou': 'mIoU',
  'frequency_weighted_iou': 'frequency-weighted IoU',
}
# How many pairs of classes are told of which one is taken for the other, and how many classes of
# the best and of the worst outlines.
_NUM_CONFUSIONS = 8
_NUM_BEST = 4


def write_evaluation_report(
  path: Path,
  evaluation: Mapping[str, Any],
  label_set: LabelSet,
  samples: Mapping[int, Sample],
  *,
  title: str,
  num_extremes: int,
  shown: Iterable[int],
  config: ConfigDict,
  defaults: ConfigDict,
  started: float,
) -> None:
  """Writes what an evaluation found as a page to look at.

  Args:
    path: of the file; one that is there is replaced.
    evaluation: what `evaluation.json` holds.
    label_set: of the classes.
    samples: of the `Gallery`, of all processes.
    title: what was evaluated on what.
    num_extremes: how many of the worst and of the best images there are to be.
    shown: the places of the other images; one that is named twice is shown once.
    config: of the run.
    defaults: what it is compared with.
    started: when the command began, of `time.monotonic`.
  """
  names, colors = label_set.class_names, label_set.colors
  worst, best = extremes({i: s.miou for i, s in samples.items()}, num_extremes)
  groups = [
    ('Worst images', worst, 'By mIoU over the classes in the image or in its prediction.'),
    ('Best images', best, None),
    ('Across the data set', sorted(set(map(int, shown))), None),
  ]
  sections = [
    section('Classes', _classes(evaluation, label_set), note='In percent; a title sorts.'),
    _boundary_section(evaluation, label_set),
    _confusion_section(evaluation, names, colors),
    *(
      section(
        head,
        class_legend(label_set) if i == 0 else None,
        sample_list(samples[place] for place in places),
        note=note,
      )
      for i, (head, places, note) in enumerate(group for group in groups if group[1])
    ),
    configuration_section(as_dict(config), as_dict(defaults)),
    run_section(started),
  ]
  scores = {
    _TITLES.get(name, _boundary_title(name)): (as_percent(score), None)
    for name, score in evaluation.items()
    if name not in ('images', 'confusion') and isinstance(score, float | None)
  }
  subtitle = f'{evaluation["images"]:,} images · weights of {evaluation["weights"]}'
  header = page_header('Evaluation', title, subtitle, scores)
  write_page(path, f'Evaluation: {title}', header, sections)


def _classes(evaluation, label_set) -> Element:
  classes = evaluation['classes'].values()
  confusion = np.array(evaluation['confusion'])
  shares = confusion.sum(axis=1) / max(1, confusion.sum())
  cells = [percent(share) for share in shares]
  columns = [
    Column(_TITLES.get(key, _boundary_title(key)), [scores[key] for scores in classes])
    for key in next(iter(classes))
  ]
  columns.append(Column('share of pixels', shares, cells))
  return class_table(label_set.class_names, label_set.colors, columns)


def _boundary_title(key: str) -> str:
  return key.removeprefix('boundary_').capitalize() if '@' in key else key.replace('_', ' ')


def _boundary_section(evaluation, label_set) -> Element | None:
  keys = [key for key in evaluation if key.startswith('boundary_f@')]
  if len(keys) < 2 or evaluation[keys[0]] is None:
    return None
  tolerances = [key.partition('@')[2] for key in keys]
  # Pixels and shares of the diagonal have no common axis.
  x = [float(text.removesuffix('px')) for text in tolerances]
  if len({text.endswith('px') for text in tolerances}) > 1 or x != sorted(x):
    x = range(len(keys))
  x = np.array(x, float)

  labels = [(at, text.replace('px', ' px')) for at, text in zip(x, tolerances, strict=True)]
  counted = [name for name, scores in evaluation['classes'].items() if scores[keys[0]] is not None]
  counted.sort(key=lambda name: evaluation['classes'][name][keys[-1]])
  colors = dict(zip(label_set.class_names, label_set.colors, strict=True))

  def curve(name, scores, color, **options):
    return Curve(name, x, 100 * np.array([scores[key] for key in keys]), color, **options)

  def chart(title, names, mean=False):
    curves = [curve('mean', evaluation, palette(0))] if mean else []
    for i, name in enumerate(names):
      color = css_color(colors[name]) if mean else palette(i)
      curves.append(curve(name, evaluation['classes'][name], color, quiet=mean))
    number = '{:.2f}'.format
    return line_chart(title, curves, x_title='within', x_ticks=labels, number=number)

  charts = [chart('Mean over classes', counted, mean=True)]
  if len(counted) >= 2 * _NUM_BEST:
    charts.append(chart('Best classes', counted[: -_NUM_BEST - 1 : -1]))
    charts.append(chart('Worst classes', counted[:_NUM_BEST]))
  return section(
    'Boundary F by tolerance',
    element('div', charts, class_='charts'),
    note='How much of the outlines is met within each tolerance, in percent.',
  )


def _confusion_section(evaluation, names, colors) -> Element | None:
  confusion = evaluation['confusion']
  table = confusion_table(names, colors, confusion)
  worst = _most_confused(np.array(confusion))
  items = [
    element(
      'li',
      element('b', percent(share)),
      class_label(names[i], colors[i]),
      element('span', '→', class_='faint'),
      class_label(names[j], colors[j]),
    )
    for i, j, share in worst
  ]
  if table is None and not items:
    return None
  note = 'In percent of the pixels of each true class'
  note += '.' if table is None else ': rows are the truth, columns the prediction.'
  pairs = element('div', element('h3', 'Most confused'), element('ul', items), class_='card pairs')
  return section(
    'Confusion',
    element('div', table, pairs if items else None, class_='beside'),
    note=note,
  )


def _most_confused(confusion: np.ndarray) -> list[tuple[int, int, float]]:
  """The pairs (truth, prediction, share of the truth) that lose most of a class."""
  shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
  np.fill_diagonal(shares, 0)
  pairs = np.argsort(-shares, axis=None, kind='stable')[:_NUM_CONFUSIONS]
  rows, columns = np.unravel_index(pairs, shares.shape)
  return [
    (int(i), int(j), float(shares[i, j]))
    for i, j in zip(rows, columns, strict=True)
    if shares[i, j] > 0
  ]
