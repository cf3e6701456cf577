"""The checkpoint reader against torch.load, and against files that are damaged or mean harm."""

import hashlib
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convert.pytorch_file import CheckpointError, PytorchFile, read, state_dict, write

FORMATS = ('zip', 'legacy')
_SYSTEM = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}


def _save(content, path, file_format):
  torch = pytest.importorskip('torch')
  torch.save(content, path, _use_new_zipfile_serialization=file_format == 'zip')
  return path


def _legacy_file(content_pickle, system=_SYSTEM, keys=None, numbers=b''):
  head = b''.join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
  return head + content_pickle + pickle.dumps(keys or [], 2) + numbers


def _zip_file(files, compression=zipfile.ZIP_STORED):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', compression) as archive:
    for name, content in files.items():
      archive.writestr(f'archive/{name}', content)
  return buffer.getvalue()


def _file_of(file_format, content_pickle):
  if file_format == 'zip':
    return _zip_file({'data.pkl': content_pickle})
  return _legacy_file(content_pickle)


def _refusal(path, data):
  """Reads data that must be refused, and returns the sentence that says so."""
  path.write_bytes(data)
  with pytest.raises(CheckpointError) as caught:
    read(path)
  sentence = str(caught.value)
  assert sentence.startswith(f'{path}: ')
  assert sentence.isprintable()
  return sentence.removeprefix(f'{path}: ')


def _assert_same_bits(array, tensor):
  torch = pytest.importorskip('torch')
  tensor = tensor.detach()
  assert isinstance(array, np.ndarray)
  assert array.shape == tuple(tensor.shape)
  assert str(array.dtype) == str(tensor.dtype).removeprefix('torch.')
  assert array.tobytes() == tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def _tensors():
  torch = pytest.importorskip('torch')
  base = torch.arange(24.0).reshape(2, 3, 4)
  tensors = {
    'plain': base,
    'row': base[1],
    'part': base[:, 1:, ::2],
    'transposed': base.permute(2, 0, 1),
    'channels_last': torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    'repeated': torch.tensor([7.0]).expand(3, 5),
    'windows': torch.arange(6.0).unfold(0, 3, 1),
    'one_wide': base[:, :1, :],
    'number': torch.tensor(3),
    'empty': torch.zeros(0),
    'empty_image': torch.zeros(2, 0, 4),
    'not_finite': torch.tensor([float('nan'), float('inf'), -0.0]),
    'parameter': torch.nn.Parameter(torch.randn(3, 2)),
  }
  for dtype in ('float16', 'bfloat16', 'float64', 'complex64', 'complex128'):
    tensors[dtype] = torch.randn(3, 2, dtype=getattr(torch, dtype))
  for dtype in ('int8', 'int16', 'int32', 'int64', 'uint8', 'bool'):
    tensors[dtype] = torch.tensor([[0, 1], [1, 100]]).to(getattr(torch, dtype))
  return tensors


def _released(weights):
  """What the released files hold beside the weights."""
  return {
    'epoch': 174,
    'arch': 'ocrnet.HRNet_Mscale',
    'num_classes': 19,
    'state_dict': OrderedDict((f'module.{name}', weight) for name, weight in weights.items()),
    'mean_iu': np.float64(0.8567),
    'command': 'train.py --arch ocrnet.HRNet_Mscale',
  }


@pytest.mark.parametrize('file_format', FORMATS)
def test_tensors_have_the_bits_of_torch_load(tmp_path, file_format):
  torch = pytest.importorskip('torch')
  path = _save(_tensors(), tmp_path / 'x.pth', file_format)
  expected = torch.load(path, weights_only=True)
  file = read(path)
  assert file.format == file_format
  assert list(file.content) == list(expected)
  for name, tensor in expected.items():
    _assert_same_bits(file.content[name], tensor)


