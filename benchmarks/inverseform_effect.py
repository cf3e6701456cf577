"""What does the InverseForm loss do to a network trained with it?

One model is trained on one data set with each loss setting and seed, by `main.py` and under one
budget; a seed has the same initial weights and the same images in the same order in all settings.
Scored is the state after the last step, on the validation split: no checkpoint is chosen.

python -m benchmarks.inverseform_effect --root=/data/camvid

Seed 0 of all settings comes first, then seed 1: whenever it is stopped, whole seeds are left. The
same command goes on where it stopped; with --report_only it makes the tables of what is there.
"""

import argparse
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.effect_report import report, scores_of
from benchmarks.results import run
from if_jax.report import read_metrics

_MAIN = Path(__file__).parent.parent / 'main.py'
_RESULT_FILE = 'result.json'


class Setting(NamedTuple):
  """A loss: what it is to show, and what it changes in a configuration that has all terms."""

  reason: str
  overrides: dict[str, bool | float | str]


SETTINGS = {
  'cross_entropy': Setting(
    'no boundary term: the edge head stays as it starts, so that all start from the same weights',
    {'loss.weights.boundary': 0.0, 'loss.weights.attention': 0.0, 'loss.inversenet': ''},
  ),
  'boundary': Setting(
    'an edge head with its cross-entropy',
    {'loss.weights.attention': 0.0, 'loss.inversenet': ''},
  ),
  'attention': Setting(
    'and the attention term: all that the InverseForm term is added to',
    {'loss.inversenet': ''},
  ),
  'as_released': Setting(
    "and the release's InverseForm term, whose gradient is 0",
    {'loss.gradient': 'as_released'},
  ),
  'inverseform': Setting('and the InverseForm term as the configuration has it', {}),
  'inverseform_gamma': Setting('with another weight', {'loss.weights.inverseform': 1.0}),
  'inverseform_tiles': Setting(
    'on one row of tiles, which see boundaries that are farther off; for configurations of more',
    {'loss.tile_rows': 1},
  ),
  'inverseform_full': Setting(
    'with the whole gradient, also what moves nothing', {'loss.gradient': 'full'}
  ),
  'inverseform_classes': Setting(
    'on the boundaries between the predicted classes in place of those of the edge head',
    {'loss.inverseform_on': 'classes'},
  ),
  'inverseform_predictions': Setting(
    'with an inverse network that has learnt from predicted boundaries, of --mode=train_inversenet '
    'with --workdir=runs/inversenet_predictions --config.predictions=NETWORK',
    {'loss.inversenet': 'runs/inversenet_predictions/inversenet'},
  ),
  'inverseform_late': Setting(
    'in the second half of the training only, when there are boundaries to move',
    {'loss.inverseform_start': 0.5},
  ),
}


# The other needs an inverse network that is to be trained first.
_DEFAULT_SETTINGS = [name for name in SETTINGS if name != 'inverseform_predictions']


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.inverseform_effect', description=__doc__)
  add = parser.add_argument
  add('--config', default='configs/camvid.py', help='as main.py takes it, with all loss terms on')
  add('--root', help='the folder of the data set')
  add('--model', help='another one than that of the configuration')
  add('--num_steps', type=int, help="another budget than the configuration's")
  add('--seeds', type=_seeds, default='0,1,2')
  add(
    '--settings',
    type=_settings,
    default=','.join(_DEFAULT_SETTINGS),
    help='of ' + ', '.join(SETTINGS),
  )
  add('--init_from', help='a weight folder that all trainings start from')
  add(
    '--override',
    type=_override,
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='of the configuration, for all settings; may be given several times',
  )
  add('--output', default='runs/inverseform_effect', help='folder of runs, JSON and pictures')
  add('--report_only', action='store_true', help='train nothing')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  wanted = [(setting, seed) for seed in arguments.seeds for setting in arguments.settings]
  for setting in () if arguments.report_only else arguments.settings:
    folder = SETTINGS[setting].overrides.get('loss.inversenet')
    if folder and not Path(folder).is_dir():
      raise ValueError(f'{setting} takes the inverse network in {folder}, which is not there')
  records = []
  for setting, seed in wanted:
    record = read_result(arguments, setting, seed)
    if record is None and not arguments.report_only:
      train(arguments, setting, seed)
      record = read_result(arguments, setting, seed)
      done = f'{len(records) + 1} of {len(wanted)}'
      print(f'{setting}, seed {seed}: mIoU {100 * record["scores"]["miou"]:.2f} % ({done})')
      sys.stdout.flush()
    if record is not None:
      records.append(record)
  if not records:
    raise ValueError(f'no run in {arguments.output} is finished; leave --report_only away')
  reasons = {setting: SETTINGS[setting].reason for setting in arguments.settings}
  return report(records, reasons, arguments.output)


