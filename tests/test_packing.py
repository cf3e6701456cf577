"""Trees as vectors and back."""

import jax
import numpy as np
import optax
import pytest

from if_jax.optimizers import make_optimizer, make_schedule
from if_jax.packing import is_within, pack, unpack

TREE = {
  'backbone': {
    'conv': {'kernel': np.float32([[1, 2], [3, 4]]), 'bias': np.float32([5])},
    'bn': {'scale': np.float32([[6]]), 'bias': np.float32([7, 8])},
  },
  'head': {'kernel': np.float32([[[9]]])},
  'head2': {'kernel': np.float32([10])},
}


@pytest.mark.parametrize(
  ('without', 'expected'),
  [
    ((), {'kernel': [1, 2, 3, 4, 9, 10], 'other': [7, 8, 6, 5]}),
    (('backbone/bn',), {'kernel': [1, 2, 3, 4, 9, 10], 'other': [5]}),
    (('backbone', 'head'), {'kernel': [10]}),
    (('backbone', 'head', 'head2'), {}),
  ],
)
def test_arrays_lie_end_to_end_and_come_back(without, expected):
  packed = pack(TREE, without)
  assert {name: vector.tolist() for name, vector in packed.items()} == expected
  jax.tree.map(np.testing.assert_array_equal, unpack(packed, TREE, without), TREE)
  moved = unpack({name: vector + 1 for name, vector in packed.items()}, TREE, without)
  stays = {path for path, old in leaves(TREE).items() if np.array_equal(old, leaves(moved)[path])}
  assert stays == {path for path in leaves(TREE) if is_within(path, without)}
  assert all(np.shape(x) == TREE_SHAPES[path] for path, x in leaves(moved).items())


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_an_optimizer_does_the_same_to_vectors_as_to_arrays(name):
  """To the bit, decay of kernels alone included."""
  rng = np.random.RandomState(0)
  optimizer = make_optimizer(make_schedule(0.3, 10), name=name, weight_decay=0.1)
  packed = pack(TREE)
  of_arrays, of_vectors = optimizer.init(TREE), optimizer.init(packed)
  arrays = TREE
  for _ in range(3):
    gradients = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), TREE)
    updates, of_arrays = optimizer.update(gradients, of_arrays, arrays)
    arrays = optax.apply_updates(arrays, updates)
    updates, of_vectors = optimizer.update(pack(gradients), of_vectors, packed)
    packed = optax.apply_updates(packed, updates)
  jax.tree.map(np.testing.assert_array_equal, unpack(packed, TREE), arrays)
  np.testing.assert_allclose(optax.tree.norm(packed), optax.tree.norm(arrays), rtol=1e-6)


def leaves(tree):
  found = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {tuple(key.key for key in path): x for path, x in found}


TREE_SHAPES = {path: x.shape for path, x in leaves(TREE).items()}
