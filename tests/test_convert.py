"""State dicts to variables and back, and the command that does it."""

import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import reference

from convert import backbone_from_torch, from_torch, pytorch_file, to_torch
from convert.names import MODEL_NAMES
from if_jax.models.inversenet import InverseMLP
from if_jax.weights import load_weights

NETWORKS = [name for name in MODEL_NAMES if name != 'inversenet']


def _assert_same(actual, expected):
  """Equal to the last bit, in the same order."""
  assert list(actual) == list(expected)
  for name, array in expected.items():
    assert actual[name].dtype == array.dtype, name
    np.testing.assert_array_equal(actual[name], array, name)


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('edge_head', [True, False])
def test_there_and_back_is_equal_to_the_last_bit(name, edge_head):
  state_dict = reference.state_dict(name)
  if not edge_head:  # As in NVIDIA's checkpoints.
    state_dict = {k: v for k, v in state_dict.items() if not k.startswith('edge')}
  _assert_same(to_torch(from_torch(state_dict, name), name), state_dict)


def test_another_number_of_classes_is_read_from_the_entries():
  state_dict = reference.state_dict('hrnet16_slim')
  for name in ('hrhead.last_layer.2.weight', 'aux_head.2.weight', 'aux_head.2.bias'):
    state_dict[name] = state_dict[name][:5]
  _assert_same(to_torch(from_torch(state_dict, 'hrnet16_slim'), 'hrnet16_slim'), state_dict)


def test_everything_that_does_not_fit_is_listed():
  state_dict = reference.state_dict('hrnet18')
  del state_dict['backbone.conv2.weight']
  state_dict['backbone.conv9.weight'] = np.zeros((1,), np.float32)
  state_dict['backbone.bn1.weight'] = np.zeros((3,), np.float32)
  state_dict['backbone.bn2.bias'][0] = np.nan
  state_dict['backbone.bn2.running_var'][0] = -1
  state_dict['backbone.conv1.weight'] = state_dict['backbone.conv1.weight'].astype(np.float64)
  state_dict['backbone.conv1.weight'][0] = 1e300  # No float32 is as large.
  state_dict['backbone.bn2.weight'] = state_dict['backbone.bn2.weight'].astype(np.complex64)
  with pytest.raises(ValueError, match='do not fit hrnet18') as error:
    from_torch(state_dict, 'hrnet18')
  message = str(error.value)
  assert '1 missing: backbone.conv2.weight' in message
  assert '1 unexpected: backbone.conv9.weight' in message
  assert '1 mis-shaped: backbone.bn1.weight (3,) (expected (64,))' in message
  assert '1 not of floats: backbone.bn2.weight' in message
  assert '2 not finite: backbone.conv1.weight, backbone.bn2.bias' in message
  assert '1 negative: backbone.bn2.running_var' in message


@pytest.mark.parametrize('shape', [(), (0, 120, 1, 1)])
def test_a_classifier_that_is_none_is_told(shape):
  state_dict = reference.state_dict('hrnet16_slim')
  name = 'hrhead.last_layer.2.weight'
  variables = from_torch(state_dict, 'hrnet16_slim')
  state_dict[name] = np.zeros(shape, np.float32)
  with pytest.raises(ValueError, match=f'1 mis-shaped: {name}'):
    from_torch(state_dict, 'hrnet16_slim')
  variables['params']['head']['classifier']['kernel'] = np.zeros(shape[::-1], np.float32)
  with pytest.raises(ValueError, match='1 mis-shaped: params/head/classifier/kernel'):
    to_torch(variables, 'hrnet16_slim')


