"""Every image counted once, on any number of devices, as the public evaluator counts it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from processes import run_main, run_python

from configs import default
from if_jax import parallel
from if_jax.data.datasets import Dataset
from if_jax.data.labels import CITYSCAPES
from if_jax.data.streets import Streets
from if_jax.evaluate import Evaluator, by_size
from if_jax.models import create_model
from if_jax.weights import make_card, save_weights

TWO_SIZES = [Streets(4, (48, 64), seed=1), Streets(3, (40, 72), seed=2)]


class Mixed:
  """Two sizes of street scenes, in turn."""

  def __len__(self):
    return sum(map(len, TWO_SIZES))

  def __getitem__(self, index):
    return TWO_SIZES[index % 2][index // 2]


class PixelModel:
  """Looks at each pixel alone: cheap to compile, and NumPy can say what it answers."""

  def apply(self, variables, image, train):
    return {'logits': image @ variables['classes']}


CLASSES = np.random.RandomState(0).standard_normal((3, 19)).astype(np.float32)
DATASET = Dataset('mixed', 'val', CITYSCAPES, Mixed())


def _numpy_confusion():
  from if_jax.data.decode import decode_image, decode_label
  from if_jax.ops.normalize import normalize

  confusion = np.zeros((19, 19), np.int64)
  for i in range(len(DATASET)):
    example = DATASET[i]
    labels = CITYSCAPES.to_train_ids(decode_label(example['label'], ''), '')
    image = normalize(jnp.asarray(decode_image(example['image'], '')))
    predictions = np.argmax(image @ CLASSES, -1)
    np.add.at(confusion, (labels[labels < 19], predictions[labels < 19]), 1)
  return confusion


@pytest.mark.parametrize('batch_size', [1, 2, 3, 5])
def test_every_pixel_is_counted_once_whatever_the_batch(batch_size):
  config = default.get_config()
  config.eval.batch_size = batch_size
  seen = []
  evaluator = Evaluator(PixelModel(), DATASET, config)
  result = evaluator(
    parallel.replicate({'classes': CLASSES}),
    on_image=lambda example, outputs: seen.append((example['index'], outputs['label'].shape)),
  )
  assert result['images'] == 7
  np.testing.assert_array_equal(result['confusion'], _numpy_confusion())
  sizes = [(i, (48, 64) if i % 2 == 0 else (40, 72)) for i in range(7)]
  assert sorted(seen) == sizes


@pytest.mark.parametrize('key', ['sheet_images', 'report_images'])
def test_a_number_of_images_below_0_is_told(key):
  config = default.get_config()
  config.eval[key] = -1
  with pytest.raises(ValueError, match=f'config.eval.{key}=-1; give 0'):
    Evaluator(PixelModel(), DATASET, config)


def test_groups_are_of_one_size_and_lose_nothing():
  rng = np.random.RandomState(0)
  examples = [{'index': i, 'image': np.zeros((rng.randint(1, 40), 4, 3))} for i in range(200)]
  groups = list(by_size(examples, 3))
  assert sorted(e['index'] for group in groups for e in group) == list(range(200))
  for group in groups:
    assert len({example['image'].shape for example in group}) == 1
    assert 1 <= len(group) <= 3


SCRIPT = """
import hashlib, sys
import jax, jax.numpy as jnp
from configs import default
from if_jax import parallel
from if_jax.data.datasets import load_dataset
from if_jax.evaluate import Evaluator
from if_jax.models import create_model

