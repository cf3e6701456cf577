"""Class-balanced binary cross-entropy of boundaries."""

import jax
import jax.numpy as jnp

from if_jax.losses.nats import binary_nats


def boundary_bce(
  edge_logits: jax.Array,
  edges: jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Binary cross-entropy in which boundary and other pixels weigh the same in all.

  Boundary pixels are few: each weighs the share of the others in the batch, and the other way
  round.

  Args:
    edge_logits: float [B, H, W, 1], before the sigmoid.
    edges: float [B, H, W, 1] in {0, 1}.
    valid: bool or float [B, H, W, 1]; pixels where it is 0, such as ignored labels and padding,
      count for nothing. None: all pixels count.
    axis_name: of the devices that hold the rest of the batch; the shares are then those of all.
  Returns:
    (total, count): float32 scalars; weighted nats summed over the pixels of this device, and how
    many of its pixels count.
  Raises:
    ValueError: at trace time, if the shapes differ.
  Example:
    >>> edges = jnp.eye(4)[None, :, :, None]
    >>> total, count = boundary_bce(jnp.zeros((1, 4, 4, 1)), edges)
    >>> round(float(total / count), 4)  # 2 * (1/4) * (3/4) * log 2
    0.2599

  Source: `bce2d` of InverseForm's joint loss.
  """
  if edge_logits.shape != edges.shape:
    raise ValueError(f'edge_logits and edges differ in shape: {edge_logits.shape}, {edges.shape}')
  if valid is not None and valid.shape != edges.shape:
    raise ValueError(f'edges and valid differ in shape: {edges.shape}, {valid.shape}')
  edge_logits = edge_logits.astype(jnp.float32)
  valid = jnp.ones(edges.shape, bool) if valid is None else valid.astype(bool)
  count = jnp.sum(valid).astype(jnp.float32)
  positives, pixels = jnp.sum(jnp.where(valid, edges, 0)), count
  if axis_name is not None:
    positives, pixels = jax.lax.psum((positives, pixels), axis_name)
  share = positives / jnp.maximum(pixels, 1)
  weights = jnp.where(edges > 0.5, 1 - share, share)
  nats = binary_nats(edge_logits, edges)
  return jnp.sum(jnp.where(valid, weights * nats, 0)), count
