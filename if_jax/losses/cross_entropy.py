"""Cross-entropy over classes: weighted by class, near boundaries alone, on hard pixels alone."""

import jax
import jax.numpy as jnp

from if_jax.losses.nats import check_shapes, mask, pixel_nats


def cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  *,
  class_weighted: bool = True,
  nats: jax.Array | None = None,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  r"""Cross-entropy per image, with rarer classes weighing up to twice as much.

  With :math:`f_c` the share of class c among the labelled pixels of the batch, a pixel of class c
  weighs :math:`w_c = 2 - f_c`, and each image gives its weighted mean
  :math:`\sum w_y (-\log p_y) / \sum w_y`.

  Args:
    logits: float [B, h, w, K]; if they are smaller than the labels, then finite, and enlarged as
      by `pixel_nats`.
    labels: integer [B, H, W]; values outside 0 .. K - 1 count for nothing.
    class_weighted: False: every labelled pixel weighs the same.
    nats: of `pixel_nats` for these logits and labels, if they are at hand.
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
  nats = _nats_of(logits, labels, nats)
  num_classes = logits.shape[-1]
  valid, safe_labels = mask(labels, num_classes)
  weights = valid.astype(jnp.float32)
  if class_weighted:
    class_weights = _class_weights(safe_labels, valid, num_classes, axis_name)
    weights = weights * class_weights[safe_labels]
  weight = jnp.sum(weights, (1, 2))
  per_image = jnp.sum(weights * nats, (1, 2)) / jnp.where(weight > 0, weight, 1)
  return jnp.sum(per_image), jnp.float32(labels.shape[0])


def edge_attention(
  logits: jax.Array,
  labels: jax.Array,
  edge_logits: jax.Array,
  *,
  threshold: float = 0.8,
  nats: jax.Array | None = None,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The same cross-entropy on the pixels alone that the network takes for boundaries.

  Args:
    logits: float [B, h, w, K], as `cross_entropy`.
    labels: integer [B, H, W]; values outside 0 .. K - 1 count for nothing.
    edge_logits: float [B, H, W, 1], before the sigmoid; no gradient flows into it.
    threshold: of the boundary probability above which a pixel counts, in (0, 1).
    nats: as `cross_entropy`.
    axis_name: as `cross_entropy`.
  Returns:
    (total, count): as `cross_entropy`.
  Source: `edge_attention` of InverseForm's joint loss.
  Differs: the release compares 0.8 with a logit on one head and a probability on the other.
  """
  nats = _nats_of(logits, labels, nats)
  on_boundary = jax.nn.sigmoid(edge_logits[..., 0].astype(jnp.float32)) > threshold
  labels = jnp.where(on_boundary, labels, -1)
  return cross_entropy(logits, labels, nats=nats, axis_name=axis_name)


def ohem_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  *,
  threshold: float = 0.7,
  min_kept: int | None = None,
  nats: jax.Array | None = None,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of the pixels that the network finds hard: online hard example mining.

  A pixel is hard if the probability of its class is below `threshold`, or if it is among the
  `min_kept` with the lowest.

  Args:
    logits: float [B, h, w, K], as `cross_entropy`.
    labels: integer [B, H, W]; values outside 0 .. K - 1 count for nothing.
    threshold: probability in (0, 1).
    min_kept: how many of these pixels count at least, as far as there are labels; None: a
      sixteenth of them, as the original's 100 000 are of its three crops of 512 x 1024.
    nats: as `cross_entropy`.
    axis_name: unused, taken as by the other losses: each device mines its own pixels.
  Returns:
    (total, count): float32 scalars; nats summed over the hard pixels, and how many there are.
  Raises:
    ValueError: at trace time, if the shapes do not fit or `min_kept` is not positive.
  Example:
    >>> logits = jnp.array([4.0, 0.0, -4.0, 0.0]).reshape(1, 2, 2, 1) * jnp.array([1.0, 0.0])
    >>> total, count = ohem_cross_entropy(logits, jnp.zeros((1, 2, 2), jnp.int32))
    >>> int(count)  # the pixel of probability 0.98 is easy
    3

  Source: Shrivastava et al. (2016); `OhemCrossEntropy` of the HRNet repository.
  Differs: with fewer labelled pixels than `min_kept` all count, there all but the easiest.
  """
  nats = _nats_of(logits, labels, nats)
  if min_kept is None:
    min_kept = max(1, labels.size // 16)
  if min_kept < 1:
    raise ValueError(f'min_kept must be at least 1 pixel, got {min_kept}')
  valid, _ = mask(labels, logits.shape[-1])
  ascending = jnp.sort(jnp.where(valid, nats, -jnp.inf).ravel())
  easiest_kept = ascending[-min(min_kept, labels.size)]
  hard = valid & ((nats > -jnp.log(threshold)) | (nats >= easiest_kept))
  return jnp.sum(jnp.where(hard, nats, 0)), jnp.sum(hard).astype(jnp.float32)


def _nats_of(logits, labels, nats):
  if nats is None:
    return pixel_nats(logits, labels)
  check_shapes(logits, labels)
  if nats.shape != labels.shape:
    raise ValueError(f'nats must be [B, H, W] like the labels, {labels.shape}, got {nats.shape}')
  return nats


def _class_weights(safe_labels, valid, num_classes, axis_name):
  bins = jnp.where(valid, safe_labels, num_classes).ravel()
  counts = jnp.bincount(bins, length=num_classes + 1)[:num_classes]
  if axis_name is not None:
    counts = jax.lax.psum(counts, axis_name)
  counts = counts.astype(jnp.float32)
  share = counts / jnp.maximum(jnp.sum(counts), 1)
  # An absent class keeps the weight 1; no pixel has it, the release's numbers say so.
  return jnp.where(counts > 0, 2 - share, 1)
