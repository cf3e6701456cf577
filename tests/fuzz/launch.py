"""Starts atheris, libFuzzer for Python, on the target of a script beside this file.

Atheris is in no requirements: `.venv/bin/pip install atheris`. What it finds interesting is kept
in runs/fuzz/TARGET/corpus, for the next run to begin with, and a file that breaks the target is
left in runs/fuzz/TARGET. Flags are libFuzzer's, such as -max_total_time=60 (seconds).
"""

import importlib
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

_RUNS = Path(__file__).parent.parent.parent / 'runs' / 'fuzz'


def fuzz(
  name: str,
  check: Callable[[bytes, Path], object],
  seeds: Callable[[], list[bytes]],
  modules: Sequence[str],
) -> None:
  """Runs until time is up or `check` raises; does not return.

  Args:
    name: of the target.
    check: (content of a file, folder to write it to); what it raises is a bug.
    seeds: gives contents to begin with.
    modules: what is to be watched; not imported before.
  """
  import atheris
  from mutations import mutated

  with atheris.instrument_imports(include=[module.partition('.')[0] for module in modules]):
    for module in modules:
      importlib.import_module(module)
  corpus = _RUNS / name / 'corpus'
  corpus.mkdir(parents=True, exist_ok=True)
  for number, seed in enumerate(seeds()):
    (corpus / f'seed{number}').write_bytes(seed)
  folder = Path(tempfile.mkdtemp())
  limits = ['-rss_limit_mb=500', '-timeout=5', f'-artifact_prefix={_RUNS / name}/']
  arguments = [sys.argv[0], *limits, *sys.argv[1:], str(corpus)]

  def mutate(data, max_size, seed):
    # libFuzzer learns how to flip a branch, and does not know JSON.
    if seed % 2:
      return atheris.Mutate(data, max_size)
    return mutated(random.Random(seed), data)[:max_size]

  atheris.Setup(arguments, lambda data: check(data, folder), custom_mutator=mutate)
  atheris.Fuzz()
