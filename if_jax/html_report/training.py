"""The report of a training, from what it has written down."""

import dataclasses
import fnmatch
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from ml_collections import ConfigDict

from if_jax.curves import METRICS_FILE, read_metrics, select_curves
from if_jax.data.labels import LabelSet
from if_jax.html_report.charts import Curve, line_chart, palette, sparkline
from if_jax.html_report.elements import element, section, write_page
from if_jax.html_report.frame import (
  as_dict,
  as_percent,
  configuration_section,
  page_header,
  run_section,
)
from if_jax.html_report.samples import Sample, class_legend, sample_list
from if_jax.html_report.tables import Column, class_table


@dataclasses.dataclass(frozen=True)
class Panel:
  """A chart: its title, and shell patterns of the names of `metrics.jsonl` in it."""

  title: str
  patterns: tuple[str, ...]
  percent: bool = False


REPORT_FILE = 'report.html'

# What is in none of them gets a chart of its own.
PANELS = (
  Panel('mIoU', ('val/miou',), percent=True),
  Panel(
    'Pixels and classes',
    ('val/pixel_accuracy', 'val/class_accuracy', 'val/frequency_weighted_iou'),
    percent=True,
  ),
  Panel('Boundary F', ('val/boundary_f@*',), percent=True),
  Panel('Boundary IoU', ('val/boundary_iou',), percent=True),
  Panel('Loss', ('train/loss',)),
  Panel('Segmentation', ('train/segmentation', 'train/aux_segmentation')),
  Panel('Boundary', ('train/boundary', 'train/aux_boundary')),
  Panel('Attention', ('train/attention', 'train/aux_attention')),
  Panel('InverseForm', ('train/inverseform', 'train/aux_inverseform')),
  Panel('Scales', ('train/scale_[0-9]*',)),
  Panel('Learning rate', ('train/learning_rate',)),
  Panel('Gradient norm', ('train/gradient_norm',)),
  Panel('Images per second', ('train/images_per_second',)),
)
# Names that have a place elsewhere: in the table of classes, among the figures.
_ELSEWHERE = ('step', 'val/images', 'train/skipped_steps')
_PER_CLASS = 'val/iou/'


def write_training_report(
  workdir: str | Path,
  *,
  title: str,
  config: ConfigDict,
  defaults: ConfigDict,
  started: float,
  panels: Sequence[Panel] = PANELS,
  label_set: LabelSet | None = None,
  samples: Mapping[int, Sample] | None = None,
) -> None:
  """Writes `report.html` into the folder of a run, from its `metrics.jsonl`.

  Args:
    workdir: of the run.
    title: what is trained on what.
    config: of the run.
    defaults: what it is compared with.
    started: when the command began, of `time.monotonic`.
    panels: which values are drawn together.
    label_set: of the classes, for a table of their IoU.
    samples: images to show, as they are segmented now, of a `Gallery`.
  """
  lines = read_metrics(Path(workdir, METRICS_FILE))
  figures = _figures(lines, config.train.num_steps)
  sections = [
    _classes_section(lines, label_set) if label_set else None,
    _curves_section(lines, panels),
    section(
      'Images',
      class_legend(label_set),
      sample_list(samples.values()),
      note='Of the validation split, always the same, as of the last evaluation.',
    )
    if label_set and samples
    else None,
    configuration_section(as_dict(config), as_dict(defaults)),
    run_section(started),
  ]
  header = page_header('Training', title, str(workdir), figures)
  write_page(Path(workdir, REPORT_FILE), f'Training: {title}', header, sections)


def is_reported(workdir: str | Path) -> bool:
  """Whether the report of a run is there and no older than what it is made from."""
  report, metrics = Path(workdir, REPORT_FILE), Path(workdir, METRICS_FILE)
  return report.is_file() and report.stat().st_mtime_ns >= metrics.stat().st_mtime_ns


