"""Cross-entropy over classes, weighted as the InverseForm release weights it."""

import jax
import jax.numpy as jnp


def cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  *,
  class_weighted: bool = True,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  r"""Cross-entropy per image, with rarer classes weighing up to twice as much.

  With :math:`f_c` the share of class c among the labelled pixels of the batch, a pixel of class c
  weighs :math:`w_c = 2 - f_c`, and each image gives its weighted mean
  :math:`\sum w_y (-\log p_y) / \sum w_y`.

  Args:
    logits: float [B, H, W, K].
    labels: integer [B, H, W]; values outside 0 .. K - 1 count for nothing.
    class_weighted: False: every labelled pixel weighs the same.
    axis_name: of the devices that hold the rest of the batch; the shares are then those of all.
  Returns:
    (total, count): float32 scalars; nats summed over the images of this device, and how many
    there are. An image without a labelled pixel adds 0. The release uses the total alone.
  Raises:
    ValueError: at trace time, if the shapes do not fit.
  Example:
    >>> total, count = cross_entropy(jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 4, 4), jnp.int32))
    >>> round(float(total / count), 4)  # log 3
    1.0986

  Source: `ImageBasedCrossEntropyLoss2d` of NVIDIA's semantic-segmentation and of InverseForm.
  """
  _check(logits, labels)
  num_classes = logits.shape[-1]
  valid = (labels >= 0) & (labels < num_classes)
  safe_labels = jnp.where(valid, labels, 0).astype(jnp.int32)
  weights = valid.astype(jnp.float32)
  if class_weighted:
    class_weights = _class_weights(safe_labels, valid, num_classes, axis_name)
    weights = weights * class_weights[safe_labels]
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  nats = -jnp.take_along_axis(log_p, safe_labels[..., None], axis=-1)[..., 0]
  weight = jnp.sum(weights, (1, 2))
  per_image = jnp.sum(weights * nats, (1, 2)) / jnp.where(weight > 0, weight, 1)
  return jnp.sum(per_image), jnp.float32(labels.shape[0])


def edge_attention(
  logits: jax.Array,
  labels: jax.Array,
  edge_logits: jax.Array,
  *,
  threshold: float = 0.8,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The same cross-entropy on the pixels alone that the network takes for boundaries.

  Args:
    logits: float [B, H, W, K].
    labels: integer [B, H, W]; values outside 0 .. K - 1 count for nothing.
    edge_logits: float [B, H, W, 1], before the sigmoid; no gradient flows into it.
    threshold: of the boundary probability above which a pixel counts, in (0, 1).
    axis_name: as `cross_entropy`.
  Returns:
    (total, count): as `cross_entropy`.
  Source: `edge_attention` of InverseForm's joint loss.
  Differs: the release compares 0.8 with a logit on one head and a probability on the other.
  """
  on_boundary = jax.nn.sigmoid(edge_logits[..., 0].astype(jnp.float32)) > threshold
  return cross_entropy(logits, jnp.where(on_boundary, labels, -1), axis_name=axis_name)


def _class_weights(safe_labels, valid, num_classes, axis_name):
  bins = jnp.where(valid, safe_labels, num_classes).ravel()
  counts = jnp.bincount(bins, length=num_classes + 1)[:num_classes]
  if axis_name is not None:
    counts = jax.lax.psum(counts, axis_name)
  counts = counts.astype(jnp.float32)
  share = counts / jnp.maximum(jnp.sum(counts), 1)
  # An absent class keeps the weight 1; no pixel has it, the release's numbers say so.
  return jnp.where(counts > 0, 2 - share, 1)


def _check(logits, labels):
  if logits.ndim != 4 or logits.shape[:3] != labels.shape:
    raise ValueError(
      f'logits must be [B, H, W, K] and labels [B, H, W], got {logits.shape} and {labels.shape}'
    )
