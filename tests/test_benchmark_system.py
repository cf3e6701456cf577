"""The benchmarks of the system measure what they say, and run at a tiny size."""

import argparse
import contextlib
import itertools
import json
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('matplotlib')

from benchmarks import (
  boundary_maps,
  input_pipeline,
  memory,
  scaling,
  startup,
  step_parts,
  steps,
  street_files,
)
from benchmarks.processes import environment_of_devices, in_fresh_process
from benchmarks.pytorch_data import FileDataset
from configs.cityscapes import get_config
from if_jax import parallel
from if_jax.data.datasets import load_dataset
from if_jax.data.pipeline import eval_examples


class TinyNet(nn.Module):
  """What a training step asks of a network, in one layer."""

  axis_name: str | None = None

  @nn.compact
  def __call__(self, image, train=False):
    norm = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)
    features = norm(nn.Conv(20, (1, 1))(image))
    outputs = {'logits': features[..., :19], 'edge_logits': features[..., 19:]}
    if train:
      outputs |= {f'aux_{name}': x for name, x in outputs.items()}
    return outputs


@pytest.fixture
def tiny_net(monkeypatch):
  for module in (steps, step_parts):
    monkeypatch.setattr(
      module, 'model_from_config', lambda *_, axis_name=None: TinyNet(axis_name=axis_name)
    )
  config = get_config('hrnet16_slim')
  config.augment.crop_size = 32, 64
  config.train.batch_size = 1
  config.loss.inversenet = ''
  # Runs slower and compiles in a third of the time, which is what counts here.
  jax.config.update('jax_disable_most_optimizations', True)
  yield config
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def in_this_process(monkeypatch):
  """Spares the starts of processes."""
  for module in (memory, scaling):
    monkeypatch.setattr(
      module,
      'in_fresh_process',
      lambda function, *arguments, environment=None: function(*arguments),
    )


def run(module, folder, *arguments):
  module.main([f'--output={folder}', *arguments])
  name = module.__name__.rpartition('.')[2]
  record = json.loads((folder / f'{name}.json').read_text())
  assert record['command'].startswith(f'python -m benchmarks.{name}')
  return record


def test_boundary_maps(tmp_path):
  record = run(boundary_maps, tmp_path, '--height=96', '--width=160', '--rounds=1')
  assert [row['name'].partition(',')[0] for row in record['rows']] == 2 * ['ours'] + 2 * ['SciPy']
  # The frame makes boundaries in the original and none in ours.
  assert 0 < record['differing'] < 2 * 2 * (96 + 160)


def test_boundary_maps_that_differ_are_not_timed():
  labels = np.zeros((12, 12), np.int32)
  labels[:, 6:] = 1
  original = boundary_maps.scipy_map(labels, range(1, 20), map)
  np.testing.assert_array_equal(original[5], [0] * 4 + [1] * 4 + [0] * 2 + [1] * 2)
  ours = original & (np.arange(12) < 9)
  assert boundary_maps.check_maps(labels, ours, original, original, original) == 28
  other = original ^ (np.arange(12) == 4)
  with pytest.raises(ValueError, match='as released and SciPy differ'):
    boundary_maps.check_maps(labels, ours, other, original, original)
  with pytest.raises(ValueError, match='inside the labelled area'):
    boundary_maps.check_maps(labels, other, original, original, original)


def test_both_pipelines_read_the_same_and_are_timed(tmp_path):
  pytest.importorskip('torch')
  files = street_files.write_streets(tmp_path, 'val', 2, (64, 128))
  dataset = load_dataset('cityscapes', 'val', root=tmp_path, cache_dir=tmp_path / 'prepared')
  theirs = FileDataset(files)
  assert len(theirs) == 2
  with eval_examples(dataset) as examples:
    for i, ours in enumerate(examples):
      np.testing.assert_array_equal(theirs[i]['image'], ours['image'])
      np.testing.assert_array_equal(theirs[i]['label'], ours['label'])
  arguments = ['--height=64', '--width=128', '--num_images=2', '--batch_size=2', '--workers=0']
  record = run(input_pipeline, tmp_path, *arguments, '--num_batches=2', '--rounds=1')
  ours, theirs = record['throughput']
  assert theirs['ratio'] == pytest.approx(ours['images/s'] / theirs['images/s'])


def test_core_seconds_are_those_of_work():
  start, core_start = time.perf_counter(), time.process_time()
  before = input_pipeline.used_core_seconds()
  while time.process_time() < core_start + 0.1:
    pass
  assert 0.05 < input_pipeline.used_core_seconds() - before < time.perf_counter() - start + 1


