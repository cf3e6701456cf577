"""The gradients of batch normalisation against those of its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from if_jax.models.layers import BATCH_NORM_EPSILON, BatchNorm
from tests.processes import run_python


def _draw():
  """Weights of the result, an image whose channels differ in mean and scale, and parameters."""
  rng = np.random.default_rng(0)
  x = 1 + np.array([0.5, 1, 10]) * rng.normal(size=(2, 5, 6, 3))
  arrays = rng.normal(size=x.shape), x, [2, -1, 0.5], [0.3, 0, -1]
  return tuple(jnp.asarray(y, jnp.float32) for y in arrays)


def _by_definition(x, scale, bias):
  mean, var = (f(x, (0, 1, 2)) for f in (jnp.mean, jnp.var))
  return scale * (x - mean) * jax.lax.rsqrt(var + BATCH_NORM_EPSILON) + bias


def _normalize(x, scale, bias, **options):
  statistics = {'mean': jnp.zeros(3), 'var': jnp.ones(3)}
  variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': statistics}
  return BatchNorm(**options).apply(variables, x, train=True, mutable=['batch_stats'])[0]


def _gradients(normalize, weights, x, scale, bias):
  def total(*operands):
    return jnp.sum(weights * jnp.sin(normalize(*operands)))

  return jax.grad(total, (0, 1, 2))(x, scale, bias)


def _assert_close(actual, expected, tolerance=3e-5):
  for one, other in zip(actual, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def test_gradients_are_those_of_its_definition():
  operands = _draw()
  with jax.enable_x64(True):
    expected = _gradients(_by_definition, *(np.asarray(y, np.float64) for y in operands))
  _assert_close(_gradients(_normalize, *operands), expected)


def test_gradients_have_gradients():
  weights, x, *parameters = _draw()

  def total(normalize, x):
    return jnp.sum(jnp.square(_gradients(normalize, weights, x, *parameters)[0]))

  actual, expected = (
    jax.grad(functools.partial(total, f))(x) for f in (_normalize, _by_definition)
  )
  _assert_close([actual], [expected], 1e-4)


def test_gradients_of_float16_are_added_up_in_float32():
  """Their sums go beyond its largest number, 65504."""
  _, x, *parameters = _draw()
  x = x.astype(jnp.float16)
  _, transpose = jax.vjp(functools.partial(_normalize, dtype=x.dtype), x, *parameters)
  actual = transpose(jnp.full_like(x, 1e4))
  assert [y.dtype for y in actual] == [jnp.float16, jnp.float32, jnp.float32]
  assert all(np.isfinite(y).all() for y in actual)
  np.testing.assert_allclose(actual[2], np.full(3, 60e4))


def test_gradients_are_of_the_dtype_of_what_they_are_of():
  """Else they could not be added to those of another use."""
  _, x, *parameters = _draw()

  def total(scale, bias):
    return jnp.sum(_normalize(x, scale, bias)) + jnp.sum((scale * bias).astype(jnp.float32))

  scale, bias = (y.astype(jnp.bfloat16) for y in parameters)
  actual = jax.grad(total, (0, 1))(scale, bias)
  assert [y.dtype for y in actual] == [jnp.bfloat16] * 2
  # The sum of what is normalised is 0.
  for one, other in zip(actual, (bias, 60 + scale), strict=True):
    np.testing.assert_allclose(*(y.astype(jnp.float32) for y in (one, other)), atol=0.5)


def test_statistics_may_be_those_of_an_axis_of_vmap():
  operands = _draw()

  def normalize(x, scale, bias):
    by_image = functools.partial(_normalize, axis_name='batch')
    return jax.vmap(by_image, (0, None, None), axis_name='batch')(x[:, None], scale, bias)[:, 0]

  _assert_close(_gradients(normalize, *operands), _gradients(_by_definition, *operands))


MESH_SCRIPT = """
import functools
import jax
import numpy as np
from tests.test_batch_norm import _assert_close, _by_definition, _draw, _gradients, _normalize

weights, x, *parameters = _draw()
mesh = jax.make_mesh((2,), ('batch',), axis_types=(jax.sharding.AxisType.Auto,))
by_device, shared = jax.P('batch'), jax.P()

for check_vma in (True, False):
  def shares(*operands):
    of_x, *others = _gradients(functools.partial(_normalize, axis_name='batch'), *operands)
    return of_x, *(others if check_vma else jax.lax.psum(others, 'batch'))
  gradients = jax.shard_map(
    shares, mesh=mesh, in_specs=(by_device, by_device, shared, shared),
    out_specs=(by_device, shared, shared), check_vma=check_vma,
  )
  expected = _gradients(_by_definition, weights, x, *parameters)
  _assert_close(jax.jit(gradients)(weights, x, *parameters), expected)

def own_parameters(weights, x, scale, bias):
  return jax.tree.map(lambda y: y[None], _gradients(_normalize, weights, x, scale[0], bias[0])[1:])
gradients = jax.shard_map(
  own_parameters, mesh=mesh, in_specs=(shared, shared, by_device, by_device), out_specs=by_device
)
several = [np.stack([y, 2 * y]) for y in parameters]
for device, actual in enumerate(zip(*jax.jit(gradients)(weights, x, *several))):
  expected = _gradients(_by_definition, weights, x, *(y[device] for y in several))[1:]
  _assert_close(actual, expected)
"""


def test_devices_of_a_mesh_share_statistics_and_parameters_or_have_their_own():
  run = run_python('-c', MESH_SCRIPT, devices=2)
  assert run.returncode == 0, run.stderr
