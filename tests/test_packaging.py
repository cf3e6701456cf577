"""What is installed works without the checkout: the commands, the configurations, the loss."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from if_jax.__main__ import config_file
from if_jax.data.labels import CAMVID
from if_jax.weights import DEFAULT_WEIGHTS

ROOT = Path(__file__).parent.parent
CONFIGS = {file.name for file in (ROOT / 'configs').glob('*.py')}


def run(*command, cwd, timeout=300):
  """Runs a command of the installed package, which nothing tells where the checkout is."""
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  environment['XLA_FLAGS'] = '--xla_backend_optimization_level=0'
  return subprocess.run(
    command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
  )


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """A wheel of an sdist of a copy: an earlier build may have left files in the checkout."""
  folder = tmp_path_factory.mktemp('wheel')
  for name in ('if_jax', 'convert', 'configs'):
    skipped = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / name, folder / 'source' / name, ignore=skipped)
  files = ('main.py', 'pyproject.toml', 'MANIFEST.in', 'requirements.txt', 'README.md', 'LICENSE')
  for name in files:
    shutil.copy(ROOT / name, folder / 'source')
  build = f'from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})'
  done = run(sys.executable, '-c', build, cwd=folder / 'source')
  assert done.returncode == 0, done.stderr
  (sdist,) = folder.glob('*.tar.gz')
  _pip('wheel', '--no-build-isolation', '--wheel-dir', folder, sdist, cwd=folder)
  (path,) = folder.glob('*.whl')
  return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """An environment with the wheel, its dependencies those of this one; gives its commands."""
  folder = tmp_path_factory.mktemp('installed')
  venv.create(folder)
  _pip('--python', folder / 'bin' / 'python', 'install', wheel, cwd=folder)
  (site,) = folder.glob('lib/python*/site-packages')
  # Not --system-site-packages: in an environment, those of the Python that it was made with.
  here = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}
  (site / 'dependencies.pth').write_text('\n'.join(here))
  return folder / 'bin'


def _pip(*arguments, cwd):
  options = ('--disable-pip-version-check', '--no-input')
  done = run(sys.executable, '-m', 'pip', *options, *arguments, '--no-deps', '--no-index', cwd=cwd)
  assert done.returncode == 0, done.stdout + done.stderr


def test_a_wheel_holds_the_packages_and_what_they_read(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = {name for name in archive.namelist() if '.dist-info/' not in name}
    (metadata,) = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
    assert 'the if_jax authors' in archive.read(metadata).decode()
  assert {name.partition('/')[0] for name in names} == {'if_jax', 'convert'}
  configs = {name for name in names if name.startswith('if_jax/configs/')}
  assert configs == {f'if_jax/configs/{name}' for name in CONFIGS}
  tracked = {
    path.relative_to(ROOT).as_posix()
    for package in ('if_jax', 'convert')
    for path in (ROOT / package).rglob('*')
    if path.is_file() and path.suffix != '.pyc'
  }
  assert {'if_jax/py.typed', 'convert/py.typed'} <= tracked
  assert names - configs == tracked - configs


LOSS = """
import functools, pathlib
import jax
import jax.numpy as jnp
import if_jax, convert
from if_jax.losses import inverseform
from if_jax.models.inversenet import load_inversenet
from if_jax.ops.boundaries import boundary_map

print(pathlib.Path(if_jax.__file__).parent.parent, pathlib.Path(convert.__file__).parent.parent)
labels = jnp.zeros((1, 32, 32), jnp.int32).at[:, 8:24, 8:24].set(1)
edges = boundary_map(labels, num_classes=2)
inverse_net = functools.partial(*load_inversenet())
loss_fn = jax.jit(lambda logits: inverseform(logits, edges, inverse_net, tile_rows=1))
for shift in (0, 3):
  total, count = loss_fn(20 * jnp.roll(edges, shift, axis=2) - 10)
  print(float(total / count))
"""


def test_the_loss_is_computed_anywhere(installed, tmp_path):
  done = run(installed / 'python', '-c', LOSS, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  places, aligned, shifted = done.stdout.splitlines()
  (site,) = installed.parent.glob('lib/python*/site-packages')
  assert places == f'{site} {site}'
  assert 0 <= float(aligned) < 0.2 * float(shifted)


def test_an_image_is_predicted_anywhere(installed, tmp_path):
  """By weights of the package, as nothing is said of any."""
  Image.fromarray(np.full((64, 96, 3), 230, np.uint8)).save(tmp_path / 'street.png')
  done = run(installed / 'if-jax', '--mode=predict', '--input=street.png', cwd=tmp_path)
  assert done.returncode == 0, done.stdout + done.stderr
  assert f'by the weights {DEFAULT_WEIGHTS} of the package' in done.stdout
  label = np.asarray(Image.open(tmp_path / 'predictions' / 'label_ids' / 'street.png'))
  assert label.shape == (64, 96)
  # Nothing but brightness: sky.
  assert (np.array(CAMVID.class_names)[label] == 'Sky').mean() > 0.9


@pytest.mark.parametrize(
  ('command', 'message'),
  [
    (['if-jax', '--mode=check_data', '--config=cityscapes:ocrnet48'], 'cityscapes needs root'),
    (['if-jax', '--mode=check_data', '--config', 'configs/camvid.py'], 'camvid needs root'),
    (['if-jax', '--config=camvi', '--workdir=x'], 'there are camvid, cityscapes, default, demo'),
    (['python', '-m', 'if_jax', '--mode=tran'], "unknown mode 'tran'"),
    (['if-jax-convert'], '--checkpoint is missing'),
    (['python', '-m', 'convert'], '--checkpoint is missing'),
  ],
)  # fmt: skip
def test_commands_find_what_they_need_anywhere(installed, tmp_path, command, message):
  done = run(installed / command[0], *command[1:], cwd=tmp_path)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(('command', 'flag'), [('if-jax', '--mode'), ('if-jax-convert', '--model')])
def test_commands_show_their_flags(installed, tmp_path, command, flag):
  done = run(installed / command, '--help', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert f'  {flag} ' in done.stdout


def test_a_configuration_is_found_by_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for file in CONFIGS:
    for name in (file.removesuffix('.py'), f'configs/{file}'):
      assert Path(config_file(name)).samefile(ROOT / 'configs' / file)
  assert config_file('cityscapes:ocrnet48').endswith('configs/cityscapes.py:ocrnet48')
  assert config_file('mine.py') == 'mine.py'
  Path('configs').mkdir()
  Path('configs/camvid.py').touch()
  assert config_file('configs/camvid.py') == 'configs/camvid.py'
  Path('camvid').touch()
  assert Path(config_file('camvid')).samefile(ROOT / 'configs' / 'camvid.py')
