"""What --help shows: a program's choices and flags, and the keys of a configuration."""

import ast
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

# Lines longer than this are hard to read, however wide the terminal.
_MAX_WIDTH = 110
_GAP = 2

Rows = Iterable[Sequence[str]]


def show(title: str, sections: Sequence[tuple[str, Rows]], notes: Sequence[str] = ()) -> None:
  """Prints sentences and tables on standard output, with colours if that is a terminal.

  Args:
    title: what comes first; may have several lines.
    sections: headings with rows of two cells or more, of which the last explains.
    notes: sentences for the end.
  """
  console = Console(highlight=False)
  console.width = min(console.width, _MAX_WIDTH)
  parts: list[RenderableType] = [Text(title)]
  for heading, rows in sections:
    parts += [Text(f'\n{heading}', style='bold'), _table(list(rows))]
  parts += [Text(f'\n{note}') for note in notes]
  with console.capture() as captured:
    console.print(*parts, sep='\n')
  try:
    # Tables fill their lines with spaces.
    print('\n'.join(line.rstrip() for line in captured.get().splitlines()), flush=True)
  except BrokenPipeError:
    # Of `| head`: nothing is to be written, neither by Python when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _table(rows: Sequence[Sequence[str]]) -> Table:
  table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=True)
  table.add_column(style='cyan', overflow='fold')
  for row in rows:
    table.add_row(*(Text(cell) for cell in row))
  return table


def program() -> str:
  """The command that runs this program."""
  path = Path(sys.argv[0])
  if path.name == '__main__.py':
    return f'python -m {path.parent.name}'
  return f'python {path.name}' if path.suffix == '.py' else path.name


def flag_rows(of_module: Iterable[flags.Flag]) -> Rows:
  """A row for each flag: how it is written, and its help with its default."""
  for flag in of_module:
    text = flag.help
    if isinstance(flag.parser, flags.EnumParser):
      # absl's own list comes first, and is one long word.
      text = f'{text.partition(">: ")[2]} One of {", ".join(flag.parser.enum_values)}.'
    if isinstance(flag.default, int | str) and not isinstance(flag.default, bool):
      text += f' Default: {flag.default}.'
    yield f'  --{flag.name}', text


def config_rows(folder: Path) -> Rows:
  """A row for each configuration in a folder: its name, and how its docstring begins."""
  for file in sorted(folder.glob('[a-z]*.py')):
    yield f'  {file.stem}', docstring(file).partition('\n')[0]


def docstring(file: Path) -> str:
  """What a Python file says of itself, each paragraph as one line."""
  text = ast.get_docstring(ast.parse(file.read_text(encoding='utf-8'))) or ''
  return re.sub(r'(?<!\n)\n(?!\n)', ' ', text)


def key_sections(config: ConfigDict, reasons: dict[str, str]) -> Sequence[tuple[str, Rows]]:
  """Headings with rows for the keys of a configuration: key, value and reason.

  Args:
    config: with groups of keys.
    reasons: of `key_reasons`; the keys keep its order.
  """
  groups = [key for key in reasons if isinstance(config.get(key), ConfigDict)]
  sections = [('config.', list(_key_rows(config, reasons, '', left_out=groups)))]
  for key in groups:
    heading = f'config.{key}.' + (f'  {reasons[key]}' if reasons[key] else '')
    sections.append((heading, list(_key_rows(config[key], reasons, f'{key}.'))))
  return sections


def _key_rows(
  group: ConfigDict,
  reasons: dict[str, str],
  path: str,
  inner: str = '',
  left_out: Sequence[str] = (),
) -> Rows:
  order = list(reasons)

  def place(key):
    return order.index(path + inner + key) if path + inner + key in reasons else len(order)

  for key in sorted(group, key=place):
    reason = reasons.get(path + inner + key, '')
    if isinstance(group[key], ConfigDict):
      if key not in left_out:
        yield f'  {inner}{key}.', '', reason
        yield from _key_rows(group[key], reasons, path, f'{inner}{key}.')
    else:
      yield f'  {inner}{key}', _text(group[key]), reason


def _text(value: Any) -> str:
  return repr(value) if value == '' else str(value)


def key_reasons(file: Path) -> dict[str, str]:
  """Reads why each key of a configuration is there: the comment above its assignment.

  Args:
    file: whose `get_config` assigns `config.KEY = VALUE`.
  Returns:
    'train.batch_size' -> the comment, as one line, or '' if it has none; in the file's order.
  """
  reasons, comment = {}, []
  for line in file.read_text(encoding='utf-8').splitlines():
    if match := re.match(r'\s*# ?(.*)', line):
      comment.append(match[1])
      continue
    if match := re.match(r'\s*config\.([\w.]+) = ', line):
      reasons[match[1]] = ' '.join(comment)
    comment = []
  return reasons
