"""Logits that are enlarged to the image one class at a time, and never there as a whole.

An enlarged pixel is a weighted sum of the nine small ones about it. Its weights depend on its
place in the small pixel that it lies in, its phase; so all enlarged pixels of one class are a
product, [phases, 9] by [9, B * h * w], and stay ordered by phase, [phases, B * h * w].
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from if_jax.ops.resize import phase_weights, resize_bilinear

# In a loop over classes, so many at once: what is carried on is read and written once for all of
# them. 19 classes of 512 x 1024, 11 to 7 ms.
UNROLL = 6

_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def best_class(logits: jax.Array, size: Sequence[int]) -> jax.Array:
  """The class whose logit is largest once logits are enlarged to `size` by `resize_bilinear`.

  On a CPU one class is enlarged at a time: in a third of the time with 19 classes.

  Args:
    logits: float32 [B, h, w, K], finite.
    size: (H, W), whole multiples of h and w, see `is_whole_multiple`.
  Returns:
    int32 [B, H, W]; of equals, the first. What differs by a rounding may change places.
  """
  if logits.shape[1:3] == tuple(size):
    return _best_of_full(logits, size)
  by_class, by_enlarging = (
    functools.partial(function, size=tuple(size)) for function in (_best_by_class, _best_of_full)
  )
  return jax.lax.platform_dependent(logits, cpu=by_class, default=by_enlarging)


def _best_of_full(logits, size):
  return jnp.argmax(resize_bilinear(logits, size), -1).astype(jnp.int32)


def _best_by_class(logits, size):
  phases = Phases(logits.shape[:3], size)

  def add_class(carry, plane_and_number):
    largest, best = carry
    plane, number = plane_and_number
    logit = phases.enlarge(plane)
    return (jnp.maximum(largest, logit), jnp.where(logit > largest, number, best)), None

  first = phases.enlarge(logits[..., 0])
  classes, numbers = planes(logits)
  first_is_best = first, jnp.zeros_like(first, jnp.int32)
  (_, best), _ = jax.lax.scan(add_class, first_is_best, (classes[1:], numbers[1:]), unroll=UNROLL)
  return phases.join(best)


def planes(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Logits [B, h, w, K] by class, [K, B, h, w], and the classes' numbers, to go over both."""
  return jnp.moveaxis(logits, -1, 0), jnp.arange(logits.shape[-1], dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class Phases:
  """The order of enlarged pixels in which enlarging is a product.

  Attributes:
    small: (B, h, w).
    size: (H, W), whole multiples of h and w.
  """

  small: tuple[int, int, int]
  size: tuple[int, int]

  @property
  def factors(self) -> tuple[int, int]:
    """How many enlarged pixels a small one has, down and across."""
    return self.size[0] // self.small[1], self.size[1] // self.small[2]

  @property
  def shape(self) -> tuple[int, int]:
    """Of ordered pixels: (phases, B * h * w)."""
    return self.factors[0] * self.factors[1], self.small[0] * self.small[1] * self.small[2]

  @property
  def weights(self) -> np.ndarray:
    """Of the nine small pixels about it, for each phase: float32 [phases, 9]."""
    down, across = (np.array(phase_weights(factor), np.float32) for factor in self.factors)
    return np.kron(down, across)

  def enlarge(self, plane: jax.Array) -> jax.Array:
    """[B, h, w] to its enlarged pixels, by phase."""
    return _product(self.weights, _nine_taps(plane))

  def gather(self, phases: jax.Array, plane: jax.Array) -> jax.Array:
    """The transpose of `enlarge`: by phase to [B, h, w], as its gradient goes back to `plane`."""
    return jax.linear_transpose(_nine_taps, plane)(_product(self.weights.T, phases))[0]

  def split(self, full: jax.Array) -> jax.Array:
    """[B, H, W] ordered by phase."""
    (batch, height, width), (down, across) = self.small, self.factors
    blocks = full.reshape(batch, height, down, width, across)
    return blocks.transpose(2, 4, 0, 1, 3).reshape(self.shape)

  def join(self, phases: jax.Array) -> jax.Array:
    """What `split` ordered, [B, H, W] again."""
    batch = self.small[0]
    blocks = phases.reshape(*self.factors, *self.small)
    return blocks.transpose(2, 3, 0, 4, 1).reshape(batch, *self.size)


def _nine_taps(plane):
  """Each pixel of [B, h, w] and its neighbours, [9, B * h * w]; beyond the frame, copies."""
  height, width = plane.shape[1:]
  padded = jnp.pad(plane, ((0, 0), (1, 1), (1, 1)), mode='edge')
  taps = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
  return jnp.stack(taps).reshape(9, -1)
