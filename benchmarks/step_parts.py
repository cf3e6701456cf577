"""Which share of a training step does each part take?

Parts cannot be timed inside a compiled step. So larger and larger pieces of it are compiled and
timed turn by turn, and a part is what a piece takes longer than the one before. The compiler may
arrange a larger piece otherwise: the shares are estimates, and a small one may come out below 0.

python -m benchmarks.step_parts --model=hrnet16_slim
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict

from benchmarks.results import print_table, run
from benchmarks.steps import draw_batch, make_step
from benchmarks.timing import alternate
from configs.cityscapes import get_config
from if_jax import parallel
from if_jax.data.labels import CITYSCAPES
from if_jax.ops.normalize import normalize
from if_jax.settings import loss_from_config, model_from_config


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.step_parts', description=__doc__)
  parser.add_argument('--model', default='hrnet16_slim')
  parser.add_argument('--height', type=int, default=512, help='of crops twice as wide')
  parser.add_argument('--batch_size', type=int, default=2)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--output', default='runs/benchmarks', help='folder of the JSON')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  config = get_config(arguments.model)
  config.augment.crop_size = arguments.height, 2 * arguments.height
  config.train.batch_size = arguments.batch_size
  pieces = make_pieces(config)
  seconds = alternate(pieces, rounds=arguments.rounds)
  medians = {name: statistics.median(times) for name, times in seconds.items()}
  whole = medians['optimiser']
  rows = [
    {'part': name, 'ms': 1e3 * (end - start), 'share, %': 100 * (end - start) / whole}
    for (name, end), start in zip(medians.items(), [0, *medians.values()], strict=False)
  ]
  rows.append({'part': 'whole step', 'ms': 1e3 * whole, 'share, %': 100.0})
  crop = 'x'.join(map(str, config.augment.crop_size))
  print_table(f'{arguments.model}, {arguments.batch_size} crops of {crop}', rows)
  return {'crop': crop, 'seconds': seconds, 'rows': rows}


def make_pieces(config: ConfigDict) -> dict[str, Callable[[], object]]:
  """Pieces of the step, each with the parts before it in it, named after its last part."""
  step, state, full_loss = make_step(config)
  # Copies: the step takes the memory of its state.
  variables, batch = jax.device_put((parallel.fetch(state.variables), draw_batch(config)))
  sharded = parallel.shard(batch)
  model = model_from_config(config, CITYSCAPES.num_classes)

  def forward(params, batch_stats, batch):
    return model.apply(
      {'params': params, 'batch_stats': batch_stats},
      normalize(batch['image']),
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(config.seed)},
    )

  def forward_pass(*arguments):
    outputs, updated = forward(*arguments)
    # What the loss takes before it is enlarged, a step does not make at full size.
    unused = {name.removeprefix('small_') for name in outputs if name.startswith('small_')}
    return {name: x for name, x in outputs.items() if name not in unused}, updated

  def loss(params, batch_stats, batch, loss_fn):
    outputs, updated = forward(params, batch_stats, batch)
    return loss_fn(outputs, batch['label'])[0], updated

  def whole_step():
    nonlocal state
    state, metrics = step(state, sharded, full_loss)
    return state, metrics

  gradient = jax.jit(jax.grad(loss, has_aux=True))
  arguments = variables['params'], variables['batch_stats'], batch
  segmentation = loss_without(config, 'boundary', 'attention', 'inverseform')
  with_boundaries = loss_without(config, 'inverseform')
  return {
    'forward pass': functools.partial(jax.jit(forward_pass), *arguments),
    'segmentation loss': functools.partial(jax.jit(loss), *arguments, segmentation),
    'backward pass of these': functools.partial(gradient, *arguments, segmentation),
    'boundary terms': functools.partial(gradient, *arguments, with_boundaries),
    'InverseForm': functools.partial(gradient, *arguments, loss_without(config)),
    'optimiser': whole_step,
  }


def loss_without(config: ConfigDict, *terms: str) -> jax.tree_util.Partial:
  """The loss of a configuration, without these terms."""
  config = config.copy_and_resolve_references()
  for term in terms:
    config.loss.weights[term] = 0.0
  return loss_from_config(config)


if __name__ == '__main__':
  main()