model = create_model('hrnet16_slim')
variables = parallel.replicate(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
dataset = load_dataset('streets', 'val', num_examples=7, size=(64, 96))
config = default.get_config()
for batch_size in (1, 3):
  config.eval.batch_size = batch_size
  result = Evaluator(model, dataset, config)(variables)
  digest = hashlib.sha256(result['confusion'].tobytes()).hexdigest()
  print(jax.local_device_count(), result['images'], result['confusion'].sum(), digest)
"""


def test_the_same_integers_on_any_number_of_devices():
  lines = []
  for devices in (1, 3):
    run = run_python('-c', SCRIPT, devices=devices)
    assert run.returncode == 0, run.stderr
    lines += [line.split() for line in run.stdout.splitlines()]
  assert [line[0] for line in lines] == ['1'] * 2 + ['3'] * 2
  assert len({tuple(line[1:]) for line in lines}) == 1


@pytest.fixture(scope='module')
def cityscapes(tmp_path_factory):
  """A data set of Cityscapes' shape, and weights: (root, weights folder)."""
  root = tmp_path_factory.mktemp('cityscapes')
  source = Streets(3, (64, 128), seed=5)
  for i in range(len(source)):
    sample, stem = source[i], f'town_{i:06d}_000019'
    for folder, ending, data in [
      ('leftImg8bit', 'leftImg8bit', sample['image']),
      ('gtFine', 'gtFine_labelIds', sample['label']),
    ]:
      path = root / folder / 'val' / 'town' / f'{stem}_{ending}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)
  model = create_model('hrnet16_slim')
  variables = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 64, 64, 3)))
  save_weights(root / 'weights', variables, make_card('hrnet16_slim', model, CITYSCAPES))
  return root


def test_the_command_agrees_with_cityscapesscripts(cityscapes, tmp_path, monkeypatch):
  evaluator = pytest.importorskip('cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling')
  run = run_main(
    '--mode=evaluate',
    '--config=configs/cityscapes.py:hrnet16_slim',
    f'--workdir={tmp_path}',
    f'--config.data.root={cityscapes}',
    f'--config.data.cache_dir={tmp_path}/cache',
    '--config.data.num_workers=0',
    f'--config.init_from={cityscapes}/weights',
    "--config.eval.save=('label_ids', 'color', 'overlay', 'edges', 'errors')",
  )
  assert run.returncode == 0, run.stderr
  ours = json.loads((tmp_path / 'evaluation.json').read_text())
  assert ours['images'] == 3
  assert f'mIoU {100 * ours["miou"]:.2f} ' in run.stdout

  truths = sorted(Path(cityscapes, 'gtFine').rglob('*labelIds.png'))
  predictions = sorted(Path(tmp_path, 'evaluation', 'label_ids').rglob('*.png'))
  assert [p.name for p in predictions] == [f'town_{i:06d}_000019_leftImg8bit.png' for i in range(3)]
  arguments = evaluator.args
  for name in ('evalInstLevelScore', 'JSONOutput', 'colorized'):
    monkeypatch.setattr(arguments, name, False)
  monkeypatch.setattr(arguments, 'quiet', True)
  theirs = evaluator.evaluateImgLists(
    [str(p) for p in predictions], [str(p) for p in truths], arguments
  )
  assert abs(ours['miou'] - theirs['averageScoreClasses']) < 1e-9
  for name, scores in ours['classes'].items():
    expected = theirs['classScores'][name]
    assert (scores['iou'] is None) == np.isnan(expected)
    assert scores['iou'] is None or abs(scores['iou'] - expected) < 1e-9

  for kind, mode in [('color', 'RGB'), ('overlay', 'RGB'), ('edges', 'L'), ('errors', 'RGB')]:
    with Image.open(next(Path(tmp_path, 'evaluation', kind).rglob('*.png'))) as picture:
      assert (picture.size, picture.mode) == ((128, 64), mode)
  assert (tmp_path / 'evaluation' / 'sheet.png').is_file()
  report = (tmp_path / 'evaluation' / 'report.html').read_text()
  assert f'<dd>{100 * ours["miou"]:.2f}<small> %</small></dd>' in report
  assert report.count('alt="boundary probability of town/') == 3 + 3


def test_weights_of_other_classes_are_refused(cityscapes, tmp_path):
  images = tmp_path / 'val'
  for folder, array in [('val', np.zeros((16, 16, 3), np.uint8)), ('valannot', np.zeros((16, 16)))]:
    (tmp_path / folder).mkdir()
    Image.fromarray(array.astype(np.uint8)).save(tmp_path / folder / 'a.png')
  assert images.is_dir()
  run = run_main(
    '--mode=evaluate',
    '--config=configs/camvid.py',
    f'--workdir={tmp_path}',
    f'--config.data.root={tmp_path}',
    f'--config.data.cache_dir={tmp_path}/cache',
    f'--config.init_from={cityscapes}/weights',
  )
  error = run.stderr.splitlines()[-1]
  assert run.returncode == 2 and error.startswith('error: ')
  assert 'know the classes road, sidewalk' in error
  assert 'the data set camvid has Sky, Building' in error
