"""How fast is a training step, beside PyTorch at its best?

A step is normalisation, forward pass, the losses of the joint loss without InverseForm, backward
pass and SGD. Ours makes its boundary maps in the step; PyTorch is given them. PyTorch runs in
`channels_last`, its optimiser fused, and compiled, too, if asked for; bfloat16 is its autocast.
GFLOP are XLA's count of our step before it is optimised; the share is of the fastest large matrix
product in the same run.

python -m benchmarks.training_step --models=hrnet18,hrnet16_slim --batch_size=4 --crop=256,512
"""

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarks.inference import add_arguments, integers, words
from benchmarks.operations import operations
from benchmarks.pytorch_losses import joint_loss
from benchmarks.pytorch_peers import compile_peer, create_peer, device, normalize, to_torch_maps
from benchmarks.results import print_table, run
from benchmarks.steps import draw_batch, make_step
from benchmarks.timing import alternate, check_close, compare, prepare_torch, product_peak
from configs.default import get_config
from if_jax import parallel
from if_jax.data.labels import CITYSCAPES
from if_jax.losses import LossWeights
from if_jax.ops.boundaries import boundary_map
from if_jax.optimizers import make_optimizer, make_schedule
from if_jax.settings import loss_from_config, model_from_config
from if_jax.train_step import train_step


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.training_step', description=__doc__)
  parser.add_argument('--models', type=words, default=('hrnet18', 'hrnet16_slim', 'ocrnet48'))
  parser.add_argument('--batch_size', type=int, default=4)
  parser.add_argument('--crop', type=integers, default=(256, 512), help='height,width')
  add_arguments(parser, compile_default='off')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  about_torch = prepare_torch()
  peak = product_peak(arguments.dtype) / 1e9
  print(f'{peak:.0f} GFLOP/s in matrix products of {arguments.dtype}')
  rows = []
  for name in arguments.models:
    rows += time_model(name, peak, arguments)
  return {'torch': about_torch, 'product GFLOP/s': peak, 'rows': rows}


def time_model(name: str, peak: float, arguments: argparse.Namespace) -> list[dict]:
  """Compares the loss of the first step taken in all ways, then times further steps."""
  steps, gflop = make_steps(make_config(name, arguments), arguments.compile)
  losses = {way: float(step()) for way, step in steps.items()}
  ours = next(iter(steps))
  exact = arguments.dtype == 'float32' and device() == 'cpu' and 'ocr' not in name
  for way, loss in losses.items():
    # OCR drops other channels at random in every way. Compiled, PyTorch's first loss of
    # hrnet16_slim was 0.11 % from ours, where it is less than 0.1 % as it comes.
    tolerance = 0.05 if not exact else 0.01 if 'compiled' in way else 1e-3
    check_close(f'loss of {name}, {way}', losses[ours], loss, tolerance=tolerance)
  rows = compare(alternate(steps, rounds=arguments.rounds), ours=ours)
  for row in rows:
    row['GFLOP/s'] = gflop / row['median ms'] * 1e3
    row['share'] = row['GFLOP/s'] / peak
  size = ' x '.join(str(n) for n in (arguments.batch_size, *arguments.crop))
  print_table(f'{name}, training step, {size}: {gflop:.1f} GFLOP', rows)
  return [{'model': name, 'GFLOP': gflop} | row for row in rows]


def make_steps(config: ConfigDict, effort: str) -> tuple[dict[str, Callable], float]:
  """Ways to train the same network: name -> what takes a step and gives its loss; and its GFLOP."""
  batch = draw_batch(config)
  step, state, loss_fn = make_step(config)
  # Copies: the step frees what it is given.
  start = jax.tree.map(np.array, parallel.fetch(state))
  ours = repeat(step, state, parallel.shard(batch), loss_fn)
  compiled, gflop, loss_fn = compile_on_one_device(config, start, batch)
  arrays = jax.device_put((start, batch, loss_fn), may_alias=False)
  steps = {
    f'ours, pmap of {parallel.num_devices()}': ours,
    'ours, jit': repeat(compiled, *arrays),
    'PyTorch': peer_step(config, start.variables, batch),
  }
  if effort != 'off':
    steps['PyTorch compiled'] = peer_step(config, start.variables, batch, effort)
  return steps, gflop


def make_config(name: str, arguments: argparse.Namespace) -> ConfigDict:
  """The default configuration with another network, batch and crop, and without InverseForm."""
  config = get_config()
  config.model.name = name
  config.model.dtype = arguments.dtype
  config.augment.crop_size = arguments.crop
  config.train.batch_size = arguments.batch_size
  config.loss.weights.inverseform = 0.0
  return config


def compile_on_one_device(config: ConfigDict, state, batch) -> tuple[Callable, float, Callable]:
  """Compiles the step by `jax.jit`: it, its GFLOP, and the loss that it takes."""
  optimizer = make_optimizer(make_schedule(config.optimizer.learning_rate, config.train.num_steps))
  step = functools.partial(
    train_step,
    model=model_from_config(config, CITYSCAPES.num_classes),
    optimizer=optimizer,
    seed=config.seed,
  )
  loss_fn = loss_from_config(config)
  compiled = jax.jit(step, donate_argnums=0).lower(state, batch, loss_fn).compile()
  return compiled, operations(step, state, batch, loss_fn) / 1e9, loss_fn


def repeat(step: Callable, state, batch, loss_fn) -> Callable[[], jax.Array]:
  """A function that takes one step further each time and gives its loss."""

  def step_further():
    nonlocal state
    state, metrics = step(state, batch, loss_fn)
    # The loss is there before the update is.
    jax.block_until_ready(state)
    return metrics['loss']

  return step_further


def peer_step(
  config: ConfigDict, variables: Mapping, batch: Mapping[str, np.ndarray], effort: str = 'off'
) -> Callable[[], torch.Tensor]:
  """As `repeat`, in PyTorch."""
  network = create_peer(config.model.name, variables).train()
  kernels = [p for p in network.parameters() if p.ndim > 1]
  others = [p for p in network.parameters() if p.ndim == 1]
  optimizer = torch.optim.SGD(
    [{'params': kernels, 'weight_decay': config.optimizer.weight_decay}, {'params': others}],
    lr=config.optimizer.learning_rate,
    momentum=config.optimizer.momentum,
    fused=True,
  )
  weights = LossWeights(**config.loss.weights)
  in_bfloat16 = config.model.dtype == 'bfloat16'
  edges = boundary_map(batch['label'], radius=config.loss.boundary_radius)
  images, edges = to_torch_maps(batch['image']), to_torch_maps(edges)
  labels = torch.tensor(batch['label'], dtype=torch.int64, device=device())

  def loss_of(images, labels, edges):
    with torch.autocast(device(), torch.bfloat16, enabled=in_bfloat16):
      outputs = network(normalize(images))
    return joint_loss(outputs, labels, edges, weights)[0]

  if effort != 'off':
    loss_of = compile_peer(loss_of, effort)

  def step():
    optimizer.zero_grad()
    loss = loss_of(images, labels, edges)
    loss.backward()
    optimizer.step()
    return loss.detach()

  return step


if __name__ == '__main__':
  main()
