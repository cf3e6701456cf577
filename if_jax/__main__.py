"""The command line: `if-jax --mode=train --config=camvid --workdir=DIR`.

`python main.py` in a checkout and `python -m if_jax` are the same command.
"""

import gc
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from if_jax import cli, configs

# What each does, and what it needs beside --workdir.
MODES = {
  'train': 'Trains a network and evaluates it on the way; goes on where it was interrupted.',
  'evaluate': 'Scores weights on a data set: a table of classes, evaluation.json, pictures.',
  'predict': 'Labels --input: an image, a video, or a folder of them.',
  'export': 'Writes a network as StableHLO or ONNX, which runs without this package.',
  'check_data': 'Tells all that is wrong with the files of a data set; needs no --workdir.',
  'train_inversenet': 'Trains the inverse network of the InverseForm loss; --config=inversenet.',
}

# Where the configurations are that come with the package.
_CONFIGS = Path(configs.__path__[0])

# Not --config.KEY.
_CONFIG_FLAG = re.compile('--?config(=|$)')

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file or a name, such as camvid; single keys by --config.KEY=VALUE.'
)
_MODE = flags.DEFINE_string('mode', 'train', 'What to do, one of the modes.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; made if it is not there. predict can do without.'
)
_INPUT = flags.DEFINE_string('input', None, 'predict: an image, a video, or a folder of images.')
_OUTPUT = flags.DEFINE_string(
  'output', None, 'predict, export: where to; default: WORKDIR/predictions, WORKDIR/export.'
)
_SIZE = flags.DEFINE_string(
  'size', None, 'export: HEIGHTxWIDTH of the images, in pixels; default: any.'
)
_FORMAT = flags.DEFINE_string('format', 'stablehlo', 'export: stablehlo or onnx.')
# Several processes, see docs/multi_machine.md.
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, the same for all; auto: ask the cluster.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')
_TIMEOUTS = {
  name: flags.DEFINE_integer(name, seconds, f'Seconds {what}.', lower_bound=1)
  for name, seconds, what in (
    ('initialization_timeout', 60, 'to wait for the other processes at the start'),
    ('heartbeat_timeout', 20, 'after which a silent process counts as dead'),
    ('shutdown_timeout', 15, 'to wait for the other processes at the end'),
  )
}


def main() -> int:
  """Runs the chosen mode and gives the exit status."""
  mode = _MODE.value
  if mode not in MODES:
    from if_jax.mistakes import hint

    raise ValueError(f'unknown mode {mode!r}; there are {", ".join(MODES)}.{hint(mode, MODES)}')
  if not _WORKDIR.value and mode not in ('check_data', 'predict'):
    raise ValueError('--workdir=DIR is missing: the folder of the run; --help lists the flags')
  # A shell leaves the ~ of --workdir=~/x as it is.
  workdir, source, output = (
    os.path.expanduser(flag.value or '') for flag in (_WORKDIR, _INPUT, _OUTPUT)
  )
  config = _config()
  if (mode == 'train_inversenet') != ('pairs' in config):
    raise ValueError(
      f'--mode={mode} does not go with this configuration: train_inversenet goes with '
      'configs/inversenet.py and its like, the other modes with the rest of configs/'
    )

  if mode == 'predict' and not source:
    raise ValueError('--input=PATH is missing: an image, a video, or a folder of images')
  if mode == 'predict' and _COORDINATOR.value:
    raise ValueError('--mode=predict runs alone; give each process a folder, without --coordinator')
  if mode == 'export' and _COORDINATOR.value:
    raise ValueError('--mode=export runs alone; leave out --coordinator')

  if mode == 'check_data':
    from if_jax.check_data import check_data

    return 1 if check_data(config) else 0

  # Imported late: a mistake above is told at once, and these take seconds.
  from if_jax import processes
  from if_jax.compilation_cache import keep_compiled_programs

  keep_compiled_programs()
  # Of the many small objects that tracing makes, few are garbage; looking for it as often as Python
  # does by itself took a quarter of the time.
  gc.set_threshold(100_000, 20, 20)
  with processes.joined(
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
    tell=cli.tell,
    **{name: flag.value for name, flag in _TIMEOUTS.items()},
  ):
    if mode == 'train':
      from if_jax.train import train_and_evaluate

      train_and_evaluate(config, workdir)
    elif mode == 'train_inversenet':
      from if_jax.train_inversenet import train_inversenet

      train_inversenet(config, workdir)
    elif mode == 'evaluate':
      from if_jax.evaluate import evaluate

      evaluate(config, workdir)
    elif mode == 'export':
      from if_jax.export import export_weights

      export_weights(config, workdir, output, size=_SIZE.value, file_format=_FORMAT.value)
    else:
      from if_jax.predict import predict_paths

      # 1: some images could not be read.
      return 1 if predict_paths(config, workdir, source, output) else 0
  return 0


