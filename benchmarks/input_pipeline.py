"""How many augmented crops does the input pipeline make per second, and does training wait for it?

Images are decoded from PNG files of Cityscapes' size, which are drawn, and augmented as a recipe
of configs/cityscapes.py says. PyTorch's `DataLoader` calls the same functions. With `--feed`: what
share of a training step is spent waiting for its batch, and by how much loading slows the step.

python -m benchmarks.input_pipeline
python -m benchmarks.input_pipeline --feed --recipe=hrnet16_slim --workers=0 --batch_size=2
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from benchmarks.pytorch_data import FileDataset, endless_batches
from benchmarks.results import print_table, run
from benchmarks.steps import make_step
from benchmarks.street_files import write_streets
from benchmarks.timing import compare
from configs.cityscapes import get_config
from if_jax import parallel
from if_jax.data.augment import Augmentation
from if_jax.data.datasets import load_dataset
from if_jax.data.pipeline import train_batches

# A running iterator of batches, for a `with`.
Batches = contextlib.AbstractContextManager[Iterator[dict]]
# Seconds that Linux counts in.
_TICK = 1 / os.sysconf('SC_CLK_TCK')


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.input_pipeline', description=__doc__)
  parser.add_argument('--recipe', default='ocrnet48_hms', help='a model of configs/cityscapes.py')
  parser.add_argument('--height', type=int, default=1024, help='of the files')
  parser.add_argument('--width', type=int, default=2048, help='of the files')
  parser.add_argument('--num_images', type=int, default=16)
  parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--batch_size', type=int, default=4)
  parser.add_argument('--num_batches', type=int, default=10, help='timed at once')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--feed', action='store_true', help='a training step, too')
  parser.add_argument('--output', default='runs/benchmarks', help='folder of the JSON')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  config = get_config(arguments.recipe)
  config.train.batch_size = arguments.batch_size
  # The rest of the step is the less time to load a batch in.
  config.loss.inversenet = ''
  size = arguments.height, arguments.width
  config.augment.crop_size = tuple(map(min, config.augment.crop_size, size))
  with tempfile.TemporaryDirectory() as root:
    files = write_streets(root, 'train', arguments.num_images, size)
    dataset = load_dataset('cityscapes', 'train', root=root, cache_dir=Path(root, 'prepared'))
    augmentation = Augmentation(**config.augment)
    peer = FileDataset(files, augmentation)

    def ours(workers):
      options = {'batch_size': arguments.batch_size, 'num_workers': workers}
      return train_batches(dataset, augmentation, seed=0, **options)

    def theirs(workers):
      return contextlib.closing(endless_batches(peer, arguments.batch_size, workers))

    loaders = {'ours': ours, 'DataLoader': theirs}
    if arguments.feed:
      rows = feed(config, loaders, arguments)
    else:
      rows = [row for n in arguments.workers for row in throughput(loaders, n, arguments)]
  crop = 'x'.join(map(str, config.augment.crop_size))
  title = f'Crops of {crop} from drawn PNGs of {size[0]}x{size[1]}, recipe {arguments.recipe}'
  print_table(title, rows)
  return {'feed' if arguments.feed else 'throughput': rows}


def throughput(
  loaders: dict[str, Callable[[int], Batches]], workers: int, arguments: argparse.Namespace
) -> list[dict]:
  """Times how fast batches come if nothing is done with them."""
  seconds, core_seconds = {name: [] for name in loaders}, {name: [] for name in loaders}
  for i in range(arguments.rounds):
    for name in list(loaders)[:: 1 if i % 2 == 0 else -1]:
      with loaders[name](workers) as batches:
        # The first ones wait for processes to start, and some are made meanwhile.
        take(batches, 2 + 4 * workers)
        start, core_start = time.perf_counter(), used_core_seconds()
        take(batches, arguments.num_batches)
        seconds[name].append(time.perf_counter() - start)
        core_seconds[name].append(used_core_seconds() - core_start)
  num_images = arguments.num_batches * arguments.batch_size
  return [
    {
      'pipeline': f'{row["name"]}, {workers} workers',
      'images/s': num_images / statistics.median(seconds[row['name']]),
      'images/s per core': num_images / max(statistics.median(core_seconds[row['name']]), _TICK),
      **{key: row[key] for key in ('ratio', 'lowest', 'highest')},
    }
    for row in compare(seconds, ours='ours')
  ]


def used_core_seconds() -> float:
  """Time that cores have spent on this process and its workers, in Linux's account."""
  ticks = 0
  for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    ticks += int(fields[11]) + int(fields[12])
  return ticks * _TICK


def take(batches: Iterator[dict], count: int) -> None:
  for _ in range(count):
    next(batches)


def feed(
  config, loaders: dict[str, Callable[[int], Batches]], arguments: argparse.Namespace
) -> list[dict]:
  """Times training steps on batches as they come, and on one that is at hand."""
  step, state, loss_fn = make_step(config)

  def train(batches, count):
    """The last batch, seconds of waiting for each, and seconds of a whole step."""
    nonlocal state
    waits, wholes = [], []
    for _ in range(count):
      start = time.perf_counter()
      batch = next(batches)
      waits.append(time.perf_counter() - start)
      state, metrics = step(state, batch, loss_fn)
      jax.block_until_ready((state, metrics))
      wholes.append(time.perf_counter() - start)
    return batch, statistics.fmean(waits), statistics.fmean(wholes)

  rows = []
  for workers in arguments.workers:
    for name, loader in loaders.items():
      with loader(workers) as stream:
        batches = parallel.prefetch(stream)
        train(batches, 1)
        settle, rounds = 4 + 4 * workers, []
        for _ in range(arguments.rounds):
          # Not timed: while batches are used up, or still made, that nobody asked for.
          at_hand = itertools.repeat(train(batches, settle)[0])
          _, wait, whole = train(batches, arguments.num_batches)
          train(at_hand, settle)
          alone = train(at_hand, arguments.num_batches)[2]
          rounds.append((wait, whole, alone))
      wait, whole, alone = map(statistics.median, zip(*rounds, strict=True))
      rows.append({
        'pipeline': f'{name}, {workers} workers',
        'step, ms': 1e3 * whole,
        'of it waiting, ms': 1e3 * wait,
        'waiting, %': 100 * wait / whole,
        'with a batch at hand, ms': 1e3 * alone,
        'slower by, %': 100 * (whole / alone - 1),
      })  # fmt: skip
  return rows


if __name__ == '__main__':
  main()
