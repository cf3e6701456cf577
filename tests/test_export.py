"""An exported network gives what the network gives, in a process that has no if_jax."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from PIL import Image
from processes import run_main

from configs import default
from if_jax import export
from if_jax.data.labels import CAMVID
from if_jax.inference import predict
from if_jax.models import create_model
from if_jax.models.hrnet import HRNetSpec
from if_jax.models.segmenter import Segmenter
from if_jax.weights import make_card, model_shapes, save_weights

# Compiles in a third of the time.
QUICK = {'xla_backend_optimization_level': 0}
# Runs a script as `python SCRIPT ...` does, but without if_jax wherever it may be installed.
WITHOUT_IF_JAX = (
  'import runpy, sys; sys.modules["if_jax"] = None; sys.argv = sys.argv[1:]; '
  'runpy.run_path(sys.argv[0], run_name="__main__")'
)


def draw_images(count, size):
  """Smooth, so that regions are found and not noise."""
  small = np.random.default_rng(0).integers(0, 256, (count, 4, 6, 3), np.uint8)
  return np.stack([np.asarray(Image.fromarray(image).resize(size[::-1])) for image in small])


def draw_variables(model):
  """Weights that nobody trained, under which several classes win."""
  rng = np.random.default_rng(2)
  variables = {}
  for path, shape in model_shapes(model).items():
    variables[path] = np.full(shape, path.endswith(('/scale', '/var')), np.float32)
    if path.endswith('/kernel'):
      kernel = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
      # Blind to the mean: otherwise the class that likes positive activations wins everywhere.
      variables[path] = (kernel - kernel.mean(axis=(0, 1, 2))).astype(np.float32)
  return unflatten_dict(variables, sep='/')


def jit_predict(model, variables):
  return jax.jit(lambda images: predict(model, variables, images), compiler_options=QUICK)


def assert_equal_outputs(outputs, expected):
  assert outputs.keys() == expected.keys()
  assert outputs['label'].dtype == np.uint8
  # A best class that is best by a rounding may change: one pixel in a thousand.
  assert np.mean(outputs['label'] == expected['label']) > 0.999
  assert len(np.unique(expected['label'])) > 3
  if 'edge_probability' in expected:
    assert np.ptp(expected['edge_probability']) > 0.01
    np.testing.assert_allclose(
      outputs['edge_probability'], expected['edge_probability'], atol=1e-4, rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize('size', [(64, 96), (97, 131)])
@pytest.mark.parametrize('name', ['hrnet18', 'hrnet16_slim'])
def test_outputs_are_those_of_the_network(name, size):
  model = create_model(name)
  variables = draw_variables(model)
  images = draw_images(2, size)
  expected = jit_predict(model, variables)(images)
  program = export.export_network(model, variables, size)
  assert program.platforms == ('cpu', 'cuda')
  call = jax.jit(program.call, compiler_options=QUICK)
  assert_equal_outputs(call(images), expected)


def test_the_folder_runs_without_this_package(tmp_path, monkeypatch):
  pytest.importorskip('flatbuffers')
  # A network of all kinds of parts that compiles in a second.
  spec = HRNetSpec(width=4, modules=(1, 1, 1), blocks=1, stem_blocks=1, patch_stem=True)
  model = Segmenter(spec, CAMVID.num_classes)
  variables = draw_variables(model)
  save_weights(tmp_path / 'best', variables, make_card('hrnet16_slim', model, CAMVID))
  monkeypatch.setattr(export, 'model_from_card', lambda config, card: model)
  folder = export.export_weights(default.get_config(), str(tmp_path), '33x70')
  assert folder == tmp_path / 'export'
  names = sorted(path.name for path in folder.iterdir())
  assert names == ['labels.json', 'model.stablehlo', 'predict.py']
  classes = json.loads((folder / 'labels.json').read_text())['classes']
  assert [entry['name'] for entry in classes] == list(CAMVID.class_names)

  # The batch is free.
  program = jax.export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes()))
  images = draw_images(2, (33, 70))
  expected = jit_predict(model, variables)(images)
  assert_equal_outputs(jax.jit(program.call, compiler_options=QUICK)(images), expected)

  Image.fromarray(images[0]).save(tmp_path / 'image.png')
  run = subprocess.run(
    [sys.executable, '-c', WITHOUT_IF_JAX, folder / 'predict.py', 'image.png', 'out.png'],
    cwd=tmp_path,
    env={**os.environ, 'XLA_FLAGS': '--xla_backend_optimization_level=0'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert run.returncode == 0, run.stderr
  written = np.asarray(Image.open(tmp_path / 'out.png'))
  assert np.mean(written == CAMVID.colors[np.asarray(expected['label'][0])]) > 0.999


@pytest.mark.parametrize('text', ['512', '512,1024', '8x64', '0x64', '-64x64', '64x99999', 'x', ''])
def test_a_size_that_is_none_is_told(text):
  with pytest.raises(ValueError, match='give HEIGHTxWIDTH in pixels'):
    export.parse_size(text)


def test_a_size_that_is_missing_is_told(tmp_path):
  run = run_main('--mode=export', f'--workdir={tmp_path}')
  assert run.returncode == 2
  assert run.stderr.startswith('error: --size=HEIGHTxWIDTH is missing')
  assert run.stderr.count('\n') == 1


def test_a_missing_package_is_told_first(tmp_path, monkeypatch):
  monkeypatch.setattr(export.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='needs the package flatbuffers: pip install flatbuffers'):
    export.export_weights(default.get_config(), str(tmp_path), '64x64')
