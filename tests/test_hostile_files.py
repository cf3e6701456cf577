"""Files from strangers: nothing in them runs, nothing large is taken, one sentence says why."""

import argparse
import ast
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
from PIL import Image

from if_jax.curves import read_metrics
from if_jax.data.datasets import load_dataset

ROOT = Path(__file__).parent.parent


def _run(program, *arguments):
  """What a program prints as JSON, in a process of its own: its memory and modules are its own."""
  done = subprocess.run(
    [sys.executable, '-c', f'import sys; sys.path[:0] = [".", "tests"]\n{program}', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parametrize('target', ['fuzz_pytorch_file', 'fuzz_weights'])
def test_mutations_are_read_or_refused(tmp_path, target):
  program = (
    'import json, pathlib\n'
    f'from fuzz.{target} import check, seeds\n'
    'from fuzz.mutations import read_mutations\n'
    'result = read_mutations(check, seeds(), pathlib.Path(sys.argv[1]), count=20_000)\n'
    'print(json.dumps(result | {"torch": "torch" in sys.modules}))'
  )
  result = _run(program, str(tmp_path))
  assert not result['torch']
  # Some are read, or the mutations would show nothing of what lies behind the first check.
  assert 1000 < result['read'] < 18_000
  assert result['slowest'] < 1
  assert result['megabytes'] < 500


# Reads each file in a folder, and gives it to the command as well: name -> what came of both.
_CONVERT_EACH = """
import contextlib, io, json, pathlib
from absl import flags
from convert import from_torch, pytorch_file
from convert.__main__ import main
from if_jax import cli

results = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob('*.pth')):
  result = results[path.stem] = {}
  try:
    file = pytorch_file.read(path)
    result |= {'names': list(pytorch_file.state_dict(file)), 'sha256': file.sha256}
  except Exception as error:
    result['error'] = type(error).__name__
  output = path.with_suffix('')
  sys.argv[1:] = [f'--checkpoint={path}', '--model=hrnet16_slim', f'--output={output}']
  flags.FLAGS.unparse_flags()
  said = io.StringIO()
  with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
    try:
      cli.run(main)
    except SystemExit as end:
      result['status'] = end.code or 0
  result |= {'said': said.getvalue(), 'written': output.exists()}
print(json.dumps({'files': results, 'torch': 'torch' in sys.modules}))
"""


class _Harm:
  def __init__(self, function, argument):
    self.reduced = function, (argument,)

  def __reduce__(self):
    return self.reduced


def _strange_checkpoints(folder, sentinel):
  """Writes checkpoints; name -> what is said of those that are refused, or ''."""
  torch = pytest.importorskip('torch')
  touch = f'open({str(sentinel)!r}, "w").close()'
  tiny = {'weight': torch.arange(6.0)}
  whole = {k: torch.from_numpy(v) for k, v in reference.state_dict('hrnet16_slim').items()}
  wrong = dict(whole)
  removed = wrong.pop('backbone.conv1.weight')
  wrong |= {'extra': removed, 'backbone.bn1.bias': removed}
  wrong['backbone.bn2.bias'] = torch.full_like(whole['backbone.bn2.bias'], float('nan'))
  wrong['backbone.bn2.running_var'] = -whole['backbone.bn2.running_var']

  def released(weights, mean_iu=0.85, **more):
    return {'epoch': 174, 'num_classes': 19, 'state_dict': weights, 'mean_iu': mean_iu, **more}

  contents = {
    'scalar': (released(tiny, np.float64(0.85)), '1 unexpected: weight'),
    'float': (released(tiny), '1 unexpected: weight'),
    'float32': (released(tiny, np.float32(0.85)), '1 unexpected: weight'),
    'bare': (tiny, '1 unexpected: weight'),
    'namespace': (released(tiny, args=argparse.Namespace(lr=1)), 'refers to argparse.Namespace'),
    'array': (released(tiny, mean_iu=np.zeros(3)), 'multiarray._reconstruct'),
    'module': (torch.nn.Linear(2, 2), 'refers to torch.nn.modules.linear.Linear'),
    'system': (released(_Harm(os.system, f'touch {sentinel}')), 'refers to posix.system'),
    'eval': (released({'weight': _Harm(eval, touch)}), 'refers to __builtin__.eval'),
  }
  told = {}
  for kind in ('legacy', 'zip'):
    for name, (content, reason) in contents.items():
      path = folder / f'{name}_{kind}.pth'
      torch.save(content, path, _use_new_zipfile_serialization=kind == 'zip')
      told[path.stem] = reason

  def write(name, data, reason):
    (folder / f'{name}.pth').write_bytes(data)
    told[name] = reason

  legacy, zipped = ((folder / f'scalar_{kind}.pth').read_bytes() for kind in ('legacy', 'zip'))
  numbers = np.arange(6, dtype=np.float32).tobytes()
  for name, data in (('legacy', legacy), ('zip', zipped)):
    write(f'cut_{name}', data[: len(data) // 2], 'cut short')
    write(f'cut_tail_{name}', data[:-4], 'cut short')
    flipped = data.replace(numbers, numbers[:-1] + b'\xff')
    write(f'flipped_{name}', flipped, 'CRC' if name == 'zip' else '1 unexpected: weight')
  write('scalar_numpy1', legacy.replace(b'cnumpy._core.', b'cnumpy.core.'), '1 unexpected: weight')
  write('pickle', pickle.dumps(_Harm(eval, touch)), 'not a checkpoint')
  write('empty', b'', 'empty')
  write('page', b'<!DOCTYPE html><html>404</html>', 'a web page')
  torch.save(wrong, folder / 'wrong.pth')
  told['wrong'] = 'do not fit hrnet16_slim: 1 missing: backbone.conv1.weight; 1 unexpected: extra; '
  torch.save(released(whole, np.float64(0.85)), folder / 'whole.pth')
  told['whole'] = ''
  return told


def test_no_checkpoint_runs_anything_and_every_refusal_is_one_line(tmp_path):
  sentinel = tmp_path / 'ran'
  told = _strange_checkpoints(tmp_path, sentinel)
  result = _run(_CONVERT_EACH, str(tmp_path))
  assert not sentinel.exists()
  assert not result['torch']
  files = result['files']
  assert files.keys() == told.keys()
  for name, reason in told.items():
    file = files[name]
    # Those that are checkpoints, if not of this network, are read.
    assert file.get('error', 'CheckpointError') == 'CheckpointError', name
    assert ('error' not in file) == (not reason or 'missing' in reason or 'unexpected' in reason)
    assert file['status'] == (2 if reason else 0), (name, file)
    assert reason in file['said']
    assert file['said'].count('\n') == (1 if reason else 0), file['said']
    assert file['written'] == (not reason)
  for problem in ('1 mis-shaped: backbone.bn1.bias', 'not finite: backbone.bn2.bias', '1 negative'):
    assert problem in files['wrong']['said']
  for name in ('scalar_legacy', 'scalar_numpy1', 'float_zip', 'bare_zip', 'float32_legacy'):
    assert files[name]['names'] == ['weight']
  # The legacy format has no checksum: only the SHA-256, which is printed, tells.
  assert files['flipped_legacy']['sha256'] != files['scalar_legacy']['sha256']


def test_the_sentinel_would_have_been_seen(tmp_path):
  pickle.loads(pickle.dumps(_Harm(os.system, f'touch {tmp_path}/ran')))
  assert (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
  'line',
  [
    b'{"step": 2',
    b'{"step": null}',
    b'{"step": "2"}',
    b'{"loss": 1}',
    b'{"step": 2, "val/miou": "0.5"}',
    b'{"step": 2, "loss": [1]}',
    b'{"step": 2, "loss": NaN}',
    b'{"step": 2, "loss": 1' + b'0' * 400 + b'}',
    b'[2]',
    b'"step"',
    b'',
    b'[' * 100_000,
    b'\xff\xfe',
    bytes(512),
  ],
)
def test_a_damaged_line_of_metrics_is_told_by_its_number(tmp_path, line):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1, "loss": null}\n' + line + b'\n{"step": 3}\n')
  with pytest.raises(ValueError, match=re.escape(f'{path}, line 2 is no JSON object of numbers')):
    read_metrics(path)
  # What a crash leaves of the last line is left out.
  path.write_bytes(b'{"step": 1, "loss": null}\n' + line)
  assert read_metrics(path) == [{'step': 1, 'loss': None}]


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A function that loads a data set whose prepared files can be damaged before."""
  root = tmp_path_factory.mktemp('pets')
  for part in ('images', 'labels'):
    (root / part).mkdir()
    for i in range(3):
      Image.fromarray(np.full((8, 8), i, np.uint8)).save(root / part / f'{i}.png')
  classes = [{'name': str(i), 'color': [i, 0, 0]} for i in range(3)]
  (root / 'classes.json').write_text(json.dumps({'classes': classes}))

  def load():
    return load_dataset('folder', 'all', root=root, cache_dir=root / 'cache')

  load()
  (shard,) = root.rglob('*.array_record-*')
  return load, shard.parent


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json', '*.array_record-*'])
@pytest.mark.parametrize('damage', ['missing', 'empty', 'cut', 'garbage', 'nested'])
def test_damage_to_what_was_prepared_is_told(prepared, name, damage):
  load, folder = prepared
  (path,) = folder.glob(name)
  whole = path.read_bytes()
  damaged = {
    'empty': b'',
    'cut': whole[: len(whole) // 2],
    'garbage': b'x' * len(whole),
    'nested': b'[' * 100_000,
  }
  try:
    path.unlink()
    if damage != 'missing':
      path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r'cannot be read .*; delete this folder and') as caught:
      list(load())
  finally:
    path.write_bytes(whole)
  named = str(caught.value).partition(':')[0]
  assert folder.is_relative_to(named) and not folder.parents[2].is_relative_to(named)
  assert len(list(load())) == 3


def test_no_example_is_dropped_in_silence(prepared):
  load, folder = prepared
  path = folder / 'dataset_info.json'
  whole = path.read_text()
  assert '"3"' in whole
  try:
    path.write_text(whole.replace('"3"', '"2"'))
    with pytest.raises(ValueError, match='it holds another number of examples'):
      load()
  finally:
    path.write_text(whole)


# What processes of one job send each other never was a file.
_MAY_UNPICKLE = ('if_jax/processes.py:',)


def test_no_source_runs_what_it_reads():
  files = [ROOT / 'main.py']
  for folder in ('if_jax', 'convert', 'benchmarks', 'configs'):
    files += (ROOT / folder).rglob('*.py')
  assert len(files) > 60
  found = []
  for path in files:
    name = path.relative_to(ROOT)
    found += [f'{name}:{line}: {call}' for line, call in _dangers(path.read_text())]
  assert [call for call in found if not call.startswith(_MAY_UNPICKLE)] == []


def _dangers(source):
  """(line, call) of whatever runs, or can run, what a file holds."""
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Call):
      continue
    call = ast.unparse(node.func)
    options = {option.arg: ast.unparse(option.value) for option in node.keywords}
    if (
      call in ('eval', 'exec', 'compile', '__import__', 'os.system')
      or re.fullmatch(r'(c?[pP]ickle|dill|marshal|joblib|shelve)\.(loads?|open|Unpickler)', call)
      or call.endswith(('yaml.load', 'unsafe_load'))
      or (call == 'torch.load' and options.get('weights_only') != 'True')
      or options.get('weights_only', 'True') != 'True'
      or options.get('allow_pickle', 'False') != 'False'
      or options.get('shell', 'False') != 'False'
    ):
      yield node.lineno, call


@pytest.mark.parametrize(
  'source',
  [
    'eval("1")',
    'pickle.load(file)',
    'pickle.loads(data)',
    'pickle.Unpickler(file)',
    'np.load(path, allow_pickle=True)',
    'torch.load(path)',
    'torch.load(path, weights_only=False)',
    'yaml.load(file)',
    'subprocess.run(command, shell=True)',
  ],
)
def test_dangerous_calls_are_seen(source):
  assert list(_dangers(source))
  assert not list(_dangers('np.load(path); model.eval(); torch.load(path, weights_only=True)'))
