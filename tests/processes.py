"""Running code in processes of its own: other device counts, the real command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_python(*arguments: str, devices: int = 1, timeout: float = 300):
  """Runs this Python on forced host devices, killed hard if it hangs.

  Compiles with few optimisations: that takes a third of the time.
  """
  flags = f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0'
  # Collectives of several devices on few cores need threads to wait in.
  environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'NPROC': '16'}
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=timeout,
  )


def metrics_of(workdir: Path) -> list[dict]:
  """What a run wrote down, but for how fast it was."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [{k: v for k, v in line.items() if k != 'train/images_per_second'} for line in lines]


def run_main(*arguments: str, **options):
  """Runs `python main.py` with these flags."""
  return run_python('main.py', *arguments, **options)
