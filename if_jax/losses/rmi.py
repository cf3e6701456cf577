"""Region mutual information: labels and predictions compared by neighbourhood, not by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce

from if_jax.losses.nats import binary_nats

# As the paper and NVIDIA's repository have them: maps shrink by 4, neighbourhoods are 3 x 3.
_POOLING = 4
_SIDE = 3
# Added to the diagonal of covariances, which are sums over points and not means.
_RIDGE = 5e-4


def rmi(
  logits: jax.Array, labels: jax.Array, *, bce_share: float = 0.5, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
  r"""Binary cross-entropy of every class, and how little predictions tell about label regions.

  Maps of labels Y and probabilities P are average-pooled by 4; each 3 x 3 neighbourhood is a
  point of 9 dimensions. What P leaves of Y's covariance bounds their mutual information:
  :math:`\frac{1}{2 \cdot 9} \log\det(\Sigma_Y - \Sigma_{YP} \Sigma_P^{-1} \Sigma_{YP}^T)`, per
  image and class, summed over the classes. A class that an image does not have adds a constant.

  Args:
    logits: float [B, H, W, K], H and W at least 8; each class has a sigmoid of its own.
    labels: integer [B, H, W]; values outside 0 .. K - 1 count for nothing.
    bce_share: of the cross-entropy, in [0, 1]; the rest is the region term's.
    axis_name: of the devices that hold the rest of the batch; the cross-entropy is then a mean
      over the labelled pixels of all.
  Returns:
    (total, count): float32 scalars; nats summed over the images of this device, and how many
    there are. May be negative.
  Raises:
    ValueError: at trace time, if the shapes do not fit or the images are smaller than 8 x 8.
  Example:
    >>> labels = jnp.arange(256).reshape(1, 16, 16) // 100
    >>> right, _ = rmi(20 * jax.nn.one_hot(labels, 3) - 10, labels)
    >>> wrong, _ = rmi(20 * jax.nn.one_hot(2 - labels, 3) - 10, labels)
    >>> bool(right < wrong)
    True

  Source: Zhao et al., Region Mutual Information Loss (2019); `RMILoss` of NVIDIA's
  semantic-segmentation.
  Differs: float32 throughout, where the original computes determinants in float64.
  """
  if logits.ndim != 4 or logits.shape[:3] != labels.shape:
    raise ValueError(
      f'logits must be [B, H, W, K] and labels [B, H, W], got {logits.shape} and {labels.shape}'
    )
  if min(labels.shape[1:]) < 8:
    raise ValueError(f'rmi needs images of at least 8 x 8 pixels, got {labels.shape[1:]}')
  logits = logits.astype(jnp.float32)
  num_images, num_classes = jnp.float32(logits.shape[0]), logits.shape[-1]
  valid = ((labels >= 0) & (labels < num_classes))[..., None]
  truth = jax.nn.one_hot(labels, num_classes)
  nats = jnp.sum(jnp.where(valid, binary_nats(logits, truth), 0))
  all_images, all_pixels = num_images, jnp.sum(valid).astype(jnp.float32)
  if axis_name is not None:
    all_images, all_pixels = jax.lax.psum((all_images, all_pixels), axis_name)
  # A mean over all labelled pixels, written as a sum over images; the 1 is the original's.
  bce = nats * all_images / (all_pixels + 1)
  predicted = _neighbourhoods(jnp.where(valid, jax.nn.sigmoid(logits), 0))
  both = jnp.concatenate([predicted, _neighbourhoods(truth)], axis=-1)
  # The determinant of a block matrix: log det(what is left) = log det(both) - log det(predicted).
  bound = jnp.sum(_log_det(both) - _log_det(predicted)) / (2 * _SIDE**2)
  return bce_share * bce + (1 - bce_share) * bound, num_images


def _neighbourhoods(maps):
  """float [B, H, W, K] -> [B, K, points, 9], centred."""
  # Windows start half a window outside the image; what does not fill one at the end is dropped.
  height, width = (size // _POOLING * _POOLING + _POOLING for size in maps.shape[1:3])
  margin = (_POOLING // 2, _POOLING // 2)
  padded = jnp.pad(maps, ((0, 0), margin, margin, (0, 0)))[:, :height, :width]
  pooled = reduce(padded, 'b (h y) (w x) k -> b k h w', 'mean', y=_POOLING, x=_POOLING)
  height, width = (size - _SIDE + 1 for size in pooled.shape[2:])
  shifted = [
    pooled[:, :, y : y + height, x : x + width].reshape(*pooled.shape[:2], -1)
    for y in range(_SIDE)
    for x in range(_SIDE)
  ]
  points = jnp.stack(shifted, axis=-1)
  return points - jnp.mean(points, axis=-2, keepdims=True)


# Without jit around it, its thousand small operations would be compiled one by one.
@jax.jit
def _log_det(points):
  """The log-determinant of points^T points + ridge, [..., N, D] -> [...].

  Straight edges make the covariance singular but for the ridge, at ratios of 1e8 that float32
  does not hold. Any rotation leaves the determinant as it is; in the axes of the covariance
  itself the small variances are summed on their own, not as differences of large ones.
  """
  axes = _principal_axes(jax.lax.stop_gradient(_gram(points)))
  rotated = jnp.einsum('...nd,...de->...ne', points, axes, precision='highest')
  left = _gram(rotated) + _RIDGE * jnp.eye(points.shape[-1])
  pivots = []
  for _ in range(points.shape[-1]):
    pivot, row, column = left[..., :1, :1], left[..., :1, 1:], left[..., 1:, :1]
    pivots.append(pivot[..., 0, 0])
    left = left[..., 1:, 1:] - column * row / pivot
  return jnp.sum(jnp.log(jnp.stack(pivots)), 0)


# By hand, not by `jnp.linalg`: jaxlib 0.10 spreads LAPACK's batches over the threads that wait for
# them. Two heads' at a time stand still for ever on two cores.


def _principal_axes(matrix, sweeps=6):
  """Eigenvectors of symmetric [..., D, D] as columns, in no order: Jacobi's rotations.

  D / 2 of them at once, in pairs that change as in a tournament. Six sweeps leave 1e-7.
  """
  size = matrix.shape[-1]
  # An odd one out pairs with a row of zeros, which asks for no rotation.
  even = size + size % 2
  matrix = jnp.pad(matrix, [(0, 0)] * (matrix.ndim - 2) + [(0, even - size)] * 2)
  pairs = jnp.asarray(_tournament(even))

  def rotate(i, carry):
    matrix, axes = carry
    p, q = pairs[i % len(pairs)]
    off_diagonal = matrix[..., p, q]
    nothing = off_diagonal == 0
    ratio = (matrix[..., q, q] - matrix[..., p, p]) / jnp.where(nothing, 1, 2 * off_diagonal)
    tangent = jnp.where(ratio < 0, -1, 1) / (jnp.abs(ratio) + jnp.sqrt(1 + ratio**2))
    tangent = jnp.where(nothing, 0, tangent)
    cosine = jax.lax.rsqrt(1 + tangent**2)
    sine = tangent * cosine
    rotation = jnp.zeros_like(matrix).at[..., p, p].set(cosine).at[..., q, q].set(cosine)
    rotation = rotation.at[..., p, q].set(sine).at[..., q, p].set(-sine)
    turned = _product(jnp.swapaxes(rotation, -1, -2), _product(matrix, rotation))
    return turned, _product(axes, rotation)

  axes = jnp.eye(even, dtype=matrix.dtype) + jnp.zeros_like(matrix)
  _, axes = jax.lax.fori_loop(0, sweeps * len(pairs), rotate, (matrix, axes))
  return axes[..., :size, :size]


def _tournament(size):
  """Rounds in which each meets each once, [size - 1, 2, size / 2]: one stays, others go round."""
  order, rounds = np.arange(size), []
  for _ in range(size - 1):
    rounds.append([order[: size // 2], order[: size // 2 - 1 : -1]])
    order = np.r_[order[:1], order[-1:], order[1:-1]]
  return np.array(rounds)


def _product(x, y):
  return jnp.matmul(x, y, precision='highest')


def _gram(points):
  return jnp.einsum('...nd,...ne->...de', points, points, precision='highest')
