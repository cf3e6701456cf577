"""The gradients of batch normalisation, which are written down, against its definition's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from if_jax.models.layers import BATCH_NORM_EPSILON, BatchNorm


def _draw():
  """An image whose channels have means and scales of their own, and parameters."""
  rng = np.random.default_rng(0)
  x = 1 + np.array([0.5, 1, 10]) * rng.normal(size=(2, 5, 6, 3))
  return tuple(jnp.asarray(y, jnp.float32) for y in (x, [2, -1, 0.5], [0.3, 0, -1]))


def _by_definition(x, scale, bias):
  mean, var = (f(x, (0, 1, 2)) for f in (jnp.mean, jnp.var))
  return scale * (x - mean) * jax.lax.rsqrt(var + BATCH_NORM_EPSILON) + bias


def _normalize(x, scale, bias, **options):
  statistics = {'mean': jnp.zeros(3), 'var': jnp.ones(3)}
  variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': statistics}
  return BatchNorm(**options).apply(variables, x, train=True, mutable=['batch_stats'])[0]


def _total(normalize, *operands):
  """Neither of its first two derivatives is the same for all pixels."""
  y = normalize(*operands).astype(jnp.float32)
  return jnp.sum(jnp.cos(jnp.arange(y.size).reshape(y.shape)) * jnp.sin(y))


def _gradients(normalize, *operands):
  return jax.grad(functools.partial(_total, normalize), (0, 1, 2))(*operands)


def _assert_close(actual, expected, tolerance):
  for one, other in zip(actual, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def test_gradients_are_those_of_its_definition():
  operands = _draw()
  with jax.enable_x64(True):
    expected = _gradients(_by_definition, *(np.asarray(y, np.float64) for y in operands))
  _assert_close(_gradients(_normalize, *operands), expected, 3e-5)


def test_gradients_of_bfloat16_are_added_up_in_float32():
  x, *parameters = _draw()
  actual = _gradients(
    functools.partial(_normalize, dtype=jnp.bfloat16), x.astype(jnp.bfloat16), *parameters
  )
  assert [y.dtype for y in actual] == [jnp.bfloat16, jnp.float32, jnp.float32]
  expected = _gradients(_by_definition, x, *parameters)
  _assert_close([y.astype(jnp.float32) for y in actual], expected, 0.05)


def test_gradients_have_gradients():
  operands = _draw()

  def of_total(normalize, x):
    return jnp.sum(jnp.square(_gradients(normalize, x, *operands[1:])[0]))

  actual, expected = (
    jax.grad(functools.partial(of_total, f))(operands[0]) for f in (_normalize, _by_definition)
  )
  _assert_close([actual], [expected], 1e-4)


@pytest.mark.parametrize('check_vma', [True, False])
def test_devices_of_a_mesh_share_statistics_and_parameters(check_vma):
  operands = _draw()
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('batch',))
  shared, by_device = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec('batch')
  gradients = jax.shard_map(
    functools.partial(_gradients, functools.partial(_normalize, axis_name='batch')),
    mesh=mesh,
    in_specs=(by_device, shared, shared),
    out_specs=(by_device, shared, shared),
    check_vma=check_vma,
  )
  _assert_close(jax.jit(gradients)(*operands), _gradients(_by_definition, *operands), 3e-5)
