"""A mistake on the command line is one sentence and status 2; other failures have status 1."""

import os
import pty
import re
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from processes import ROOT, run_main, run_python

from if_jax import cli, usage
from if_jax.__main__ import MODES
from if_jax.configs import camvid, cityscapes
from if_jax.models import MODELS


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--mode=tran', '--workdir=x'], "unknown mode 'tran'; there are train, evaluate, predict"),
    (['--mode=train'], '--workdir=DIR is missing'),
    (['train', '--workdir=x'], "unexpected argument 'train'"),
    (['--workdir=x', '--config=nope.py'], 'nope.py'),
    (['--workdir=x', '--config=camvidd'], 'folder, inversenet. Did you mean camvid?'),
    (['--workdir=x', '--config=camvid:hrnet18'], "nothing after a colon, but is given 'hrnet18'"),
    (['--workdir=x', '--config=cityscapes:ocrnet84'], "'ocrnet84'; there are hrnet18, hrnet16_sl"),
    (['--workdir=x', '--config'], 'Missing value for flag --config'),
    (['--workdir=x', '--config.train.batchsize=2'], 'Did you mean config.train.batch_size?'),
    (['--workdir=x', '--config.trian.num_steps=2'], 'Did you mean config.train.num_steps?'),
    (['--workdir=x', '--config.batch_size=2'], 'config.eval.batch_size or config.train.batch_siz'),
    (['--workdir=x', '--config.train.num_steps.a=2'], 'no key config.train.num_steps.a;'),
    (['--workdir=x', '--config.train.num_steps=abc'], 'give a whole number, such as 1000'),
    (['--workdir=x', '--config.eval.flip=2'], 'give true or false'),
    (['--workdir=x', '--config.optimizer.power=a:b'], 'power=a:b: give a number, such as 0.9'),
    (['--workdir=x', '--config.augment.crop_size[0]=abc'], 'crop_size[0]=abc: give a whole number'),
    (['--workdir=x', '--config.augment.crop_size[2]=9'], 'no config.augment.crop_size[2]; set all'),
    (['--workdir=x', '--config.optimizer.power[0]=1'], 'no config.optimizer.power[0]; set all'),
    (['--workdir=x', '--config.train=3'], 'config.train is a group of keys; give one of them'),
    (['--workdir=x', '--num_processes=two'], '--num_processes=two: give a whole number'),
    (['--workdir=x', '--heartbeat_timeout=0'], '0 is not a positive integer'),
    (['--worksdir=x'], 'there is no flag --worksdir; --help lists those there are. Did you mean'),
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


def test_a_wrong_key_in_a_file_is_told_with_the_file(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    textwrap.dedent("""
      from if_jax.configs import default
      def get_config():
        config = default.get_config()
        config.train.batchsize = 8
        return config
    """)
  )
  run = run_main(f'--workdir={tmp_path}/x', f'--config={file}')
  assert run.returncode == 2
  assert run.stderr.startswith(f'error: {file}: Key "batchsize" does not exist')
  assert 'Did you mean "batch_size"' in run.stderr and run.stderr.count('\n') == 1


def test_help_of_a_configuration_with_a_choice_shows_that():
  run = run_main('--config=cityscapes:ocrnet48_hms', '-h')
  assert run.returncode == 0, run.stderr
  assert re.search(r'^  name +ocrnet48_hms ', run.stdout, re.M)
  assert re.search(r'^  segmentation +rmi ', run.stdout, re.M)


def test_help_of_a_file_with_a_group_of_its_own_keeps_the_reasons(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    textwrap.dedent("""
      from ml_collections import ConfigDict
      from if_jax.configs import default
      def get_config():
        config = default.get_config()
        # Mine, too.
        config.train.batch_size = 3
        config.unlock()
        config.extra = ConfigDict()
        # What nobody else has.
        config.extra.mine = 7
        return config
    """)
  )
  run = run_main(f'--config={file}', '--help')
  assert run.returncode == 0, run.stderr
  assert re.search(r'^  batch_size +3 +Over all devices together\.$', run.stdout, re.M)
  assert re.search(r'^  mine +7 +What nobody else has\.$', run.stdout, re.M)


