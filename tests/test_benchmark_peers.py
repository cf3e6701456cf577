"""The PyTorch peers compute what ours do, and the benchmarks beside them run at a tiny size."""

import functools
import json
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import reference
from jax.tree_util import Partial

pytest.importorskip('matplotlib')

from benchmarks import timing
from convert import from_torch, names
from if_jax.losses import LossWeights, joint_loss
from if_jax.models import MODELS, ModelSpec
from if_jax.models.hrnet import HRNetSpec
from if_jax.models.inversenet import create_inversenet
from if_jax.models.layers import BatchNorm, Conv
from if_jax.models.segmenter import Segmenter
from if_jax.ops.boundaries import boundary_map

_TINY = HRNetSpec(width=4, modules=(0, 0, 0), blocks=1, stem_blocks=1)


@pytest.fixture(scope='module', autouse=True)
def _compile_in_haste():
  """Runs slower and compiles in a third of the time, which is what counts here."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def one_thread(monkeypatch):
  """PyTorch's threads wait for each other at every step, for ever if the cores have other work."""
  torch = pytest.importorskip('torch')
  monkeypatch.setattr(timing.os, 'sched_getaffinity', lambda _: {0})
  num_threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(num_threads)


@pytest.fixture
def tiny(monkeypatch, one_thread):
  """A network that compiles fast, under the name of 'tiny'; PyTorch is not compiled."""
  monkeypatch.setitem(MODELS, 'tiny', ModelSpec(Segmenter, {'backbone_spec': _TINY}))
  monkeypatch.setitem(names._HEADS, 'tiny', names._HEADS['hrnet18'])
  monkeypatch.setattr('torch.compile', lambda function, **_: function)
  monkeypatch.setattr(timing, '_PRODUCT_SIZES', {'cpu': 64})


def run(module, folder, *arguments):
  module.main([f'--output={folder}', '--rounds=2', '--compile=default', *arguments])
  return json.loads((folder / f'{module.__name__.rpartition(".")[2]}.json').read_text())


def assert_close(actual, expected, tolerance):
  error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
  assert error < tolerance, f'{error:.2e} of the largest value'


def test_functions_take_turns():
  calls = []
  functions = {name: functools.partial(calls.append, name) for name in 'ab'}
  seconds = timing.alternate(functions, rounds=3)
  # A warm-up in reverse, then forwards and backwards.
  assert ''.join(calls) == 'baabbaab'
  assert {name: len(times) for name, times in seconds.items()} == {'a': 3, 'b': 3}


def test_ratios_are_paired():
  ours, theirs = timing.compare({'ours': [1, 2, 4], 'peer': [3, 4, 6]}, ours='ours')
  assert ours['ratio'] == ours['lowest'] == ours['highest'] == 1
  assert theirs == {
    'name': 'peer', 'median ms': 4000, 'min ms': 3000, 'ratio': 2, 'lowest': 1.5, 'highest': 3
  }  # fmt: skip


def test_what_differs_is_not_timed():
  assert timing.check_close('x', [1.0, 2.0], [1.0, 2.0001], tolerance=1e-3) < 1e-4
  with pytest.raises(ValueError, match=r'x: ours and the peer differ by 1\.0e-01'):
    timing.check_close('x', [1.0, 1.8], [1.0, 2.0], tolerance=1e-3)
  with pytest.raises(ValueError, match='differ by nan'):
    timing.check_close('x', [np.nan], [1.0], tolerance=1e-3)
  with pytest.raises(ValueError, match=r'ours is \(2,\)'):
    timing.check_close('x', [1.0, 1.8], [1.0], tolerance=1e-3)


@pytest.mark.parametrize('name', MODELS)
def test_networks_have_the_entries_of_the_release(name):
  torch = pytest.importorskip('torch')
  from benchmarks.pytorch_peers import create_network

  with torch.device('meta'):
    found = {path: list(x.shape) for path, x in create_network(name).state_dict().items()}
  assert found == {path: shape for path, shape, _ in reference.entries(name)}


@pytest.mark.usefixtures('one_thread')
@pytest.mark.parametrize('name', ['hrnet16_slim', 'ocrnet48', 'ocrnet48_hms'])
def test_evaluation_matches_the_original(name):
  torch = pytest.importorskip('torch')
  from benchmarks.pytorch_peers import create_network, fold_batch_norm, to_torch_maps

  expected = reference.load(f'{name}.forward')
  with torch.device('meta'):
    network = create_network(name).eval()
  weights = {path: torch.tensor(x) for path, x in reference.state_dict(name).items()}
  network.load_state_dict(weights, assign=True)
  ways = [network]
  if name == 'hrnet16_slim':
    ways.append(fold_batch_norm(network))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in ways[1].modules())
  for way in ways:
    with torch.inference_mode():
      outputs = way(to_torch_maps(reference.image()[:1]))
    edges = outputs['edge_probabilities' if name == 'ocrnet48_hms' else 'edge_logits'][:, :1]
    assert_close(outputs['logits'][:, :, ::4, ::4], expected['pred.strided4'][:1], 1e-5)
    assert_close(edges[:, :, ::4, ::4], expected['edge_pred.strided4'][:1], 1e-5)


