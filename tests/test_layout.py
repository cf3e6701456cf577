"""Imports run one way: verbs, then parts, then operations."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Package or module -> what of if_jax it may import; a verb (train, evaluate, predict) any of it.
ALLOWED = {
  'ops': {'ops'},
  # A loss takes a trained inverse network, so that this one loads itself from a weight folder.
  'models': {'models', 'ops', 'weights'},
  'losses': {'losses', 'ops'},
  'data': {'data'},
  'inference': {'ops'},
  'parallel': {'compilation_cache'},
  'compilation_cache': set(),
  'processes': set(),
  'stopping': set(),
  'guard': set(),
  'checkpoints': {'processes'},
  'optimizers': set(),
  'metrics': {'boundary_metrics'},
  'boundary_metrics': set(),
  'weights': {'data', 'model_card'},
  'model_card': {'ops'},
  'boundary_pairs': {'data', 'ops'},
  'inversenet_step': {'boundary_pairs', 'guard', 'losses', 'ops'},
  'loop': {'checkpoints', 'data', 'guard', 'parallel', 'processes', 'report', 'stopping'},
  'cli': {'mistakes', 'usage'},
  'mistakes': set(),
  'usage': set(),
  'html_report': {'curves', 'data', 'html_report', 'metrics', 'outputs', 'parallel', 'processes'},
  'onnx_graph': set(),
  'onnx_translation': {'onnx_graph'},
}


def _imports(path):
  """The parts of if_jax that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module == 'if_jax':
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('if_jax.'):
      yield node.module.split('.')[1]


@pytest.mark.parametrize('part', ALLOWED)
def test_parts_import_only_what_is_beneath_them(part):
  folder = ROOT / 'if_jax' / part
  files = list(folder.rglob('*.py')) if folder.is_dir() else [folder.with_suffix('.py')]
  assert files
  found = {name for file in files for name in _imports(file)}
  assert found <= ALLOWED[part]


def test_pmap_is_said_in_one_file():
  for file in (ROOT / 'if_jax').rglob('*.py'):
    if file.name != 'parallel.py':
      assert 'jax.pmap' not in file.read_text(), file


def test_processes_are_joined_in_one_file():
  for file in (ROOT / 'if_jax').rglob('*.py'):
    if file.name != 'processes.py':
      assert 'jax.distributed' not in file.read_text(), file


def test_no_module_is_longer_than_400_lines():
  for folder in ('if_jax', 'convert', 'configs'):
    for file in (ROOT / folder).rglob('*.py'):
      assert len(file.read_text().splitlines()) <= 400, file
