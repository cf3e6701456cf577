"""What the command lines share: an error is told in one sentence, by the exit status its kind."""

import functools
import re
import sys
import traceback
import types
from collections.abc import Callable, Sequence

from absl import app, flags, logging


def run(
  main: Callable[[], int | None],
  show_help: Callable[[Sequence[flags.Flag]], int | None] | None = None,
) -> None:
  """Runs a program whose flags are defined, and exits.

  Status 0 or what `main` returns, or that of `tell` after an error.

  Args:
    main: the program.
    show_help: what --help does, given the flags of the module of `main`, once all flags are parsed;
      None: shows the text of that module, and its flags.
  """
  module = sys.modules[main.__module__]
  # For --helpfull, which is absl's; a console command is a script without a text.
  sys.modules['__main__'].__doc__ = module.__doc__
  own = [flag for flag in flags.FLAGS.get_flags_for_module(module) if '.' not in flag.name]

  def guarded(argv):
    try:
      if len(argv) > 1:
        raise ValueError(f'unexpected argument {argv[1]!r}; every option is written --name=value')
      return main()
    except (Exception, KeyboardInterrupt) as error:
      return tell(error)

  logging.set_verbosity(logging.WARNING)
  show_help = show_help or functools.partial(_show_module, module)
  app.run(guarded, flags_parser=lambda argv: _parse(argv, own, show_help))


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


def _parse(
  argv: list[str],
  own: Sequence[flags.Flag],
  show_help: Callable[[Sequence[flags.Flag]], int | None],
) -> list[str]:
  # absl's own --help is obeyed before the flags that follow it are known.
  without = [
    argument for argument in argv if not re.fullmatch(r'--?(help|helpshort|h|\?)', argument)
  ]
  try:
    rest = flags.FLAGS(without)
  except (
    AttributeError,
    IndexError,
    KeyError,
    flags.Error,
    OSError,
    TypeError,
    ValueError,
  ) as error:
    from if_jax import mistakes

    text = mistakes.sentence(error, argv, [flag.name for flag in own])
    sys.exit(tell(ValueError(text)))
  if without != argv:
    sys.exit(show_help(own))
  return rest


def _show_module(module: types.ModuleType, own: Sequence[flags.Flag]) -> None:
  from if_jax import usage

  usage.show((module.__doc__ or '').strip(), [('Flags', usage.flag_rows(own))])
