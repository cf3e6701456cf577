"""An exported network gives what the network gives, in a process that has no if_jax."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import reference
from flax.traverse_util import unflatten_dict
from PIL import Image
from processes import run_main

from configs import default
from convert import from_torch
from if_jax import export
from if_jax.data.labels import CAMVID
from if_jax.models import MODELS, create_model
from if_jax.models.hrnet import HRNetSpec
from if_jax.models.multiscale import MultiScaleSegmenter
from if_jax.models.segmenter import Segmenter
from if_jax.ops.normalize import normalize
from if_jax.ops.resize import resize_bilinear
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


def outputs_of(model):
  """The function of weights and images that every exported file is held to."""

  def compute(variables, images):
    outputs = model.apply(variables, normalize(images), train=False)
    edges = jax.nn.sigmoid(outputs['edge_logits'])
    return {'logits': outputs['logits'], 'edge_probability': edges}

  return compute


def run_stablehlo(content, images):
  program = jax.export.deserialize(bytearray(content))
  return jax.jit(program.call, compiler_options=QUICK)(images)


def run_onnx(content, images):
  session = pytest.importorskip('onnxruntime').InferenceSession(content)
  names = [output.name for output in session.get_outputs()]
  return dict(zip(names, session.run(names, {'images': images}), strict=True))


def assert_equal_outputs(outputs, expected, tolerance=1e-4):
  """Equal to the tolerance; the best class where it is better than the next by twice of it."""
  logits = np.asarray(expected['logits'])
  second, best = np.partition(logits, -2)[..., -2:].transpose(3, 0, 1, 2)
  sure = best - second > 2 * tolerance
  assert sure.mean() > 0.99
  assert len(np.unique(logits.argmax(-1))) > 1
  assert np.ptp(expected['edge_probability']) > 0.01
  labels = outputs['label'] if 'label' in outputs else outputs['logits'].argmax(-1)
  np.testing.assert_array_equal(labels[sure], logits.argmax(-1)[sure])
  for name in outputs.keys() & expected.keys():
    np.testing.assert_allclose(outputs[name], expected[name], atol=tolerance, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize('file_format', export.FORMATS)
@pytest.mark.parametrize('name', MODELS)
def test_files_for_any_size_give_what_the_network_gives(name, file_format):
  """`-s` shows the table of docs/export.md."""
  model = create_model(name)
  variables = from_torch(reference.state_dict(name), name)
  compute = outputs_of(model)
  if file_format == 'onnx':
    translation = pytest.importorskip('if_jax.onnx_translation')
    content = translation.to_onnx(compute, variables, export.any_images()).SerializeToString()
    run = run_onnx
  else:
    content = export.export_network(model, variables).serialize()
    run = run_stablehlo
  for size in ((64, 96), (97, 131)):
    images = draw_images(2, size)
    # Not compiled as a whole: for the deep networks that takes longer than all the rest.
    expected = compute(variables, images)
    outputs = run(content, images)
    for key in sorted(outputs.keys() & expected.keys()):
      difference = np.abs(outputs[key] - expected[key]).max()
      print(f'{name} {file_format} {size} {key}: {difference:.1e}')
    assert_equal_outputs(outputs, expected)


# Networks of all kinds of parts that compile in a second.
SPEC = HRNetSpec(width=4, modules=(1, 1, 1), blocks=1, stem_blocks=1, patch_stem=True)


@pytest.mark.parametrize(
  ('file_format', 'size'), [('stablehlo', None), ('stablehlo', '33x70'), ('onnx', None)]
)
def test_the_folder_runs_without_this_package(file_format, size, tmp_path, monkeypatch):
  pytest.importorskip(export.FORMATS[file_format])
  model = Segmenter(SPEC, CAMVID.num_classes)
  variables = draw_variables(model)
  save_weights(tmp_path / 'best', variables, make_card('hrnet16_slim', model, CAMVID))
  monkeypatch.setattr(export, 'model_from_card', lambda config, card: model)
  folder = export.export_weights(
    default.get_config(), str(tmp_path), size=size, file_format=file_format
  )
  assert folder == tmp_path / 'export'
  file = folder / f'model.{file_format}'
  assert {path.name for path in folder.iterdir()} == {'labels.json', file.name, 'predict.py'}
  classes = json.loads((folder / 'labels.json').read_text())['classes']
  assert [entry['name'] for entry in classes] == list(CAMVID.class_names)

  # The batch is free.
  images = draw_images(2, (33, 70))
  expected = jax.jit(outputs_of(model), compiler_options=QUICK)(variables, images)
  run = {'stablehlo': run_stablehlo, 'onnx': run_onnx}[file_format]
  outputs = run(file.read_bytes(), images)
  assert outputs['label'].dtype == np.uint8
  assert_equal_outputs(outputs, expected)

  Image.fromarray(images[0]).save(tmp_path / 'image.png')
  process = subprocess.run(
    [sys.executable, '-c', WITHOUT_IF_JAX, folder / 'predict.py', 'image.png', 'out.png'],
    cwd=tmp_path,
    env={**os.environ, 'XLA_FLAGS': '--xla_backend_optimization_level=0'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  written = np.asarray(Image.open(tmp_path / 'out.png'))
  labels = np.asarray(expected['logits'][0]).argmax(-1)
  assert np.mean(written == CAMVID.colors[labels]) > 0.999


def test_onnx_of_several_scales_with_ocr_has_its_weights_once():
  translation = pytest.importorskip('if_jax.onnx_translation')
  model = MultiScaleSegmenter(SPEC, 19, scales=(0.5, 1.0))
  variables = draw_variables(model)
  compute = outputs_of(model)
  onnx_model = translation.to_onnx(compute, variables, export.any_images())
  content = onnx_model.SerializeToString()
  num_bytes = sum(x.nbytes for x in jax.tree.leaves(variables))
  assert len(content) < 1.1 * num_bytes
  # Normalisations are in the weights of the convolutions, and there are no shapes but the input's.
  operations = [node.op_type for node in onnx_model.graph.node]
  assert operations.count('Mul') < 0.1 * operations.count('Conv')
  assert operations.count('Shape') == 3
  images = draw_images(1, (51, 33))
  expected = jax.jit(compute, compiler_options=QUICK)(variables, images)
  assert_equal_outputs(run_onnx(content, images), expected)


def test_onnx_of_a_fixed_size_declares_it():
  translation = pytest.importorskip('if_jax.onnx_translation')

  def enlarge(_, images):
    size = tuple(2 * side for side in images.shape[1:3])
    return {'enlarged': resize_bilinear(normalize(images), size)}

  known = {'height': 20, 'width': 24}
  onnx_model = translation.to_onnx(enlarge, {}, export.any_images(), known)
  declared = [
    [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
    for value in (*onnx_model.graph.input, *onnx_model.graph.output)
  ]
  assert declared == [['batch', 20, 24, 3], ['batch', 40, 48, 3]]
  images = draw_images(3, (20, 24))
  actual = run_onnx(onnx_model.SerializeToString(), images)['enlarged']
  np.testing.assert_allclose(actual, enlarge({}, images)['enlarged'], atol=1e-5)


def test_an_operation_without_translation_is_named():
  translation = pytest.importorskip('if_jax.onnx_translation')
  with pytest.raises(NotImplementedError, match='for the operation sin'):
    translation.to_onnx(
      lambda _, images: {'x': jax.numpy.sin(images.astype(float))}, {}, export.any_images()
    )


@pytest.mark.parametrize('text', ['512', '512,1024', '8x64', '0x64', '-64x64', '64x99999', 'x', ''])
def test_a_size_that_is_none_is_told(text):
  with pytest.raises(ValueError, match='give HEIGHTxWIDTH in pixels'):
    export.parse_size(text)


@pytest.mark.parametrize(
  ('flags', 'text'),
  [
    (('--format=tflite',), '--format=tflite: give stablehlo or onnx'),
    (('--size=8',), '--size=8: give HEIGHTxWIDTH in pixels'),
  ],
)
def test_a_wrong_flag_is_told_in_one_line(flags, text, tmp_path):
  run = run_main('--mode=export', f'--workdir={tmp_path}', *flags)
  assert run.returncode == 2
  assert run.stderr.startswith(f'error: {text}')
  assert run.stderr.count('\n') == 1


@pytest.mark.parametrize(('file_format', 'package'), export.FORMATS.items())
def test_a_missing_package_is_told_first(file_format, package, tmp_path, monkeypatch):
  monkeypatch.setattr(export.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=f'needs the package {package}: pip install {package}'):
    export.export_weights(default.get_config(), str(tmp_path), file_format=file_format)


def test_an_output_that_cannot_be_written_is_told(tmp_path, monkeypatch):
  model = Segmenter(SPEC, CAMVID.num_classes)
  save_weights(tmp_path / 'best', draw_variables(model), make_card('hrnet16_slim', model, CAMVID))
  monkeypatch.setattr(export, 'model_from_card', lambda config, card: model)
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match=r'cannot write to --output=.*: Not a directory'):
    export.export_weights(default.get_config(), str(tmp_path), str(tmp_path / 'file' / 'folder'))


def test_onnx_in_bfloat16_is_refused(tmp_path):
  config = default.get_config()
  config.model.dtype = 'bfloat16'
  model = create_model('hrnet16_slim', CAMVID.num_classes)
  variables = unflatten_dict(
    {path: np.zeros(shape, np.float32) for path, shape in model_shapes(model).items()}, sep='/'
  )
  save_weights(tmp_path / 'best', variables, make_card('hrnet16_slim', model, CAMVID))
  pytest.importorskip('onnx')
  with pytest.raises(ValueError, match='computes in float32'):
    export.export_weights(config, str(tmp_path), file_format='onnx')
