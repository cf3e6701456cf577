"""A mistake on the command line is one sentence and status 2."""

import pytest
from processes import run_main


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
    (['--workdir=x', '--mode=predict'], '--input=PATH is missing'),
  ],
)  # fmt: skip
def test_mistakes(arguments, message, tmp_path, monkeypatch):
  arguments = [a.replace('--workdir=x', f'--workdir={tmp_path}/x') for a in arguments]
  run = run_main(*arguments)
  assert run.returncode == 2, run.stderr
  assert message.replace('x/best', f'{tmp_path}/x/best') in run.stderr
  assert run.stderr.startswith('error: ')
  assert run.stderr.count('\n') == 1