def test_keys_may_come_before_their_configuration():
  run = run_main('--config.seed=77', '--config', 'demo', '--help')
  assert run.returncode == 0
  assert re.search(r'^  seed +77 ', run.stdout, re.M)


@pytest.mark.parametrize(
  ('ending', 'status'),
  [
    ('return', 0),
    ('return 1', 1),
    ('raise KeyError(3)', 1),
    ('raise FloatingPointError("the loss is not finite")', 1),
    ('raise ValueError("a mistake")', 2),
    ('raise OSError("no such file")', 2),
    ('raise KeyboardInterrupt', 130),
    ('sys.exit(143)', 143),
  ],
)
def test_an_ending_has_its_exit_status(ending, status):
  code = f"""
import sys
from if_jax import cli
def main():
  {ending}
cli.run(main)
"""
  run = run_python('-c', code)
  assert run.returncode == status
  assert ('Traceback' in run.stderr) == ('KeyError' in ending)
  if status in (2, 130):
    assert run.stderr.startswith('error: ') and run.stderr.count('\n') == 1


def test_help_lists_modes_configurations_and_our_flags():
  run = run_main('--help')
  assert run.returncode == 0 and not run.stderr
  lines = [line.split() for line in run.stdout.splitlines() if line.startswith('  ')]
  named = {words[0] for words in lines if len(words) > 1}
  assert {*MODES, 'camvid', 'cityscapes', 'inversenet', '--mode', '--config'} <= named
  assert '--verbosity' not in run.stdout and '__init__' not in run.stdout
  assert '\x1b' not in run.stdout
  assert max(map(len, run.stdout.splitlines())) <= 80


def test_help_has_colours_on_a_terminal_as_wide_as_it_is():
  reader, writer = pty.openpty()
  environment = {**os.environ, 'COLUMNS': '64', 'TERM': 'xterm-256color'}
  environment.pop('NO_COLOR', None)
  with subprocess.Popen(
    [sys.executable, 'main.py', '--help'], cwd=ROOT, stdout=writer, env=environment
  ) as process:
    os.close(writer)
    text = b''
    # A terminal whose other end is closed is an error to read.
    while chunk := read(reader):
      text += chunk
  os.close(reader)
  assert process.returncode == 0
  text = text.decode()
  assert '\x1b[36m' in text
  plain = re.sub(r'\x1b\[[0-9;]*m', '', text)
  assert 60 <= max(map(len, plain.splitlines())) <= 64


def read(descriptor):
  try:
    return os.read(descriptor, 65536)
  except OSError:
    return b''


def test_help_needs_no_jax():
  code = (
    'import sys; sys.argv = ["main.py", "--config=camvid", "--help"]\n'
    'from if_jax.__main__ import start\n'
    'try: start()\n'
    'finally: assert not {"jax", "numpy", "tensorflow_datasets"} & set(sys.modules)'
  )
  run = run_python('-c', code)
  assert run.returncode == 0, run.stderr
  assert 'crop_size' in run.stdout


def test_help_of_a_configuration_has_every_key_with_value_and_reason():
  reasons = usage.key_reasons(ROOT / 'configs' / 'default.py')
  config = camvid.get_config()
  rows = {}
  for heading, section in usage.key_sections(config, reasons):
    group = heading.partition('  ')[0].removeprefix('config.')
    rows |= {group + key.strip(): cells for key, *cells in section}
  assert rows['augment.crop_size'] == ['(240, 320)', '']
  assert rows['train.batch_size'] == ['16', 'Over all devices together.']
  assert rows['loss.weights.scales'] == ['0.05', "Of each scale's own answer, for ocrnet48_hms."]
  assert rows['data.root'] == ["''", 'The folder that holds the data set; streets needs none.']
  assert {key for key in rows if not key.endswith('.')} == set(leaves(config))
  # As in the file, not in the order of the alphabet.
  assert list(rows)[:2] == ['seed', 'init_from']


def leaves(config, prefix=''):
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key


def test_the_choice_of_a_network_is_checked_by_the_same_names():
  assert set(cityscapes._MODELS) == set(MODELS)


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