@pytest.mark.parametrize('numpy_version', [1, 2])
@pytest.mark.parametrize('file_format', FORMATS)
def test_the_layout_of_the_released_files(tmp_path, file_format, numpy_version):
  torch = pytest.importorskip('torch')
  model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  weights = model.state_dict()
  path = _save(_released(weights), tmp_path / 'released.pth', file_format)
  if numpy_version == 1 and file_format == 'zip':
    with zipfile.ZipFile(path) as archive:
      files = {name.partition('/')[2]: archive.read(name) for name in archive.namelist()}
    files['data.pkl'] = files['data.pkl'].replace(b'cnumpy._core.', b'cnumpy.core.')
    path.write_bytes(_zip_file(files))
  elif numpy_version == 1:
    path.write_bytes(path.read_bytes().replace(b'cnumpy._core.', b'cnumpy.core.'))
  file = read(path)
  assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
  assert {key: value for key, value in file.content.items() if key != 'state_dict'} == {
    key: value for key, value in _released({}).items() if key != 'state_dict'
  }
  assert type(file.content['mean_iu']) is np.float64
  found = state_dict(file)
  assert list(found) == list(weights)
  for name, tensor in weights.items():
    _assert_same_bits(found[name], tensor)


@pytest.mark.parametrize('scalar', [np.float32(0.1), np.int64(-5), np.bool_(True), np.float16(2)])
def test_scalars_of_numpy(tmp_path, scalar):
  (loaded,) = read(_save([scalar], tmp_path / 'x.pth', 'zip')).content
  assert type(loaded) is type(scalar)
  assert loaded == scalar


@pytest.mark.parametrize('file_format', FORMATS)
def test_a_state_dict_with_its_metadata_and_an_optimizer(tmp_path, file_format):
  torch = pytest.importorskip('torch')
  model = torch.nn.Linear(3, 2)
  optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
  model(torch.ones(1, 3)).sum().backward()
  optimizer.step()
  content = {'model': model.state_dict(), 'optimizer': optimizer.state_dict()}
  file = read(_save(content, tmp_path / 'x.pth', file_format))
  _assert_same_bits(state_dict(file)['weight'], model.weight)
  momentum = file.content['optimizer']['state'][0]['momentum_buffer']
  _assert_same_bits(momentum, optimizer.state_dict()['state'][0]['momentum_buffer'])


@pytest.mark.parametrize('file_format', FORMATS)
def test_arrays_are_writable_and_views_share_memory(tmp_path, file_format):
  torch = pytest.importorskip('torch')
  base = torch.zeros(4, 4)
  path = _save({'all': base, 'row': base[2]}, tmp_path / 'x.pth', file_format)
  content = read(path).content
  content['row'][:] = 5
  assert content['all'].sum() == 20


