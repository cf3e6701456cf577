"""Parameters of transforms, small numbers around 0, and the matrices that they stand for."""

import jax
import jax.numpy as jnp

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


def _check_count(num_parameters: int):
  if num_parameters not in NUM_PARAMETERS:
    raise ValueError(f'a transform has 4, 6 or 8 parameters, got {num_parameters}')
