"""What keeps numbers that are not finite out of a training."""

from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

MAX_SKIPPED_IN_A_ROW = 10


def skip_unless_finite(before: Any, after: Any, checked: Any) -> Any:
  """Takes the step unless something in it is not finite; then only counts it.

  To be called where all devices hold the same numbers, so that all decide the same.
  `optax.apply_if_finite` holds back the update alone: running statistics of batch normalisation
  would be lost for ever.

  Args:
    before: the state before the step, with the fields `step` and `skipped`, int32.
    after: the state after it.
    checked: a tree of what must be finite.
  Returns:
    `after`, or `before` with the step counted and one more step skipped.
  """
  finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(checked)]))
  # As a choice of every array, `jnp.where`, XLA copies the test of hundreds of arrays into each of
  # them: hrnet16_slim then compiles for more than five minutes on a CPU, not for 44 seconds.
  kept = jax.lax.cond(finite, lambda old, new: new, lambda old, new: old, before, after)
  skipped = before.skipped + jnp.where(finite, 0, 1).astype(jnp.int32)
  return kept.replace(step=after.step, skipped=skipped)


class SkippedSteps:
  """Watches how many steps were skipped, and ends a training that skips nothing but steps.

  Args:
    skipped: how many were, before the first step to come.
  """

  def __init__(self, skipped: int):
    self._skipped = skipped
    self._in_a_row = 0

  def update(self, step: int, skipped: int) -> None:
    """Takes note of a step.

    Args:
      step: its number.
      skipped: how many were, after it.
    Raises:
      FloatingPointError: none of the last ten was taken.
    """
    self._in_a_row = self._in_a_row + 1 if skipped > self._skipped else 0
    self._skipped = skipped
    if self._in_a_row:
      logging.warning('Step %d is skipped: its loss or gradient is not finite.', step)
    if self._in_a_row == MAX_SKIPPED_IN_A_ROW:
      raise FloatingPointError(
        f'the loss or gradient was not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row, up to step '
        f'{step}; lower config.optimizer.learning_rate, or look for broken images. The weights and '
        'checkpoints are those of before'
      )
