"""States that come back as they were saved, or not at all."""

import gc
import json
import os
import random
import shutil
from collections import namedtuple

import numpy as np
import pytest
from absl import logging

from if_jax import checkpoints as checkpoints_module
from if_jax.checkpoints import FOLDER, Checkpoints

# Of tasks that orbax leaves behind where it fails.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
RECORD = {'config': {'seed': 3}, 'devices': 2}


@pytest.fixture(autouse=True)
def _leave_nothing_for_other_tests():
  yield
  gc.collect()


def _state(value):
  return {'step': np.array(value, np.int32), 'w': np.full((3, 5), value, np.float32)}


def _save(workdir, steps, keep=3):
  with Checkpoints(workdir, keep=keep) as checkpoints:
    for step in steps:
      checkpoints.save(step, _state(step), RECORD)


def _restore(workdir):
  with Checkpoints(workdir) as checkpoints:
    return checkpoints.restore_newest(_state(0))


def test_the_newest_are_kept_and_come_back_equal(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.restore_newest(_state(0)) is None
    for step in range(1, 6):
      checkpoints.save(step, _state(step), RECORD)
    checkpoints.save(5, _state(99), RECORD)  # Is there already.
  assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ['4', '5']
  found = _restore(tmp_path)
  assert (found.step, found.record) == (5, RECORD)
  np.testing.assert_equal(found.state, _state(5))


def test_a_state_that_does_not_fit_is_refused(tmp_path):
  _save(tmp_path, [1])
  with Checkpoints(tmp_path) as checkpoints:
    for wrong in (_state(1) | {'w': np.zeros((3, 7), np.float32)}, {'other': np.zeros(3)}):
      message = r'checkpoint 1 in .* is of another model or of another version .*; resume with'
      with pytest.raises(ValueError, match=message):
        checkpoints.restore_newest(wrong)


def test_the_record_is_seen_before_the_state_is_read(tmp_path):
  _save(tmp_path, [1])

  def refuse(record):
    raise ValueError(f'other seed: {record["config"]["seed"]}')

  with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match='other seed: 3'):
    checkpoints.restore_newest({'other': np.zeros(3)}, refuse)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, _state(1), RECORD)
    with pytest.raises(ValueError, match=r"after step 2 is not finite at \['w'\]"):
      checkpoints.save(2, _state(2) | {'w': np.full((3, 5), np.nan, np.float32)}, RECORD)
  assert _restore(tmp_path).step == 1


def test_what_an_interrupted_save_or_deletion_left_is_swept_away(tmp_path):
  _save(tmp_path, [1, 2])
  folder = tmp_path / FOLDER
  shutil.copytree(folder / '1', folder / '3.orbax-checkpoint-tmp-7')
  shutil.copytree(folder / '1', folder / '.trash' / '0')
  assert _restore(tmp_path).step == 2
  assert sorted(os.listdir(folder)) == ['1', '2']


@pytest.mark.parametrize('count', [30, pytest.param(300, marks=pytest.mark.slow)])
def test_no_damage_to_the_newest_gives_another_state(tmp_path, count, monkeypatch):
  """Random flips, cuts and deletions; some hit bytes that nobody needs."""
  _save(tmp_path / 'whole', [1, 2])
  logged = []
  monkeypatch.setattr(logging, 'warning', lambda text, *values: logged.append(text % values))
  rng = random.Random(5)
  fallen_back = 0
  for i in range(count):
    run = tmp_path / str(i)
    shutil.copytree(tmp_path / 'whole', run)
    newest = run / FOLDER / '2'
    path = rng.choice(sorted(path for path in newest.rglob('*') if path.is_file()))
    content = bytearray(path.read_bytes())
    kind = rng.choice(('flip', 'flip', 'cut', 'delete'))
    if kind == 'delete':
      path.unlink()
    elif content:
      place = rng.randrange(len(content))
      if kind == 'flip':
        content[place] ^= 1 << rng.randrange(8)
      path.write_bytes(content if kind == 'flip' else content[:place])
    logged.clear()
    found = _restore(run)
    told = [text for text in logged if 'put aside' in text]  # orbax warns of other things.
    np.testing.assert_equal(found.state, _state(found.step))
    assert found.record == RECORD
    assert bool(told) == (found.step == 1), (kind, path)
    if told:
      assert f'put aside from {run / FOLDER} into .damaged: 2 (' in told[0]
    fallen_back += found.step == 1
    shutil.rmtree(run)
  print(f'{count} damages: {fallen_back} times the one before, {count - fallen_back} harmless')
  assert fallen_back > count / 8