def test_waiting_is_told_from_computing(monkeypatch):
  def slow_step(state, batch, loss_fn):
    time.sleep(0.01)
    return state, {}

  def slow_batches(workers):
    batches = (time.sleep(0.03) or {'image': np.zeros((1, 2))} for _ in itertools.count())
    return contextlib.closing(batches)

  monkeypatch.setattr(input_pipeline, 'make_step', lambda config: (slow_step, None, None))
  arguments = argparse.Namespace(workers=[0], num_batches=5, rounds=1)
  (row,) = input_pipeline.feed(None, {'ours': slow_batches}, arguments)
  assert row['of it waiting, ms'] > 29 and row['with a batch at hand, ms'] > 9
  assert row['step, ms'] > row['of it waiting, ms'] + 9
  assert row['waiting, %'] > 40 and row['slower by, %'] > 50


def test_evaluations_of_the_same_weights_agree(tmp_path, monkeypatch):
  torch = pytest.importorskip('torch')
  from benchmarks import evaluation

  class OurNet(nn.Module):
    @nn.compact
    def __call__(self, image, train=False):
      return {'logits': nn.Dense(19, use_bias=False)(image)}

  class PeerNet(torch.nn.Module):
    def __init__(self, kernel):
      super().__init__()
      self.kernel = torch.tensor(kernel)

    def forward(self, image):
      return {'logits': torch.einsum('bchw,ck->bkhw', image, self.kernel)}

  kernel = np.random.default_rng(0).normal(size=(3, 19)).astype(np.float32)
  changes = {
    'draw_variables': lambda name: {'params': {'Dense_0': {'kernel': kernel}}},
    'model_from_config': lambda config, num_classes: OurNet(),
    'create_peer': lambda name, variables: PeerNet(variables['params']['Dense_0']['kernel']),
    'fold_batch_norm': lambda network: network,
  }
  for name, change in changes.items():
    monkeypatch.setattr(evaluation, name, change)
  arguments = '--height=64', '--width=128', '--num_images=2', '--workers=0', '--rounds=1'
  ours, theirs = run(evaluation, tmp_path, *arguments)['rows']
  assert 0 < ours['mIoU, %'] == pytest.approx(theirs['mIoU, %'], abs=0.01)
  monkeypatch.setattr(evaluation, 'create_peer', lambda name, variables: PeerNet(-kernel))
  with pytest.raises(SystemExit):
    run(evaluation, tmp_path, *arguments)


_PROGRAM = """
import datetime, pathlib, sys, time
flags = dict(flag.split('=', 1) for flag in sys.argv[1:])
folder = pathlib.Path(flags.get('--output') or flags['--workdir'])
(folder / 'kind').mkdir(parents=True)
(folder / 'metrics.jsonl').touch()
now = datetime.datetime.now().strftime('%m%d %H:%M:%S.%f')
sys.stderr.write(f'W{now} 12 dispatch.py:204] Finished XLA compilation of f in 0.01 sec\\n')
time.sleep(0.2)
(folder / 'metrics.jsonl').write_text('{}')
(folder / 'kind' / 'a.png').write_text('picture')
time.sleep(0.2)
"""


def test_startup_ends_when_the_file_is_written(tmp_path, monkeypatch):
  (tmp_path / 'main.py').write_text(_PROGRAM)
  monkeypatch.setattr(startup, '_ROOT', tmp_path)
  rows = run(startup, tmp_path, '--height=16')['rows']
  assert [row['to the first'] for row in rows] == [
    'training step, cold', 'training step, warm', 'prediction, cold', 'prediction, warm',
  ]  # fmt: skip
  for row in rows:
    assert row['compiling'] == 0.01 and row['the rest'] >= 0.2
    parts = {key: row[key] for key in row.keys() - {'to the first', 'in all', 'programs'}}
    assert sum(parts.values()) == pytest.approx(row['in all'])
  (tmp_path / 'main.py').write_text('raise SystemExit("a mistake")')
  with pytest.raises(ValueError, match=r'failed: .*a mistake'):
    startup.time_main(['--mode=train'], tmp_path / 'run', '*')


def test_what_is_traced_within_a_function_counts_once():
  start = time.mktime(time.strptime(f'{time.localtime().tm_year}0301', '%Y%m%d'))
  line = 'W0301 00:00:{:09.6f} 12 dispatch.py:204] Finished {} of f in {:.9f} sec\n'
  log = ''.join(
    line.format(*entry)
    for entry in (
      (12, 'tracing', 1), (14, 'tracing', 4), (15, 'jaxpr to MLIR', 1),
      (20, 'XLA compilation', 5), (40, 'XLA compilation', 3),
    )
  )  # fmt: skip
  parts, programs = startup.split('other\n' + log, start, start + 23)
  assert parts == pytest.approx({
    'in all': 23, 'before JAX traces': 10, 'tracing': 5, 'compiling': 5, 'the rest': 3,
    'programs': 1,
  })  # fmt: skip
  assert programs == [{'program': 'f', 'seconds': 5}]


