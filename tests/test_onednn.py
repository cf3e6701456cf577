"""Convolutions by oneDNN give what XLA's give, and are taken where they pay."""

import functools
import json
import platform
import sys

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from if_jax.configs.default import get_config
from processes import run_python

from if_jax.compilation_cache import not_kept
from if_jax.data.streets import draw
from if_jax.inference import for_many_images
from if_jax.models import create_model
from if_jax.models.layers import Conv
from if_jax.ops import convolution, onednn
from if_jax.predict import Predictor


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch):
  """tests/conftest.py has switched it off, so that what tests compile is kept."""
  monkeypatch.delenv(onednn.SWITCH)
  with not_kept():
    yield


works = pytest.mark.skipif(
  not sys.platform.startswith('linux')
  or platform.machine() != 'x86_64'
  or jaxlib.__version__ not in onednn.KNOWN_VERSIONS,
  reason='not a build of jaxlib that it was tried with',
)


def _draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@works
@pytest.mark.parametrize('followed_by', ['nothing', 'bias', 'residual', 'relu', 'all'])
@pytest.mark.parametrize(
  ('kernel_size', 'stride', 'padding', 'size'),
  [(3, 1, 1, (7, 9)), (3, 1, 1, (1, 2)), (3, 2, 1, (7, 8)), (1, 1, 0, (4, 5)), (2, 2, 0, (6, 8))],
)
def test_a_convolution_is_that_of_xla(kernel_size, stride, padding, size, followed_by):
  x, kernel = _draw(2, *size, 3), _draw(kernel_size, kernel_size, 3, 20, seed=1)
  expected = convolution.conv2d(x, kernel, stride, padding)
  bias = _draw(20, seed=2) if followed_by in ('bias', 'all') else None
  residual = _draw(*expected.shape, seed=3) if followed_by in ('residual', 'all') else None
  relu = followed_by in ('relu', 'all')
  for summand in (bias, residual):
    expected = expected if summand is None else expected + summand
  expected = jnp.maximum(expected, 0) if relu else expected
  actual = onednn.conv2d(x, kernel, bias, residual, stride=stride, padding=padding, relu=relu)
  np.testing.assert_allclose(actual, expected, atol=2e-5)


@works
@pytest.mark.parametrize('edge_head', [True, False])
@pytest.mark.parametrize('name', ['hrnet18', 'hrnet16_slim'])
def test_a_network_is_that_of_xla(name, edge_head):
  model = create_model(name, 5, edge_head=edge_head)
  images = _draw(2, 64, 96, 3)
  variables = _draw_variables(model, images)
  expected = jax.jit(model.apply)(variables, images)
  fast = create_model(name, 5, edge_head=edge_head, onednn=True)
  actual = jax.jit(fast.apply)(variables, images)
  assert actual.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_allclose(actual[key], value, atol=1e-5 * np.abs(value).max())


@works
def test_very_large_convolutions_are_left_to_winograd():
  conv = functools.partial(Conv, 512, 3, use_bias=True, parent=None)
  x = jax.ShapeDtypeStruct((1, 64, 128, 720), jnp.float32)
  variables = jax.eval_shape(conv().init, jax.random.key(0), x)
  programs = [str(jax.make_jaxpr(conv(onednn=fast).apply)(variables, x)) for fast in (False, True)]
  assert programs[0] == programs[1]
  small = jax.ShapeDtypeStruct((1, 8, 16, 720), jnp.float32)
  assert 'ffi_call' in str(jax.make_jaxpr(conv(onednn=True).apply)(variables, small))


def _draw_variables(model, images):
  """Those for which activations neither grow nor vanish, with statistics that normalise."""
  shapes = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), images))

  def draw(leaf, shape):
    x = _draw(*shape, seed=len(shape) + sum(shape))
    if leaf in ('scale', 'var'):
      return 0.5 + 0.5 * np.tanh(np.abs(x))
    return 0.1 * x if leaf in ('bias', 'mean') else x / np.sqrt(np.prod(shape[:-1]))

  return unflatten_dict({path: draw(path[-1], x.shape) for path, x in shapes.items()})


@works
def test_the_parameters_are_the_same():
  image = jnp.zeros((1, 64, 64, 3))
  # One of each kind.
  for name in ('hrnet16_slim', 'ocrnet48_hms'):
    ways = [create_model(name, 3, onednn=onednn) for onednn in (True, False)]
    shapes = [jax.eval_shape(model.init, jax.random.key(0), image) for model in ways]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])


