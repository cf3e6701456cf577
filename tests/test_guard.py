"""Steps that are not finite change nothing; too many of them end a run."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from if_jax.guard import MAX_SKIPPED_IN_A_ROW, SkippedSteps, skip_unless_finite


class State(flax.struct.PyTreeNode):
  step: jax.Array
  skipped: jax.Array
  w: jax.Array


@pytest.mark.parametrize(
  ('checked', 'taken'), [(0.5, 1), (jnp.nan, 0), (jnp.inf, 0), (-jnp.inf, 0)]
)
def test_a_step_is_taken_whole_or_only_counted(checked, taken):
  before = State(jnp.int32(4), jnp.int32(2), jnp.zeros(3))
  after = State(jnp.int32(5), jnp.int32(2), jnp.ones(3))
  tree = {'loss': jnp.float32(0.1), 'statistics': jnp.array([1, checked, 3])}
  state = jax.jit(skip_unless_finite)(before, after, tree)
  np.testing.assert_array_equal(state.w, np.full(3, taken))
  assert (state.step, state.skipped) == (5, 2 if taken else 3)


def test_only_steps_in_a_row_end_a_training(monkeypatch):
  told = []
  monkeypatch.setattr(logging, 'warning', lambda text, *values: told.append(text % values))
  steps, skipped = SkippedSteps(7), 7
  for step in range(1, MAX_SKIPPED_IN_A_ROW):
    skipped += 1
    steps.update(step, skipped)
  steps.update(50, skipped)
  assert told[-1] == 'Step 9 is skipped: its loss or gradient is not finite.' and len(told) == 9
  with pytest.raises(FloatingPointError, match='in 10 steps in a row, up to step 110; lower'):
    for step in range(101, 200):
      skipped += 1
      steps.update(step, skipped)