def test_memory_of_a_step_of_known_size(tmp_path, monkeypatch, in_this_process):
  # 80 MB, which are touched in place, and 20 MB of results.
  def make_step(config):
    step = parallel.pmap(
      lambda state, batch, loss_fn: (state + 1, state[::4] * batch['image'][0, 0] + loss_fn),
      num_constants=1,
      donate_state=True,
    )
    return step, parallel.replicate(np.zeros(20_000_000, np.float32)), parallel.replicate(1.0)

  monkeypatch.setattr(memory, 'make_step', make_step)
  monkeypatch.setattr(memory, 'draw_batch', lambda config: {'image': np.ones((1, 1), np.float32)})
  monkeypatch.setattr(memory, 'memory_of_peer', lambda config: 1.5)
  rows = run(memory, tmp_path, '--batch_sizes', '1', '2', '--heights=16')['rows']
  assert [row['batch'] for row in rows] == [1, 2, 2, 2, 2]
  assert [row['InverseForm'] for row in rows] == ['no', 'no', 'no', 'yes', 'yes']
  assert [row['recomputing'] for row in rows] == ['no', 'no', 'yes', 'no', 'yes']
  assert [row['PyTorch, GB'] for row in rows] == [1.5, 1.5, '-', '-', '-']
  assert rows[0]['arguments, GB'] == pytest.approx(0.08, rel=0.01)
  assert 0.09 < rows[0]['peak, GB'] < 0.3


def test_processes_have_devices_of_their_own():
  assert in_fresh_process(parallel.num_devices, environment=environment_of_devices(3)) == 3
  assert parallel.num_devices() == 1
  with pytest.raises(ValueError, match='invalid literal'):
    in_fresh_process(int, 'three')


def test_scaling_of_a_step_that_costs_what_pixels_cost(tmp_path, monkeypatch, in_this_process):
  def make_step(config):
    height, width = config.augment.crop_size
    seconds = 1e-6 * config.train.batch_size * height * width + 1e-3 * config.loss.tile_rows**2
    return lambda state, batch, loss_fn: (time.sleep(seconds), {}), None, None

  monkeypatch.setattr(scaling, 'make_step', make_step)
  monkeypatch.setattr(scaling, 'draw_batch', lambda config: {'image': np.zeros((1, 1))})
  arguments = '--devices', '1', '2', '--heights', '64', '128', '--tile_rows', '0', '3'
  record = run(scaling, tmp_path, *arguments, '--crop_height=32', '--steps=2', '--batch_size=1')
  devices, crops, tiles = (rows for title, rows in record.items() if 'crop' in title)
  # There is one device in this process.
  assert [row['devices'] for row in devices] == [1]
  assert [row['crop'] for row in crops] == ['64x128', '128x256']
  assert crops[1]['fastest, ms'] > 3 * crops[0]['fastest, ms'] > 3 * 8
  assert crops[1]['to the first'] == pytest.approx(crops[0]['step, ms'] / crops[1]['step, ms'])
  assert [row['tiles'] for row in tiles] == [0, 18]


def test_parts_of_a_step(tmp_path, monkeypatch):
  sleeps = {'forward pass': 0.02, 'InverseForm': 0.05, 'optimiser': 0.06}
  pieces = {name: lambda seconds=seconds: time.sleep(seconds) for name, seconds in sleeps.items()}
  monkeypatch.setattr(step_parts, 'make_pieces', lambda config: pieces)
  rows = run(step_parts, tmp_path, '--rounds=3')['rows']
  assert [row['part'] for row in rows] == [*sleeps, 'whole step']
  assert sum(row['ms'] for row in rows[:-1]) == pytest.approx(rows[-1]['ms'])
  assert rows[0]['ms'] >= 20 and rows[1]['ms'] > 20 and rows[-1]['ms'] >= 60


def test_pieces_of_a_step_hold_one_another(tiny_net):
  pieces = step_parts.make_pieces(tiny_net)
  outputs, _ = pieces['forward pass']()
  assert set(outputs) == {'logits', 'edge_logits', 'aux_logits', 'aux_edge_logits'}
  segmentation, _ = pieces['segmentation loss']()
  step = pieces['optimiser']()[1]
  loss = jax.jit(step_parts.loss_without(tiny_net))
  labels = jnp.asarray(steps.draw_batch(tiny_net)['label'])
  total, terms = loss(outputs, labels)
  np.testing.assert_allclose(step['loss'], total, rtol=1e-4)
  np.testing.assert_allclose(segmentation, 1.4 * terms['segmentation'], rtol=1e-4)
  assert {'boundary', 'attention'} < set(terms)
  # Gradients of the edge's weights come with the boundary terms.
  norms = [
    float(jnp.linalg.norm(pieces[name]()[0]['Conv_0']['kernel'][..., 19]))
    for name in ('backward pass of these', 'boundary terms')
  ]
  assert norms[0] == 0 < norms[1]
