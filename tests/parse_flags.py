"""Parses command lines as a program does, and runs its checks of them, but nothing behind.

python tests/parse_flags.py main|convert < LINES, JSON lists of arguments in a list. Prints a list:
for each what was told of it, '' if all is well. Only the flags are looked at, not whether they are
complete, where the first argument is '...'.
"""

import contextlib
import functools
import importlib
import io
import json
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


class Nothing(contextlib.nullcontext):
  def __bool__(self):
    return False


class Idle(types.ModuleType):
  """A module whose functions do nothing."""

  def __getattr__(self, name):
    return lambda *arguments, **options: Nothing()


def load(program: str) -> types.ModuleType:
  if program == 'convert':
    module = importlib.import_module('convert.__main__')
    module._to_weights = module._to_pytorch = lambda *arguments: None
    return module
  for path in (ROOT / 'if_jax').glob('[a-z]*.py'):
    if path.stem not in ('cli', 'mistakes', 'usage'):
      sys.modules[f'if_jax.{path.stem}'] = Idle(path.stem)
  return importlib.import_module('if_jax.__main__')


def errors_of(module: types.ModuleType, arguments: list[str]) -> str:
  """What the program tells of a command line, in a process of its own: flags are parsed once."""
  reader, writer = os.pipe()
  if os.fork():
    os.close(writer)
    with open(reader) as pipe:
      text = pipe.read()
    os.wait()
    return text
  sys.argv[1:] = arguments
  if arguments[:1] == ['...']:
    del sys.argv[1]
    module.main = functools.wraps(module.main)(lambda: 0)
  told = io.StringIO()
  status = 1
  try:
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
      module.start()
  except SystemExit as ending:
    status = ending.code
  finally:
    text = told.getvalue() or f'status {status}'
    os.write(writer, text.encode() if status else b'')
    os._exit(0)


if __name__ == '__main__':
  program = load(sys.argv[1])
  lines = json.load(sys.stdin)
  print(json.dumps([errors_of(program, line) for line in lines]))