@pytest.mark.usefixtures('one_thread')
def test_training_mode_matches_the_original():
  """Through our variables: loss, gradients and running statistics."""
  torch = pytest.importorskip('torch')
  from benchmarks.pytorch_peers import create_peer, to_torch_maps

  name = 'hrnet16_slim'
  expected = reference.load(f'{name}.train_mode')
  network = create_peer(name, from_torch(reference.state_dict(name), name)).train()
  outputs = network(to_torch_maps(reference.image()))

  def one(logits, edges):
    draw = np.random.RandomState(5).standard_normal(logits.shape).astype(np.float32)
    return (logits * torch.from_numpy(draw)).mean() + edges.square().mean()

  loss = one(outputs['logits'], outputs['edge_logits'])
  loss = loss + 0.4 * one(outputs['aux_logits'], outputs['aux_edge_probabilities'][:, :1])
  loss.backward()
  assert float(loss.detach()) == pytest.approx(float(expected['loss']), rel=1e-5)
  for path in ('hrhead.last_layer.2.weight', 'edge_head.last_layer.0.weight'):
    norm = dict(zip(expected['gradnorm_names'], expected['gradnorms'], strict=True))[path]
    assert float(network.get_parameter(path).grad.norm()) == pytest.approx(norm, rel=1e-4)
  for key in expected.files:
    kind, _, path = key.partition(':')
    if kind in ('running_mean', 'running_var'):
      assert_close(network.get_buffer(f'{path}.{kind}'), expected[key], 1e-5)


@pytest.mark.parametrize('multi_scale', [False, True])
def test_losses_are_ours(multi_scale):
  torch = pytest.importorskip('torch')
  from benchmarks import pytorch_losses
  from benchmarks.pytorch_peers import to_torch_maps

  rng = np.random.default_rng(0)

  def draw(channels):
    return 9 * rng.standard_normal((3, 12, 16, channels), np.float32)

  def both_sides(edge_logits):
    return torch.cat([edge_logits, -edge_logits], 1).sigmoid()

  labels = rng.integers(0, 5, (3, 3, 4)).repeat(4, 1).repeat(4, 2).astype(np.int32)
  labels[0, :, :5] = 255
  labels[1] = -1
  edges = boundary_map(labels, num_classes=5)
  ours = {'logits': draw(5), 'aux_logits': draw(5), 'edge_logits': draw(1)}
  theirs = {name: to_torch_maps(x).requires_grad_() for name, x in ours.items()}
  if multi_scale:
    scale_logits = {0.5: draw(5), 1.0: draw(5)}
    ours['scale_logits'] = scale_logits
    theirs['scale_logits'] = {scale: to_torch_maps(x) for scale, x in scale_logits.items()}
    theirs['edge_probabilities'] = both_sides(theirs.pop('edge_logits'))
  else:
    ours['aux_edge_logits'] = draw(1)
    theirs['aux_edge_probabilities'] = both_sides(to_torch_maps(ours['aux_edge_logits']))

  weights = LossWeights(inverseform=0)
  loss_fn = functools.partial(joint_loss, labels=labels, weights=weights)
  (total, terms), gradients = jax.value_and_grad(loss_fn, has_aux=True)(ours)
  expected, their_terms = pytorch_losses.joint_loss(
    theirs, torch.tensor(labels, dtype=torch.int64), to_torch_maps(edges), weights
  )
  expected.backward()
  np.testing.assert_allclose(total, expected.detach(), rtol=1e-5)
  assert terms.keys() == their_terms.keys()
  for name, term in terms.items():
    np.testing.assert_allclose(term, their_terms[name].detach(), rtol=1e-5, err_msg=name)
  for name in ('logits', 'aux_logits'):
    assert_close(reference.nhwc(theirs[name].grad.numpy()), gradients[name], 1e-5)


def test_inverseform_is_ours():
  torch = pytest.importorskip('torch')
  from benchmarks.inverseform_loss import check_same, draw_mlp, our_loss, peer_loss
  from benchmarks.pytorch_losses import InverseMLP

  rng = np.random.default_rng(0)
  edges = np.zeros((2, 32, 48, 1), np.float32)
  edges[:, 5:9, :20] = 1  # Some tiles have no boundary.
  edge_logits = rng.standard_normal(edges.shape, np.float32)
  variables = draw_mlp(16)
  grid = {'tile_rows': 3, 'tile_columns': 4, 'tile_size': 16}
  mlp = Partial(create_inversenet('mlp').apply, variables)
  functions = {
    'ours, mlp': our_loss(edge_logits, edges, mlp, gradient='full', **grid),
    'PyTorch': peer_loss(edge_logits, edges, InverseMLP(variables), **grid),
  }
  check_same('3x4', functions)
  value, gradient = functions['PyTorch']()
  assert float(value) > 0.1 and torch.count_nonzero(gradient) > 100
  functions['PyTorch'] = lambda: (value, 1.01 * gradient)
  with pytest.raises(ValueError, match=r'gradient, 3x4, PyTorch: ours and the peer differ'):
    check_same('3x4', functions)


