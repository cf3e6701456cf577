"""What the command lines share: a mistake is told in one sentence, with exit status 2."""

import sys
from collections.abc import Callable

from absl import app, flags, logging


def run(main: Callable[[], int | None]) -> None:
  """Runs a program whose flags are defined, and exits.

  Status 0 or what `main` returns; 2 after a mistake in what was asked, of which one line on
  standard error tells (with --verbosity=1, where it came up, too).

  Args:
    main: the program; a ValueError, OSError or ImportError of its is a mistake of the user's.
  """

  def guarded(argv):
    try:
      if len(argv) > 1:
        raise ValueError(f'unexpected argument {argv[1]!r}; every option is written --name=value')
      return main()
    except (ValueError, OSError, ImportError) as error:
      logging.debug('The error in full:', exc_info=True)
      return _tell(error)

  logging.set_verbosity(logging.WARNING)
  app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  # A wrong key of a configuration is an AttributeError, a wrong value a TypeError or ValueError.
  except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
    sys.exit(_tell(error))


def _tell(error: Exception) -> int:
  text = str(error)
  if isinstance(error, AttributeError | KeyError):
    # ml_collections wraps an error in an error, and a KeyError's text is the repr of its text.
    while error.args and isinstance(error.args[0], Exception):
      error = error.args[0]
    key = ' '.join(str(error.args[0] if error.args else '').split())
    text = f'the configuration has no key {key}'
  print('error:', text.strip(), file=sys.stderr)
  return 2
