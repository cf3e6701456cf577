"""`main.py` with a network that compiles in no time, and with accidents on demand.

Each device's copy of the state after the last step is printed as a hash.

FAULT='raise 5 1' in the environment lets process 1 fail over its batch of step 5; 'stall 5 1' lets
it wait there for ever, alive.
"""

import hashlib
import os
import runpy
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from if_jax import evaluate, predict, train  # noqa: E402
from if_jax.models.layers import BatchNorm  # noqa: E402


class Network(nn.Module):
  num_classes: int
  edge_head: bool
  axis_name: str | None

  @nn.compact
  def __call__(self, image, train=False):
    x = nn.Conv(8, (3, 3), name='conv')(image)
    x = nn.relu(BatchNorm(axis_name=self.axis_name, name='bn')(x, train))
    heads = {'logits': self.num_classes} | ({'edge_logits': 1} if self.edge_head else {})
    return {name: nn.Dense(features, name=name)(x) for name, features in heads.items()}


def model_from_config(config, num_classes, axis_name=None):
  return Network(num_classes, config.model.edge_head, axis_name)


def batches_with_fault(*args, start_step=0, process_index=0, **options):
  batches = train_batches(*args, start_step=start_step, process_index=process_index, **options)
  kind, step, process = os.environ['FAULT'].split()
  if process_index == int(process):
    return Faulty(batches, kind, int(step) - start_step)
  return batches


class Faulty:
  def __init__(self, batches, kind, countdown):
    self._batches, self._kind, self._countdown = batches, kind, countdown

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._batches.close()

  def __iter__(self):
    return self

  def __next__(self):
    self._countdown -= 1
    if self._countdown == 0 and self._kind == 'raise':
      raise ValueError('street_7.png: broken image; replace the file')
    if self._countdown == 0:
      time.sleep(10000)
    return next(self._batches)


def train_and_print_hashes(*args):
  state = train_as_it_is(*args)
  for i in range(jax.local_device_count()):
    digest = hashlib.sha256()
    for array in jax.tree.leaves(state):
      digest.update(np.asarray(array.addressable_shards[i].data).tobytes())
    print(f'state {digest.hexdigest()}')


train_as_it_is = train.train_and_evaluate
train_batches = train.train_batches
if __name__ == '__main__':
  train.train_and_evaluate = train_and_print_hashes
  train.model_from_config = model_from_config
  evaluate.model_from_card = lambda config, card: Network(
    len(card['label_set']['classes']), True, None
  )
  predict.model_from_card = evaluate.model_from_card
  if 'FAULT' in os.environ:
    train.train_batches = batches_with_fault
  sys.argv[0] = str(ROOT / 'main.py')
  runpy.run_path(sys.argv[0], run_name='__main__')