@pytest.mark.usefixtures('tiny')
def test_inference_at_a_tiny_size(tmp_path, capsys):
  pytest.importorskip('torch')
  from benchmarks import inference

  record = run(inference, tmp_path, '--models=tiny', '--size=32,64')
  assert [row['part'] for row in record['rows'][::4]] == list(inference.PARTS)
  ways = ['ours', 'PyTorch', 'PyTorch folded', 'PyTorch compiled']
  assert [row['name'] for row in record['rows'][:4]] == ways
  # The plain head adds to the backbone.
  assert 0 < record['rows'][0]['GFLOP'] < record['rows'][4]['GFLOP']
  assert '| ours |' in capsys.readouterr().out
  with pytest.raises(SystemExit):
    run(inference, tmp_path, '--models=tiny', '--parts=nose')
  assert "no part 'nose'; there are backbone, network, labels" in capsys.readouterr().err


class StandIn(nn.Module):
  """A network of which a step takes seconds to compile, and not minutes."""

  num_classes: int
  edge_head: bool
  dtype: Any
  remat: bool
  axis_name: str | None

  @nn.compact
  def __call__(self, image, train=False):
    x = BatchNorm(self.axis_name, name='bn')(Conv(8, 3, name='conv')(image), train)
    sizes = {'logits': 19, 'aux_logits': 19, 'edge_logits': 1, 'aux_edge_logits': 1}
    return {name: Conv(size, name=name)(nn.relu(x)) for name, size in sizes.items()}


def stand_in_peer(name, variables):
  import torch

  class Peer(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.bn = torch.nn.BatchNorm2d(8)
      for module, leaves in variables['params'].items():
        if module != 'bn':
          k, _, inputs, outputs = leaves['kernel'].shape
          conv = torch.nn.Conv2d(inputs, outputs, k, padding=k // 2, bias=False)
          conv.weight.data = torch.tensor(leaves['kernel'].transpose(3, 2, 0, 1))
          self.add_module(module, conv)

    def forward(self, image):
      x = self.bn(self.conv(image)).relu()
      outputs = {name: getattr(self, name)(x) for name in ('logits', 'aux_logits', 'edge_logits')}
      edge_logits = self.aux_edge_logits(x)
      both_sides = torch.cat([edge_logits, -edge_logits], 1).sigmoid()
      return outputs | {'aux_edge_probabilities': both_sides}

  return Peer()


@pytest.mark.usefixtures('tiny')
def test_training_steps_lead_to_the_same(tmp_path, monkeypatch):
  pytest.importorskip('torch')
  from benchmarks import training_step

  make_steps, losses = training_step.make_steps, {}

  def recorded(config, effort):
    config.optimizer.learning_rate = 0.03
    steps, gflop = make_steps(config, effort)

    def record(way):
      losses.setdefault(way, []).append(float(steps[way]()))
      return losses[way][-1]

    return {way: functools.partial(record, way) for way in steps}, gflop

  monkeypatch.setattr(training_step, 'make_steps', recorded)
  monkeypatch.setattr(training_step, 'create_peer', stand_in_peer)
  monkeypatch.setitem(MODELS, 'tiny', ModelSpec(StandIn, {}))
  record = run(training_step, tmp_path, '--models=tiny', '--batch_size=2', '--crop=32,64')
  ways = ['ours, pmap of 1', 'ours, jit', 'PyTorch', 'PyTorch compiled']
  assert [row['name'] for row in record['rows']] == list(losses) == ways
  assert record['torch']['threads'] == 1
  # One to compare, one to warm up, and two rounds. The third loss is that after momentum.
  assert {len(found) for found in losses.values()} == {4}
  for found in losses.values():
    np.testing.assert_allclose(found[:3], losses['ours, pmap of 1'][:3], rtol=1e-3)
  assert (np.abs(np.diff(losses['PyTorch'])) > 0.03).all()


@pytest.mark.usefixtures('tiny')
def test_inverseform_loss_at_a_tiny_size(tmp_path, monkeypatch):
  pytest.importorskip('torch')
  from benchmarks import inverseform_loss

  # The default network takes long to compile.
  mlp = create_inversenet('mlp').apply, inverseform_loss.draw_mlp(32)
  monkeypatch.setattr(inverseform_loss, 'load_inversenet', lambda: mlp)
  arguments = '--batch_size=1', '--size=64,128', '--grids=1x2', '--tile_size=32'
  record = run(inverseform_loss, tmp_path, *arguments)
  assert [row['name'] for row in record['rows'][:2]] == ['ours, mlp', 'ours, mlp, motion gradient']
  assert {row['grid'] for row in record['rows']} == {'1x2'}
