"""What `jax.shard_map` must know of arrays whose gradients are written down."""

import jax
import jax.numpy as jnp


def vary_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """In `jax.shard_map` makes arrays each device's own, along all axes along which any of them is.

  JAX keeps these axes in an array's type. It wants a gradient's to be those of what it is the
  gradient of, and adds up the gradients of what devices shared before. The values stay.
  """
  if not jax.sharding.get_abstract_mesh().manual_axes:
    return arrays
  # A sum of nothing, whose type has the axes of all.
  nothing = [jnp.sum(jax.lax.stop_gradient(x[:0]), dtype=jnp.float32) for x in arrays]
  zero = jnp.sum(jnp.stack(nothing))
  return tuple(x + zero.astype(x.dtype) for x in arrays)
