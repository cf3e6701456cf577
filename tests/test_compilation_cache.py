"""Compiled programs are kept where the user wants them."""

import math
import threading

import jax
from processes import run_python

from if_jax.compilation_cache import not_kept

PROGRAM = """
import jax, jax.numpy as jnp
from if_jax.compilation_cache import keep_compiled_programs
keep_compiled_programs()
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(7)).sum())
"""


def _files(folder):
  return sorted(path for path in folder.rglob('*') if path.is_file() and 'cache' in path.name)


def test_programs_are_kept_in_the_users_cache_and_used_again(tmp_path, monkeypatch):
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  results = [run_python('-c', PROGRAM).stdout for _ in range(2)]
  assert results[0] == results[1] != ''
  kept = _files(tmp_path / 'if_jax')
  assert kept and all(path.parent.name.startswith('compiled-') for path in kept)


def test_a_folder_of_the_users_own_is_obeyed_and_one_that_cannot_be_written_does_no_harm(
  tmp_path, monkeypatch
):
  (tmp_path / 'file').touch()
  for name in ('own', 'file'):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / name))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'unused'))
    assert run_python('-c', PROGRAM).returncode == 0
  assert _files(tmp_path / 'own') and not (tmp_path / 'unused').exists()


def test_threads_that_keep_nothing_leave_the_setting_as_it_was():
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  inside, leave = threading.Event(), threading.Event()

  def stay():
    with not_kept():
      inside.set()
      assert leave.wait(60)

  thread = threading.Thread(target=stay)
  with not_kept():
    thread.start()
    assert inside.wait(60)
  # One is still within it.
  assert getattr(jax.config, name) == math.inf
  leave.set()
  thread.join()
  assert getattr(jax.config, name) == before