def _figures(lines, num_steps) -> dict[str, tuple]:
  steps = max((line['step'] for line in lines), default=0)
  figures: dict[str, tuple] = {}
  scored = [line for line in lines if line.get('val/miou') is not None]
  if scored:
    best = max(scored, key=lambda line: line['val/miou'])
    figures['best mIoU'] = as_percent(best['val/miou']), f'step {best["step"]:,}'
    figures['last mIoU'] = as_percent(scored[-1]['val/miou']), f'step {scored[-1]["step"]:,}'
  losses = [line['train/loss'] for line in lines if line.get('train/loss') is not None]
  if losses:
    figures['loss'] = f'{losses[-1]:.4g}', f'first {losses[0]:.4g}'
  figures['steps'] = f'{steps:,}', f'of {num_steps:,}'
  skipped = [line['train/skipped_steps'] for line in lines if 'train/skipped_steps' in line]
  if skipped and skipped[-1]:
    figures['skipped steps'] = f'{skipped[-1]:,}', 'not finite'
  return figures


def _classes_section(lines, label_set) -> Element | None:
  evaluated = [line for line in lines if 'val/miou' in line]
  if not evaluated:
    return None
  names = label_set.class_names
  curves = select_curves(evaluated, [f'{_PER_CLASS}*'])
  # In the order of the classes; one that has not occurred yet has no curve.
  curves = [curves.get(_PER_CLASS + name) for name in names]
  last = [evaluated[-1].get(_PER_CLASS + name) for name in names]
  best = [None if c is None else c[1].max() for c in curves]
  columns = [Column('IoU', last)]
  if len(evaluated) > 1:
    before = [evaluated[-2].get(_PER_CLASS + name) for name in names]
    change = [None if None in x else x[0] - x[1] for x in zip(last, before, strict=True)]
    mean = evaluated[-1]['val/miou'], evaluated[-2]['val/miou']
    mean = None if None in mean else mean[0] - mean[1]
    columns += [
      Column('change', change, list(map(_signed, change)), _signed(mean)),
      Column('best', best, mean=''),
      Column('over the steps', last, [_spark(*x) for x in zip(names, curves, strict=True)]),
    ]
  step = evaluated[-1]['step']
  return section(
    'Classes',
    class_table(names, label_set.colors, columns),
    note=f'IoU in percent at step {step:,}, and what changed since the evaluation before; a title '
    'sorts. Precision, recall and boundary scores of each class: --mode=evaluate.',
  )


def _spark(name, curve) -> Element | None:
  if curve is None:
    return None
  steps, scores = curve
  return sparkline(Curve(name, steps, 100 * scores, palette(0)), number='{:.2f}'.format)


def _signed(score: float | None) -> str:
  return '-' if score is None else f'{100 * score:+.2f}'


def _curves_section(lines, panels) -> Element | None:
  known = [pattern for panel in panels for pattern in panel.patterns]
  names = dict.fromkeys(name for line in lines for name in line)
  rest = [
    Panel(name, (glob.escape(name),))
    for name in names
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in known)
    and name not in _ELSEWHERE
    and not name.startswith(_PER_CLASS)
  ]
  charts = [_chart(panel, lines) for panel in (*panels, *rest)]
  return section(
    'Curves',
    element('div', charts, class_='charts'),
    note='Scores in percent. Where a curve has many points, the strong line is their running mean.',
  )


def _chart(panel: Panel, lines) -> Element | None:
  # In the order of the patterns, not in that of the file.
  found = {}
  for pattern in panel.patterns:
    found |= select_curves(lines, (pattern,))
  scale = 100 if panel.percent else 1
  curves = [
    Curve(name.partition('/')[2], steps, scale * values, palette(i))
    for i, (name, (steps, values)) in enumerate(found.items())
  ]
  if not curves:
    return None
  number = '{:.2f}' if panel.percent else '{:.4g}'
  return line_chart(panel.title, curves, number=number.format)
