"""Class-balanced binary cross-entropy of boundaries."""

import jax
import jax.numpy as jnp


def boundary_bce(
  edge_logits: jax.Array, edges: jax.Array, *, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """Binary cross-entropy in which boundary and other pixels weigh the same in all.

  Boundary pixels are few: each weighs the share of the others in the batch, and the other way
  round.

  Args:
    edge_logits: float [B, H, W, 1], before the sigmoid.
    edges: float [B, H, W, 1] in {0, 1}.
    axis_name: of the devices that hold the rest of the batch; the shares are then those of all.
  Returns:
    (total, count): float32 scalars; weighted nats summed over the pixels of this device, and how
    many pixels there are.
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
  edge_logits = edge_logits.astype(jnp.float32)
  count = jnp.float32(edges.size)
  positives, pixels = jnp.sum(edges), count
  if axis_name is not None:
    positives, pixels = jax.lax.psum((positives, pixels), axis_name)
  share = positives / pixels
  weights = jnp.where(edges > 0.5, 1 - share, share)
  nats = jax.nn.softplus(edge_logits) - edges * edge_logits
  return jnp.sum(weights * nats), count
