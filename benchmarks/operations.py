"""How many parameters have the networks, and how many operations is one look at an image?

Operations are those that XLA counts in the program of one evaluation before it optimises it: a
multiplication and an addition are two, zeros around an image are not multiplied. Nothing runs.

python -m benchmarks.operations
"""

import argparse
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from benchmarks.results import print_table, run
from if_jax.models import MODELS, create_model
from if_jax.weights import model_shapes


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.operations', description=__doc__)
  parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
  parser.add_argument('--size', type=int, nargs=2, default=(1024, 2048), help='height and width')
  parser.add_argument('--output', default='runs/benchmarks', help='folder of the JSON')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  rows = []
  for name in arguments.models:
    with_edges = _arrays(create_model(name))
    image = jax.ShapeDtypeStruct((1, *arguments.size, 3), jnp.float32)
    row = {
      'model': name,
      'parameters, M': _millions(_arrays(create_model(name, edge_head=False))),
      'with edge head, M': _millions(with_edges),
      'GFLOP': operations(create_model(name).apply, with_edges, image) / 1e9,
    }
    rows.append(row)
  height, width = arguments.size
  print_table(f'One look at 1 x {height} x {width}, 19 classes', rows)
  return {'rows': rows}


def _arrays(model):
  arrays = {k: jax.ShapeDtypeStruct(x, jnp.float32) for k, x in model_shapes(model).items()}
  return unflatten_dict(arrays, sep='/')


def _millions(variables):
  return sum(x.size for x in jax.tree.leaves(variables['params'])) / 1e6


def operations(function: Callable, *arguments) -> float:
  """Floating-point operations of a function of arrays, or of their shapes, by its definition.

  That is, as it runs on GPUs: for CPUs large convolutions are written with fewer.
  """
  traced = jax.jit(function).trace(*arguments)
  return traced.lower(lowering_platforms=('cuda',)).cost_analysis()['flops']


if __name__ == '__main__':
  main()
