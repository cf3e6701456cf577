"""What the command lines share: an error is told in one sentence, by the exit status its kind."""

import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging


def run(main: Callable[[], int | None]) -> None:
  """Runs a program whose flags are defined, and exits.

  Status 0 or what `main` returns, or that of `tell` after an error.

  Args:
    main: the program; `--help` shows the text and the flags of its module.
  """
  # A console command is a script without either.
  module = sys.modules[main.__module__]
  sys.modules['__main__'].__doc__ = module.__doc__
  for flag in flags.FLAGS.get_flags_for_module(module):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)

  def guarded(argv):
    try:
      if len(argv) > 1:
        raise ValueError(f'unexpected argument {argv[1]!r}; every option is written --name=value')
      return main()
    except (Exception, KeyboardInterrupt) as error:
      return tell(error)

  logging.set_verbosity(logging.WARNING)
  app.run(guarded, flags_parser=_parse)


def tell(error: BaseException) -> int:
  """Prints an error on standard error.

  Returns:
    The exit status. 2: a mistake in what was asked (a ValueError, an OSError or an ImportError),
    told in one line, with --verbosity=1 also where it came up. 1: a lack of memory or numbers that
    are not finite, one line each; or, with a traceback, what nobody thought of. 130: Ctrl-C.
  """
  text = str(error)
  is_device_error = type(error).__name__ == 'JaxRuntimeError'
  if isinstance(error, MemoryError) or (is_device_error and 'RESOURCE_EXHAUSTED' in text):
    text = (
      f'out of memory ({" ".join(text.split())[:200]}); lower config.train.batch_size or '
      'config.augment.crop_size, raise config.train.accumulation, or set config.model.remat=True; '
      'to evaluate or predict, set config.eval.window'
    )
    status = 1
  elif isinstance(error, KeyboardInterrupt):
    text, status = 'interrupted', 130
  elif isinstance(error, FloatingPointError):
    status = 1
  elif isinstance(error, ValueError | OSError | ImportError):
    status = 2
  else:
    traceback.print_exception(error)
    return 1
  logging.debug('The error in full:', exc_info=error)
  print('error:', text.strip(), file=sys.stderr)
  return status


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  # A wrong value is a TypeError or ValueError; a wrong key of a configuration is one of these:
  except (AttributeError, KeyError) as error:
    # ml_collections wraps an error in an error, and a KeyError's text is the repr of its text.
    while error.args and isinstance(error.args[0], Exception):
      error = error.args[0]
    key = ' '.join(str(error.args[0] if error.args else '').split())
    sys.exit(tell(ValueError(f'the configuration has no key {key}')))
  except (flags.Error, OSError, TypeError, ValueError) as error:
    sys.exit(tell(ValueError(str(error))))
