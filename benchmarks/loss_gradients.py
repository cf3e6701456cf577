"""How strongly does each term of the loss pull at a network, and which way?

For each weight folder, over the same training crops: the norm of the gradient of each term, times
its weight, at the edge head's logits and at the backbone's parameters, and there its cosine to the
gradient of the segmentation loss: near 0, the term neither helps nor hinders it. The terms of the
auxiliary outputs count with those of the main ones, as in training.

python -m benchmarks.loss_gradients runs/start/last runs/end/last --root=/data/camvid
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from benchmarks.results import print_table, run
from configs import camvid
from if_jax.data.augment import Augmentation
from if_jax.data.pipeline import train_batches
from if_jax.ops.normalize import normalize
from if_jax.settings import load_split, loss_from_config, model_from_card
from if_jax.weights import load_weights

TERMS = ('segmentation', 'boundary', 'attention', 'inverseform')


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.loss_gradients', description=__doc__)
  add = parser.add_argument
  add('weights', nargs='+', help='weight folders of networks with an edge head')
  add('--dataset', default='camvid')
  add('--root', help='the folder of the data set')
  add('--batch_size', type=int, default=8)
  add('--num_batches', type=int, default=8)
  add('--crop', type=_size, default='240,320', help='HEIGHT,WIDTH')
  add('--tile_rows', type=int, default=2)
  add('--output', default='runs/benchmarks', help='folder of the JSON')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  config = camvid.get_config()
  config.data.name, config.data.root = arguments.dataset, arguments.root or ''
  config.augment.crop_size = arguments.crop
  config.loss.tile_rows = arguments.tile_rows
  dataset = load_split(config, config.data.train_split)
  rows = []
  for folder in arguments.weights:
    stream = train_batches(
      dataset, Augmentation(**config.augment), batch_size=arguments.batch_size, seed=0
    )
    with stream:
      batches = [next(stream) for _ in range(arguments.num_batches)]
    rows += measure_network(config, folder, batches)
  print_table(f'Gradients, means over {arguments.num_batches} batches', rows)
  return {'rows': rows}


def measure_network(config: ConfigDict, folder: str, batches: Sequence[dict]) -> list[dict]:
  """A row for each term."""
  variables, card = load_weights(folder)
  if not card['edge_head']:
    raise ValueError(f'{folder} has no edge head; name weights that have one')
  model = model_from_card(config, card)
  losses = {term: loss_of_term(config, term) for term in TERMS}

  @jax.jit
  def gradients(variables, losses, batch):
    def outputs_of(params, at_edges):
      outputs, _ = model.apply(
        {**variables, 'params': params},
        normalize(batch['image']),
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(0)},
      )
      return outputs | {'edge_logits': outputs['edge_logits'] + at_edges}

    def gradient(loss_fn):
      nothing = jnp.zeros((*batch['label'].shape, 1))
      loss = lambda *x: loss_fn(outputs_of(*x), batch['label'])[0]  # noqa: E731
      of_params, of_edges = jax.grad(loss, (0, 1))(variables['params'], nothing)
      return of_params['backbone'], of_edges

    return {term: gradient(loss_fn) for term, loss_fn in losses.items()}

  @jax.jit
  def numbers(found):
    reference, _ = found['segmentation']
    return {
      term: {
        'at edge logits': optax.tree.norm(of_edges),
        'at the backbone': optax.tree.norm(of_backbone),
        # 0 where there is no gradient that could have a direction.
        'cosine': optax.tree.vdot(of_backbone, reference)
        / jnp.maximum(optax.tree.norm(of_backbone) * optax.tree.norm(reference), 1e-12),
      }
      for term, (of_backbone, of_edges) in found.items()
    }

  measured = [jax.device_get(numbers(gradients(variables, losses, batch))) for batch in batches]
  means = jax.tree.map(lambda *x: float(np.mean(x)), *measured)
  return [{'weights': folder, 'term': term} | means[term] for term in TERMS]


def loss_of_term(config: ConfigDict, term: str) -> jax.tree_util.Partial:
  """The joint loss with one term alone, times its weight."""
  config = config.copy_and_resolve_references()
  for other in TERMS:
    if other != term:
      config.loss.weights[other] = 0.0
  return loss_from_config(config)


def _size(text):
  height, width = map(int, text.split(','))
  return height, width


if __name__ == '__main__':
  main()
