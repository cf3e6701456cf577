"""How fast are the networks in evaluation, beside PyTorch at its best and beside the machine?

Three parts are timed: the backbone (images to features), the network (images to logits of classes
and edges), and labels (bytes to the class and the edge probability of each pixel, as prediction
runs it). Ours runs as it does for many images, on x86 CPUs by oneDNN, and by XLA alone; PyTorch in
`channels_last`: as it is, with batch norm folded into the convolutions, and compiled, too. GFLOP
and GB are those of our program for XLA alone: operations before it is optimised, an addition and a
multiplication each, and what it reads and writes afterwards. The share is of the fastest large
matrix product in the same run.

python -m benchmarks.inference --models=hrnet18,hrnet16_slim,ocrnet48 --size=512,1024
"""

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.operations import operations
from benchmarks.pytorch_peers import (
  EFFORTS,
  compile_peer,
  create_peer,
  draw_variables,
  fold_batch_norm,
  from_torch_maps,
  normalize,
  to_torch_maps,
)
from benchmarks.results import print_table, run
from benchmarks.timing import alternate, check_close, compare, prepare_torch, product_peak
from if_jax.compilation_cache import not_kept
from if_jax.inference import predict
from if_jax.models import create_model
from if_jax.models.hrnet import HRNet
from if_jax.models.layers import BatchNorm, Conv
from if_jax.ops import onednn

PARTS = ('backbone', 'network', 'labels')


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.inference', description=__doc__)
  parser.add_argument('--models', type=words, default=('hrnet18', 'hrnet16_slim', 'ocrnet48'))
  parser.add_argument('--parts', type=words, default=PARTS, help=f'of {", ".join(PARTS)}')
  parser.add_argument('--batch_size', type=int, default=1)
  parser.add_argument('--size', type=integers, default=(512, 1024), help='height,width')
  add_arguments(parser, compile_default='default')
  run(measure, parser, argv)


def add_arguments(parser: argparse.ArgumentParser, *, compile_default: str) -> None:
  """Adds what all benchmarks beside PyTorch ask for."""
  dtype = 'bfloat16' if jax.default_backend() == 'gpu' else 'float32'
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default=dtype)
  parser.add_argument(
    '--compile', choices=EFFORTS, default=compile_default, help='PyTorch; takes minutes on CPUs'
  )
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--output', default='runs/benchmarks')


def words(text: str) -> tuple[str, ...]:
  """Reads 'a,b'."""
  return tuple(text.split(','))


def integers(text: str) -> tuple[int, ...]:
  """Reads '1,2'."""
  return tuple(int(word) for word in text.split(','))


def measure(arguments: argparse.Namespace) -> dict:
  about_torch = prepare_torch()
  peak = product_peak(arguments.dtype) / 1e9
  print(f'{peak:.0f} GFLOP/s in matrix products of {arguments.dtype}')
  rows = []
  for name in arguments.models:
    variables = draw_variables(name)
    networks = peer_networks(name, variables, arguments)
    for part in arguments.parts:
      rows += time_part(name, part, variables, networks, peak, arguments)
  return {'torch': about_torch, 'product GFLOP/s': peak, 'rows': rows}


