"""What the README and the pages of docs/ show: their Python and their commands."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parent.parent
PAGES = ['README.md', *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('docs/*.md'))]

_PYTHON = r'(?:[\w./]*/)?python3?'
# A program's name -> how it is called.
PROGRAMS = {
  'main': rf'(?:{_PYTHON} (?:main\.py|-m if_jax)|if-jax)',
  'convert': rf'(?:{_PYTHON} -m convert|if-jax-convert)',
  'benchmark': rf'{_PYTHON} -m benchmarks\.(?P<name>\w+)',
}


def python_blocks(page: str) -> list[str]:
  """The Python blocks of a page, in their order."""
  return re.findall(r'```python\n(.*?)```', _text(page), re.DOTALL)


class Command(NamedTuple):
  """A command line of a page.

  Attributes:
    line: as it stands there, in one line.
    program: a key of `PROGRAMS`.
    name: of a benchmark, else ''.
    arguments: as a shell splits them.
    in_block: whether it stands in a block, ready to run, or in a sentence.
  """

  line: str
  program: str
  name: str
  arguments: list[str]
  in_block: bool


def commands(page: str) -> list[Command]:
  """The command lines of a page that call one of our programs with arguments."""
  text = _text(page)
  lines = []
  for language, block in re.findall(r'^```(\w*)\n(.*?)^```', text, re.DOTALL | re.MULTILINE):
    if block.startswith('apiVersion'):
      (container,) = yaml.safe_load(block)['spec']['template']['spec']['containers']
      lines += container['args']
    elif language in ('', 'sh', 'bash'):
      lines += re.sub(r'\\\n\s*', ' ', block).splitlines()
  num_in_blocks = len(lines)
  sentences = re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)
  lines += [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', sentences)]
  found = [_command(line, i < num_in_blocks) for i, line in enumerate(lines)]
  return [command for command in found if command and command.arguments]


def _command(line, in_block):
  for program, pattern in PROGRAMS.items():
    # In front there may be variables of the environment, srun, exec.
    match = re.match(rf'(?:[A-Z_]+=\S+ |srun |exec )*{pattern}(?= |$)', line)
    if match:
      name = match.groupdict().get('name', '')
      # The number of a process, where a cluster tells it.
      arguments = shlex.split(re.sub(r'\$\w+', '1', line[match.end() :]), comments=True)
      return Command(line, program, name, arguments, in_block)
  return None


def _text(page):
  return (ROOT / page).read_text()
