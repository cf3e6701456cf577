"""How benchmarks tell their results: tables, JSON, figures."""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from matplotlib.figure import Figure

# Okabe and Ito's, which colour-blind people tell apart too.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_VERSIONS = ('jax', 'jaxlib', 'flax', 'numpy', 'scipy')


def run(
  benchmark: Callable[[argparse.Namespace], dict],
  parser: argparse.ArgumentParser,
  argv: Sequence[str] | None,
) -> None:
  """Parses the command line, runs a benchmark, and keeps what it gives as OUTPUT/NAME.json.

  The parser's `prog` is how the benchmark is called, 'python -m benchmarks.NAME'.
  """
  arguments = parser.parse_args(argv)
  start = time.perf_counter()
  try:
    results = benchmark(arguments)
  except (OSError, ValueError) as error:
    parser.error(str(error))
  record = {
    'command': f'{parser.prog} {shlex.join(sys.argv[1:] if argv is None else argv)}',
    'seconds': round(time.perf_counter() - start, 1),
    'versions': {name: importlib.metadata.version(name) for name in _VERSIONS},
    'machine': {
      'python': platform.python_version(),
      'platform': platform.platform(),
      'cores': os.cpu_count(),
      'device': jax.devices()[0].device_kind,
    },
    **results,
  }
  path = Path(arguments.output, f'{parser.prog.rpartition(".")[2]}.json')
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(record, indent=1) + '\n')
  print(f'{record["seconds"]} s; written to {path.parent}')


def print_table(title: str, rows: Sequence[Mapping]) -> None:
  """Prints rows of equal keys as a Markdown table."""
  columns = list(rows[0])
  table = [columns, [':--'] + ['--:'] * (len(columns) - 1)]
  table += [[_text(row[column]) for column in columns] for row in rows]
  print(f'\n{title}\n')
  for cells in table:
    print(f'| {" | ".join(cells)} |')


def save_figure(figure: Figure, output: str, name: str) -> None:
  """Writes OUTPUT/NAME.png."""
  path = Path(output, f'{name}.png')
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)


def _text(value):
  return f'{value:.4g}' if isinstance(value, float) else str(value)