def test_reading_imports_no_torch(tmp_path):
  path = _save(_released(_tensors()), tmp_path / 'x.pth', 'legacy')
  program = (
    'import sys; from convert.pytorch_file import read, state_dict;'
    f'print(len(state_dict(read({str(path)!r}))));'
    'sys.exit("torch" in sys.modules)'
  )
  root = Path(__file__).parent.parent
  done = subprocess.run([sys.executable, '-c', program], cwd=root, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (0, f'{len(_tensors())}\n'), done.stderr


def _file_with(content):
  return PytorchFile(Path('some.pth'), 'zip', '', content)


@pytest.mark.parametrize('key', [None, 'state_dict', 'model', 'model_state_dict', 'net'])
@pytest.mark.parametrize(
  ('names', 'stripped'),
  [
    (['a.weight', 'b'], ['a.weight', 'b']),
    (['module.a', 'module.b'], ['a', 'b']),
    (['module.module.a', 'module.module.b'], ['a', 'b']),
    (['model.a', 'model.b'], ['a', 'b']),
    (['module.model.a', 'module.model.b'], ['a', 'b']),
    (['model.module.a', 'model.module.b'], ['a', 'b']),
    (['module.a', 'b'], ['module.a', 'b']),
    (['module.a', 'model.b'], ['module.a', 'model.b']),
    (['model.model.a', 'model.model.b'], ['model.a', 'model.b']),
    (['model.a', 'loss.weight'], ['model.a', 'loss.weight']),
    (['module.backbone.a', 'module.backbone.b'], ['backbone.a', 'backbone.b']),
  ],
)
def test_finds_the_state_dict_and_strips_what_all_names_have(key, names, stripped):
  weights = {name: np.full(2, i) for i, name in enumerate(names)}
  found = state_dict(_file_with(weights if key is None else {'epoch': 3, key: weights}))
  assert list(found) == stripped
  assert [array[0] for array in found.values()] == [0, 1]


@pytest.mark.parametrize(
  ('content', 'told'),
  [
    ({'epoch': 1, 'weights': {'a': np.zeros(1)}}, "'epoch' is of type int"),
    ([np.zeros(1)], 'of type list'),
    ({'state_dict': {}}, '0 entries'),
    ({'state_dict': {'a': np.zeros(1), 'b': 'text'}}, "'b' is of type str"),
    ({'model': {'a': {'b': np.zeros(1)}}}, "'a' is a dictionary with 1 entries: 'b'"),
    ({3: np.zeros(1)}, '3 is of type ndarray'),
  ],
)
def test_no_state_dict_is_told(content, told):
  with pytest.raises(CheckpointError, match=rf'^some\.pth: holds no state dict.*{told}'):
    state_dict(_file_with(content))


@pytest.mark.parametrize('name', ['a\x1b[2J', 'a\nb', '\ud800', 'a' * 501])
def test_names_that_no_network_has_are_refused(name):
  with pytest.raises(CheckpointError, match='which no network has') as caught:
    state_dict(_file_with({'weight': np.zeros(1), name: np.zeros(1)}))
  assert str(caught.value).isprintable()


class _Harm:
  def __init__(self, function, *arguments):
    self.reduced = function, arguments

  def __reduce__(self):
    return self.reduced


def _harms(sentinel):
  torch = pytest.importorskip('torch')
  touch = f'open({str(sentinel)!r}, "w").close()'
  return {
    'posix.system': {'epoch': 1, 'state_dict': _Harm(os.system, f'touch {sentinel}')},
    '__builtin__.eval': {'state_dict': OrderedDict(a=_Harm(eval, touch))},
    '__builtin__.exec': [_Harm(exec, touch)],
    '__builtin__.getattr': _Harm(getattr, 'text', 'upper'),
    'torch.serialization.load': _Harm(torch.load, str(sentinel)),
    'torch.nn.modules.linear.Linear': torch.nn.Linear(2, 2),
    'argparse.Namespace': {'args': __import__('argparse').Namespace(lr=1)},
    'torch.storage.UntypedStorage': torch.UntypedStorage(8),
    r'numpy\._core\.multiarray\._reconstruct': {'a': np.zeros(3)},
  }


@pytest.mark.parametrize('file_format', FORMATS)
def test_harm_is_refused_by_name_and_nothing_runs(tmp_path, file_format):
  for name, content in _harms(tmp_path / 'ran').items():
    path = _save(content, tmp_path / 'harm.pth', file_format)
    sentence = _refusal(path, path.read_bytes())
    assert re.search(f'refers to (torch.UntypedStorage|{name}), .* nothing was run', sentence)
  assert not (tmp_path / 'ran').exists()


def test_the_sentinel_would_have_been_seen(tmp_path):
  pickle.loads(pickle.dumps(_harms(tmp_path / 'ran')['posix.system']))
  assert (tmp_path / 'ran').exists()


@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize(
  'program',
  [
    b'ccollections\nOrderedDict\n]\x85R',  # arguments for an OrderedDict
    b'ctorch\nFloatStorage\n)R',
    b'ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89NtR',
    b'ctorch._utils\n_rebuild_parameter\n(NNNtR',
    b'cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R',
    b'cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R(K\x03X\x01\x00\x00\x00>tb',
    b'cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8\x85RX\x00\x00\x00\x00\x86R',
    b'cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R'
    b'c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R\x86R',
    b'c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R',
    b'c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00rot_13\x86R',
    b'c_codecs\nencode\nX\x40\x00\x00\x00' + b'a' * 64 + b'X\x06\x00\x00\x00latin1\x86R',
    b'X\x01\x00\x00\x00aQ',
    b'(X\x06\x00\x00\x00moduleccollections\nOrderedDict\nX\x00\x00\x00\x00X\x00\x00\x00\x00tQ',
    b'}}b',
  ],
)
def test_allowed_names_cannot_be_called_otherwise(tmp_path, file_format, program):
  data = _file_of(file_format, b'\x80\x02' + program + b'.')
  assert re.search(r'no checkpoint needs|refused|damaged', _refusal(tmp_path / 'x.pth', data))


def _pickle_of_tensors(count, offset, size, stride, kind='FloatStorage', times=1):
  """A pickle of a list of tensors over storage '0' of `count` numbers."""

  class Pickler(pickle.Pickler):
    def persistent_id(self, value):
      return value if isinstance(value, tuple) and value[:1] == ('storage',) else None

  class Tensor:
    def __reduce__(self):
      from torch import _utils

      storage = ('storage', getattr(__import__('torch'), kind), '0', 'cpu', count)
      return _utils._rebuild_tensor, (storage, offset, size, stride)

  pytest.importorskip('torch')
  buffer = io.BytesIO()
  Pickler(buffer, 2).dump([Tensor() for _ in range(times)])
  return buffer.getvalue()


def _zip_of_tensors(*args, numbers=b'\x00' * 40, **kwargs):
  return _zip_file({'data.pkl': _pickle_of_tensors(*args, **kwargs), 'data/0': numbers})


def test_the_handmade_tensors_can_be_read(tmp_path):
  path = tmp_path / 'x.pth'
  numbers = np.arange(10, dtype=np.float32)
  path.write_bytes(_zip_of_tensors(10, 1, (2, 3), (4, 1), numbers=numbers.tobytes()))
  np.testing.assert_array_equal(read(path).content[0], [[1, 2, 3], [5, 6, 7]])
  # PyTorch keeps any stride of a dimension of one.
  path.write_bytes(_zip_of_tensors(10, 1, (1, 3), (2**63, 1), numbers=numbers.tobytes()))
  np.testing.assert_array_equal(read(path).content[0], [[1, 2, 3]])


@pytest.mark.parametrize(
  ('tensor', 'told'),
  [
    ((10, 0, (11,), (1,)), 'beyond its storage'),
    ((10, 10, (1,), (1,)), 'beyond its storage'),
    ((10, 10, (), ()), 'beyond its storage'),
    ((10, 5, (2, 3), (3, 1)), 'beyond its storage'),
    ((10, 0, (2,), (2**62,)), 'beyond its storage'),
    ((10, -1, (2,), (1,)), 'no proper size'),
    ((10, 9, (2,), (-1,)), 'no proper size'),
    ((10, 0, (-2, -3), (1, 1)), 'no proper size'),
    ((10, 0, (2.0,), (1,)), 'no proper size'),
    ((10, 0, (2,), (1, 1)), 'no proper size'),
    ((10, 0, [2], [1]), 'no proper size'),
    ((10, 0, (1,) * 33, (1,) * 33), 'no proper size'),
    ((10, 0, (2**31,), (0,)), 'times as large'),
    ((10, 0, (2**40, 0), (0, 1)), 'times as large'),
    ((10, 0, (2**200,), (0,)), 'times as large'),
    ((11, 0, (1,), (1,)), 'wrong size'),
    ((2**60, 0, (1,), (1,)), 'wrong size'),
    ((-1, 0, (1,), (1,)), 'wrong size'),
    ((1.5, 0, (1,), (1,)), 'unknown way'),
  ],
)
def test_a_tensor_stays_within_its_storage(tmp_path, tensor, told):
  assert told in _refusal(tmp_path / 'x.pth', _zip_of_tensors(*tensor))


def test_many_views_of_one_storage_are_bounded_together(tmp_path):
  data = _zip_of_tensors(10, 0, (100,), (0,), times=2000)
  assert 'times as large' in _refusal(tmp_path / 'x.pth', data)


def test_a_boolean_is_0_or_1(tmp_path):
  data = _zip_of_tensors(40, 0, (40,), (1,), kind='BoolStorage', numbers=b'\x02' * 40)
  assert 'boolean' in _refusal(tmp_path / 'x.pth', data)


def test_the_largest_expanded_tensor_of_a_small_file(tmp_path):
  torch = pytest.importorskip('torch')
  path = _save({'a': torch.zeros(1).expand(10**6, 10**6)}, tmp_path / 'x.pth', 'legacy')
  assert 'times as large' in _refusal(path, path.read_bytes())


@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize('count', [10**6, 2**40, 2**62, 2**63, -1])
def test_a_storage_larger_than_the_file_takes_no_memory(tmp_path, file_format, count):
  data = _file_of(file_format, _pickle_of_tensors(count, 0, (1,), (1,)))
  (tmp_path / 'x.pth').write_bytes(data)
  tracemalloc.start()
  try:
    sentence = _refusal(tmp_path / 'x.pth', data)
    assert 'smaller than its tensors' in sentence or 'is missing' in sentence
    assert tracemalloc.get_traced_memory()[1] < 500_000
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize(('count', 'kind'), [(10, 'IntStorage'), (9, 'FloatStorage')])
def test_a_storage_of_two_types_or_sizes_is_refused(tmp_path, count, kind):
  one = _pickle_of_tensors(10, 0, (1,), (1,)).removesuffix(b'.')
  two = _pickle_of_tensors(count, 0, (1,), (1,), kind=kind)[2:].removesuffix(b'.')
  data = _zip_file({'data.pkl': one + two + b'\x86.', 'data/0': b'\x00' * 40})
  assert 'two sizes or types' in _refusal(tmp_path / 'x.pth', data)


_STORAGE_PARTS = (
  b'X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0a'
)


@pytest.mark.parametrize(('sixth', 'is_read'), [(b'', True), (b'N', True), (b')', False)])
def test_views_of_storages_are_not_mistaken_for_storages(tmp_path, sixth, is_read):
  program = b'\x80\x02(' + _STORAGE_PARTS + sixth + b'tQ.'
  data = _zip_file({'data.pkl': program, 'data/0': b'\x00' * 40})
  path = tmp_path / 'x.pth'
  if is_read:
    path.write_bytes(data)
    assert read(path).content.numbers.size == 10
  else:
    assert 'unknown way' in _refusal(path, data)


@pytest.mark.parametrize('keys', [[], ['0', '0'], ['1'], ['0', '1'], [0], [['0']], '0'])
def test_the_legacy_list_of_storages_fits_the_tensors(tmp_path, keys):
  content = _pickle_of_tensors(3, 0, (3,), (1,))
  numbers = struct.pack('<q3f', 3, 1, 2, 3)
  path = tmp_path / 'x.pth'
  path.write_bytes(_legacy_file(content, keys=['0'], numbers=numbers))
  assert read(path).content[0].tolist() == [1, 2, 3]
  assert 'list of storages' in _refusal(path, _legacy_file(content, keys=keys, numbers=numbers * 2))


def test_long_things_named_often_take_no_time(tmp_path):
  # To name a long thing again takes three bytes; a reader that looks at all of it never ends.
  program = b'\x80\x02(' + _STORAGE_PARTS + b'N' * 500_000 + b'tq\x00' + b'h\x00Q' * 500_000 + b'.'
  start = time.process_time()
  _refusal(tmp_path / 'x.pth', _zip_file({'data.pkl': program, 'data/0': b'\x00' * 40}))
  wrapped = {'module.' * 500_000 + name: np.zeros(1) for name in 'ab'}
  assert list(state_dict(_file_with(wrapped))) == ['a', 'b']
  assert time.process_time() - start < 5


def test_a_pickle_of_many_megabytes_is_refused(tmp_path):
  program = b'\x80\x02X' + struct.pack('<I', 5_000_000) + b'a' * 5_000_000 + b'.'
  for file_format in FORMATS:
    sentence = _refusal(tmp_path / 'x.pth', _file_of(file_format, program))
    assert '4194304' in sentence or 'does not end' in sentence


@pytest.mark.parametrize(
  ('data', 'told'),
  [
    (b'', 'empty'),
    (b'<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>', 'web page'),
    (b'\n\n  <html>', 'web page'),
    (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'git lfs pull'),
    (b'P', 'cut short'),
    (b'\x80\x02\x8a', 'cut short'),
    (b'PK\x03\x04', 'cut short'),
    (pickle.dumps({'a': 1}), 'not a checkpoint'),
    (b'\x89PNG\r\n\x1a\n', 'not a checkpoint'),
    (_legacy_file(pickle.dumps({}, 2), {'little_endian': False}), 'little-endian'),
    (_zip_file({'data.pkl': pickle.dumps({}, 2), 'byteorder': b'big'}), 'little-endian'),
    (_zip_file({'data.pkl': pickle.dumps({}, 4)}), 'protocol 4'),
    (_zip_file({'data.pkl': pickle.dumps({}, 2)}, zipfile.ZIP_DEFLATED), 'compressed'),
    (_zip_file({'data.txt': pickle.dumps({}, 2)}), 'no data.pkl'),
    (_legacy_file(pickle.dumps({}, 2))[:-1], 'cut short'),
  ],
)
def test_what_is_no_checkpoint_is_told(tmp_path, data, told):
  assert told in _refusal(tmp_path / 'x.pth', data)


def test_no_file_and_no_regular_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'missing\.pth: there is no such file'):
    read(tmp_path / 'missing.pth')
  with pytest.raises(CheckpointError, match='not a file'):
    read(tmp_path)


