"""The four ways in that the README shows, by its own commands, in a fresh copy of the repository.

The data are drawn here, and what the commands take of them, and how long they go on, is changed by
flags behind those of the README.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pages
import pytest
import reference
from PIL import Image

SIZE = (32, 64)
NAMES = ('ground', 'box', 'ball')


@pytest.fixture
def copy(tmp_path):
  """The files that git knows, as they are here, and nothing else."""
  listed = subprocess.run(
    ['git', 'ls-files', '-z'], cwd=pages.ROOT, capture_output=True, text=True, check=True
  )
  folder = tmp_path / 'fresh'
  for name in filter(None, listed.stdout.split('\0')):
    if (pages.ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(pages.ROOT / name, folder / name)
  return folder


def run(folder, *parts, main='main.py', more=()):
  """Runs the README's command that has these parts, with more flags; gives what it printed.

  By another `main`, if one is given.
  """
  (command,) = (
    x
    for x in pages.commands('README.md')
    if x.in_block and x.program != 'benchmark' and set(parts) <= set(shlex.split(x.line))
  )
  python, *line = shlex.split(command.line)
  assert python == 'python'
  return run_python(folder, *(main if x == 'main.py' else x for x in line), *more)


def run_python(folder, *arguments):
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  # Compiled in haste: that takes a third of the time.
  environment['XLA_FLAGS'] = '--xla_backend_optimization_level=0'
  environment['TFDS_DATA_DIR'] = str(folder / 'cache')
  done = subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def save(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def draw(rng):
  """A box and a ball on the ground: uint8 image [H, W, 3] and ids [H, W], some of them ignored."""
  label = np.zeros(SIZE, np.uint8)
  x, y = rng.integers(4, 20, 2)
  label[y : y + 10, x : x + 12] = 1
  cv2.circle(label, (45, int(rng.integers(10, 22))), 7, 2, cv2.FILLED)
  image = np.uint8([[60, 120, 60], [200, 60, 60], [60, 60, 220]])[label]
  label[:, :2] = 255
  return image + rng.integers(0, 30, image.shape, np.uint8), label


def test_a_published_checkpoint_is_evaluated(copy, tmp_path):
  torch = pytest.importorskip('torch')  # Writes a file as it is released.
  state_dict = reference.state_dict('hrnet18')
  released = {f'module.{k}': torch.from_numpy(v) for k, v in state_dict.items()}
  file = copy / 'hrnet18_IF_checkpoint.pth'
  torch.save({'epoch': 3, 'state_dict': released}, file, _use_new_zipfile_serialization=False)
  rng = np.random.default_rng(0)
  root = tmp_path / 'cityscapes'
  for name in ('ulm/ulm_000000_000019', 'bonn/bonn_000000_000019'):
    save(root / f'leftImg8bit/val/{name}_leftImg8bit.png', rng.integers(0, 256, (*SIZE, 3)))
    save(root / f'gtFine/val/{name}_gtFine_labelIds.png', rng.integers(0, 34, SIZE))

  printed = run(copy, '-m', 'convert', '--model=hrnet18')
  assert 'SHA-256' in printed
  printed = run(copy, '--mode=evaluate', more=[f'--config.data.root={root}'])
  assert 'mIoU' in printed and 'train' in printed
  result = json.loads((copy / 'runs/hrnet18/evaluation.json').read_text())
  assert result['images'] == 2 and len(result['classes']) == 19
  # Every labelled pixel is counted: those of the 19 classes among the 34 ids.
  labelled = sum(
    np.isin(Image.open(path), [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]).sum()
    for path in root.rglob('*_labelIds.png')
  )
  assert np.sum(result['confusion']) == labelled
  assert (copy / 'runs/hrnet18/evaluation/report.html').is_file()


# Compiling a step of a real network takes minutes; test_train.py does that once for all.
TINY = 'tests/tiny_main.py'


def test_a_network_learns_from_ones_own_folder_and_labels_photos_and_videos(copy, tmp_path):
  rng = np.random.default_rng(0)
  root = tmp_path / 'mine'
  for split, count in (('train', 4), ('val', 2)):
    for i in range(count):
      image, label = draw(rng)
      save(root / f'images/{split}/{i}.png', image)
      save(root / f'labels/{split}/{i}.png', label)
  classes = [{'name': x, 'color': [80 * i, 0, 0]} for i, x in enumerate(NAMES)]
  data = [f'--config.data.root={root}']
  (root / 'classes.json').write_text(json.dumps({'classes': classes, 'ignore': [255]}))
  assert 'no problems in folder val' in run(copy, '--mode=check_data', more=data)

  few = ['num_steps=3', 'eval_every=3', 'checkpoint_every=3', 'log_every=1', 'batch_size=2']
  flags = [f'--config.train.{x}' for x in few]
  flags += ['--config.augment.crop_size=(32,64)', '--config.loss.tile_rows=1']
  run(copy, '--mode=train', '--config=configs/folder.py', main=TINY, more=data + flags)
  lines = [json.loads(x) for x in (copy / 'runs/mine/metrics.jsonl').read_text().splitlines()]
  losses = [x['train/loss'] for x in lines if 'train/loss' in x]
  assert len(losses) == 3 and np.isfinite(losses).all()
  assert all(x['train/inverseform'] > 0 for x in lines if 'train/loss' in x)
  assert {f'val/iou/{name}' for name in NAMES} <= lines[-1].keys()
  assert (copy / 'runs/mine/report.html').is_file()

  save(copy / 'photos/deep/photo.png', draw(rng)[0])
  film = cv2.VideoWriter(
    str(copy / 'photos/film.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, SIZE[::-1]
  )
  for _ in range(3):
    film.write(draw(rng)[0])
  film.release()
  run(copy, '--mode=predict', '--workdir=runs/mine', main=TINY)
  out = copy / 'labelled'
  ids = [out / 'label_ids/deep/photo.png', *sorted((out / 'label_ids/film').glob('*.png'))]
  assert len(ids) == 4
  for path in ids:
    label = np.asarray(Image.open(path))
    assert label.shape == SIZE and label.max() < len(NAMES)
  for name in ('overlay/film.mp4', 'edges/deep/photo.png', 'color/deep/photo.png'):
    assert (out / name).stat().st_size


def test_a_photo_is_labelled_at_once(copy):
  save(copy / 'street.jpg', draw(np.random.default_rng(0))[0])
  assert 'hrnet16_slim_camvid' in run(copy, '--mode=predict', '--input=street.jpg')
  label = np.asarray(Image.open(copy / 'predictions/label_ids/street.png'))
  assert label.shape == SIZE and label.max() < 11
  assert (copy / 'predictions/edges/street.png').stat().st_size


def test_the_loss_is_taken_along(copy):
  (block,) = (x for x in pages.python_blocks('README.md') if 'inverseform(' in x)
  before = """
import jax, pathlib, if_jax
jax.config.update('jax_disable_most_optimizations', True)
labels = jax.numpy.zeros((1, 16, 16), int).at[:, 4:12, 4:12].set(1)
edge_logits = jax.numpy.zeros((1, 16, 16, 1))
print(pathlib.Path(if_jax.__file__).parent.parent)
"""
  folder, loss = run_python(copy, '-c', f'{before}{block}\nprint(float(loss))').split()
  assert Path(folder) == copy
  assert 0 < float(loss) < 1
