"""The command line: `python main.py --mode=train --config=configs/default.py --workdir=DIR`."""

import difflib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

MODES = ('train', 'evaluate', 'predict')

_CONFIG = config_flags.DEFINE_config_file(
  'config', 'configs/default.py', 'Configuration; single keys by --config.KEY=VALUE.', lock_config=True
)
_MODE = flags.DEFINE_string('mode', 'train', f'What to do: {", ".join(MODES)}.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; made if it is not there.')
_INPUT = flags.DEFINE_string('input', None, 'predict: an image, a video, or a folder of images.')
_OUTPUT = flags.DEFINE_string('output', None, 'predict: folder to write to; default WORKDIR/predictions.')


def main(argv: list[str]) -> int:
  """Runs the chosen mode; 0 is success, 1 some images failed, 2 a mistake in what was asked."""
  try:
    if len(argv) > 1:
      raise ValueError(f'unexpected argument {argv[1]!r}; every option is written --name=value')
    return _run(_MODE.value)
  except (ValueError, FileNotFoundError) as error:
    logging.debug('The error in full:', exc_info=True)
    print(f'error: {error}', file=sys.stderr)
    return 2


def _run(mode: str) -> int:
  if mode not in MODES:
    close = difflib.get_close_matches(mode, MODES, n=1)
    hint = f' Did you mean {close[0]}?' if close else ''
    raise ValueError(f'unknown mode {mode!r}; there are {", ".join(MODES)}.{hint}')
  config, workdir = _CONFIG.value, _WORKDIR.value
  if not workdir:
    raise ValueError('--workdir=DIR is missing: the folder of the run')
  # Late, so that a mistake above is told at once: these take seconds.
  if mode == 'train':
    from if_jax.train import train_and_evaluate

    train_and_evaluate(config, workdir)
  elif mode == 'evaluate':
    from if_jax.evaluate import evaluate

    evaluate(config, workdir)
  else:
    from if_jax.predict import predict_paths

    if not _INPUT.value:
      raise ValueError('--input=PATH is missing: an image, a video, or a folder of images')
    failures = predict_paths(config, workdir, _INPUT.value, _OUTPUT.value)
    return 1 if failures else 0
  return 0


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line; a mistake in it is one sentence, not a traceback."""
  try:
    rest = flags.FLAGS(argv)
    _CONFIG.value.lock()  # The file is loaded, and keys set, at the first use.
    return rest
  except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
    print(f'error: {str(error).strip(chr(34))}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=_parse_flags)