def test_encrypted_zip_is_refused(tmp_path):
  path = _save(_released(_tensors()), tmp_path / 'x.pth', 'zip')
  data = bytearray(path.read_bytes())
  for record in re.finditer(b'PK\x01\x02', bytes(data)):
    data[record.start() + 8] |= 1
  assert 'encrypted' in _refusal(path, data)


@pytest.mark.parametrize('file_format', FORMATS)
def test_every_cut_is_found(tmp_path, file_format):
  torch = pytest.importorskip('torch')
  path = _save(_released({'a': torch.ones(3), 'b': torch.ones(2)}), tmp_path / 'x.pth', file_format)
  data = path.read_bytes()
  for size in range(len(data)):
    _refusal(path, data[:size])


def test_every_flipped_number_in_a_zip_is_found(tmp_path):
  torch = pytest.importorskip('torch')
  path = _save({'a': torch.arange(50.0)}, tmp_path / 'x.pth', 'zip')
  data = path.read_bytes()
  start = data.index(np.arange(50, dtype=np.float32).tobytes())
  for at in range(start, start + 200):
    assert 'CRC' in _refusal(path, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.fixture
def weights():
  rng = np.random.default_rng(0)
  return {
    'z.weight': rng.normal(size=(3, 2, 1, 4)).astype(np.float32),
    'a.transposed': rng.normal(size=(5, 3)).astype(np.float32).T,
    'a.half': rng.normal(size=3).astype(np.float16),
    'a.bfloat16': rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
    'num_batches_tracked': np.array(7),
    'mask': np.array([True, False]),
    'empty': np.zeros((0, 3), np.float32),
    'read_only': np.broadcast_to(np.float32(3), (2, 2)),
  }


def test_what_was_written_is_read_by_torch_and_by_us(tmp_path, weights):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'x.pth'
  write(path, weights)
  loaded = torch.load(path, weights_only=True)
  assert type(loaded) is OrderedDict
  assert list(loaded) == list(weights)
  for name, tensor in loaded.items():
    _assert_same_bits(weights[name], tensor)
    assert tensor.is_contiguous()
  again = state_dict(read(path))
  assert list(again) == list(weights)
  for name, array in again.items():
    assert array.dtype == weights[name].dtype
    np.testing.assert_array_equal(array, weights[name])


def test_writing_is_whole_or_not_at_all(tmp_path, weights, monkeypatch):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'x.pth'
  path.write_bytes(b'old')

  def full_disk(content, file):
    file.write(b'PK\x03\x04')
    raise OSError('No space left on device')

  monkeypatch.setattr(torch, 'save', full_disk)
  with pytest.raises(OSError, match='No space left'):
    write(path, weights)
  assert path.read_bytes() == b'old'
  assert os.listdir(tmp_path) == ['x.pth']
  monkeypatch.undo()
  with path.open('rb') as old:
    write(path, weights)
    assert old.read() == b'old'  # replaced, not overwritten
  assert os.listdir(tmp_path) == ['x.pth']
  assert len(state_dict(read(path))) == len(weights)


@pytest.mark.parametrize('value', ['text', np.array(['a']), np.array([None]), np.uint16(3)])
def test_what_a_checkpoint_cannot_hold_is_not_written(tmp_path, value):
  pytest.importorskip('torch')
  with pytest.raises(CheckpointError, match=r"x\.pth: entry 'layer' is of dtype"):
    write(tmp_path / 'x.pth', {'layer': value})
  assert os.listdir(tmp_path) == []


def test_writing_without_torch_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(ImportError, match=r'x\.pth.* pip install "if_jax\[torch\]"'):
    write(tmp_path / 'x.pth', {'a': np.zeros(1)})
