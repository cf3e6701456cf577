"""Parameters of transforms, their matrices, and the rotations nearest to those."""

import functools

import jax
import jax.numpy as jnp

# A GPU would round the products of float32 matrices to three digits.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

NUM_PARAMETERS = (4, 6, 8)


def matrix_from_parameters(parameters: jax.Array) -> jax.Array:
  """The matrices that transform parameters stand for.

  Args:
    parameters: float [N, P], all 0 for the identity, in units of half an image (coordinates run
      over [-1, 1], as in `affine_warp`). P = 4: (tx, ty, log sx, log sy), shift and scale; 6: an
      affine matrix minus the identity, row by row; 8: a homography with m22 = 1 minus the
      identity, row by row.
  Returns:
    float [N, 3, 3].
  Raises:
    ValueError: at trace time, if P is none of the three.
  Example:
    >>> matrix_from_parameters(jnp.array([[0.5, 0.0, 0.0, jnp.log(2.0)]]))[0].tolist()
    [[1.0, 0.0, 0.5], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]

  Source: InverseForm, section 3; the released network has P = 4, the paper's have 6 and 8.
  """
  if parameters.ndim != 2:
    raise ValueError(f'parameters must be [N, P], got shape {parameters.shape}')
  num_images, num_parameters = parameters.shape
  _check_count(num_parameters)
  identity = jnp.eye(3, dtype=parameters.dtype)
  if num_parameters == 4:
    tx, ty, log_sx, log_sy = parameters.T
    zero = jnp.zeros_like(tx)
    # expm1 keeps the digits of small logarithms.
    rows = jnp.stack([jnp.expm1(log_sx), zero, tx, zero, jnp.expm1(log_sy), ty], axis=-1)
  else:
    rows = parameters
  rest = jnp.zeros((num_images, 9 - rows.shape[1]), rows.dtype)
  return identity + jnp.concatenate([rows, rest], axis=-1).reshape(-1, 3, 3)


def parameters_from_matrix(matrix: jax.Array, num_parameters: int) -> jax.Array:
  """The parameters of matrices: what `matrix_from_parameters` turns into them.

  Args:
    matrix: float [N, 3, 3], of any scale: it is divided by its m22. What `num_parameters` cannot
      express is left out: the shear and rotation of 4, which reads the diagonal for its scales
      (NaN where one is negative), and the last row of 6.
    num_parameters: 4, 6 or 8, as in `matrix_from_parameters`.
  Returns:
    float [N, num_parameters].
  Raises:
    ValueError: at trace time, if the shape or the count does not fit.
  """
  _check_count(num_parameters)
  if matrix.ndim != 3 or matrix.shape[1:] != (3, 3):
    raise ValueError(f'matrix must be [N, 3, 3], got shape {matrix.shape}')
  matrix = matrix / matrix[:, 2:, 2:]
  if num_parameters == 4:
    scales = jnp.diagonal(matrix, axis1=1, axis2=2)[:, :2]
    return jnp.concatenate([matrix[:, :2, 2], jnp.log(scales)], axis=-1)
  return (matrix - jnp.eye(3, dtype=matrix.dtype)).reshape(-1, 9)[:, :num_parameters]


def transform_points(parameters: jax.Array, points: jax.Array) -> jax.Array:
  """Where transforms take points.

  Args:
    parameters: float [N, P], as in `matrix_from_parameters`.
    points: float [Q, 2], x and y.
  Returns:
    float [N, Q, 2]. Points that a homography takes behind the horizon are kept before it.
  """
  matrix = matrix_from_parameters(parameters)
  homogeneous = jnp.concatenate([points, jnp.ones_like(points[:, :1])], axis=-1)
  moved = _einsum('nij,qj->nqi', matrix, homogeneous)
  return moved[..., :2] / jnp.maximum(moved[..., 2:], 0.1)


