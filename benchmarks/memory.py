"""How much memory does a training step take, by batch and crop, with what costs and saves some?

Each setting runs in a process of its own. The peak is that of the whole process while it trains,
less what it held once everything was imported (of the device's memory, where that has an account);
XLA's own count is of what the compiled step needs beside its arguments. The peer is PyTorch in
`channels_last`, without what it lacks: InverseForm and the choice to recompute activations.

python -m benchmarks.memory --model=hrnet18
"""

import argparse
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from benchmarks.processes import in_fresh_process
from benchmarks.results import print_table, run
from benchmarks.steps import draw_batch, make_step
from configs.cityscapes import get_config
from if_jax import parallel

_GB = 1e9


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.memory', description=__doc__)
  parser.add_argument('--model', default='hrnet18')
  parser.add_argument('--batch_sizes', type=int, nargs='+', default=[1, 2, 4])
  parser.add_argument(
    '--heights', type=int, nargs='+', default=[256, 512], help='of crops twice as wide'
  )
  parser.add_argument('--output', default='runs/benchmarks', help='folder of the JSON')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  settings = [
    (height, batch_size, False, '')
    for height, batch_size in itertools.product(arguments.heights, arguments.batch_sizes)
  ]
  largest = settings[-1][:2]
  # What costs memory and what saves it, where there is most of it.
  settings += [(*largest, True, ''), (*largest, False, 'default'), (*largest, True, 'default')]
  rows = []
  for height, batch_size, remat, inversenet in settings:
    config = get_config(arguments.model)
    config.augment.crop_size = height, 2 * height
    config.train.batch_size = batch_size
    config.model.remat = remat
    config.loss.inversenet = inversenet
    setting = {
      'crop': f'{height}x{2 * height}',
      'batch': batch_size,
      'recomputing': 'yes' if remat else 'no',
      'InverseForm': 'yes' if inversenet else 'no',
    }
    row = setting | in_fresh_process(memory_of_step, config)
    has_peer = not remat and not inversenet
    row['PyTorch, GB'] = in_fresh_process(memory_of_peer, config) if has_peer else '-'
    rows.append(row)
  print_table(f'{arguments.model}, training step', rows)
  return {'rows': rows}


def memory_of_step(config: ConfigDict) -> dict[str, float]:
  """Takes two training steps of a configuration, and tells what they needed."""
  before = resident('VmRSS')
  step, state, loss_fn = make_step(config)
  batch = parallel.shard(draw_batch(config))
  compiled = step.lower(state, batch, loss_fn).compile()
  # Compiling has a peak of its own.
  forget_peak()
  for _ in range(2):
    state, metrics = compiled(state, batch, loss_fn)
  jax.block_until_ready((state, metrics))
  on_device = jax.local_devices()[0].memory_stats()
  peak = on_device['peak_bytes_in_use'] if on_device else resident('VmHWM') - before
  return {
    'peak, GB': peak / _GB,
    "XLA's count, GB": compiled.memory_analysis().temp_size_in_bytes / _GB,
    'arguments, GB': compiled.memory_analysis().argument_size_in_bytes / _GB,
  }


def memory_of_peer(config: ConfigDict) -> float:
  """Takes two training steps with PyTorch, and gives the gigabytes that they needed."""
  import torch

  from benchmarks.pytorch_peers import draw_variables
  from benchmarks.training_step import peer_step

  before = resident('VmRSS')
  step = peer_step(config, draw_variables(config.model.name), draw_batch(config))
  forget_peak()
  for _ in range(2):
    step()
  if torch.cuda.is_available():
    return torch.cuda.max_memory_allocated() / _GB
  return (resident('VmHWM') - before) / _GB


def forget_peak() -> None:
  """Lets Linux look for the peak of this process's memory from here on."""
  Path('/proc/self/clear_refs').write_text('5')


def resident(field: str) -> int:
  """Bytes of memory of this process: 'VmRSS' now, 'VmHWM' at most since the peak was cleared."""
  status = Path('/proc/self/status').read_text()
  return 1024 * int(re.search(rf'{field}:\s+(\d+)', status)[1])


if __name__ == '__main__':
  main()