def test_an_imagenet_classifier_gives_its_backbone():
  whole = reference.state_dict('hrnet18')
  backbone = {k.removeprefix('backbone.'): v for k, v in whole.items() if k.startswith('backbone.')}
  classifier = {'incre_modules.0.0.conv1.weight': np.zeros(3), 'classifier.bias': np.zeros(1000)}
  variables, left_out = backbone_from_torch(backbone | classifier, 'hrnet18')
  expected = from_torch(whole, 'hrnet18')
  assert list(variables['params']) == ['backbone']
  for collection in ('params', 'batch_stats'):
    theirs, ours = expected[collection]['backbone'], variables[collection]['backbone']
    np.testing.assert_equal(ours, theirs)
  assert left_out == ['backbone.incre_modules.0.0.conv1.weight', 'backbone.classifier.bias']
  with pytest.raises(ValueError, match='1 unexpected'):
    backbone_from_torch(backbone | {'head.bias': np.zeros(3)}, 'hrnet18')


def test_the_released_regressor_gives_its_numbers():
  state_dict = reference.state_dict('inversenet')
  variables = from_torch(state_dict, 'inversenet')
  rng = np.random.RandomState(2000)
  target, prediction = (rng.uniform(size=(5, 1, 224, 224)).astype(np.float32) for _ in range(2))
  target = (target > 0.9).astype(np.float32)
  theta = InverseMLP().apply(variables, reference.nhwc(prediction), reference.nhwc(target))
  expected = reference.load('losses')['inversenet.theta']
  np.testing.assert_allclose(theta, expected, atol=1e-4 * np.abs(expected).max())
  back = to_torch(variables, 'inversenet')
  assert list(back) == list(state_dict)
  np.testing.assert_array_equal(back['fc.0.weight'], state_dict['fc.0.weight'])


def _convert(*arguments):
  command = [sys.executable, '-m', 'convert', *arguments]
  return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_converts_the_released_layout_and_back(tmp_path):
  torch = pytest.importorskip('torch')
  state_dict = reference.state_dict('hrnet16_slim')
  released = OrderedDict((f'module.{k}', torch.from_numpy(v)) for k, v in state_dict.items())
  content = {'epoch': 3, 'state_dict': released, 'mean_iu': np.float64(0.7), 'command': 'train'}
  torch.save(content, tmp_path / 'released.pth', _use_new_zipfile_serialization=False)

  there = _convert(
    f'--checkpoint={tmp_path}/released.pth', '--model=hrnet16_slim', f'--output={tmp_path}/weights'
  )
  assert there.returncode == 0, there.stderr
  sha256 = pytorch_file.read(tmp_path / 'released.pth').sha256
  assert sha256 in there.stdout
  assert 'backbone.stage4' in there.stdout
  variables, card = load_weights(tmp_path / 'weights')
  np.testing.assert_equal(variables, from_torch(state_dict, 'hrnet16_slim'))
  assert card['source'] == {'file': 'released.pth', 'sha256': sha256}
  assert card['label_set']['name'] == 'cityscapes'

  back = _convert(
    '--reverse',
    f'--checkpoint={tmp_path}/weights',
    '--model=hrnet16_slim',
    f'--output={tmp_path}/back.pth',
  )
  assert back.returncode == 0, back.stderr
  loaded = torch.load(tmp_path / 'back.pth', weights_only=True)
  _assert_same({k: v.numpy() for k, v in loaded.items()}, state_dict)


def test_the_command_refuses_in_one_line_and_writes_nothing(tmp_path):
  pytest.importorskip('torch')
  pytorch_file.write(tmp_path / 'x.pth', {'weight': np.zeros((2, 2), np.float32)})
  (tmp_path / 'page.pth').write_text('<html>404</html>')
  messages = {'x': '1 unexpected: weight', 'page': 'web page', 'none': 'no such file'}
  for name, message in messages.items():
    result = _convert(
      f'--checkpoint={tmp_path}/{name}.pth', '--model=hrnet18', f'--output={tmp_path}/weights'
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count('\n') == 1
  result = _convert('--model=hrnet18')
  assert (result.returncode, result.stderr.count('\n')) == (2, 1)
  assert '--checkpoint is missing' in result.stderr
  assert not (tmp_path / 'weights').exists()
