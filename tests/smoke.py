"""Does the installed package work with this Python and these versions? `make compatibility` asks.

In an environment with if_jax and nothing else: python tests/smoke.py

Models and losses from Python, with warnings as errors; then a training, its evaluation and a
prediction by the command `if-jax`, with a network that compiles fast, in a folder of its own.
"""

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

# Read when JAX is imported: compiles in a third of the time.
os.environ['XLA_FLAGS'] = '--xla_backend_optimization_level=0'
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import if_jax
from if_jax import __main__ as command_line
from if_jax.data.decode import decode_image
from if_jax.losses import cross_entropy, inverseform
from if_jax.models import MODELS, ModelSpec, create_model
from if_jax.models.hrnet import HRNetSpec
from if_jax.models.inversenet import load_inversenet
from if_jax.models.layers import BatchNorm, Conv
from if_jax.models.segmenter import Segmenter
from if_jax.ops.boundaries import boundary_map
from if_jax.ops.normalize import normalize

SHOWN = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'opencv-python-headless')
# All kinds of layers, few of each.
SMALL = HRNetSpec(width=4, modules=(1, 1, 1), blocks=1, stem_blocks=1, patch_stem=True)
FLAGS = (
  '--workdir=run',
  '--config.model.name=tiny',
  '--config.data.streets.num_train=4',
  '--config.data.streets.num_val=2',
  '--config.data.streets.size=(32,64)',
  '--config.augment.crop_size=(32,64)',
  # The InverseForm loss is tried before.
  '--config.loss.inversenet=',
  '--config.train.batch_size=2',
  '--config.train.num_steps=2',
  '--config.train.eval_every=2',
  '--config.train.checkpoint_every=2',
  '--config.train.log_every=1',
)


class Tiny(nn.Module):
  """What compiles fast enough to be trained, evaluated and used."""

  num_classes: int
  edge_head: bool
  dtype: jnp.dtype
  remat: bool
  axis_name: str | None

  @nn.compact
  def __call__(self, image, train=False):
    x = BatchNorm(axis_name=self.axis_name, name='bn')(Conv(8, 3, name='conv')(image), train)
    heads = {'logits': self.num_classes, 'edge_logits': 1}
    return {name: Conv(features, name=name)(nn.relu(x)) for name, features in heads.items()}


def models():
  """A network gives logits of the image's size."""
  image = normalize(np.zeros((1, 33, 64, 3), np.uint8))
  outputs, _ = jax.jit(create_model('small', 5).init_with_output)(jax.random.key(0), image)
  assert outputs['logits'].shape == (1, 33, 64, 5)
  assert outputs['edge_logits'].shape == (1, 33, 64, 1)
  assert np.isfinite(outputs['logits']).all()


def losses():
  """A boundary that lies beside the true one costs, and is moved by the gradient."""
  labels = jnp.zeros((1, 64, 64), jnp.int32).at[:, 16:48, 16:48].set(1)
  edges = boundary_map(labels, num_classes=2)
  inverse_net = functools.partial(*load_inversenet())

  @jax.jit
  @jax.value_and_grad
  def loss_fn(logits, edges):
    total, count = inverseform(logits, edges, inverse_net, tile_rows=1)
    return total / count

  (aligned, _), (shifted, gradient) = (
    loss_fn(6 * jnp.roll(edges, shift, axis=2) - 3, edges) for shift in (0, 6)
  )
  assert 0 <= aligned < 0.2 * shifted, (aligned, shifted)
  assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
  total, count = cross_entropy(jnp.zeros((1, 64, 64, 2)), labels)
  # 4096 terms: added one after the other in float32, they round by 1e-5.
  np.testing.assert_allclose(total / count, np.log(2), rtol=1e-4)


def commands():
  """A training, its evaluation and a prediction leave what they should."""
  with tempfile.TemporaryDirectory() as folder:

    def run(*arguments):
      command = [sys.executable, __file__, *FLAGS, *arguments]
      done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
      assert done.returncode == 0, done.stdout + done.stderr

    workdir = Path(folder, 'run')
    run('--mode=train')
    assert (workdir / 'last' / 'model.safetensors').is_file()
    run('--mode=evaluate', f'--config.init_from={workdir / "best"}')
    assert (workdir / 'evaluation.json').is_file()
    image = workdir / 'evaluation' / 'sheet.png'
    run('--mode=predict', f'--input={image}')
    shapes = {
      decode_image(path.read_bytes(), path.name).shape
      for path in (image, workdir / 'predictions' / 'color' / 'sheet.png')
    }
    assert len(shapes) == 1


def main():
  warnings.simplefilter('error')
  versions = ' '.join(f'{name} {importlib.metadata.version(name)}' for name in SHOWN)
  print(f'Python {platform.python_version()} {versions}')
  print(f'if_jax from {Path(if_jax.__file__).parent}', flush=True)
  for check in (models, losses, commands):
    start = time.monotonic()
    check()
    print(f'{check.__name__}: as it should be, {time.monotonic() - start:.0f} s', flush=True)


if __name__ == '__main__':
  MODELS['small'] = ModelSpec(Segmenter, {'backbone_spec': SMALL})
  MODELS['tiny'] = ModelSpec(Tiny, {})
  if len(sys.argv) > 1:
    command_line.start()
  main()
