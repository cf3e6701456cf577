"""Frozen parts: named by their paths, never updated, computing as in evaluation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from if_jax.freezing import check_frozen, running_statistics, stop_gradients
from if_jax.models.layers import BatchNorm

PARAMS = {
  'backbone': {'conv1': {'kernel': np.float32([2.0])}, 'bn1': {'scale': np.float32([3.0])}},
  'head': {'kernel': np.float32([4.0])},
  'head2': {'kernel': np.float32([5.0])},
}


@pytest.mark.parametrize('frozen', [(), ('backbone',), ('backbone/bn1', 'head2')])
def test_names_of_modules_are_accepted(frozen):
  check_frozen(PARAMS, frozen)


@pytest.mark.parametrize(
  ('name', 'hint'),
  [
    ('backbon', 'Did you mean backbone?'),
    ('backbone/bn', 'Did you mean backbone/bn1?'),
    ('head/kernel', 'it consists of backbone, head, head2'),
    ('', 'it consists of backbone, head, head2'),
  ],
)
def test_other_names_are_told(name, hint):
  with pytest.raises(ValueError, match='is no module of the network') as error:
    check_frozen(PARAMS, ('head', name))
  assert f'names {name!r}' in str(error.value)
  assert hint in str(error.value)


def test_no_gradient_is_computed_through_what_is_frozen():
  def output(params):
    params = stop_gradients(params, ('backbone',))
    features = params['backbone']['conv1']['kernel'] * params['backbone']['bn1']['scale']
    return jnp.sum(features * params['head']['kernel'])

  value, gradients = jax.value_and_grad(output)(PARAMS)
  assert value == 24
  assert gradients['head']['kernel'] == 6
  assert not any(map(np.any, jax.tree.leaves(gradients['backbone'])))


class TwoNorms(nn.Module):
  """A frozen and a free batch norm, deep inside modules that are recomputed, as in HRNet."""

  @nn.compact
  def __call__(self, x, train):
    class Block(nn.Module):
      @nn.compact
      def __call__(self, x, train):
        return BatchNorm(name='bn')(x, train)

    block = nn.remat(Block, static_argnums=(2,))
    return block(name='frozen')(x, train), block(name='free')(x, train)


def test_frozen_batch_norm_computes_as_in_evaluation():
  x = np.random.RandomState(0).normal(3, 2, (50, 4)).astype(np.float32)
  variables = TwoNorms().init(jax.random.key(0), x, False)
  with running_statistics(('frozen',)):
    (frozen, free), updated = TwoNorms().apply(variables, x, True, mutable=['batch_stats'])
  np.testing.assert_array_equal(frozen, TwoNorms().apply(variables, x, False)[0])
  np.testing.assert_allclose(free.mean(0), 0, atol=1e-5)
  before, after = (jax.tree.map(np.asarray, x['batch_stats']) for x in (variables, updated))
  np.testing.assert_equal(after['frozen'], before['frozen'])
  assert np.all(after['free']['bn']['mean'] != before['free']['bn']['mean'])
