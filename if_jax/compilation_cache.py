"""Compiled programs are kept on disk: a second run starts in seconds instead of minutes."""

import contextlib
import hashlib
import math
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

# JAX keeps what took so many seconds to compile. The setting is the whole process's: the first
# thread that is in `not_kept` changes it, the last one changes it back.
_THRESHOLD = 'jax_persistent_cache_min_compile_time_secs'
_lock = threading.Lock()
_depth = 0
_seconds = 0.0


def keep_compiled_programs() -> None:
  """Lets JAX keep what it compiles, in `$XDG_CACHE_HOME/if_jax` or `~/.cache/if_jax`.

  Whoever has chosen a folder (`JAX_COMPILATION_CACHE_DIR`) or none
  (`JAX_ENABLE_COMPILATION_CACHE=false`) is obeyed. A folder that cannot be written to costs a
  warning of JAX's, nothing else.
  """
  # JAX makes its options when it is imported, where no type checker sees them.
  if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
    root = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
    folder = root / 'if_jax' / f'compiled-{_processor()}'
    jax.config.update('jax_compilation_cache_dir', str(folder))


@contextlib.contextmanager
def not_kept() -> Iterator[None]:
  """Within it JAX keeps none of what it compiles: for programs that cannot be written to disk.

  Nor does it keep what other threads compile meanwhile.
  """
  global _depth, _seconds
  with _lock:
    if not _depth:
      _seconds = getattr(jax.config, _THRESHOLD)
      jax.config.update(_THRESHOLD, math.inf)
    _depth += 1
  try:
    yield
  finally:
    with _lock:
      _depth -= 1
      if not _depth:
        jax.config.update(_THRESHOLD, _seconds)


def _processor() -> str:
  """A name for this kind of processor: code for another, in a shared home, could crash here."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    features = next(line for line in lines if line.startswith(('flags', 'Features')))
  except (OSError, StopIteration):
    features = platform.processor()
  return hashlib.sha256(f'{platform.machine()} {features}'.encode()).hexdigest()[:8]
