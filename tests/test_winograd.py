"""Convolutions by Winograd's algorithm, against sums of products in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from if_jax.ops import winograd
from if_jax.ops.convolution import conv2d


def _exact(x, kernel):
  """A convolution by its definition, in float64."""
  height, width = x.shape[1:3]
  x = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  return sum(
    x[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64)
    for i in range(3)
    for j in range(3)
  )


def _draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_its_matrices_make_a_correlation_of_products():
  x, kernel = _draw(0, 6).astype(np.float64), _draw(1, 3).astype(np.float64)
  y = winograd._RESULT @ ((winograd._KERNEL @ kernel) * (winograd._INPUT @ x))
  np.testing.assert_allclose(y, np.correlate(x, kernel), rtol=1e-12)


@pytest.mark.parametrize(
  ('batch', 'height', 'width'),
  [
    (1, 1, 1),
    (2, 8, 12),
    (1, 9, 6),
    (3, 11, 13),
    # In strips: of whole images, of several with and without rows left over, of one row of tiles.
    (33, 16, 16),
    (2, 96, 88),
    (1, 131, 257),
    (1, 5, 1200),
  ],
)
def test_a_convolution_and_its_gradients(batch, height, width):
  x, kernel = _draw(0, batch, height, width, 3), _draw(1, 3, 3, 3, 2)
  gradient = _draw(2, batch, height, width, 2)
  expected = _exact(x, kernel)
  np.testing.assert_allclose(winograd.conv3x3(x, kernel), expected, atol=1e-4)

  expected = _exact(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
  np.testing.assert_allclose(winograd.input_gradient(kernel, gradient), expected, atol=1e-4)

  seen = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
  expected = [
    [
      np.einsum('bhwc,bhwd->cd', seen[:, i : i + height, j : j + width], gradient)
      for j in range(3)
    ]
    for i in range(3)
  ]
  actual = winograd.kernel_gradient(x, gradient)
  np.testing.assert_allclose(actual, expected, atol=2e-6 * batch * height * width + 1e-4)


@pytest.mark.parametrize('channels', [36, 192, 720])
def test_its_errors_are_a_few_times_those_of_sums_of_products(channels):
  x, kernel = _draw(0, 1, 24, 32, channels), _draw(1, 3, 3, channels, 32)
  exact = _exact(x, kernel)
  products = jax.lax.conv(
    x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), (1, 1), 'SAME'
  ).transpose(0, 2, 3, 1)
  error, usual = (np.std(y - exact) for y in (winograd.conv3x3(x, kernel), products))
  assert error < 7 * usual
  assert error < 5e-6 * np.std(exact)


def test_it_can_be_compiled_and_vectorized():
  x, kernel = _draw(0, 2, 1, 90, 100, 3), _draw(1, 3, 3, 3, 2)
  actual = jax.jit(jax.vmap(winograd.conv3x3, (0, None)))(x, kernel)
  np.testing.assert_allclose(actual[:, 0], _exact(x[:, 0], kernel), atol=1e-4)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='it is for CPUs')
@pytest.mark.parametrize(
  ('size', 'channels', 'dtype', 'in_training', 'in_evaluation'),
  [
    ((8, 8), 64, 'float32', False, False),
    ((36, 64), 64, 'float32', True, False),
    ((36, 64), 64, 'bfloat16', False, False),
    ((64, 64), 520, 'float32', True, True),
  ],
)
def test_large_convolutions_take_it(size, channels, dtype, in_training, in_evaluation):
  x = jnp.asarray(_draw(0, 1, *size, channels), dtype)
  kernel = jnp.asarray(_draw(1, 3, 3, channels, channels) / (3 * channels**0.5), dtype)
  plain = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  evaluated = conv2d(x, kernel, 1, 1)
  trained, _ = jax.vjp(lambda x, kernel: conv2d(x, kernel, 1, 1), x, kernel)
  for actual, taken in ((evaluated, in_evaluation), (trained, in_training)):
    np.testing.assert_allclose(actual, plain, atol=5e-5)
    assert np.array_equal(actual, plain) != taken