def _config() -> ConfigDict:
  try:
    return _CONFIG.value.lock()  # A file that cannot be loaded raises at its first use.
  except OSError:
    from if_jax.mistakes import hint

    path = config_flags.get_config_filename(flags.FLAGS['config'])
    names = sorted(file.stem for file in _CONFIGS.glob('[a-z]*.py'))
    close = hint(Path(path.partition(':')[0]).stem, names)
    raise ValueError(
      f'no configuration file {path}; by name, there are {", ".join(names)}.{close}'
    ) from None


def start() -> None:
  """Runs the program with the command line's arguments, and exits."""
  is_chosen = any(_CONFIG_FLAG.match(argument) for argument in sys.argv[1:])
  sys.argv[1:] = _with_config_file(sys.argv[1:])

  def show_help(own_flags):
    try:
      _show_help(own_flags, _config() if is_chosen else None)
    except ValueError as error:
      return cli.tell(error)

  cli.run(main, show_help)


def _show_help(own_flags: Sequence[flags.Flag], config: ConfigDict | None) -> None:
  from if_jax import usage

  command = usage.program()
  if config is not None:
    file = Path(config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0])
    reasons = usage.key_reasons(file)
    if not re.search(r'^ *config = ConfigDict\(', file.read_text(encoding='utf-8'), re.M):
      # It changes what default.py has, whose comments say what a key is; it may have further keys.
      usual = usage.key_reasons(_CONFIGS / 'default.py')
      reasons = usual | reasons | usual
    title = f'{usage.docstring(file)}\n\nIts keys, each set by --config.KEY=VALUE:'
    usage.show(title.strip(), usage.key_sections(config, reasons))
    return
  usage.show(
    'Boundary-aware semantic segmentation in JAX.\n\n'
    f'{command} --mode=MODE --config=CONFIG --workdir=DIR [--config.KEY=VALUE ...]',
    [
      ('Modes', [(f'  {mode}', text) for mode, text in MODES.items()]),
      ('Configurations', usage.config_rows(_CONFIGS)),
      ('Flags', usage.flag_rows(own_flags)),
    ],
    [
      f'{command} --config=CONFIG --help lists the keys of a configuration, --helpfull also the '
      'flags of the libraries.',
      'Exit status: 0 success, 1 failure, 2 a mistake in what was asked, 130 Ctrl-C, 143 a '
      'training that a signal stopped, Ctrl-C among them, with its state saved.',
    ],
  )


def config_file(name: str) -> str:
  """Finds a configuration.

  Args:
    name: a file; or 'camvid', also written 'configs/camvid.py', of those that come with the
      package. What its `get_config` takes follows a colon: 'cityscapes:hrnet18'.
  Returns:
    The file, with what follows the colon. A name that is not known stays as it is.
  """
  name, colon, argument = name.partition(':')
  packaged = _CONFIGS / f'{name.removeprefix("configs/").removesuffix(".py")}.py'
  if packaged.is_file() and not (name.endswith('.py') and Path(name).is_file()):
    name = str(packaged)
  return name + colon + argument


def _with_config_file(arguments: list[str]) -> list[str]:
  """Puts a file in the place of the configuration's name; of a default one if none is named."""
  if not any(_CONFIG_FLAG.match(argument) for argument in arguments):
    # As the flag's default, it would be read, and wrong keys found, before errors are caught.
    mode = re.search('--?mode[= ]train_(inversenet)', ' '.join(arguments))
    arguments = [f'--config={mode[1] if mode else "default"}', *arguments]
  chosen, others = [], []
  rest = iter(arguments)
  for argument in rest:
    match = _CONFIG_FLAG.match(argument)
    name = match and (argument[match.end() :] if match[1] else next(rest, None))
    if name is None:
      others.append(argument)
    else:
      chosen.append(f'--config={config_file(name)}')
  # ml_collections wants it before its keys.
  return chosen + others


if __name__ == '__main__':
  start()
