"""Files from strangers: nothing in them runs, nothing large is taken, one sentence says why."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _run(program, *arguments):
  """What a program prints as JSON, in a process of its own: its memory and modules are its own."""
  done = subprocess.run(
    [sys.executable, '-c', f'import sys; sys.path[:0] = [".", "tests"]\n{program}', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parametrize('target', ['fuzz_pytorch_file', 'fuzz_weights'])
def test_mutations_are_read_or_refused(tmp_path, target):
  program = (
    'import json, pathlib\n'
    f'from fuzz.{target} import check, seeds\n'
    'from fuzz.mutations import read_mutations\n'
    'result = read_mutations(check, seeds(), pathlib.Path(sys.argv[1]), count=20_000)\n'
    'print(json.dumps(result | {"torch": "torch" in sys.modules}))'
  )
  result = _run(program, str(tmp_path))
  assert not result['torch']
  # Some are read, or the mutations would show nothing of what lies behind the first check.
  assert 1000 < result['read'] < 18_000
  assert result['slowest'] < 1
  assert result['megabytes'] < 500
