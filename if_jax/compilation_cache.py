"""Compiled programs are kept on disk: a second run starts in seconds instead of minutes."""

import contextlib
import hashlib
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import jax


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
  """Within it JAX keeps none of what it compiles: for programs that cannot be written to disk."""
  name = 'jax_persistent_cache_min_compile_time_secs'
  seconds = getattr(jax.config, name)
  jax.config.update(name, math.inf)
  try:
    yield
  finally:
    jax.config.update(name, seconds)


def _processor() -> str:
  """A name for this kind of processor: code for another, in a shared home, could crash here."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    features = next(line for line in lines if line.startswith(('flags', 'Features')))
  except (OSError, StopIteration):
    features = platform.processor()
  return hashlib.sha256(f'{platform.machine()} {features}'.encode()).hexdigest()[:8]