def train(arguments: argparse.Namespace, setting: str, seed: int) -> None:
  """Trains with a setting, from its newest checkpoint if there is one, and keeps the result."""
  workdir = run_folder(arguments, setting, seed)
  workdir.mkdir(parents=True, exist_ok=True)
  overrides = overrides_of(arguments, setting, seed)
  flags = [f'--config.{key}={value}' for key, value in overrides.items()]
  command = [sys.executable, str(_MAIN), '--mode=train', f'--config={arguments.config}']
  peak_memory = run_process([*command, f'--workdir={workdir}', *flags], workdir / 'log.txt')

  lines = read_metrics(workdir / 'metrics.jsonl')
  validation = [line for line in lines if 'val/miou' in line]
  rates = [line['train/images_per_second'] for line in lines if 'train/loss' in line]
  batch_size = json.loads((workdir / 'config.json').read_text())['train']['batch_size']
  weights = (workdir / 'last' / 'model.safetensors').read_bytes()
  result = {
    'setting': setting,
    'seed': seed,
    'config': arguments.config,
    'overrides': overrides,
    'steps': validation[-1]['step'],
    'images_per_second': float(np.median(rates)),
    'seconds_per_step': float(batch_size / np.median(rates)),
    'peak_memory_mib': peak_memory,
    'weights_sha256': hashlib.sha256(weights).hexdigest(),
    'scores': scores_of(validation[-1]),
    'miou_over_steps': [(line['step'], line['val/miou']) for line in validation],
  }
  # Renamed when it is whole: a run with this file is finished.
  part = workdir / f'{_RESULT_FILE}.part'
  part.write_text(json.dumps(result, indent=1) + '\n')
  part.replace(workdir / _RESULT_FILE)


def read_result(arguments: argparse.Namespace, setting: str, seed: int) -> dict | None:
  """What `train` left; None if it has not, or not to the end.

  Raises:
    ValueError: it was trained under another budget, which cannot be compared.
  """
  workdir = run_folder(arguments, setting, seed)
  path = workdir / _RESULT_FILE
  if not path.is_file():
    return None
  record = json.loads(path.read_text())
  before = {'config': record['config'], **record['overrides']}
  now = {'config': arguments.config, **overrides_of(arguments, setting, seed)}
  # Where the data lies makes no difference.
  differing = sorted(
    key for key in before | now if key != 'data.root' and before.get(key) != now.get(key)
  )
  if differing:
    was, now = ({key: x.get(key) for key in differing} for x in (before, now))
    raise ValueError(
      f'{workdir} was trained with {was}, and now asked for is {now}; choose another --output, '
      'or give the flags it was started with'
    )
  return {**record, 'metrics': read_metrics(workdir / 'metrics.jsonl')}


def run_folder(arguments: argparse.Namespace, setting: str, seed: int) -> Path:
  return Path(arguments.output, 'runs', setting, f'seed{seed}')


def overrides_of(arguments: argparse.Namespace, setting: str, seed: int) -> dict:
  """What to change in the configuration, by key; the setting has the last word."""
  named = {
    'data.root': arguments.root,
    'model.name': arguments.model,
    'train.num_steps': arguments.num_steps,
    'init_from': arguments.init_from,
  }
  given = {key: value for key, value in named.items() if value is not None}
  return {**given, **dict(arguments.override), **SETTINGS[setting].overrides, 'seed': seed}


def run_process(command: Sequence[str], log: Path) -> float:
  """Runs a command, what it says into a log, and gives the most memory that it held, in MiB.

  Raises:
    ValueError: it failed; with the end of the log.
  """
  with (
    log.open('ab') as file,
    subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process,
  ):
    peak = 0
    try:
      while process.poll() is None:
        peak = max(peak, _peak_memory(process.pid))
        time.sleep(0.2)
    except BaseException:
      process.kill()
      raise
  if process.returncode:
    end = '\n'.join(log.read_text(errors='replace').splitlines()[-12:])
    raise ValueError(f'the training ended with status {process.returncode}; {log} ends:\n{end}')
  return peak / 1024


def _peak_memory(pid):
  """Of a running process, in KiB; 0 as it ends.

  `os.wait4` would give the memory of the process that started it, if that held more.
  """
  status = Path(f'/proc/{pid}/status').read_text()
  peak = re.search(r'VmHWM:\s*(\d+) kB', status)
  return int(peak[1]) if peak else 0


def _seeds(text):
  return [int(seed) for seed in text.split(',')]


def _settings(text):
  names = text.split(',')
  unknown = [name for name in names if name not in SETTINGS]
  if unknown:
    raise argparse.ArgumentTypeError(
      f'unknown {", ".join(unknown)}; there are {", ".join(SETTINGS)}'
    )
  return names


def _override(text):
  key, equals, value = text.partition('=')
  if not equals:
    raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
  return key.removeprefix('config.'), value


if __name__ == '__main__':
  # `kill` ends the training under way, too.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit('terminated'))
  main()
