"""Convolutions by Winograd's algorithm, against sums of products in float64."""

import ast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from if_jax.ops import winograd
from if_jax.ops.convolution import conv2d
from tests.processes import run_python


def _exact(x, kernel):
  """A convolution by its definition, in float64."""
  height, width = x.shape[1:3]
  x = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  return sum(
    x[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64)
    for i in range(3)
    for j in range(3)
  )


def _exact_kernel_gradient(x, gradient):
  height, width = x.shape[1:3]
  x = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  taps = [[x[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
  return np.einsum('ijbhwc,bhwd->ijcd', taps, gradient.astype(np.float64), optimize=True)


def _draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_its_sums_make_a_correlation_of_products():
  x, kernel = _draw(0, 6).astype(np.float64), _draw(1, 3).astype(np.float64)
  y = winograd._result_sums(winograd._KERNEL @ kernel * winograd._input_sums(x))
  np.testing.assert_allclose(y, np.correlate(x, kernel), rtol=1e-12)


def test_sums_of_a_gradient_are_the_transpose_of_those_of_a_result():
  matrix = np.transpose(winograd._result_sums(np.eye(6)))
  np.testing.assert_array_equal(winograd._gradient_sums(np.eye(4)), matrix)


@pytest.mark.parametrize(
  ('batch', 'height', 'width'),
  [
    (1, 1, 1),
    (2, 8, 12),
    (1, 9, 6),
    (3, 11, 13),
    # In strips: of one row of tiles, of several, with rows left over, of all that is in a row.
    (33, 16, 16),
    (2, 96, 88),
    (1, 90, 100),
    (1, 131, 257),
    (1, 5, 2100),
  ],
)
def test_a_convolution_and_its_gradients(batch, height, width):
  x, kernel = _draw(0, batch, height, width, 3), _draw(1, 3, 3, 3, 2)
  gradient = _draw(2, batch, height, width, 2)
  expected = _exact(x, kernel)
  np.testing.assert_allclose(winograd.conv3x3(x, kernel), expected, atol=1e-4)

  expected = _exact(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
  np.testing.assert_allclose(winograd.input_gradient(kernel, gradient), expected, atol=1e-4)

  expected = _exact_kernel_gradient(x, gradient)
  actual = winograd.kernel_gradient(x, gradient)
  np.testing.assert_allclose(actual, expected, atol=1e-5 * (batch * height * width) ** 0.5 + 9e-5)


def _by_products(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


@pytest.mark.parametrize('channels', [36, 192, 720])
def test_its_errors_are_a_few_times_those_of_sums_of_products(channels):
  x, kernel = _draw(0, 1, 24, 32, channels), _draw(1, 3, 3, channels, 32)
  exact = _exact(x, kernel)
  error, usual = (np.std(f(x, kernel) - exact) for f in (winograd.conv3x3, _by_products))
  assert error < 6 * usual
  assert error < 5e-6 * np.std(exact)

  gradient = _draw(2, *exact.shape)
  exact = _exact_kernel_gradient(x, gradient)
  usual = jax.vjp(lambda kernel: _by_products(x, kernel), kernel)[1](gradient)[0]
  error, usual = (np.std(y - exact) for y in (winograd.kernel_gradient(x, gradient), usual))
  assert error < 2.5 * usual
  assert error < 2e-6 * np.std(exact)


def test_it_can_be_compiled_and_vectorized():
  x, kernel = _draw(0, 2, 1, 90, 100, 3), _draw(1, 2, 3, 3, 3, 2)

  def total(x, kernel):
    return jnp.sum(winograd.conv3x3(x, kernel) ** 2)

  actual = jax.jit(jax.vmap(jax.grad(total, (0, 1))))(x, kernel)
  for i in range(2):
    expected = jax.grad(lambda x, kernel: jnp.sum(_by_products(x, kernel) ** 2), (0, 1))
    for one, other in zip(actual, expected(x[i], kernel[i]), strict=True):
      np.testing.assert_allclose(one[i], other, atol=1e-5 * np.abs(other).max())


def _gradients(convolve, x, kernel):
  """And the result before them; each weight is another, so that no order is lost."""
  result, transpose = jax.vjp(convolve, x, kernel)
  return result, *transpose(jnp.asarray(_draw(2, *result.shape), result.dtype))


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='it is for CPUs')
@pytest.mark.parametrize(
  ('shape', 'features', 'dtype', 'without_gradients', 'taken'),
  [
    # Small, and large, in training and in evaluation.
    ((1, 8, 8, 64), 48, 'float32', False, (False, False, False)),
    ((1, 36, 64, 64), 48, 'float32', False, (True, True, True)),
    ((1, 36, 64, 64), 48, 'bfloat16', False, (False, False, False)),
    ((1, 64, 64, 520), 512, 'float32', True, (True, True, True)),
    # Large because they are many.
    ((16, 64, 64, 64), 64, 'float32', False, (True, True, True)),
    # Few channels, few of one kind, and many for so few tiles.
    ((1, 128, 128, 24), 24, 'float32', False, (False, False, False)),
    ((1, 64, 64, 48), 196, 'float32', False, (False, False, False)),
    ((1, 16, 16, 256), 256, 'float32', False, (False, False, True)),
    ((1, 16, 8, 320), 320, 'float32', False, (False, False, False)),
  ],
)
def test_large_convolutions_take_it(shape, features, dtype, without_gradients, taken):
  def convolve(x, kernel):
    return conv2d(x, kernel, 1, 1)

  x = jnp.asarray(_draw(0, *shape), dtype)
  kernel = jnp.asarray(_draw(1, 3, 3, shape[3], features) / (3 * shape[3] ** 0.5), dtype)
  program = jax.jit(convolve).trace(x, kernel).jaxpr
  assert ('conv3x3' in str(program)) == without_gradients

  program = str(jax.jit(lambda x, kernel: _gradients(convolve, x, kernel)).trace(x, kernel).jaxpr)
  names = 'conv3x3', 'input_gradient', 'kernel_gradient'
  assert tuple(f'name={name}' in program for name in names) == taken
  actual, expected = (_gradients(f, x, kernel) for f in (convolve, _by_products))
  for result, is_taken in ((convolve(x, kernel), without_gradients), (actual[0], taken[0])):
    np.testing.assert_allclose(result, expected[0], atol=5e-5)
    assert np.array_equal(result, expected[0]) != is_taken
  tolerance = 0.01 if dtype == 'bfloat16' else 2e-5
  for one, other in zip(actual, expected, strict=True):
    one, other = (np.asarray(y, np.float32) for y in (one, other))
    np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def test_numbers_of_64_bits_may_be_switched_on():
  x, kernel = _draw(0, 1, 96, 96, 48), _draw(1, 3, 3, 48, 48)
  expected = _gradients(_by_products, x, kernel)
  with jax.enable_x64(True):
    actual = _gradients(lambda x, kernel: conv2d(x, kernel, 1, 1), x, kernel)
  for one, other in zip(actual, expected, strict=True):
    assert one.dtype == jnp.float32
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


MESH_SCRIPT = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from if_jax.ops import winograd
from if_jax.ops.convolution import conv2d

def total(kernel, x):
  return jnp.sum(winograd.conv3x3(x, kernel)) + jnp.sum(winograd.kernel_gradient(x, x))

mesh = jax.make_mesh((2,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
def argument(shape, *axes):
  return jax.ShapeDtypeStruct(shape, 'float32', sharding=NamedSharding(mesh, PartitionSpec(*axes)))
program = jax.jit(total).lower(argument((3, 3, 40, 40)), argument((4, 100, 48, 40), 'd')).compile()
print({name: f' {name}(' in program.as_text() for name in ('all-reduce', 'all-gather')})

def own_kernel(x, kernel):
  return jax.grad(lambda x, kernel: jnp.sum(conv2d(x, kernel, 1, 1) ** 2), (0, 1))(x, kernel)
x, kernel = jnp.ones((1, 92, 92, 32)), jax.random.normal(jax.random.key(0), (3, 3, 32, 64))
parts = jax.shard_map(
  own_kernel, mesh=mesh, in_specs=(jax.P(), jax.P(None, None, None, 'd')),
  out_specs=(jax.P(), jax.P(None, None, None, 'd')),
)
for one, whole in zip(jax.jit(parts)(x, kernel), own_kernel(x, kernel)):
  np.testing.assert_allclose(one, whole, atol=3e-5 * np.abs(whole).max())
"""


def test_devices_of_a_mesh_keep_their_images_and_their_kernels():
  run = run_python('-c', MESH_SCRIPT, devices=2)
  assert run.returncode == 0, run.stderr
  assert ast.literal_eval(run.stdout) == {'all-reduce': True, 'all-gather': False}
