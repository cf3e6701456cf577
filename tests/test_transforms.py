"""Transform parameters and rotations against their definitions and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from if_jax.ops.transforms import (
  displacement_basis,
  matrix_from_parameters,
  nearest_rotation,
  parameters_from_matrix,
  rotation_angle,
  safe_norm,
  transform_points,
)


def _matrices(count, seed=0):
  return np.random.RandomState(seed).standard_normal((count, 3, 3))


def _numpy_nearest_rotation(matrix):
  u, _, v_transposed = np.linalg.svd(matrix)
  return u @ np.diag([1, 1, np.linalg.det(u @ v_transposed)]) @ v_transposed


def test_matrices_are_what_the_parameters_stand_for():
  tx, ty, log_sx, log_sy = four = [0.1, -0.2, 0.3, -0.4]
  expected = [[np.exp(log_sx), 0, tx], [0, np.exp(log_sy), ty], [0, 0, 1]]
  np.testing.assert_allclose(matrix_from_parameters(jnp.array([four]))[0], expected, rtol=1e-6)
  a, b, c, d, e, f, g, h = eight = [0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8]
  expected = np.array([[1 + a, b, c], [d, 1 + e, f], [g, h, 1]])
  np.testing.assert_allclose(matrix_from_parameters(jnp.array([eight]))[0], expected, rtol=1e-6)
  expected[2, :2] = 0
  np.testing.assert_allclose(matrix_from_parameters(jnp.array([eight[:6]]))[0], expected, rtol=1e-6)


@pytest.mark.parametrize('count', [4, 6, 8])
def test_parameters_come_back_from_a_matrix_of_any_scale(count):
  parameters = 0.3 * jax.random.normal(jax.random.key(count), (5, count))
  matrix = matrix_from_parameters(parameters)
  for scale in (1, -2.5):
    np.testing.assert_allclose(parameters_from_matrix(scale * matrix, count), parameters, atol=1e-6)
  np.testing.assert_array_equal(matrix_from_parameters(0 * parameters), [np.eye(3)] * 5)


def test_counts_and_shapes_that_do_not_fit_are_named():
  for call in (
    lambda: matrix_from_parameters(jnp.zeros((2, 5))),
    lambda: parameters_from_matrix(jnp.zeros((2, 3, 3)), 5),
  ):
    with pytest.raises(ValueError, match='4, 6 or 8 parameters, got 5'):
      call()
  with pytest.raises(ValueError, match=r'\[N, P\], got shape \(4,\)'):
    matrix_from_parameters(jnp.zeros(4))
  with pytest.raises(ValueError, match=r'\[N, 3, 3\], got shape \(2, 2, 3\)'):
    parameters_from_matrix(jnp.zeros((2, 2, 3)), 6)


def test_nearest_rotation_matches_numpy():
  matrices = _matrices(20)
  assert 0 < np.sum(np.linalg.det(matrices) < 0) < 20
  expected = [_numpy_nearest_rotation(m) for m in matrices]
  np.testing.assert_allclose(nearest_rotation(jnp.float32(matrices)), expected, atol=1e-4)


def test_derivative_of_nearest_rotation_matches_differences():
  matrices, step = _matrices(20), 1e-6
  direction = _matrices(20, seed=1)
  expected = [
    (_numpy_nearest_rotation(m + step * d) - _numpy_nearest_rotation(m - step * d)) / (2 * step)
    for m, d in zip(matrices, direction, strict=True)
  ]
  _, actual = jax.jvp(nearest_rotation, (jnp.float32(matrices),), (jnp.float32(direction),))
  np.testing.assert_allclose(actual, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize('count', [4, 6, 8])
def test_points_move_as_the_basis_says(count):
  rng = np.random.RandomState(3)
  parameters = 0.1 * rng.standard_normal((5, count))
  points = rng.uniform(-1, 1, (7, 2))
  moved = transform_points(jnp.float32(parameters), jnp.float32(points))
  homogeneous = np.concatenate([points, np.ones((7, 1))], axis=1)
  matrices = np.asarray(matrix_from_parameters(jnp.float32(parameters)))
  expected = homogeneous @ matrices.transpose(0, 2, 1)
  np.testing.assert_allclose(moved, expected[..., :2] / expected[..., 2:], atol=1e-6)
  basis = displacement_basis(jnp.float32(points), moved, count)
  if count == 4:
    parameters[:, 2:] = np.expm1(parameters[:, 2:])
  displacements = np.einsum('nqdp,np->nqd', basis, parameters)
  np.testing.assert_allclose(displacements, moved - jnp.float32(points), atol=1e-6)


@pytest.mark.parametrize('count', [4, 6, 8])
def test_the_basis_at_the_points_themselves_is_the_derivative_at_the_identity(count):
  points = jnp.float32(np.random.RandomState(4).uniform(-1, 1, (7, 2)))
  derivative = jax.jacobian(lambda p: transform_points(p[None], points)[0])(jnp.zeros(count))
  np.testing.assert_allclose(
    displacement_basis(points, points[None], count)[0], derivative, atol=1e-6
  )


def test_derivative_at_the_identity_is_the_skew_part():
  direction = jnp.float32(_matrices(2))
  _, actual = jax.jvp(nearest_rotation, (jnp.stack([jnp.eye(3)] * 2),), (direction,))
  np.testing.assert_allclose(actual, (direction - jnp.swapaxes(direction, 1, 2)) / 2, atol=1e-6)


def test_gradient_is_finite_where_the_nearest_rotation_is_not_unique():
  """At 0, at a line, and at a reflection whose two smaller singular values cancel."""
  matrices = jnp.array([np.zeros((3, 3)), np.diag([1, 0, 0]), np.diag([2, 1, -1])], jnp.float32)
  gradient = jax.grad(lambda m: jnp.sum(nearest_rotation(m) * jnp.arange(9.0).reshape(3, 3)))
  assert np.isfinite(gradient(matrices)).all()


@pytest.mark.parametrize('angle', [0, 1e-4, 0.3, 2, np.pi])
def test_rotation_angle_and_its_gradient(angle):
  axis = np.array([[0.6, 0, 0.8]])
  rotation = jnp.float32(Rotation.from_rotvec(angle * axis).as_matrix())
  actual, gradient = jax.jit(jax.value_and_grad(lambda r: rotation_angle(r)[0]))(rotation)
  np.testing.assert_allclose(actual, angle, rtol=1e-5)
  assert np.isfinite(gradient).all()


def test_norm_and_its_gradient_at_zero():
  vectors = jnp.array([[3.0, -4.0], [0.0, 0.0]])
  np.testing.assert_allclose(safe_norm(vectors), [5, 0])
  gradient = jax.grad(lambda v: jnp.sum(safe_norm(v)))(vectors)
  np.testing.assert_allclose(gradient, [[0.6, -0.8], [0, 0]], rtol=1e-6)
