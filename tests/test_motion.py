"""The gradient that is kept to motions: nothing lost along them, nothing left beside them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from if_jax.losses.inverseform import inverseform
from if_jax.losses.motion import keep_motion
from if_jax.ops.blur import gaussian_blur
from if_jax.ops.transforms import matrix_from_parameters
from if_jax.ops.warp import homography_warp

SIZE = 48


@pytest.fixture(scope='module')
def tiles():
  """Blots without structure in any direction, dark towards the frame, float32 [3, 48, 48, 1]."""
  noise = jax.random.normal(jax.random.key(0), (3, SIZE, SIZE, 1))
  blots = jax.nn.sigmoid(20 * gaussian_blur(noise, jnp.float32(3)))
  inner = jnp.ones((SIZE - 16, SIZE - 16))
  return gaussian_blur(blots * jnp.pad(inner, 8)[None, :, :, None], jnp.float32(3))


def _cotangent(key=1):
  return jax.random.normal(jax.random.key(key), (3, SIZE, SIZE, 1))


@functools.partial(jax.jit, static_argnums=2)
def _project(tiles, cotangent, num_parameters):
  _, pull_back = jax.vjp(lambda x: keep_motion(x, num_parameters), tiles)
  return pull_back(cotangent)[0]


def _dot(a, b):
  return jnp.sum(a * b, axis=(1, 2, 3))


def test_the_value_stays(tiles):
  np.testing.assert_array_equal(keep_motion(tiles, 6), tiles)


@pytest.mark.parametrize('num_parameters', [4, 6, 8])
def test_it_is_a_projection_on_as_many_dimensions_as_parameters(tiles, num_parameters):
  cotangents = jnp.stack([_cotangent(k) for k in range(12)])
  projected = jax.vmap(lambda c: _project(tiles, c, num_parameters))(cotangents)
  for tile in range(3):
    spectrum = np.linalg.svd(projected[:, tile].reshape(12, -1), compute_uv=False)
    np.testing.assert_array_less(spectrum[num_parameters:], 1e-4 * spectrum[0])
    assert spectrum[num_parameters - 1] > 1e-2 * spectrum[0]
  # Twice is once, but for what keeps the inverse finite; and it goes downhill.
  again = _project(tiles, projected[0], num_parameters)
  np.testing.assert_allclose(again, projected[0], atol=0.02 * float(jnp.abs(projected[0]).max()))
  assert (_dot(projected[0], cotangents[0]) > 0).all()


@pytest.mark.parametrize('num_parameters', [4, 6, 8])
def test_motions_pass_unchanged(tiles, num_parameters):
  """The change that a small warp makes, found by warping, stays in the gradient."""
  smooth = gaussian_blur(tiles, jnp.float32(2), radius=6)
  for i in range(num_parameters):
    step = 1e-2 * jnp.broadcast_to(jnp.eye(num_parameters)[i], (3, num_parameters))
    ahead, behind = (
      homography_warp(smooth, matrix_from_parameters(sign * step)) for sign in (1, -1)
    )
    motion = ahead - behind
    kept = _project(tiles, motion, num_parameters)
    share = _dot(kept, motion) / _dot(motion, motion)
    np.testing.assert_allclose(share, 1, atol=0.02)


def test_what_moves_nothing_is_dropped(tiles):
  motion = _project(tiles, _cotangent(), 8)
  rest = _cotangent() - motion
  kept = _project(tiles, rest, 8)
  assert (_dot(kept, kept) < 1e-3 * _dot(motion, motion)).all()


@pytest.mark.parametrize('value', [0.0, 0.3, 1.0])
def test_maps_that_show_nothing_get_no_gradient(value):
  """At the frame neither, where a background of some probability ends."""
  gradient = _project(jnp.full((3, SIZE, SIZE, 1), value), _cotangent(), 4)
  np.testing.assert_allclose(gradient, 0, atol=1e-3)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_it_works_in_double_precision(tiles, dtype):
  expected = _project(tiles, _cotangent(), 8)
  cotangent = np.asarray(_cotangent())
  with jax.enable_x64(True):
    projected = _project(jnp.asarray(tiles, dtype), jnp.asarray(cotangent, dtype), 8)
  assert projected.dtype == dtype
  np.testing.assert_allclose(projected, expected, atol=1e-3 * float(jnp.abs(expected).max()))


def test_lines_of_free_pixels_follow_an_oracle():
  """With an inverse network that is right, descent on each pixel's logit moves a square home.

  The oracle compares centres of mass. Its full gradient is a ramp over the whole map: it pleases
  the network without moving the square.
  """
  yx = jnp.stack(jnp.meshgrid(*2 * [jnp.linspace(-1, 1, SIZE)], indexing='ij'), -1)[None]

  def centre(maps):
    return jnp.sum(maps * yx, (1, 2)) / jnp.sum(maps, (1, 2))

  def oracle(prediction, target):
    shift = centre(target) - centre(prediction)
    return jnp.concatenate([shift[:, ::-1], jnp.zeros_like(shift)], -1)

  square = jnp.zeros((1, SIZE, SIZE, 1)).at[:, 16:32, 16:32].set(1)
  shifted = gaussian_blur(jnp.roll(square, 4, axis=2), jnp.float32(1))
  logits = jax.scipy.special.logit(jnp.clip(shifted, 0.02, 0.98))

  def overlap(logits):
    mask = logits > 0
    return float(jnp.sum(mask & (square > 0.5)) / jnp.sum(mask | (square > 0.5)))

  def descend(logits, gradient):
    def loss(x):
      total, _ = inverseform(x, square, oracle, tile_rows=1, tile_size=SIZE, gradient=gradient)
      return total

    slope = jax.jit(jax.grad(loss))
    for i in range(90):
      step = slope(logits)
      logits -= 0.5 * (1 - i / 90) * step / jnp.abs(step).max()
    return logits

  before = overlap(logits)
  moved, fooled = (overlap(descend(logits, gradient)) for gradient in ('motion', 'full'))
  assert moved > before + 0.2
  assert moved > fooled + 0.15