def displacement_basis(points: jax.Array, images: jax.Array, num_parameters: int) -> jax.Array:
  """How far each parameter displaces points: displacement = basis @ parameters.

  Exact for 6 and 8 parameters; for 4 the scales stand in the place of their logarithms, less 1.

  Args:
    points: float [Q, 2], x and y.
    images: float [N, Q, 2], where the points go, which the division of a homography needs; the
      points themselves give the displacements by a small transform.
    num_parameters: P.
  Returns:
    float [N, Q, 2, P].
  """
  _check_count(num_parameters)
  x, y = jnp.broadcast_arrays(points[:, 0], points[:, 1], images[..., 0])[:2]
  zero, one = jnp.zeros_like(x), jnp.ones_like(x)
  if num_parameters == 4:
    rows = [one, zero, x, zero], [zero, one, zero, y]
  else:
    rows = [x, y, one, zero, zero, zero], [zero, zero, zero, x, y, one]
  if num_parameters == 8:
    image_x, image_y = images[..., 0], images[..., 1]
    rows = (
      [*rows[0], -x * image_x, -y * image_x],
      [*rows[1], -x * image_y, -y * image_y],
    )
  return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


@jax.custom_jvp
def nearest_rotation(matrix: jax.Array) -> jax.Array:
  """The rotation nearest to each matrix by the sum of squared differences.

  Its derivative is the closed form, finite wherever the nearest rotation is the only one; that of
  the singular value decomposition is NaN at the identity, where all singular values are equal.

  Args:
    matrix: float [N, 3, 3].
  Returns:
    float [N, 3, 3]: U diag(1, 1, det(U V^T)) V^T, with U S V^T = `matrix`.
  Example:
    >>> nearest_rotation(jnp.diag(jnp.array([3.0, 2.0, 1.0]))[None])[0].tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

  """
  u, _, v_transposed = _signed_svd(matrix)
  return _einsum('nij,njk->nik', u, v_transposed)


@nearest_rotation.defjvp
def _nearest_rotation_jvp(primals, tangents):
  # With M = P H, P a rotation and H symmetric, P^T dP = W is skew and W H + H W is twice the skew
  # part of P^T dM. In the basis of the right singular vectors H is diagonal.
  u, s, v_transposed = _signed_svd(primals[0])
  turned = _einsum('nji,njk,nlk->nil', u, tangents[0], v_transposed)
  sums = jnp.maximum(s[:, :, None] + s[:, None, :], 1e-6)
  skew = (turned - jnp.swapaxes(turned, 1, 2)) / sums
  rotation = _einsum('nij,njk->nik', u, v_transposed)
  return rotation, _einsum('nij,njk,nkl->nil', u, skew, v_transposed)


def _signed_svd(matrix):
  """The singular value decomposition whose U V^T is a rotation; the last value may be negative."""
  u, s, v_transposed = jnp.linalg.svd(matrix)
  last = jnp.where(jnp.linalg.det(u) * jnp.linalg.det(v_transposed) < 0, -1, 1)
  signs = jnp.ones_like(s).at[:, 2].set(last)
  return u * signs[:, None, :], s * signs, v_transposed


def rotation_angle(rotation: jax.Array) -> jax.Array:
  """The angle of each rotation, [N] in [0, pi] radians, of float [N, 3, 3].

  From sine and cosine: the arc cosine of the trace alone has an infinite slope at the identity and
  loses half of the digits near it. The gradient at the identity, where none exists, is 0.
  """
  skew = (rotation - jnp.swapaxes(rotation, 1, 2)) / 2
  sine = safe_norm(jnp.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], axis=-1))
  cosine = (jnp.trace(rotation, axis1=1, axis2=2) - 1) / 2
  return jnp.arctan2(sine, cosine)


def safe_norm(vectors: jax.Array) -> jax.Array:
  """The Euclidean norm along the last axis, whose gradient at 0 is 0 and not NaN."""
  squares = jnp.sum(jnp.square(vectors), axis=-1)
  positive = squares > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def _check_count(num_parameters: int):
  if num_parameters not in NUM_PARAMETERS:
    raise ValueError(f'a transform has 4, 6 or 8 parameters, got {num_parameters}')
