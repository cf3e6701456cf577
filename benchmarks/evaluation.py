"""How many images per second does an evaluation score, from files to mean IoU?

Both read the same PNG files, which are drawn, and have the same weights, drawn at random. The peer
is the loop that PyTorch's users write: `DataLoader`, a network in `channels_last` with batch norm
folded into the convolutions, argmax, `bincount`. Both must come to the same mean IoU.

python -m benchmarks.evaluation --model=hrnet18
"""

import argparse
import functools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.pytorch_data import FileDataset, make_loader
from benchmarks.pytorch_peers import (
  create_peer,
  device,
  draw_variables,
  fold_batch_norm,
  normalize,
)
from benchmarks.results import print_table, run
from benchmarks.street_files import write_streets
from benchmarks.timing import alternate, compare, prepare_torch
from configs.cityscapes import get_config
from if_jax import parallel
from if_jax.data.datasets import load_dataset
from if_jax.data.labels import CITYSCAPES
from if_jax.evaluate import Evaluator
from if_jax.inference import for_many_images
from if_jax.metrics import iou_from_confusion
from if_jax.settings import model_from_config


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.evaluation', description=__doc__)
  parser.add_argument('--model', default='hrnet18')
  parser.add_argument('--height', type=int, default=1024)
  parser.add_argument('--width', type=int, default=2048)
  parser.add_argument('--num_images', type=int, default=8)
  parser.add_argument('--as_of', type=int, default=500, help='images: computes as for so many')
  parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2], help="DataLoader's")
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--output', default='runs/benchmarks', help='folder of the JSON')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  about_torch = prepare_torch()
  config = get_config(arguments.model)
  config.data.num_workers = 0
  # The peer has none, either.
  config.eval.boundary_tolerances = ()
  size = arguments.height, arguments.width
  variables = draw_variables(arguments.model)
  with tempfile.TemporaryDirectory() as root:
    files = write_streets(root, 'val', arguments.num_images, size)
    dataset = load_dataset('cityscapes', 'val', root=root, cache_dir=Path(root, 'prepared'))
    model = model_from_config(config, CITYSCAPES.num_classes)
    evaluator = Evaluator(for_many_images(model, arguments.as_of), dataset, config)
    functions = {'ours': functools.partial(evaluator, parallel.replicate(variables))}
    network = fold_batch_norm(create_peer(arguments.model, variables)).to(device())
    for workers in arguments.workers:
      # As many workers as a whole evaluation would keep are kept between the rounds.
      loader = make_loader(FileDataset(files), workers, persistent_workers=workers > 0)
      functions[f'PyTorch, {workers} workers'] = functools.partial(evaluate_peer, network, loader)
    results = {name: function() for name, function in functions.items()}
    others = {name: check_same(name, results['ours'], x) for name, x in results.items()}
    seconds = alternate(functions, rounds=arguments.rounds, warm_up=0)
  rows = [
    {
      'evaluation': row['name'],
      'images/s': len(files) / statistics.median(seconds[row['name']]),
      'mIoU, %': 100 * float(results[row['name']]['miou']),
      'pixels of other class, %': 100 * others[row['name']],
      **{key: row[key] for key in ('ratio', 'lowest', 'highest')},
    }
    for row in compare(seconds, ours='ours')
  ]
  print_table(f'{arguments.model}, {len(files)} drawn PNGs of {size[0]}x{size[1]}', rows)
  return {'torch': about_torch, 'rows': rows}


@torch.inference_mode()
def evaluate_peer(network: torch.nn.Module, loader) -> dict:
  """Scores the images of a `DataLoader`, which gives them as they are in files."""
  num_classes = CITYSCAPES.num_classes
  total = torch.zeros(num_classes**2, dtype=torch.int64, device=device())
  for batch in loader:
    images = batch['image'].to(device()).permute(0, 3, 1, 2)
    found = network(normalize(images))['logits'].argmax(1)
    labels = batch['label'].to(device())
    counts = labels < num_classes
    cells = num_classes * labels[counts] + found[counts]
    total += torch.bincount(cells, minlength=num_classes**2)
  confusion = total.reshape(num_classes, num_classes).cpu().numpy()
  return iou_from_confusion(confusion) | {'confusion': confusion}


def check_same(name: str, ours: Mapping, theirs: Mapping) -> float:
  """The share of pixels that are counted as another class, at least.

  Raises:
    ValueError: it is above a thousandth, or the mean IoU differs by more than 0.1 %.
  """
  share = np.abs(ours['confusion'] - theirs['confusion']).sum() / 2 / ours['confusion'].sum()
  if share > 1e-3 or not abs(ours['miou'] - theirs['miou']) < 1e-3:
    raise ValueError(
      f'{name} comes to a mean IoU of {theirs["miou"]:.4f}, ours to {ours["miou"]:.4f}, and '
      f'{share:.2%} of the pixels are of another class; they cannot be compared'
    )
  return float(share)


if __name__ == '__main__':
  main()
