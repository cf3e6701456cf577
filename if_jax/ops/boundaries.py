"""Boundary maps of label maps and of class probabilities, made on the device."""

import functools

import jax
import jax.numpy as jnp

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
  for dy, dx in _offsets(radius):
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
  Probabilities differ by their total variation, half the sum of absolute differences. Reverse mode
  only.

  Args:
    probabilities: float [B, H, W, K], K of a pixel add up to 1.
    radius: pixels.
    valid: bool [B, H, W, 1]; pixels where it is False, such as ignored ones, lie on no boundary and
      make none. None: all pixels count.
  Returns:
    [B, H, W, 1] in [0, 1], of the same dtype.
  Raises:
    ValueError: at trace time, for shapes and dtypes that do not fit, or a radius below 1.
  Example:
    >>> probabilities = jax.nn.one_hot(jnp.array([[[0, 0, 0, 1, 1, 1]]]), 2)
    >>> soft_boundary_map(probabilities, radius=1)[0, 0, :, 0].tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    >>> soft_boundary_map(0.6 * probabilities + 0.2, radius=1).max().item()
    0.6000000238418579

  """
  if probabilities.ndim != 4:
    raise ValueError(f'probabilities must be [B, H, W, K], got {probabilities.shape}')
  if not jnp.issubdtype(probabilities.dtype, jnp.floating):
    raise ValueError(f'probabilities must be float, got {probabilities.dtype}')
  if valid is not None and valid.shape != (*probabilities.shape[:3], 1):
    raise ValueError(f'valid must be [B, H, W, 1] as {probabilities.shape}, got {valid.shape}')
  if radius < 1:
    raise ValueError(f'radius must be at least 1 pixel, got {radius}')
  if valid is None:
    valid = jnp.ones((*probabilities.shape[:3], 1), bool)
  return _soft_boundary(probabilities, valid.astype(bool), radius)


# With a gradient of its own, and loops: else XLA holds a map or two for each offset, 15 times the
# probabilities.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _soft_boundary(probabilities, valid, radius):
  return _soft_boundary_forward(probabilities, valid, radius)[0]


def _soft_boundary_forward(probabilities, valid, radius):
  neighbour, num_offsets = _neighbours((probabilities, valid), radius)

  def compare(i, found):
    boundary, farthest = found
    there, is_valid = neighbour(i)
    difference = jnp.sum(jnp.abs(probabilities - there), axis=-1, keepdims=True) / 2
    # In this form what is not a number stays one.
    is_farther = valid & is_valid & ~(difference <= boundary)
    return jnp.where(is_farther, difference, boundary), jnp.where(is_farther, i, farthest)

  nothing = jnp.zeros(valid.shape, probabilities.dtype), jnp.full(valid.shape, -1)
  boundary, farthest = jax.lax.fori_loop(0, num_offsets, compare, nothing)
  return boundary, (probabilities, farthest)


def _soft_boundary_backward(radius, residuals, gradient):
  probabilities, farthest = residuals
  neighbour, num_offsets = _neighbours((probabilities, farthest, gradient), radius)

  def add(i, total):
    there, farthest_there, gradient_there = neighbour(i)
    # Of the pair of both pixels; the disc is symmetric, and so are the numbers of its offsets.
    weight = jnp.where(farthest == i, gradient, 0)
    weight += jnp.where(farthest_there == num_offsets - 1 - i, gradient_there, 0)
    return total + weight / 2 * jnp.sign(probabilities - there)

  return jax.lax.fori_loop(0, num_offsets, add, jnp.zeros_like(probabilities)), None


_soft_boundary.defvjp(_soft_boundary_forward, _soft_boundary_backward)


def _offsets(radius):
  """Those (dy, dx) of the disc but its centre."""
  reach = range(-radius, radius + 1)
  return [(dy, dx) for dy in reach for dx in reach if 0 < dy * dy + dx * dx <= radius * radius]


def _neighbours(arrays, radius):
  """A function that gives [B, H, W, ...] as seen from the offset of a number; how many there are.

  Beyond the image there is 0.
  """
  around = ((0, 0), (radius, radius), (radius, radius), (0, 0))
  padded = [jnp.pad(x, around) for x in arrays]
  starts = radius + jnp.array(_offsets(radius))

  def neighbour(i):
    start = 0, *starts[i], 0
    return [jax.lax.dynamic_slice(y, start, x.shape) for x, y in zip(arrays, padded, strict=True)]

  return neighbour, len(starts)