@works
@pytest.mark.parametrize(
  ('operand', 'wrong'),
  [
    ('x', np.zeros((1, 4, 5, 2), np.float32)),
    ('x', jnp.zeros((1, 4, 5, 3), jnp.bfloat16)),
    ('kernel', np.zeros((3, 1, 3, 4), np.float32)),
    ('bias', np.float32(1)),
    ('residual', np.zeros((1, 5, 5, 4), np.float32)),
  ],
)
def test_what_would_end_the_process_is_refused(operand, wrong):
  operands = {'x': np.zeros((1, 4, 5, 3), np.float32), 'kernel': np.zeros((3, 3, 3, 4), np.float32)}
  with pytest.raises(ValueError, match=f'{operand} must be float32 '):
    onednn.conv2d(**operands | {operand: wrong}, padding=1)


@works
@pytest.mark.parametrize('name', ['hrnet16_slim', 'ocrnet48_hms'])
def test_it_is_not_for_training(name):
  model = create_model(name, 3, onednn=True)
  with pytest.raises(ValueError, match='onednn=True has no gradients; make one without it'):
    jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=True))


@works
@pytest.mark.parametrize('looks', [{}, {'window': (48, 64), 'flip': True}])
def test_a_predictor_gives_the_same_for_many_images_as_for_one(looks):
  config = get_config()
  config.eval.update(looks)
  image, _ = draw(np.random.default_rng(0), (96, 160))
  few, many = (
    Predictor('hrnet16_slim_camvid', config, num_images=count)(image)
    for count in (1, onednn.MANY_IMAGES)
  )
  assert len(np.unique(few['label'])) > 1
  assert np.mean(few['label'] == many['label']) > 0.999
  np.testing.assert_allclose(few['edge_probability'], many['edge_probability'], atol=1e-4)


@works
def test_many_images_are_worth_it_and_few_are_not():
  model = create_model('hrnet16_slim')
  assert for_many_images(model, onednn.MANY_IMAGES).onednn
  assert not for_many_images(model, onednn.MANY_IMAGES - 1).onednn
  assert not for_many_images(create_model('hrnet16_slim', dtype=jnp.bfloat16), 1000).onednn


@pytest.mark.parametrize(
  ('target', 'name', 'value', 'reason'),
  [
    (jaxlib, '__version__', '0.99.0', 'this is 0.99.0'),
    (platform, 'machine', lambda: 'aarch64', 'on aarch64'),
    (sys, 'platform', 'darwin', 'this is darwin'),
    (jax, 'default_backend', lambda: 'gpu', 'the backend is gpu'),
  ],
)
def test_elsewhere_it_is_not_taken_and_says_why(monkeypatch, target, name, value, reason):
  monkeypatch.setattr(target, name, value)
  assert reason in onednn.why_not()
  model = create_model('hrnet16_slim')
  assert for_many_images(model, 1000) is model
  expected = f'onednn=True does not work here: .*{reason}.*; leave it out'
  with pytest.raises(ValueError, match=expected):
    create_model('hrnet16_slim', onednn=True)


def test_it_can_be_switched_off(monkeypatch):
  monkeypatch.setenv(onednn.SWITCH, 'off')
  assert onednn.why_not() == 'IF_JAX_ONEDNN is off'
  monkeypatch.setenv(onednn.SWITCH, '0')
  assert onednn.why_not() == 'IF_JAX_ONEDNN is 0'


PROGRAM = """
import os, sys
import jax, numpy as np
from if_jax import parallel
from if_jax.ops import onednn

jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
kernel = np.full((3, 3, 8, 8), 0.01, np.float32)

def step(kernel, x):
  for _ in range(4):
    x = onednn.conv2d(x, kernel, padding=1, relu=True)
  return jax.lax.psum(x.sum(), parallel.AXIS), x.sum((1, 2, 3))

p_step = parallel.pmap_per_device(step, keep=False)
before = set(os.listdir(sys.argv[1]))
images = np.random.default_rng(0).random((16, 32, 32, 8), np.float32)
for _ in range(50):
  total, sums = p_step(parallel.replicate(kernel), parallel.shard(images))
ours = [name for name in set(os.listdir(sys.argv[1])) - before if name.startswith('jit__fun')]
assert not ours, ours
print(float(total), np.asarray(sums).ravel().tolist())
"""


@works
def test_devices_side_by_side_and_nothing_on_disk(monkeypatch, tmp_path):
  """Eight of them share the threads of two cores, and none waits for ever."""
  results = []
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
  monkeypatch.delenv('PYTHONWARNINGS', raising=False)
  for count in (1, 8):
    monkeypatch.setenv('XLA_FLAGS', f'--xla_force_host_platform_device_count={count}')
    total, sums = run_python('-W', 'error', '-c', PROGRAM, str(tmp_path)).stdout.split(maxsplit=1)
    results.append((float(total), json.loads(sums)))
  np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
  assert results[0][1] == results[1][1]