def test_flipped_weights_are_found_out(tmp_path):
  """What orbax itself restores without a word."""
  _save(tmp_path, [1, 2])
  stored = max(
    (path for path in (tmp_path / FOLDER / '2' / 'state').rglob('d/*')), key=os.path.getsize
  )
  data = stored.read_bytes()
  stored.write_bytes(bytes(255 - x for x in data))
  assert _restore(tmp_path).step == 1


def _damage(workdir, step):
  (workdir / FOLDER / str(step) / 'record' / 'metadata').write_text('{}')


def test_a_run_that_fell_back_saves_the_same_steps_again(tmp_path):
  """And falls back again: what is damaged takes nobody's place and does not pile up."""
  _save(tmp_path, [10, 20], keep=2)
  for damaged in (20, 15):
    _damage(tmp_path, damaged)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
      assert checkpoints.restore_newest(_state(0)).step == 10
      checkpoints.save(15, _state(15), RECORD)
      checkpoints.wait()
      assert checkpoints.steps == [15, 10]
    assert os.listdir(tmp_path / FOLDER / '.damaged') == [str(damaged)]
  assert _restore(tmp_path).step == 15


def test_nothing_but_damaged_checkpoints_is_no_fresh_start(tmp_path):
  _save(tmp_path, [1, 2])
  for path in (tmp_path / FOLDER).rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  with pytest.raises(ValueError, match=r'all checkpoints in .* are damaged: 2 \(.*\), 1 \(.*copy'):
    _restore(tmp_path)


def test_a_checkpoint_under_another_number_is_damaged(tmp_path):
  _save(tmp_path, [1, 2])
  os.rename(tmp_path / FOLDER / '2', tmp_path / FOLDER / '7')
  assert _restore(tmp_path).step == 1


def test_a_disk_that_is_too_small_is_told_before_the_first_step(tmp_path, monkeypatch):
  usage = namedtuple('usage', 'free')
  state = {'w': np.zeros(10**6, np.float32)}
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    monkeypatch.setattr(checkpoints_module.shutil, 'disk_usage', lambda _: usage(12 * 10**6))
    checkpoints.check_space(state)
    monkeypatch.setattr(checkpoints_module.shutil, 'disk_usage', lambda _: usage(11 * 10**6))
    with pytest.raises(OSError, match=r'has 11.0 MB free, .* need 12.0 MB; make room'):
      checkpoints.check_space(state)


def test_a_save_that_fails_is_told_at_the_end_at_the_latest(tmp_path, monkeypatch):
  def fail():
    raise ValueError('RESOURCE_EXHAUSTED: No space left')

  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, _state(1), RECORD)
  monkeypatch.setattr(checkpoints._manager, 'close', fail)
  with (
    pytest.raises(OSError, match=r'could not be written to .*, which has .* MB free'),
    checkpoints,
  ):
    pass


def test_the_record_is_json(tmp_path):
  _save(tmp_path, [1])
  stored = json.loads((tmp_path / FOLDER / '1' / 'record' / 'metadata').read_text())
  content = json.loads(stored['text'])
  assert content['step'] == 1 and set(content['arrays']) == {"['step']", "['w']"}
