"""How long does the program take to its first training step, and to its first prediction?

`main.py` runs as a user starts it, on drawn streets: with an empty folder for compiled programs,
and again with what the first run has left there. That a step or a prediction is done is seen by the
file that it writes; how long tracing and compiling take, JAX logs.

python -m benchmarks.startup --model=hrnet18
"""

import argparse
import datetime
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import print_table, run
from benchmarks.street_files import write_streets

_ROOT = Path(__file__).parent.parent
_NUM_PROGRAMS = 3
# Such as: W1122 23:50:33.761819 1397 dispatch.py:204] Finished XLA compilation of f in 1.2 sec
_LOGGED = re.compile(
  r'^W(\d{4} [\d:.]+) .*\] Finished (tracing|jaxpr to MLIR|XLA compilation of) (\S+).*'
  r' in ([\d.]+) sec',
  re.M,
)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.startup', description=__doc__)
  parser.add_argument('--model', default='hrnet18')
  parser.add_argument('--height', type=int, default=512, help='of images twice as wide')
  parser.add_argument('--batch_size', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=1)
  parser.add_argument('--output', default='runs/benchmarks', help='folder of the JSON')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  rounds = []
  for _ in range(arguments.rounds):
    with tempfile.TemporaryDirectory() as folder:
      rounds.append(time_all(Path(folder), arguments))
  rows = [
    {'to the first': name}
    | {part: statistics.median(times[name][0][part] for times in rounds) for part in parts}
    for name, (parts, _) in rounds[0].items()
  ]
  size = f'{arguments.height}x{2 * arguments.height}'
  print_table(
    f'{arguments.model}, {size}, batch {arguments.batch_size}, seconds and programs', rows
  )
  programs = [{'to the first': name} | x for name, (_, xs) in rounds[-1].items() for x in xs]
  print_table('The programs that took longest to compile, or to read from disk', programs)
  return {'rounds': rounds, 'rows': rows, 'programs': programs}


def time_all(
  folder: Path, arguments: argparse.Namespace
) -> dict[str, tuple[dict[str, float], list[dict]]]:
  """Training without and with compiled programs, then prediction with the weights it left."""
  size = arguments.height, 2 * arguments.height
  image = write_streets(folder, 'val', 1, size)[0][0]
  results = {}
  for kind in ('cold', 'warm'):
    flags = (
      '--mode=train',
      f'--workdir={folder / kind}',
      f'--config.model.name={arguments.model}',
      f'--config.data.streets.size={size}',
      f'--config.augment.crop_size={size}',
      '--config.data.streets.num_train=8',
      '--config.data.streets.num_val=1',
      f'--config.train.batch_size={arguments.batch_size}',
      '--config.train.num_steps=1',
      '--config.train.log_every=1',
    )
    results[f'training step, {kind}'] = time_main(flags, folder / kind, 'metrics.jsonl')
  for kind in ('cold', 'warm'):
    output = folder / f'predicted_{kind}'
    flags = ('--mode=predict', f'--workdir={folder / "warm"}', f'--input={image}')
    flags += (f'--output={output}',)
    results[f'prediction, {kind}'] = time_main(flags, output, '*/*.png')
  return results


def time_main(
  flags: Sequence[str], output: Path, pattern: str
) -> tuple[dict[str, float], list[dict]]:
  """Runs main.py to its end, and tells what passed until there was a file in `output`.

  Args:
    flags: of main.py, whose '--mode' comes first: each mode has its own compiled programs.
    output: a folder that is made by the run.
    pattern: of the file's name.
  Returns:
    Of `split`.
  """
  work = output.parent
  environment = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': str(work / f'compiled{flags[0]}'),
    'JAX_LOG_COMPILES': '1',
  }
  with open(work / 'log', 'w+') as log:
    start = time.time()
    command = [sys.executable, 'main.py', *flags]
    with subprocess.Popen(
      command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log
    ) as process:
      while process.poll() is None and not is_written(output, pattern):
        time.sleep(0.01)
      end = time.time()
    log.seek(0)
    text = log.read()
  if process.returncode or not is_written(output, pattern):
    raise ValueError(f'main.py {" ".join(flags)} failed: {text[-500:]}')
  return split(text, start, end)


def is_written(folder: Path, pattern: str) -> bool:
  return any(path.stat().st_size for path in folder.glob(pattern))


def split(log: str, start: float, end: float) -> tuple[dict[str, float], list[dict]]:
  """Splits a time by what JAX logged meanwhile.

  Args:
    log: of the run.
    start: of the time, in seconds since 1970.
    end: likewise.
  Returns:
    (parts, programs): seconds in all and by part, and the number of compiled programs; those that
    took longest to compile or to be read from disk.
  """
  year = datetime.date.today().year
  spans, programs = [], []
  for stamp, kind, name, seconds in _LOGGED.findall(log):
    stop = datetime.datetime.strptime(f'{year}{stamp}', '%Y%m%d %H:%M:%S.%f').timestamp()
    if stop <= end:
      spans.append((stop - float(seconds), stop))
      if kind.startswith('XLA'):
        programs.append({'program': name, 'seconds': float(seconds)})
  # Functions are traced within functions: what counts is the time that any took.
  busy, reached = 0.0, start
  for begin, stop in sorted(spans):
    busy += max(0.0, stop - max(begin, reached))
    reached = max(reached, stop)
  compiling = sum(program['seconds'] for program in programs)
  before = min(begin for begin, _ in spans) - start
  parts = {
    'in all': end - start,
    'before JAX traces': before,
    'tracing': busy - compiling,
    'compiling': compiling,
    'the rest': end - start - before - busy,
    'programs': len(programs),
  }
  return parts, sorted(programs, key=lambda program: -program['seconds'])[:_NUM_PROGRAMS]


if __name__ == '__main__':
  main()
