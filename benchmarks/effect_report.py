"""Tables and pictures of `inverseform_effect`."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.paired import Interval, mean_and_deviation, paired_difference
from benchmarks.results import COLORS, print_table, save_figure

# What the other settings are compared with.
BASELINES = ('attention', 'cross_entropy')
# Classes a few pixels wide, by the names that the data sets have for them.
_THIN = (
  *('pole', 'signsymbol', 'fence', 'pedestrian', 'bicyclist'),
  *('traffic light', 'traffic sign', 'person', 'rider', 'motorcycle', 'bicycle'),
)
_SCORES = {
  'miou': 'mIoU',
  'thin_iou': 'thin classes',
  'other_iou': 'other classes',
  'pixel_accuracy': 'pixel accuracy',
  'boundary_f@1px': 'F at 1 px',
  'boundary_f@2px': 'F at 2 px',
  'boundary_f@3px': 'F at 3 px',
  'boundary_f@5px': 'F at 5 px',
  'boundary_iou': 'boundary IoU',
}
_CURVES = {
  'train/segmentation': 'segmentation loss',
  'train/boundary': 'boundary loss',
  'train/attention': 'attention loss',
  'train/inverseform': 'InverseForm distance',
  'val/miou': 'validation mIoU',
  'val/boundary_f@2px': 'validation boundary F at 2 px',
}
# Of the settings, in their order.
_STYLES = [(color, line) for line in ('-', '--') for color in COLORS]

# Setting -> seed -> what `inverseform_effect.read_result` gives.
Runs = dict[str, dict[int, dict]]


def report(records: Sequence[dict], reasons: Mapping[str, str], output: str) -> dict:
  """Prints the tables, draws the pictures, and gives what they show as JSON can say it.

  Args:
    records: of `inverseform_effect.read_result`.
    reasons: what each setting is to show, by its name.
    output: folder of the pictures.
  """
  runs: Runs = {}
  for record in records:
    runs.setdefault(record['setting'], {})[record['seed']] = record
  steps = ', '.join(str(n) for n in sorted({record['steps'] for record in records}))
  print_table('Settings', [{'setting': name, 'what it is': reasons[name]} for name in runs])
  print_table(
    f'Validation after {steps} steps, %: mean ± standard deviation over seeds',
    [_score_row(name, by_seed) for name, by_seed in runs.items()],
  )
  differences = {
    baseline: differences_to(runs, baseline) for baseline in BASELINES if baseline in runs
  }
  for baseline, gains in differences.items():
    if gains:
      print_table(
        f'Against {baseline}, points of %: mean of the differences by seed, [95 % t interval]; '
        'of twenty such intervals one misses by chance',
        [_gain_row(name, gain, runs, baseline) for name, gain in gains.items()],
      )
      picture = draw_classes(gains, baseline, list(runs))
      save_figure(picture, output, f'inverseform_effect_classes_{baseline}')
  print_table('IoU of each class, %: mean over seeds; thin classes first', _class_rows(runs))
  print_table('Cost', _cost_rows(runs))
  save_figure(draw_curves(runs), output, 'inverseform_effect_curves')
  without_lines = [{k: x for k, x in record.items() if k != 'metrics'} for record in records]
  as_json = {
    baseline: {
      name: {score: _json(interval) for score, interval in gain.items()}
      for name, gain in gains.items()
    }
    for baseline, gains in differences.items()
  }
  return {'runs': without_lines, 'differences': as_json}


def scores_of(line: Mapping[str, float | None]) -> dict[str, float | None]:
  """The scores of a line of metrics, with means over thin classes and over the others."""
  scores = {name.removeprefix('val/'): x for name, x in line.items() if name.startswith('val/')}
  for mean, thin in (('thin_iou', True), ('other_iou', False)):
    ious = [scores[name] for name in _class_names(scores) if _is_thin(name) == thin]
    ious = [iou for iou in ious if iou is not None]
    scores[mean] = float(np.mean(ious)) if ious else None
  return scores


def differences_to(runs: Runs, baseline: str) -> dict[str, dict[str, Interval]]:
  """By setting and score, what it gains on a baseline, paired by seed."""

  def by_seed(setting, score):
    return {seed: record['scores'].get(score) for seed, record in runs[setting].items()}

  scores = next(iter(runs[baseline].values()))['scores']
  return {
    setting: {
      score: paired_difference(by_seed(setting, score), by_seed(baseline, score))
      for score in scores
    }
    for setting in runs
    if setting != baseline
  }


def draw_curves(runs: Runs) -> Figure:
  """Loss terms and validation scores over the steps, means over seeds."""
  figure = Figure(figsize=(14, 7.5), layout='constrained')
  for panel, (name, title) in zip(figure.subplots(2, 3).flat, _CURVES.items(), strict=True):
    for (color, line), (setting, by_seed) in zip(_STYLES, runs.items(), strict=False):
      steps, values = mean_curve([record['metrics'] for record in by_seed.values()], name)
      panel.plot(steps, values, line, color=color, label=setting)
    panel.set(title=title, xlabel='step')
    panel.spines[['top', 'right']].set_visible(False)
    panel.grid(alpha=0.25)
  figure.legend(*panel.get_legend_handles_labels(), loc='outside right center', frameon=False)
  return figure


def mean_curve(
  runs: Sequence[Sequence[Mapping[str, float | None]]], name: str
) -> tuple[np.ndarray, np.ndarray]:
  """Steps and means over runs of a value, a running mean where there are many."""
  of_runs = [{x['step']: x[name] for x in lines if x.get(name) is not None} for lines in runs]
  steps = np.array(sorted(set.intersection(*map(set, of_runs))))
  values = np.array([np.mean([of_run[step] for of_run in of_runs]) for step in steps])
  window = max(1, len(steps) // 12)
  if window == 1:
    return steps, values
  return steps[window - 1 :], np.convolve(values, np.full(window, 1 / window), mode='valid')


def draw_classes(
  gains: Mapping[str, Mapping[str, Interval]], baseline: str, settings: Sequence[str]
) -> Figure:
  """What each setting gains on a baseline, class by class, with intervals."""
  names = _class_names(next(iter(gains.values())))
  figure = Figure(figsize=(max(8, 1.3 * len(names)), 5), layout='constrained')
  panel = figure.subplots()
  width = 0.8 / len(gains)
  for i, (setting, gain) in enumerate(gains.items()):
    color, line = _STYLES[settings.index(setting)]
    at = np.arange(len(names)) + (i - (len(gains) - 1) / 2) * width
    middle, low, high, _ = 100 * np.array([gain[name] for name in names]).T
    hatch = '' if line == '-' else '///'
    panel.bar(at, middle, width, color=color, hatch=hatch, edgecolor='white', label=setting)
    panel.errorbar(at, middle, [middle - low, high - middle], fmt='none', ecolor='#333', lw=0.8)
  panel.axvspan(-0.5, sum(map(_is_thin, names)) - 0.5, color='0.94', zorder=0)
  panel.axhline(0, color='black', lw=0.8)
  panel.set_xticks(range(len(names)), [name.removeprefix('iou/') for name in names], rotation=20)
  panel.set(ylabel=f'IoU less that of {baseline}, points of %', xlim=(-0.5, len(names) - 0.5))
  panel.set_title('Thin classes on grey; 95 % t intervals over seeds', fontsize='medium')
  panel.spines[['top', 'right']].set_visible(False)
  figure.legend(loc='outside right center', frameon=False)
  return figure


def _score_row(setting, by_seed):
  row = {'setting': setting, 'seeds': len(by_seed)}
  for score, title in _SCORES.items():
    values = [record['scores'].get(score) for record in by_seed.values()]
    row[title] = _with_deviation(*mean_and_deviation(values))
  return row


def _gain_row(setting, gain, runs, baseline):
  row = {'setting': setting, 'seeds': gain['miou'].count}
  row |= {title: _with_interval(gain[score]) for score, title in _SCORES.items() if score in gain}
  pairs = [
    (record, runs[baseline][seed])
    for seed, record in runs[setting].items()
    if seed in runs[baseline]
  ]
  equal = sum(a['weights_sha256'] == b['weights_sha256'] for a, b in pairs)
  return row | {'the same weights': f'{equal} of {len(pairs)}'}


def _class_rows(runs):
  names = _class_names(next(iter(next(iter(runs.values())).values()))['scores'])
  rows = []
  for name in names:
    row = {'class': name.removeprefix('iou/') + (' (thin)' if _is_thin(name) else '')}
    for setting, by_seed in runs.items():
      mean, _ = mean_and_deviation([record['scores'][name] for record in by_seed.values()])
      row[setting] = _percent(mean)
    rows.append(row)
  return rows


def _cost_rows(runs):
  def median(setting, key):
    return float(np.median([record[key] for record in runs[setting].values()]))

  first = next(iter(runs))
  return [
    {
      'setting': setting,
      'seconds per step': median(setting, 'seconds_per_step'),
      f'times that of {first}': median(setting, 'seconds_per_step')
      / median(first, 'seconds_per_step'),
      'images per second': median(setting, 'images_per_second'),
      'peak memory of the process, GiB': median(setting, 'peak_memory_mib') / 1024,
    }
    for setting in runs
  ]


def _class_names(scores):
  """Names of the IoU of each class, thin ones first."""
  names = [name for name in scores if name.startswith('iou/')]
  return sorted(names, key=lambda name: not _is_thin(name))


def _is_thin(name):
  return name.removeprefix('iou/').lower() in _THIN


def _with_deviation(mean, deviation):
  return _percent(mean) + ('' if math.isnan(deviation) else f' ± {_percent(deviation)}')


def _with_interval(interval):
  mean, low, high = (_percent(x, sign='+') for x in interval[:3])
  return mean if interval.count < 2 else f'{mean} [{low}, {high}]'


def _percent(share, sign=''):
  return '-' if math.isnan(share) else f'{100 * share:{sign}.2f}'


def _json(interval):
  return {key: None if math.isnan(x) else x for key, x in interval._asdict().items()}
