"""What absl and ml_collections say of a wrong command line, in one sentence that names the mend."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

# By absl's names.
_KINDS = {
  'bool': 'true or false',
  'int': 'a whole number',
  'float': 'a number',
  'tuple': 'numbers or words in brackets',
}
# Keys that are proposed for one whose group is missing.
_MAX_PROPOSED = 3


def hint(name: str, choices: Iterable[str]) -> str:
  """' Did you mean X?' for the choice that is close to a name, or ''."""
  close = difflib.get_close_matches(name, choices, n=1)
  return f' Did you mean {close[0]}?' if close else ''


def sentence(error: Exception, arguments: Sequence[str], flag_names: Sequence[str]) -> str:
  """Says why a command line could not be parsed, and what may have been meant.

  Args:
    error: raised by `flags.FLAGS(arguments)`.
    arguments: of the command line; if it has --config=FILE, all else about it comes later.
    flag_names: of the program's own flags.
  Returns:
    One sentence, or two.
  """
  if isinstance(error, flags.UnrecognizedFlagError):
    close = hint(f'--{error.flagname}', [f'--{name}' for name in flag_names])
    return f'there is no flag --{error.flagname}; --help lists those there are.{close}'
  # "flag --NAME=VALUE: REASON", where the reason is the text of the error before.
  if isinstance(error, flags.IllegalFlagValueError) and error.__context__:
    name, _, rest = str(error).removeprefix('flag --').partition('=')
    value = rest.removesuffix(f': {error.__context__}')
    return _of_value(name, value, error, arguments)
  if isinstance(error, AttributeError | KeyError):
    return _of_key(error, arguments)
  if isinstance(error, IndexError):
    return _of_index(error, arguments)
  return ' '.join(str(error).split())


def _of_value(name: str, value: str, error: Exception, arguments: Sequence[str]) -> str:
  cause = error.__context__
  if isinstance(flags.FLAGS[name].parser, config_flags.ConfigFileFlagParser):
    # A traceback as text; the error it is of comes before it.
    cause = (cause and cause.__context__) or cause
    file, _, argument = value.partition(':')
    if isinstance(cause, TypeError) and 'get_config()' in str(cause):
      return f'{file} takes nothing after a colon, but is given {argument!r}'
    return f'{file}: {cause}'
  example = flags.FLAGS[name].default
  if name.startswith('config.'):
    # A part of a tuple, config.KEY[0], is none of them.
    example = dict(_items(_config(arguments))).get(name.removeprefix('config.'))
  if isinstance(example, ConfigDict):
    key = next(iter(example))
    return f'{name} is a group of keys; give one of them, such as --{name}.{key}={example[key]}'
  kind = 'tuple' if isinstance(example, tuple) else flags.FLAGS[name].flag_type()
  # A number that is out of bounds has a reason of its own.
  if kind not in _KINDS or (kind == 'int' and re.fullmatch(r'-?\d+', value)):
    return f'--{name}={value}: {cause}'
  such_as = '' if example is None or kind == 'bool' else f', such as {example}'
  return f'--{name}={value}: give {_KINDS[kind]}{such_as}'


def _of_key(error: Exception, arguments: Sequence[str]) -> str:
  """Of a key that the configuration does not have."""
  try:
    keys = dict(_items(_config(arguments)))
  except (AttributeError, KeyError) as cause:
    # Not on the command line: in a file that changes a key of another one.
    while cause.args and isinstance(cause.args[0], Exception):
      cause = cause.args[0]
    text = ' '.join(map(str, cause.args))
    return f'{_file(arguments)}: {re.sub("Other fields present: .*", "", text)}'.replace('\n', '')
  for argument in arguments[1:]:
    match = re.match(r'--?(?:no)?config\.([\w.]+)', argument)
    if match and match[1] not in keys:
      near = _near(match[1], [key for key in keys if not isinstance(keys[key], ConfigDict)])
      return (
        f'the configuration has no key config.{match[1]}; --config=NAME --help lists those there '
        f'are.{near}'
      )
  return ' '.join(str(error).split())


def _of_index(error: Exception, arguments: Sequence[str]) -> str:
  """Of config.KEY[1], where the value has no such part."""
  keys = dict(_items(_config(arguments)))
  for argument in arguments[1:]:
    match = re.match(r'--?config\.([\w.]+)\[(-?\d+)\]', argument)
    if match and match[1] in keys:
      key, value = match[1], keys[match[1]]
      try:
        value[int(match[2])]
      except (IndexError, TypeError):
        return f'there is no config.{key}[{match[2]}]; set all of it, as by --config.{key}={value}'
  return ' '.join(str(error).split())


def _near(key: str, keys: Sequence[str]) -> str:
  """As `hint`, where the group of the key may be missing, too."""
  ends = [k for k in keys if k.rpartition('.')[2] == key.rpartition('.')[2]]
  if not 0 < len(ends) <= _MAX_PROPOSED:
    ends = difflib.get_close_matches(key, keys, n=1)
  return f' Did you mean {" or ".join(f"config.{k}" for k in ends)}?' if ends else ''


def _file(arguments: Sequence[str]) -> str:
  return next(a for a in arguments if a.startswith('--config=')).partition('=')[2]


def _config(arguments: Sequence[str]) -> ConfigDict:
  """The configuration as its file has it."""
  return config_flags.ConfigFileFlagParser('config').parse(_file(arguments))


def _items(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Every key with its value, groups as well as what is in them."""
  for key, value in config.items():
    yield prefix + key, value
    if isinstance(value, ConfigDict):
      yield from _items(value, f'{prefix}{key}.')
