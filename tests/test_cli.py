"""A mistake on the command line is one sentence and status 2; other failures have status 1."""

import jax.numpy as jnp
import pytest
from processes import run_main

from if_jax import cli


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--mode=tran', '--workdir=x'], "unknown mode 'tran'; there are train, evaluate, predict"),
    (['--mode=train'], '--workdir=DIR is missing'),
    (['train', '--workdir=x'], "unexpected argument 'train'"),
    (['--workdir=x', '--config=nope.py'], 'nope.py'),
    (['--workdir=x', '--config.train.batch_siz=2'], 'Did you mean "batch_size"'),
    (['--workdir=x', '--config.train.batch_size=two'], "'two'"),
    (['--workdir=x', '--nonsense'], "Unknown command line flag 'nonsense'"),
    (['--workdir=x', '--config.data.name=camvi'], "no data set 'camvi'; there are"),
    (['--workdir=x', '--config=configs/camvid.py'], 'camvid needs root'),
    (['--workdir=x', '--config.model.name=hrnet81'], "Did you mean 'hrnet18'"),
    (['--workdir=x', '--config.train.batch_size=0'], 'batch_size'),
    (['--workdir=x', '--config.optimizer.name=adam'], "no optimizer 'adam'"),
    (['--workdir=x', '--config.augment.crop_size=(1,2,3)'], 'crop_size'),
    (['--workdir=x', '--config.loss.weights.boundary=-1'], 'loss boundary is -1.0'),
    (['--workdir=x', '--config.init_from=nowhere'], 'no weights in nowhere'),
    (['--workdir=x', '--mode=evaluate'], 'no weights in x/best'),
    (['--mode=predict'], '--input=PATH is missing'),
    (['--mode=predict', '--input=nope.jpg'], 'nope.jpg: no such file or folder to predict'),
  ],
)  # fmt: skip
def test_mistakes(arguments, message, tmp_path, monkeypatch):
  arguments = [a.replace('--workdir=x', f'--workdir={tmp_path}/x') for a in arguments]
  run = run_main(*arguments)
  assert run.returncode == 2, run.stderr
  assert message.replace('x/best', f'{tmp_path}/x/best') in run.stderr
  assert run.stderr.startswith('error: ')
  assert run.stderr.count('\n') == 1


def test_a_lack_of_memory_is_told_with_what_to_lower(capsys):
  with pytest.raises(Exception) as caught:
    jnp.zeros(1 << 46).block_until_ready()
  assert cli.tell(caught.value) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: out of memory (RESOURCE_EXHAUSTED: ')
  assert 'lower config.train.batch_size or config.augment.crop_size' in line


def test_a_full_disk_is_no_lack_of_memory(capsys):
  assert cli.tell(OSError('a checkpoint could not be written (RESOURCE_EXHAUSTED: No space)')) == 2
  assert capsys.readouterr().err.startswith('error: a checkpoint could not be written')


def test_what_nobody_thought_of_has_a_traceback_and_status_1(capsys):
  try:
    raise KeyError('surprise')
  except KeyError as error:
    assert cli.tell(error) == 1
  assert "KeyError: 'surprise'" in capsys.readouterr().err
