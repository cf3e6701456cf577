"""States that come back as they were saved, and no more of them than asked for."""

import numpy as np
import pytest

from if_jax.checkpoints import FOLDER, Checkpoints


def _state(value):
  return {'step': np.int32(value) * np.ones((), np.int32), 'w': np.full((3, 5), value, np.float32)}


def test_the_newest_are_kept_and_come_back_equal(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.latest_step() is None
    for step in range(1, 6):
      checkpoints.save(step, _state(step))
    checkpoints.save(5, _state(99))  # Is there already.
  assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ['4', '5']
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 5
    restored = checkpoints.restore(5, _state(0))
  np.testing.assert_equal(restored, _state(5))


def test_a_state_that_does_not_fit_is_refused(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, _state(1))
  with Checkpoints(tmp_path) as checkpoints:
    for wrong in (_state(1) | {'w': np.zeros((3, 7), np.float32)}, {'other': np.zeros(3)}):
      with pytest.raises(ValueError, match=r'checkpoint 1 in .* is of another model, or damaged'):
        checkpoints.restore(1, wrong)
