"""The command that trains and resumes, what a training starts from, and mistakes told early."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image
from processes import metrics_of, run_main

from configs import default
from if_jax.models.layers import BatchNorm, Conv
from if_jax.optimizers import make_optimizer, make_schedule
from if_jax.train import _say_where_it_is, initial_state, train_and_evaluate
from if_jax.weights import load_weights, save_weights


class Backbone(nn.Module):
  """Two kinds of variables."""

  @nn.compact
  def __call__(self, image, train):
    return BatchNorm(name='bn')(Conv(6, 3, name='conv')(image), train)


class Head(nn.Module):
  """A classifier behind a layer that does not know the number of classes."""

  num_classes: int

  @nn.compact
  def __call__(self, x):
    return Conv(self.num_classes, name='classifier')(nn.relu(Conv(5, name='hidden')(x)))


class Network(nn.Module):
  """Modules named as those of the real networks, quick to initialise."""

  num_classes: int

  @nn.compact
  def __call__(self, image, train=False):
    x = Backbone(name='backbone')(image, train)
    return {'logits': Head(self.num_classes, name='head')(x)}


def start(num_classes, **train):
  config = default.get_config()
  config.init_from = train.pop('init_from', '')
  config.train.update(train)
  optimizer = make_optimizer(make_schedule(0.1, 10))
  return initial_state(config, Network(num_classes), optimizer)


def test_a_training_starts_from_a_backbone_or_a_network_of_other_classes(tmp_path):
  fresh = start(3)
  other = jax.tree.map(lambda x: np.asarray(x) + 1, start(4).variables)
  save_weights(tmp_path / 'whole', other, {'model': 'x'})
  backbone = {kind: {'backbone': tree['backbone']} for kind, tree in other.items()}
  save_weights(tmp_path / 'backbone', backbone, {'model': 'x', 'part': 'backbone'})
  for folder, head in (('whole', other), ('backbone', fresh.variables)):
    state = start(3, init_from=str(tmp_path / folder), ema_decay=0.9)
    assert state.step == 0
    for kind, tree in state.variables.items():
      np.testing.assert_equal(tree['backbone'], other[kind]['backbone'])
      np.testing.assert_equal(state.average[kind], tree)
    np.testing.assert_equal(state.params['head']['hidden'], head['params']['head']['hidden'])
    np.testing.assert_equal(state.params['head']['classifier'], fresh.params['head']['classifier'])


def test_an_average_is_kept_only_if_asked_for():
  assert start(3).average is None


def test_a_module_to_freeze_that_is_not_there_is_told():
  with pytest.raises(ValueError, match=r"freeze names 'body'.* consists of backbone, head"):
    start(3, freeze=('backbone', 'body'))


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('accumulation', 0, 'accumulation=0; give at least 1'),
    ('accumulation', 3, 'batch_size=4 does not divide by 1 devices times .*accumulation=3'),
    ('batch_size', 0, 'batch_size=0; give at least 1'),
    ('ema_decay', 1.0, r'ema_decay=1.0; give 0 \(none\) to below 1'),
    ('ema_decay', -0.1, r'ema_decay=-0.1; give 0 \(none\) to below 1'),
  ],
)
def test_mistakes_are_told_before_anything_is_done(tmp_path, key, value, message):
  config = default.get_config()
  config.train[key] = value
  with pytest.raises(ValueError, match=f'config.train.{message}'):
    train_and_evaluate(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_only_what_is_there_is_named_at_the_end(tmp_path, capsys):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "val/miou": null}\n')
  _say_where_it_is(str(tmp_path))
  assert capsys.readouterr().out == f'last    {tmp_path}/last\n'
  (tmp_path / 'metrics.jsonl').write_text('{"step": 7, "val/miou": 0.5}\n')
  (tmp_path / 'best').mkdir()
  (tmp_path / 'report.html').touch()
  _say_where_it_is(str(tmp_path))
  best, _, report = capsys.readouterr().out.splitlines()
  assert best == f'best    {tmp_path}/best, mIoU 50.00 % at step 7'
  assert report == f'report  {tmp_path}/report.html'


SMALL = (
  '--mode=train',
  '--config.data.streets.num_train=6',
  '--config.data.streets.num_val=3',
  '--config.data.streets.size=(64,96)',
  '--config.data.class_uniform=0.5',
  '--config.augment.crop_size=(64,96)',
  '--config.loss.tile_rows=1',
  '--config.loss.tile_size=64',
  '--config.train.batch_size=2',
  '--config.train.num_steps=4',
  '--config.train.ema_decay=0.9',
  '--config.train.log_every=1',
  '--config.train.eval_every=2',
  '--config.train.checkpoint_every=2',
)


def test_the_command_trains(tmp_path):
  """On two forced devices. That an interrupted run ends in the same bits: test_faults.py."""
  whole = tmp_path / 'whole'
  run = run_main(*SMALL, f'--workdir={whole}', devices=2)
  assert run.returncode == 0, run.stderr
  assert 'train 4/4' in run.stderr
  assert json.loads((whole / 'config.json').read_text())['train']['num_steps'] == 4
  lines = metrics_of(whole)
  assert [line['step'] for line in lines if 'train/loss' in line] == [1, 2, 3, 4]
  assert [line['step'] for line in lines if 'val/miou' in line] == [2, 4]
  assert all(np.isfinite(line['train/loss']) for line in lines if 'train/loss' in line)
  with Image.open(whole / 'curves.png') as curves:
    assert curves.size[0] > 100
  _, card = load_weights(whole / 'best')
  best = max((line for line in lines if 'val/miou' in line), key=lambda line: line['val/miou'])
  assert (card['model'], card['step']) == ('hrnet16_slim', best['step'])
  report = (whole / 'report.html').read_text()
  assert f'step {best["step"]}</small>' in report
  assert 'hrnet16_slim on streets' in report and 'data:image/webp;base64,' in report
  # The three images of the split, as they are segmented at each evaluation.
  events = b''.join(path.read_bytes() for path in (whole / 'tensorboard').iterdir())
  assert events.count(b'val/pictures/streets_') == 2 * 3
  assert load_weights(whole / 'last')[1]['step'] == 4
  ious = [score for name, score in lines[-1].items() if name.startswith('val/iou/')]
  assert np.mean([iou for iou in ious if iou is not None]) == pytest.approx(lines[-1]['val/miou'])
  with (whole / 'metrics.jsonl').open() as file:
    rates = [json.loads(line).get('train/images_per_second', 0) for line in file]
  assert [rate > 0 for rate in rates] == ['train/loss' in line for line in lines]

  other = run_main(*SMALL, f'--workdir={whole}', '--config.optimizer.momentum=0.5', devices=2)
  assert other.returncode == 2
  assert 'optimizer.momentum was 0.9, is 0.5' in other.stderr
  finished = run_main(*SMALL, f'--workdir={whole}', devices=2)
  assert finished.returncode == 0, finished.stderr
  assert 'loading the first images' not in finished.stderr
  assert f'report  {whole}/report.html' in finished.stdout
  # With its pictures, which only an evaluation has.
  assert (whole / 'report.html').read_text() == report
  assert metrics_of(whole) == lines
