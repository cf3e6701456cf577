"""Cross-entropies of single pixels; logits of classes need not be enlarged to the labels before."""

import functools

import jax
import jax.numpy as jnp

from if_jax.ops.enlarged import UNROLL, Phases, planes
from if_jax.ops.resize import is_whole_multiple, resize_bilinear


def pixel_nats(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The cross-entropy of each pixel, -log p of its label. Reverse mode only.

  Logits may be smaller than the labels. They are then enlarged as `resize_bilinear` does it; on a
  CPU one class at a time, so that the largest tensor of a training step is never there as a
  whole, in a third of the time with 19 classes.

  Args:
    logits: float [B, h, w, K], finite.
    labels: integer [B, H, W], H and W whole multiples of h and w; values outside 0 .. K - 1
      count for nothing.
  Returns:
    float32 [B, H, W], nats; 0 where the label counts for nothing.
  Raises:
    ValueError: at trace time, if the shapes do not fit.
  Example:
    >>> nats = pixel_nats(jnp.zeros((1, 2, 2, 3)), jnp.array([[[0, 1, 2, -1]] * 4]))
    >>> nats[0, 0].round(4).tolist()  # log 3, three times
    [1.0986000299453735, 1.0986000299453735, 1.0986000299453735, 0.0]
  """
  check_shapes(logits, labels)
  logits = logits.astype(jnp.float32)
  valid, safe_labels = mask(labels, logits.shape[-1])
  if logits.shape[:3] == labels.shape:
    nats = _nats_of_full(logits, safe_labels)
  else:
    nats = _nats_of_small(logits, safe_labels)
  return jnp.where(valid, nats, 0)


def binary_nats(logits: jax.Array, truth: jax.Array) -> jax.Array:
  """The cross-entropy of choices between two sides, `softplus(logits) - truth * logits`.

  With XLA's log1p the softplus takes 14 times as long on a CPU; what that would be more exact by,
  6e-8 nats, is nothing here.
  """
  softplus = jnp.maximum(logits, 0) + jnp.log(1 + jnp.exp(-jnp.abs(logits)))
  return softplus - truth * logits


def mask(labels: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
  """Which labels count, bool, and labels that index, int32."""
  valid = (labels >= 0) & (labels < num_classes)
  return valid, jnp.where(valid, labels, 0).astype(jnp.int32)


def check_shapes(logits: jax.Array, labels: jax.Array) -> None:
  """Raises a ValueError unless logits are [B, h, w, K] and fit labels [B, H, W]."""
  fits = (
    logits.ndim == 4
    and labels.ndim == 3
    and logits.shape[0] == labels.shape[0]
    and is_whole_multiple(labels.shape[1:], logits.shape[1:3])
  )
  if not fits:
    raise ValueError(
      'logits must be [B, h, w, K] and labels [B, H, W], with H and W equal to h and w or whole '
      f'multiples of them, got {logits.shape} and {labels.shape}'
    )


def _nats_of_full(logits, labels):
  log_p = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


@jax.custom_vjp
def _nats_of_small(logits, labels):
  return _nats_forward(logits, labels)[0]


def _nats_forward(logits, labels):
  nats, log_total = jax.lax.platform_dependent(
    logits, labels, cpu=_nats_by_class, default=_nats_by_enlarging
  )
  return nats, (logits, labels, log_total)


def _nats_backward(residuals, gradient):
  logits_gradient = jax.lax.platform_dependent(
    *residuals, gradient, cpu=_gradient_by_class, default=_gradient_by_enlarging
  )
  return logits_gradient, None


_nats_of_small.defvjp(_nats_forward, _nats_backward)


def _nats_by_enlarging(logits, labels):
  """Nats, and the logarithm of all exponentials' sum: [B, H, W] each."""
  logits = resize_bilinear(logits, labels.shape[1:])
  return _nats_of_full(logits, labels), jax.nn.logsumexp(logits, axis=-1)


def _gradient_by_enlarging(logits, labels, log_total, gradient):
  resize = functools.partial(resize_bilinear, size=labels.shape[1:])
  probabilities = jnp.exp(resize(logits) - log_total[..., None])
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
  full_gradient = (probabilities - is_label) * gradient[..., None]
  return jax.vjp(resize, logits)[1](full_gradient)[0]


def _nats_by_class(logits, labels):
  """As `_nats_by_enlarging`."""
  phases = Phases(logits.shape[:3], labels.shape[1:])
  labels = phases.split(labels)

  def add_class(carry, plane_and_number):
    """One class more in: the largest logit, the sum of exponentials over its own, the label's."""
    largest, total, of_label = carry
    plane, number = plane_and_number
    logit = phases.enlarge(plane)
    ratio = jnp.exp(-jnp.abs(logit - largest))
    total = jnp.where(logit > largest, total * ratio + 1, total + ratio)
    of_label = jnp.where(labels == number, logit, of_label)
    return (jnp.maximum(largest, logit), total, of_label), None

  zeros = jnp.zeros_like(labels, jnp.float32)
  nothing = zeros - jnp.inf, zeros, zeros
  (largest, total, of_label), _ = jax.lax.scan(add_class, nothing, planes(logits), unroll=UNROLL)
  log_of_total = jnp.log(total)
  # In this order, or what a certain pixel has left is lost to rounding.
  nats, log_total = largest - of_label + log_of_total, largest + log_of_total
  return phases.join(nats), phases.join(log_total)


def _gradient_by_class(logits, labels, log_total, gradient):
  phases = Phases(logits.shape[:3], labels.shape[1:])
  # XLA would make them anew for each class.
  labels, log_total, gradient = jax.lax.optimization_barrier(
    tuple(phases.split(x) for x in (labels, log_total, gradient))
  )

  def of_class(plane_and_number):
    plane, number = plane_and_number
    probability = jnp.exp(phases.enlarge(plane) - log_total)
    return phases.gather((probability - (labels == number)) * gradient, plane)

  return jnp.moveaxis(jax.lax.map(of_class, planes(logits)), 0, -1)
