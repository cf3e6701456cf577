"""How does training's throughput grow with devices, the size of crops, and InverseForm's tiles?

Forced host devices share the cores of one machine: they show the shape of the cost, not a gain.
Each setting runs in a process of its own.

python -m benchmarks.scaling --model=hrnet16_slim
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from benchmarks.processes import environment_of_devices, in_fresh_process
from benchmarks.results import print_table, run
from benchmarks.steps import draw_batch, make_step
from configs.cityscapes import get_config
from if_jax import parallel


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.scaling', description=__doc__)
  parser.add_argument('--model', default='hrnet16_slim')
  parser.add_argument('--devices', type=int, nargs='*', default=[1, 2, 4, 8])
  parser.add_argument('--heights', type=int, nargs='*', default=[128, 256, 512, 1024])
  parser.add_argument('--tile_rows', type=int, nargs='*', default=[0, 1, 2, 3, 4])
  parser.add_argument('--batch_size', type=int, default=8, help='over all devices')
  parser.add_argument('--crop_height', type=int, default=256, help='where it does not vary')
  parser.add_argument('--steps', type=int, default=5)
  parser.add_argument('--output', default='runs/benchmarks', help='folder of the JSON')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  batch, height = arguments.batch_size, arguments.crop_height
  # By title: (what the row is called, its configuration, how many devices).
  settings = {
    f'Devices: {batch} crops of {height}x{2 * height} among them': [
      ({'devices': n}, configure(arguments, height), n) for n in arguments.devices
    ],
    'Sizes of crops: one crop on one device': [
      ({'crop': f'{h}x{2 * h}'}, configure(arguments, h, batch_size=1), 1)
      for h in arguments.heights
    ],
    f'Tiles of InverseForm in a crop: one crop of {height}x{2 * height}': [
      ({'tiles': rows * 2 * rows}, configure(arguments, height, batch_size=1, tile_rows=rows), 1)
      for rows in arguments.tile_rows
    ],
  }
  results = {}
  for title, runs in settings.items():
    rows = []
    for name, config, num_devices in runs:
      environment = environment_of_devices(num_devices)
      seconds = in_fresh_process(
        time_steps, config, num_devices, arguments.steps, environment=environment
      )
      if seconds:
        rows.append(name | summary(seconds, config))
    if rows:
      for row in rows:
        row['to the first'] = row['images/s'] / rows[0]['images/s']
      print_table(f'{arguments.model}. {title}', rows)
    results[title] = rows
  return results


def configure(
  arguments: argparse.Namespace, height: int, *, batch_size: int | None = None, tile_rows: int = 0
) -> ConfigDict:
  """The recipe with crops of this height and twice its width; no tiles: without InverseForm."""
  config = get_config(arguments.model)
  config.augment.crop_size = height, 2 * height
  config.train.batch_size = batch_size or arguments.batch_size
  config.loss.inversenet = 'default' if tile_rows else ''
  config.loss.tile_rows = max(tile_rows, 1)
  return config


def time_steps(config: ConfigDict, num_devices: int, num_steps: int) -> list[float]:
  """Seconds of each training step; none if there are not so many devices."""
  if parallel.num_devices() != num_devices:
    return []
  step, state, loss_fn = make_step(config)
  batch = parallel.shard(draw_batch(config))
  seconds = []
  for _ in range(1 + num_steps):
    start = time.perf_counter()
    state, metrics = step(state, batch, loss_fn)
    # The metrics are there before the update is.
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - start)
  # The first one compiles.
  return seconds[1:]


def summary(seconds: Sequence[float], config: ConfigDict) -> dict[str, float]:
  median = statistics.median(seconds)
  height, width = config.augment.crop_size
  images = config.train.batch_size / median
  return {
    'step, ms': 1e3 * median,
    'fastest, ms': 1e3 * min(seconds),
    'images/s': images,
    'megapixels/s': images * height * width / 1e6,
  }


if __name__ == '__main__':
  main()