def time_part(
  name: str,
  part: str,
  variables: Mapping,
  networks: Mapping[str, torch.nn.Module],
  peak: float,
  arguments: argparse.Namespace,
) -> list[dict]:
  """Compares what one part of a network gives in all ways, then times them."""
  if part not in PARTS:
    raise ValueError(f'no part {part!r}; there are {", ".join(PARTS)}')
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (arguments.batch_size, *arguments.size, 3), np.uint8)
  their_images = to_torch_maps(images)
  if part != 'labels':
    their_images = normalize(their_images).to(getattr(torch, arguments.dtype))
    images = from_torch_maps(their_images)
  segment = our_part(name, part, arguments.dtype)
  by_xla = jax.jit(segment).lower(variables, images).compile()
  # Labels are made image by image, in a loop that XLA counts once.
  repeats = arguments.batch_size if part == 'labels' else 1
  gflop = repeats * operations(segment, variables, images) / 1e9
  gigabytes = repeats * by_xla.cost_analysis()['bytes accessed'] / 1e9
  ways = {'ours': by_xla}
  if onednn.why_not(jnp.dtype(arguments.dtype)) is None:
    with not_kept():
      fast = jax.jit(our_part(name, part, arguments.dtype, onednn=True)).lower(variables, images)
      ways = {'ours': fast.compile(), 'ours, XLA alone': by_xla}

  arrays = jax.device_put((variables, images))
  functions = {way: functools.partial(program, *arrays) for way, program in ways.items()}
  expected = by_xla(*arrays)
  for way, function in functions.items():
    check_same_outputs(f'{name}, {way}', expected, function())
  for peer, network in networks.items():
    function = functools.partial(_PEER_PARTS[part], network)
    if 'compiled' in peer:
      function = compile_peer(function, arguments.compile, frozen=True)
    functions[peer] = torch.inference_mode()(functools.partial(function, their_images))
    check_outputs(f'{name}, {peer}', expected, functions[peer](), arguments.dtype)
  rows = compare(alternate(functions, rounds=arguments.rounds), ours='ours')
  for row in rows:
    row['GFLOP/s'] = gflop / row['median ms'] * 1e3
    row['share'] = row['GFLOP/s'] / peak
  size = ' x '.join(str(n) for n in (arguments.batch_size, *arguments.size))
  print_table(f'{name}, {part}, {size}: {gflop:.1f} GFLOP, {gigabytes:.2f} GB', rows)
  about = {'model': name, 'part': part, 'GFLOP': gflop, 'GB': gigabytes}
  return [about | row for row in rows]


def our_part(
  name: str, part: str, dtype: str, **options: bool
) -> Callable[[Mapping, jax.Array], dict]:
  """(variables, normalised images or, for labels, bytes) -> outputs by name."""
  model = create_model(name, dtype=jnp.dtype(dtype), **options)
  if part == 'labels':
    return functools.partial(predict, model)
  if part == 'network':
    return functools.partial(model.apply, train=False)
  conv = functools.partial(Conv, dtype=model.dtype, **options)
  norm = functools.partial(BatchNorm, dtype=model.dtype)
  backbone = HRNet(model.backbone_spec, conv, norm)

  def features(variables, images):
    own = {collection: tree['backbone'] for collection, tree in variables.items()}
    return {'features': backbone.apply(own, images, False)}

  return features


def peer_networks(
  name: str, variables: Mapping, arguments: argparse.Namespace
) -> dict[str, torch.nn.Module]:
  """The same network as PyTorch's users have it, by what was done to it."""
  network = create_peer(name, variables).eval().to(getattr(torch, arguments.dtype))
  folded = fold_batch_norm(network)
  networks = {'PyTorch': network, 'PyTorch folded': folded}
  return networks if arguments.compile == 'off' else networks | {'PyTorch compiled': folded}


def _peer_labels(network, images):
  outputs = network(normalize(images).to(next(network.parameters()).dtype))
  if 'edge_logits' in outputs:
    edges = outputs['edge_logits'].sigmoid()
  else:
    edges = outputs['edge_probabilities'][:, :1]
  return {'label': outputs['logits'].argmax(1), 'edge_probability': edges}


# As `our_part`, of (network, images).
_PEER_PARTS = {
  'backbone': lambda network, images: {'features': network.backbone(images)},
  'network': lambda network, images: network(images),
  'labels': _peer_labels,
}


def check_same_outputs(what: str, expected: Mapping, ours: Mapping) -> None:
  """Raises ValueError unless two ways of ours give the same but for rounding."""
  for name, x in expected.items():
    if name == 'label':
      check_close(f'labels of {what}', np.mean(x == ours[name]), 1, tolerance=1e-3)
    elif name != 'attention':
      check_close(f'{name} of {what}', x, ours[name], tolerance=1e-4)


def check_outputs(what: str, ours: Mapping, theirs: Mapping, dtype: str) -> None:
  """Raises ValueError unless both give the same but for rounding."""
  # GPUs multiply float32 with fewer digits.
  exact = dtype == 'float32' and jax.default_backend() == 'cpu'
  for name, x in theirs.items():
    if name == 'label':
      same = np.mean(np.asarray(ours[name]) == x.cpu().numpy())
      check_close(f'labels of {what}', same, 1, tolerance=1e-3 if exact else 0.1)
      continue
    x, expected = from_torch_maps(x), ours.get(name)
    if name == 'edge_probabilities':
      x, expected = x[..., :1], jax.nn.sigmoid(ours['edge_logits'])
    check_close(f'{name} of {what}', expected, x, tolerance=1e-4 if exact else 0.1)


if __name__ == '__main__':
  main()
