"""The benchmark of what the InverseForm loss does: its statistics, its order, what it leaves."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import ROOT
from scipy import stats

pytest.importorskip('matplotlib')

from benchmarks import effect_report, inverseform_effect
from benchmarks.effect_report import mean_curve, scores_of
from benchmarks.inverseform_effect import SETTINGS
from benchmarks.paired import mean_and_deviation, paired_difference
from benchmarks.results import save_figure
from configs import default
from if_jax import settings
from if_jax.report import read_metrics

TERMS = {'segmentation', 'boundary', 'attention', 'inverseform'}


@pytest.mark.parametrize('confidence', [0.9, 0.95])
def test_intervals_are_scipys(confidence):
  values, baseline = np.random.default_rng(0).normal(size=(2, 5))
  expected = stats.ttest_rel(values, baseline).confidence_interval(confidence)
  found = paired_difference(
    dict(enumerate(values)), dict(enumerate(baseline)), confidence=confidence
  )
  np.testing.assert_allclose(found[:3], [(values - baseline).mean(), *expected])
  assert found.count == 5


def test_only_seeds_that_both_have_are_paired():
  """Seed 3 is missing in one, and seed 4 has no score."""
  values = {0: 1.0, 1: 2.0, 3: 9.0, 4: None}
  baseline = {1: 1.0, 0: 0.5, 2: 7.0, 4: 1.0}
  expected = stats.ttest_rel([1.0, 2.0], [0.5, 1.0]).confidence_interval()
  np.testing.assert_allclose(paired_difference(values, baseline), [0.75, *expected, 2])
  alone = paired_difference({0: 1.0}, {0: 0.5})
  np.testing.assert_equal(alone, (0.5, np.nan, np.nan, 1))
  np.testing.assert_equal(paired_difference({}, {0: 1.0}), (np.nan, np.nan, np.nan, 0))


def test_an_interval_of_what_never_differs_is_a_point():
  assert paired_difference({0: 0.4, 1: 0.5}, {0: 0.4, 1: 0.5}) == (0, 0, 0, 2)


def test_mean_and_deviation():
  assert mean_and_deviation([1.0, None, 3.0]) == (2.0, pytest.approx(2**0.5))
  np.testing.assert_equal(mean_and_deviation([3.0]), (3.0, np.nan))
  np.testing.assert_equal(mean_and_deviation([None]), (np.nan, np.nan))


def test_thin_classes_are_set_apart():
  line = {'step': 5, 'val/miou': 0.5, 'val/iou/Pole': 0.1, 'val/iou/Fence': 0.3, 'val/iou/Car': 0.7}
  scores = scores_of({**line, 'val/iou/rider': None})
  assert (scores['miou'], scores['thin_iou'], scores['other_iou']) == (0.5, 0.2, 0.7)


def test_curves_are_means_over_the_steps_that_all_seeds_have():
  lines = [{'step': 1, 'x': 1.0}, {'step': 2, 'y': 5.0}, {'step': 3, 'x': 3.0}]
  steps, values = mean_curve([lines, [{'step': 3, 'x': 5.0}, {'step': 4, 'x': 0.0}]], 'x')
  assert (steps.tolist(), values.tolist()) == ([3], [4.0])
  many = [{'step': i, 'x': float(i)} for i in range(24)]
  steps, values = mean_curve([many], 'x')
  np.testing.assert_allclose(values, steps - 0.5)


@pytest.mark.parametrize(
  ('setting', 'terms'),
  {
    'cross_entropy': {'segmentation'},
    'boundary': {'segmentation', 'boundary'},
    'attention': TERMS - {'inverseform'},
    **{name: TERMS for name in SETTINGS if 'inverse' in name or name == 'as_released'},
  }.items(),
)
def test_each_setting_trains_with_its_terms(setting, terms, monkeypatch):
  measure = (lambda scale, a, b: scale * jnp.mean(a - b, (1, 2))), np.float32([1, 2, 3, 4])
  monkeypatch.setattr(settings, 'load_inversenet', lambda *_, **__: measure)
  config = default.get_config()
  config.update_from_flattened_dict(SETTINGS[setting].overrides)
  names = {'logits': 4} | ({'edge_logits': 1} if config.model.edge_head else {})
  outputs = {name: jnp.zeros((1, 32, 64, channels)) for name, channels in names.items()}
  labels = jnp.zeros((1, 32, 64), jnp.int32)
  _, found = jax.eval_shape(settings.loss_from_config(config), outputs, labels, 0)
  assert set(found) == terms


def run(folder, *arguments):
  inverseform_effect.main([f'--output={folder}', '--config=configs/default.py', *arguments])
  return json.loads((folder / 'inverseform_effect.json').read_text())


class Trainer:
  """Writes in place of `main.py` what a training leaves, and remembers what was asked for."""

  def __init__(self):
    self.commands = {}
    self.fails_at = ()

  def __call__(self, command, log):
    flags = dict(flag.removeprefix('--').split('=', 1) for flag in command[2:])
    folder, seed = log.parent, int(flags['config.seed'])
    setting = folder.parent.name
    if (setting, seed) == self.fails_at:
      raise ValueError('the training ended with status 1')
    self.commands[setting, seed] = flags
    alive = setting.startswith('inverseform')
    miou = 0.4 + 0.01 * seed + (0.02 + 0.002 * seed) * alive
    lines = [
      {'step': 1, 'train/loss': 2.0, 'train/images_per_second': 1.0},
      {'step': 2, 'train/loss': 1.0, 'train/images_per_second': 4.0},
      {'step': 2, 'val/miou': miou, 'val/iou/Road': 1.5 * miou, 'val/iou/Pole': miou / 2},
    ]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (folder / 'config.json').write_text(json.dumps({'train': {'batch_size': 5}}))
    (folder / 'last').mkdir()
    (folder / 'last' / 'model.safetensors').write_text(f'{miou}')
    return 1536.0


@pytest.fixture
def trainer(monkeypatch):
  """Trains nothing and draws nothing."""
  trainer = Trainer()
  monkeypatch.setattr(inverseform_effect, 'run_process', trainer)
  monkeypatch.setattr(effect_report, 'save_figure', lambda *_: None)
  return trainer


THREE = ('--settings=attention,as_released,inverseform', '--seeds=0,1', '--num_steps=2')


def test_an_interrupted_series_goes_on_with_whole_seeds(tmp_path, trainer, capsys):
  trainer.fails_at = 'inverseform', 1
  with pytest.raises(SystemExit):
    run(tmp_path, *THREE)
  assert 'ended with status 1' in capsys.readouterr().err
  settings = ['attention', 'as_released', 'inverseform']
  assert list(trainer.commands) == [(x, 0) for x in settings] + [(x, 1) for x in settings[:2]]

  # What is there can be looked at.
  trainer.fails_at = ()
  trainer.commands.clear()
  assert len(run(tmp_path, *THREE, '--report_only')['runs']) == 5
  assert not trainer.commands
  assert len(run(tmp_path, *THREE)['runs']) == 6
  assert list(trainer.commands) == [('inverseform', 1)]


def test_tables_and_pictures_tell_what_the_runs_left(tmp_path, trainer, monkeypatch, capsys):
  monkeypatch.setattr(effect_report, 'save_figure', save_figure)
  record = run(tmp_path, *THREE)
  gain = record['differences']['attention']['inverseform']['miou']
  expected = stats.ttest_rel([0.42, 0.432], [0.4, 0.41]).confidence_interval()
  np.testing.assert_allclose(list(gain.values()), [0.021, *expected, 2])
  first = record['runs'][0]
  assert (first['seconds_per_step'], first['images_per_second']) == (2.0, 2.5)
  assert first['scores']['thin_iou'] == 0.2
  table = capsys.readouterr().out
  assert '| attention | 2 | 40.50 ± 0.71 | 20.25 ± 0.35 |' in table
  assert '| inverseform | 2 | +2.10 [+0.83, +3.37] |' in table
  assert '| as_released | 2 | +0.00 [+0.00, +0.00] |' in table
  assert '2 of 2 |' in table
  assert '| Pole (thin) | 20.25 | 20.25 | 21.30 |' in table
  assert '| attention | 2 | 1 | 2.5 | 1.5 |' in table
  for name in ('curves', 'classes_attention'):
    assert (tmp_path / f'inverseform_effect_{name}.png').stat().st_size > 10_000


def test_flags_reach_the_training_and_settings_have_the_last_word(tmp_path, trainer):
  overrides = ('--override=loss.tile_rows=5', '--override=config.train.batch_size=6')
  data = ('--root=/data', '--model=hrnet18', '--init_from=weights/x')
  run(tmp_path, '--settings=inverseform,inverseform_tiles', '--seeds=3', *data, *overrides)
  flags = trainer.commands['inverseform', 3]
  expected = {'data.root': '/data', 'model.name': 'hrnet18', 'init_from': 'weights/x', 'seed': '3'}
  expected |= {'loss.tile_rows': '5', 'train.batch_size': '6'}
  given = {k.removeprefix('config.'): x for k, x in flags.items() if k.startswith('config.')}
  assert given == expected
  assert flags['config'] == 'configs/default.py'
  assert flags['workdir'] == str(tmp_path / 'runs' / 'inverseform' / 'seed3')
  assert trainer.commands['inverseform_tiles', 3]['config.loss.tile_rows'] == '1'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--num_steps=3',), "was trained with {'train.num_steps': 2}, and now asked for"),
    (('--num_steps=2', '--config=configs/demo.py'), "was trained with {'config': 'configs/def"),
    (('--settings=atention',), 'unknown atention; there are cross_entropy, boundary'),
    (('--override=seed',), "'seed' is not KEY=VALUE"),
    (('--report_only', '--seeds=7'), 'no run in .* is finished'),
  ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, trainer, capsys, arguments, message):
  run(tmp_path, '--settings=attention', '--seeds=0', '--num_steps=2')
  with pytest.raises(SystemExit):
    run(tmp_path, '--settings=attention', '--seeds=0', *arguments)
  assert re.search(message, capsys.readouterr().err)


def test_a_process_is_measured_and_its_failure_told(tmp_path):
  log = tmp_path / 'log.txt'
  allocate = "import time; x = b'x' * (300 << 20); print('done'); time.sleep(1)"
  memory = inverseform_effect.run_process([sys.executable, '-c', allocate], log)
  # The test's own process holds more, by the time that it comes to this.
  assert 300 < memory < 500
  with pytest.raises(ValueError, match=r'status 3; .*log.txt ends:\ndone'):
    inverseform_effect.run_process([sys.executable, '-c', 'import sys; sys.exit(3)'], log)


TINY = (
  *('data.streets.num_train=4', 'data.streets.num_val=2', 'data.streets.size=(64,128)'),
  *('augment.crop_size=(64,128)', 'loss.tile_size=32', 'train.batch_size=2', 'train.log_every=1'),
)


def test_nothing_is_learnt_from_the_term_as_released(tmp_path, monkeypatch):
  """By the real command: the same weights to the bit. A second call trains nothing."""
  monkeypatch.setattr(inverseform_effect, '_MAIN', ROOT / 'tests' / 'tiny_main.py')
  monkeypatch.setattr(effect_report, 'save_figure', lambda *_: None)
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')
  arguments = ['--settings=attention,as_released', '--seeds=0', '--num_steps=2']
  arguments += [f'--override={override}' for override in TINY]
  record = run(tmp_path, *arguments)
  attention, released = record['runs']
  assert attention['weights_sha256'] == released['weights_sha256']
  assert attention['scores'] == released['scores']
  assert set(attention['scores']) > {'miou', 'boundary_f@1px', 'boundary_iou', 'iou/pole'}
  assert attention['peak_memory_mib'] > 100 and attention['images_per_second'] > 0
  for setting, terms in (('attention', 3), ('as_released', 4)):
    lines = read_metrics(tmp_path / 'runs' / setting / 'seed0' / 'metrics.jsonl')
    assert sum(f'train/{term}' in lines[0] for term in TERMS) == terms
    assert lines[0]['train/segmentation'] > 0
  monkeypatch.setattr(inverseform_effect, 'train', None)
  assert run(tmp_path, *arguments)['runs'] == record['runs']
