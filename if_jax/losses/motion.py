"""Gradients that move boundaries instead of fooling the network that looks at them."""

import functools

import jax
import jax.numpy as jnp

from if_jax.ops.blur import gaussian_blur
from if_jax.ops.transforms import displacement_basis
from if_jax.ops.warp import pixel_centres

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

# Pixels of the tile. A pixel takes part in the motion of lines about as near as this, so that a
# line has pixels to move onto.
_SMOOTHING = 2.0
_RADIUS = 6


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def keep_motion(prediction: jax.Array, num_parameters: int) -> jax.Array:
  """Gives the tiles as they are; of their gradient, only the part that moves what they show.

  A network that judges boundary maps can be pleased by faint patterns all over the map, and
  gradient descent on free pixels finds them before it moves a line. What the loss is to correct
  are transforms. The motions of a tile by small transforms span as many dimensions as those have
  parameters; the gradient with respect to the tile is projected, by least squares, on their span,
  with slopes of the slightly blurred tile. It stays a direction of descent. Reverse mode only.

  Args:
    prediction: float32 [N, T, T, 1].
    num_parameters: 4, 6 or 8: which transforms, see `if_jax.ops.transforms`.
  Returns:
    float32 [N, T, T, 1]: `prediction`.
  """
  del num_parameters
  return prediction


def _forward(prediction, num_parameters):
  del num_parameters
  return prediction, prediction


def _backward(num_parameters, prediction, cotangent):
  # What goes on beyond the frame is not known: no slope there.
  padding = ((0, 0), (_RADIUS, _RADIUS), (_RADIUS, _RADIUS), (0, 0))
  padded = jnp.pad(prediction, padding, mode='edge')
  smooth = gaussian_blur(padded, _SMOOTHING, radius=_RADIUS)
  smooth = smooth[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS, 0]
  size, dtype = smooth.shape[1:], prediction.dtype
  # Slopes per half tile, as parameters are; x before y.
  slopes = [jnp.gradient(smooth, 2 / size[axis - 1], axis=axis) for axis in (2, 1)]
  points = pixel_centres(size).astype(dtype).reshape(-1, 2)
  basis = displacement_basis(points, points[None], num_parameters)[0].reshape(*size, 2, -1)
  motions = slopes[0][..., None] * basis[:, :, 0] + slopes[1][..., None] * basis[:, :, 1]
  normal = _einsum('nhwp,nhwq->npq', motions, motions)
  # A tile of parallel lines does not move along them: no inverse without a little more.
  size_of_normal = jnp.trace(normal, axis1=1, axis2=2) / num_parameters
  little = (1e-3 * size_of_normal + 1e-6)[:, None, None] * jnp.eye(num_parameters, dtype=dtype)
  along = _einsum('nhwp,nhw->np', motions, cotangent[..., 0])
  coefficients = jnp.linalg.solve(normal + little, along[..., None])[..., 0]
  return (_einsum('nhwp,np->nhw', motions, coefficients)[..., None].astype(dtype),)


keep_motion.defvjp(_forward, _backward)
