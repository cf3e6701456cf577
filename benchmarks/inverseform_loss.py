"""What does the InverseForm loss cost, forward and backward, beside the same in PyTorch?

Timed are the value and its gradient with respect to the edge logits, by grid of tiles: PyTorch
with the release's fully connected network, ours with the same network and gradient, and ours as it
is by default, with the motion gradient and the network that comes with the package.

python -m benchmarks.inverseform_loss --batch_size=2 --size=512,1024 --grids=3x6
"""

import argparse
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.tree_util import Partial

from benchmarks import pytorch_losses
from benchmarks.inference import integers, words
from benchmarks.pytorch_peers import EFFORTS, compile_peer, device, from_torch_maps, to_torch_maps
from benchmarks.results import print_table, run
from benchmarks.timing import alternate, check_close, compare, prepare_torch
from if_jax.data.streets import draw
from if_jax.losses import inverseform
from if_jax.models.inversenet import create_inversenet, load_inversenet
from if_jax.ops.boundaries import boundary_map

_OURS = 'ours, mlp'


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.inverseform_loss', description=__doc__)
  parser.add_argument('--batch_size', type=int, default=2)
  parser.add_argument('--size', type=integers, default=(512, 1024), help='height,width')
  parser.add_argument('--grids', type=words, default=('1x2', '2x4', '3x6'), help='rows x columns')
  parser.add_argument('--tile_size', type=int, default=224)
  parser.add_argument('--compile', choices=EFFORTS, default='default')
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--output', default='runs/benchmarks')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  about_torch = prepare_torch()
  edge_logits, edges = draw_maps(arguments.batch_size, arguments.size)
  variables = draw_mlp(arguments.tile_size)
  mlp = Partial(create_inversenet('mlp').apply, variables)
  default = Partial(*load_inversenet())
  peer = pytorch_losses.InverseMLP(variables).to(device())
  rows = []
  for grid in arguments.grids:
    tiles = dict(zip(('tile_rows', 'tile_columns'), map(int, grid.split('x')), strict=True))
    tiles['tile_size'] = arguments.tile_size
    functions = {
      _OURS: our_loss(edge_logits, edges, mlp, gradient='full', **tiles),
      'ours, mlp, motion gradient': our_loss(edge_logits, edges, mlp, **tiles),
      'ours, default': our_loss(edge_logits, edges, default, **tiles),
      'PyTorch, mlp': peer_loss(edge_logits, edges, peer, **tiles),
    }
    if arguments.compile != 'off':
      functions['PyTorch, mlp, compiled'] = peer_loss(
        edge_logits, edges, peer, effort=arguments.compile, **tiles
      )
    check_same(grid, functions)
    table = compare(alternate(functions, rounds=arguments.rounds), ours=_OURS)
    size = ' x '.join(str(n) for n in edges.shape[:3])
    print_table(f'InverseForm, {size}, {grid} tiles of {arguments.tile_size}', table)
    rows += [{'grid': grid} | row for row in table]
  return {'torch': about_torch, 'rows': rows}


def draw_maps(batch_size: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Draws boundaries of streets, and edge logits that are near them: [B, H, W, 1] each."""
  labels = np.stack([draw(np.random.default_rng(seed), size)[1] for seed in range(batch_size)])
  edges = np.asarray(boundary_map(labels.astype(np.int32)))
  noise = np.random.default_rng(0).standard_normal(edges.shape, np.float32)
  return 4 * np.roll(edges, 3, axis=2) - 2 + noise, edges


def draw_mlp(tile_size: int, seed: int = 0) -> dict:
  """Draws variables of the release's network: 100 million for tiles of 224."""
  rng = np.random.default_rng(seed)
  widths = 2 * tile_size**2, 1000, 32, 4
  params = {}
  for name, inputs, outputs in zip(('hidden0', 'hidden1', 'out'), widths, widths[1:], strict=False):
    kernel = rng.standard_normal((inputs, outputs), np.float32) * np.float32(inputs**-0.5)
    params[name] = {'kernel': kernel, 'bias': np.zeros(outputs, np.float32)}
  return {'params': params}


def our_loss(edge_logits, edges, inverse_net: Partial, **options) -> Callable[[], tuple]:
  """What gives the loss and its gradient."""

  def loss(edge_logits, edges, inverse_net):
    total, count = inverseform(edge_logits, edges, inverse_net, **options)
    return total / jnp.maximum(count, 1)

  # The network is an argument: 400 MB of constants would take long to compile.
  arrays = jax.device_put((edge_logits, edges, inverse_net))
  return functools.partial(jax.jit(jax.value_and_grad(loss)), *arrays)


def peer_loss(edge_logits, edges, inverse_net, *, effort: str = 'off', **options):
  """As `our_loss`, in PyTorch."""
  edge_logits, edges = to_torch_maps(edge_logits).requires_grad_(), to_torch_maps(edges)

  def loss(edge_logits, edges):
    return pytorch_losses.inverseform(edge_logits, edges, inverse_net, **options)

  if effort != 'off':
    loss = compile_peer(loss, effort)

  def value_and_grad():
    value = loss(edge_logits, edges)
    return value.detach(), *torch.autograd.grad(value, edge_logits)

  return value_and_grad


def check_same(grid: str, functions) -> None:
  """Raises ValueError unless the peers give our value and our full gradient."""
  value, gradient = functions[_OURS]()
  # GPUs multiply float32 with fewer digits.
  tolerance = 1e-3 if device() == 'cpu' else 0.05
  for name in functions:
    if name.startswith('PyTorch'):
      their_value, their_gradient = functions[name]()
      check_close(f'loss, {grid}, {name}', value, their_value.cpu(), tolerance=tolerance)
      their_gradient = from_torch_maps(their_gradient)
      check_close(f'gradient, {grid}, {name}', gradient, their_gradient, tolerance=tolerance)


if __name__ == '__main__':
  main()
