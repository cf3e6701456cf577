"""Boundary maps of label maps and of class probabilities, made on the device."""

import jax
import jax.numpy as jnp
import numpy as np

IGNORE = 255


def boundary_map(
  labels: jax.Array, *, radius: int = 2, num_classes: int = 19, as_released: bool = False
) -> jax.Array:
  """Marks the labelled pixels that have another class within `radius`.

  Exact for any radius: it compares each pixel with every offset of the disc. That equals the
  union over classes of the pixels whose Euclidean distance to the class's contour is at most
  `radius`, at a cost that does not depend on the number of classes.

  Args:
    labels: integer [B, H, W]; values outside 0 .. num_classes - 1 are ignored: they lie on no
      boundary and make none.
    radius: pixels; lines are 2 * radius wide.
    num_classes: K.
    as_released: the variant of the InverseForm release: class 0 makes no boundary of its own but
      a label of K would, ignored pixels make boundaries, and so does the image frame for every
      class but 0.
  Returns:
    float32 [B, H, W, 1]: 1 on boundaries, else 0.
  Raises:
    ValueError: at trace time, if `labels` is not an integer [B, H, W] or `radius` not positive.
  Example:
    >>> boundary_map(jnp.array([[[0, 0, 0, 1, 1, 1]]]), radius=1)[0, 0, :, 0].tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]

  Source: Gated-SCNN's `onehot_to_binary_edges`, which InverseForm uses.
  Differs: see `as_released`; docs/deviations.md.
  """
  if labels.ndim != 3 or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f'labels must be integer [B, H, W], got {labels.dtype} {labels.shape}')
  if radius < 1:
    raise ValueError(f'radius must be at least 1 pixel, got {radius}')
  labels = labels.astype(jnp.int32)
  if as_released:
    labels = jnp.where((labels >= 1) & (labels <= num_classes), labels, 0)
    outside = 0
  else:
    labels = jnp.where((labels >= 0) & (labels < num_classes), labels, IGNORE)
    outside = IGNORE
  height, width = labels.shape[1:]
  padded = jnp.pad(labels, ((0, 0), (radius, radius), (radius, radius)), constant_values=outside)
  boundary = jnp.zeros(labels.shape, bool)
  for dy in range(-radius, radius + 1):
    for dx in range(-radius, radius + 1):
      if 0 < dy * dy + dx * dx <= radius * radius:
        y, x = radius + dy, radius + dx
        other = padded[:, y : y + height, x : x + width]
        differs = labels != other
        if not as_released:
          differs &= (labels != IGNORE) & (other != IGNORE)
        boundary |= differs
  return boundary[..., None].astype(jnp.float32)


def soft_boundary_map(
  probabilities: jax.Array, *, radius: int = 2, valid: jax.Array | None = None
) -> jax.Array:
  """How much the class probabilities of a pixel differ from those within `radius`, at most.

  The differentiable counterpart of `boundary_map`, and equal to it where the probabilities are 0
  and 1: it lets a loss on boundaries act on the classes of a network without an edge head.
  Probabilities differ by their total variation, half the sum of absolute differences.

  Args:
    probabilities: float [B, H, W, K], K of a pixel add up to 1.
    radius: pixels.
    valid: bool [B, H, W, 1]; pixels where it is False, such as ignored ones, lie on no boundary and
      make none. None: all pixels count.
  Returns:
    [B, H, W, 1] in [0, 1], of the same dtype.
  Raises:
    ValueError: at trace time, for shapes that do not fit and if `radius` is not positive.
  Example:
    >>> probabilities = jax.nn.one_hot(jnp.array([[[0, 0, 0, 1, 1, 1]]]), 2)
    >>> soft_boundary_map(probabilities, radius=1)[0, 0, :, 0].tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    >>> soft_boundary_map(0.6 * probabilities + 0.2, radius=1).max().item()
    0.6000000238418579

  """
  if probabilities.ndim != 4:
    raise ValueError(f'probabilities must be [B, H, W, K], got {probabilities.shape}')
  if valid is not None and valid.shape != (*probabilities.shape[:3], 1):
    raise ValueError(f'valid must be [B, H, W, 1] as {probabilities.shape}, got {valid.shape}')
  if radius < 1:
    raise ValueError(f'radius must be at least 1 pixel, got {radius}')
  height, width = probabilities.shape[1:3]
  boundary = jnp.zeros(probabilities.shape[:3], probabilities.dtype)
  # Each pair of pixels once: the other half of the disc has the same pairs.
  for dy in range(min(radius + 1, height)):
    for dx in range(-radius, radius + 1):
      if (dy, dx) <= (0, 0) or dy * dy + dx * dx > radius * radius or abs(dx) >= width:
        continue
      left, right = max(0, -dx), max(0, dx)
      here = np.s_[:, : height - dy, left : width - right]
      there = np.s_[:, dy:, right : width - left]
      difference = jnp.sum(jnp.abs(probabilities[here] - probabilities[there]), axis=-1) / 2
      if valid is not None:
        difference = jnp.where((valid[here] & valid[there])[..., 0], difference, 0)
      for rows, columns in (((0, dy), (left, right)), ((dy, 0), (right, left))):
        boundary = jnp.maximum(boundary, jnp.pad(difference, ((0, 0), rows, columns)))
  return boundary[..., None]
