import concurrent.futures
import functools
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import ExifTags, Image
from tensorboardX.record_writer import RecordWriter

from configs import default
from if_jax.check_data import check_data
from if_jax.data import builder
from if_jax.data import checks as data_checks
from if_jax.data.datasets import load_dataset
from if_jax.data.decode import decode_image, decode_label
from if_jax.data.labels import CITYSCAPES, IGNORE
from if_jax.losses import cross_entropy
from if_jax.metrics import confusion_matrix

SIZE = (8, 12)
CLASSES = {
  'classes': [
    {'name': 'cat', 'color': [255, 0, 0], 'id': 10},
    {'name': 'dog', 'color': [0, 0, 255], 'id': 20},
  ],
  'ignore': [0, [0, 0, 0]],
}
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """Where TFDS's own place would be; no test may write into the real one."""
  folder = tmp_path / 'cache'
  monkeypatch.setenv('TFDS_DATA_DIR', str(folder))
  return folder


def png(pixels):
  data = io.BytesIO()
  Image.fromarray(np.asarray(pixels, np.uint8)).save(data, 'PNG')
  return data.getvalue()


def save(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def image(rng, size=SIZE):
  return rng.integers(0, 256, (*size, 3))


@pytest.fixture
def cityscapes(tmp_path, rng, cache):
  """Three images of two cities, with the official ids."""
  root = tmp_path / 'cityscapes'
  for name in ('ulm/ulm_000001_000019', 'bonn/bonn_000000_000019', 'bonn/bonn_000002_000019'):
    save(root / f'leftImg8bit/val/{name}_leftImg8bit.png', image(rng))
    save(root / f'gtFine/val/{name}_gtFine_labelIds.png', rng.integers(0, 34, SIZE))
  return root


@pytest.fixture
def pets(tmp_path, rng, cache):
  """One's own data: an image and a label, and a class file."""
  root = tmp_path / 'pets'
  save(root / 'images/train/home/tom.png', image(rng))
  save(root / 'labels/train/home/tom.png', rng.choice([0, 10, 20], SIZE))
  (root / 'classes.json').write_text(json.dumps(CLASSES))
  return root


def error_of(name, split, root):
  with pytest.raises((ValueError, FileNotFoundError)) as raised:
    load_dataset(name, split, root=root)
  return str(raised.value)


def run_python(code, *args, **env):
  return subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), *map(str, args)],
    env={**os.environ, 'PYTHONPATH': str(REPOSITORY), **env},
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_cityscapes_keeps_the_bytes_of_its_files(cityscapes):
  dataset = load_dataset('cityscapes', 'val', root=cityscapes)
  assert [sample['name'] for sample in dataset] == [
    'bonn/bonn_000000_000019_leftImg8bit',
    'bonn/bonn_000002_000019_leftImg8bit',
    'ulm/ulm_000001_000019_leftImg8bit',
  ]
  for sample in dataset:
    path = cityscapes / f'leftImg8bit/val/{sample["name"]}.png'
    assert sample['image'] == path.read_bytes()
    label = path.name.replace('leftImg8bit', 'gtFine_labelIds')
    assert sample['label'] == (cityscapes / 'gtFine/val' / path.parent.name / label).read_bytes()
  assert dataset.label_set is CITYSCAPES


def test_a_dataset_is_a_sequence(cityscapes):
  dataset = load_dataset('cityscapes', 'val', root=cityscapes)
  assert len(dataset) == len(list(dataset)) == 3
  assert dataset[-1] == dataset[np.int64(2)]
  with pytest.raises(IndexError):
    dataset[3]


def test_cityscapes_coarse_has_its_own_labels(cityscapes, rng):
  for split in ('val', 'train_extra'):
    name = f'{split}/ulm/ulm_000001_000019'
    save(cityscapes / f'leftImg8bit/{name}_leftImg8bit.png', image(rng))
    save(cityscapes / f'gtCoarse/{name}_gtCoarse_labelIds.png', np.full(SIZE, 7))
  extra = load_dataset('cityscapes_coarse', 'train_extra', root=cityscapes)
  assert len(extra) == 1
  assert (decode_label(extra[0]['label'], 'x') == 7).all()
  assert 'bonn_000000_000019_gtCoarse_labelIds.png' in error_of(
    'cityscapes_coarse', 'val', cityscapes
  )


def test_camvid_pairs_jpg_images_with_png_labels(tmp_path, rng, cache):
  save(tmp_path / 'data/val/0016E5_07959.jpg', image(rng))
  save(tmp_path / 'data/valannot/0016E5_07959.png', np.arange(96).reshape(SIZE) % 12)
  dataset = load_dataset('camvid', 'val', root=tmp_path / 'data')
  sample = dataset[0]
  assert sample['name'] == '0016E5_07959'
  assert sample['image'] == (tmp_path / 'data/val/0016E5_07959.jpg').read_bytes()
  train_ids = dataset.label_set.to_train_ids(decode_label(sample['label'], 'x'), 'x')
  assert sorted(set(train_ids.flat)) == [*range(11), IGNORE]


def test_a_folder_may_call_its_labels_masks(pets):
  (pets / 'labels').rename(pets / 'masks')
  dataset = load_dataset('folder', 'train', root=pets)
  assert [sample['name'] for sample in dataset] == ['home/tom']
  assert dataset.label_set.class_names == ('cat', 'dog')


def test_a_folder_without_splits_is_all(pets):
  dataset = load_dataset('folder', 'all', root=pets)
  assert [sample['name'] for sample in dataset] == ['train/home/tom']
  message = error_of('folder', 'val', pets)
  assert f"no image (without folders for splits, ask for 'all') under {pets}/images/val" in message
  assert message.endswith(f'{pets}/images holds: train')


def test_palette_masks_are_indices(pets):
  path = pets / 'labels/train/home/tom.png'
  ids = np.asarray(Image.open(path))
  mask = Image.fromarray(ids).convert('P')
  mask.putdata(ids.ravel().tolist())
  mask.putpalette([7, 8, 9] * 256)
  mask.save(path)
  dataset = load_dataset('folder', 'train', root=pets)
  np.testing.assert_array_equal(decode_label(dataset[0]['label'], 'x'), ids)


@pytest.mark.parametrize('alpha', [False, True])
def test_color_coded_masks_become_ids(pets, alpha):
  path = pets / 'labels/train/home/tom.png'
  ids = np.asarray(Image.open(path))
  colors = np.zeros((*SIZE, 3 + alpha), np.uint8)
  colors[ids == 10, 0] = 255
  colors[ids == 20, 2] = 255
  save(path, colors)
  dataset = load_dataset('folder', 'train', root=pets)
  np.testing.assert_array_equal(decode_label(dataset[0]['label'], 'x'), ids)


def test_streets_differ_between_splits_and_seeds_only():
  def load(split, seed):
    return load_dataset('streets', split, num_examples=2, size=(32, 64), seed=seed)

  images = {(s, seed): load(s, seed)[0]['image'] for s in ('train', 'val') for seed in (0, 1)}
  assert len(set(images.values())) == 4
  assert load('val', 1)[0]['image'] == images['val', 1]
  dataset = load('train', 0)
  assert len(dataset) == 2
  assert decode_image(dataset[0]['image'], 'x').shape == (32, 64, 3)
  label = decode_label(dataset[0]['label'], 'x')
  assert dataset.label_set.to_train_ids(label, 'x').shape == (32, 64)


def test_workers_get_the_same_dataset(cityscapes, pets):
  for name, root, split in (('cityscapes', cityscapes, 'val'), ('folder', pets, 'train')):
    dataset = load_dataset(name, split, root=root)
    samples = list(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    assert list(copy) == samples
    # grain compares the `repr` of a source when it resumes.
    assert repr(copy) == repr(dataset)
    assert not re.search(r'0x|object at', repr(dataset))
    assert repr(load_dataset(name, split, root=root)) == repr(dataset)


def test_nothing_imports_tensorflow(cityscapes, tmp_path):
  """Neither preparing nor reading, here or in a worker, though TensorFlow can be found."""
  stub = tmp_path / 'stub/tensorflow/__init__.py'
  stub.parent.mkdir(parents=True)
  stub.write_text(f'open({str(tmp_path / "imported")!r}, "w")')
  code = """
    import pickle, sys
    sys.path.insert(0, sys.argv[1])
    if len(sys.argv) > 3:
      from if_jax.data.datasets import load_dataset
      dataset = load_dataset('cityscapes', 'val', root=sys.argv[3])
      pickle.dump(dataset, open(sys.argv[2], 'wb'))
    else:
      dataset = pickle.load(open(sys.argv[2], 'rb'))
    print(sum(len(sample['image']) for sample in dataset), 'tensorflow' in sys.modules)
  """
  num_bytes = sum(path.stat().st_size for path in cityscapes.glob('leftImg8bit/*/*/*.png'))
  for args, said in (((cityscapes,), 'Checking cityscapes val: 3 images and labels\n'), ((), '')):
    result = run_python(code, stub.parent.parent, tmp_path / 'pickle', *args)
    # Nothing else is printed, neither by TFDS.
    assert (result.stdout, result.stderr) == (f'{num_bytes} False\n', said)
  assert not (tmp_path / 'imported').exists()


def test_every_problem_of_a_folder_is_in_one_error(cityscapes, rng):
  val = cityscapes / 'leftImg8bit/val'
  labels = cityscapes / 'gtFine/val'
  (labels / 'ulm/ulm_000001_000019_gtFine_labelIds.png').unlink()
  (val / 'bonn/bonn_000000_000019_leftImg8bit.png').unlink()
  broken = val / 'bonn/bonn_000002_000019_leftImg8bit.png'
  broken.write_bytes(broken.read_bytes()[:100])
  strange = np.full(SIZE, 7)
  strange[0, :5], strange[1, 0] = 77, 255
  save(labels / 'bonn/bonn_000002_000019_gtFine_labelIds.png', strange)
  save(val / 'jena/jena_000000_000019_leftImg8bit.png', image(rng, (16, 24)))
  save(labels / 'jena/jena_000000_000019_gtFine_labelIds.png', np.full(SIZE, 7))

  lines = error_of('cityscapes', 'val', cityscapes).split('\n  ')
  assert lines[0] == 'cityscapes val: 5 problems with its files'
  assert lines[1:3] == [
    f'{labels}/bonn/bonn_000000_000019_gtFine_labelIds.png: has no image; '
    'add leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png or take the label away',
    f'{val}/ulm/ulm_000001_000019_leftImg8bit.png: has no label; '
    'add gtFine/val/ulm/ulm_000001_000019_gtFine_labelIds.png or take the image away',
  ]
  assert lines[3].startswith(f'{broken}: broken image (')
  assert lines[4].startswith(
    f'{labels}/bonn/bonn_000002_000019_gtFine_labelIds.png: '
    'label id 77 (5 pixels), 255 (1 pixel) not in'
  )
  assert lines[5] == (
    f'{labels}/jena/jena_000000_000019_gtFine_labelIds.png: the label is 8x12, its image 16x24 '
    '(height x width); a label needs one id for each pixel of its image'
  )


def test_a_long_list_of_problems_is_cut_but_counted(pets, rng):
  for i in range(30):
    save(pets / f'images/train/{i:02d}.png', image(rng))
  lines = error_of('folder', 'train', pets).split('\n  ')
  assert lines[0] == 'folder train: 30 problems with its files'
  assert len(lines) == 22
  assert lines[20].startswith(f'{pets}/images/train/19.png: has no label')
  assert lines[21] == 'and 10 more'


def test_a_mended_folder_loads(pets, rng):
  save(pets / 'images/train/felix.png', image(rng))
  assert 'folder train: 1 problem with its files' in error_of('folder', 'train', pets)
  save(pets / 'labels/train/felix.png', np.full(SIZE, 10))
  assert len(load_dataset('folder', 'train', root=pets)) == 2


def test_problems_of_a_folder_are_told_though_its_pairs_are_prepared(pets, rng):
  load_dataset('folder', 'train', root=pets)
  save(pets / 'images/train/felix.png', image(rng))
  assert 'felix.png: has no label' in error_of('folder', 'train', pets)


def test_two_files_of_one_name_are_a_problem(pets, rng):
  save(pets / 'images/train/home/tom.bmp', image(rng))
  message = error_of('folder', 'train', pets)
  assert f'{pets}/images/train/home: tom.bmp and tom.png differ only in their ending' in message


def test_hidden_files_are_no_images(pets):
  (pets / 'images/train/home/._tom.png').write_bytes(b'what macOS leaves')
  assert len(load_dataset('folder', 'train', root=pets)) == 1


@pytest.mark.parametrize(
  ('pixels', 'complaint'),
  [
    (np.full(SIZE, 30), r'label id 30 \(96 pixels\) not in the label set'),
    (np.full((*SIZE, 3), 9), r'colour \(9, 9, 9\) \(96 pixels\) not in the label set'),
    (np.full((*SIZE, 2), 9), 'a label of mode LA'),
  ],
  ids=['id', 'color', 'mode'],
)
def test_a_wrong_mask_is_named(pets, pixels, complaint):
  path = pets / 'labels/train/home/tom.png'
  save(path, pixels)
  assert re.search(f'{re.escape(str(path))}: {complaint}', error_of('folder', 'train', pets))


def test_a_turned_image_is_refused(pets, rng):
  path = pets / 'images/train/home/tom.png'
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  # A square: no size tells that a mask, drawn over what viewers show, lies across it.
  Image.fromarray(image(rng, (8, 8)).astype(np.uint8)).save(path, exif=exif)
  save(pets / 'labels/train/home/tom.png', np.full((8, 8), 10))
  assert f'{path}: EXIF orientation 6' in error_of('folder', 'train', pets)


def test_a_jpeg_label_is_refused(pets):
  path = pets / 'labels/train/home/tom.png'
  Image.open(path).save(path.with_suffix('.jpg'))
  path.unlink()
  assert 'tom.jpg: a JPEG, whose compression changes labels' in error_of('folder', 'train', pets)


def test_an_empty_folder_tells_what_is_there(cityscapes, tmp_path):
  message = error_of('cityscapes', 'validation', cityscapes)
  assert message == (
    f'no *_leftImg8bit.png under {cityscapes}/leftImg8bit/validation; '
    f'{cityscapes}/leftImg8bit holds: val'
  )
  shutil.rmtree(cityscapes / 'gtFine/val')
  message = error_of('cityscapes', 'val', cityscapes)
  assert message.startswith(f'no *_gtFine_labelIds.png under {cityscapes}/gtFine/val;')
  assert message.endswith('gtFine holds: nothing')
  assert 'root nowhere: no such folder' in error_of('camvid', 'val', 'nowhere')


def test_an_archive_has_to_be_unpacked_first(cityscapes, tmp_path):
  archive = tmp_path / 'downloads/leftImg8bit_trainvaltest.zip'
  archive.parent.mkdir()
  archive.write_bytes(b'PK')
  assert 'unpack it first' in error_of('cityscapes', 'val', archive)
  message = error_of('cityscapes', 'val', archive.parent)
  assert message.endswith('holds: leftImg8bit_trainvaltest.zip; unpack the archive first')


def test_a_folder_that_may_not_be_read_is_not_left_out(cityscapes, monkeypatch):
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('bonn'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  with pytest.raises(PermissionError, match=r'leftImg8bit/val/bonn'):
    load_dataset('cityscapes', 'val', root=cityscapes)


def test_a_folder_needs_a_class_file_and_a_plain_split_name(pets):
  assert 'only letters, digits' in error_of('folder', '../train', pets)
  (pets / 'classes.json').unlink()
  assert 'A class file is JSON of this form' in error_of('folder', 'train', pets)


def test_what_a_call_gets_wrong_is_told(pets):
  with pytest.raises(ValueError, match=r"no data set 'coco'; there are cityscapes, "):
    load_dataset('coco', 'val')
  with pytest.raises(ValueError, match=r'camvid needs root'):
    load_dataset('camvid', 'val')
  with pytest.raises(ValueError, match=r'folder takes no option seed'):
    load_dataset('folder', 'train', root=pets, seed=1)
  with pytest.raises(ValueError, match=r"streets has no split 'test'; it has train, val"):
    load_dataset('streets', 'test')


jit_cross_entropy = jax.jit(functools.partial(cross_entropy, class_weighted=False))
jit_confusion = jax.jit(functools.partial(confusion_matrix, num_classes=19))


def losses_by_hand(logits, ids):
  """Mean cross-entropy of the labelled pixels of each image, in NumPy and float64."""
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  totals = []
  for image_log_p, image_ids in zip(log_p, ids, strict=True):
    counted = image_ids != IGNORE
    nats = -image_log_p[counted][np.arange(counted.sum()), image_ids[counted]]
    totals.append(nats.mean() if nats.size else 0)
  return sum(totals)


@settings(max_examples=20, deadline=None)
@given(ids=arrays(np.uint8, (2, 3, 4), elements=st.sampled_from([0, 18, 255])))
def test_255_is_ignored_exactly(ids):
  rng = np.random.default_rng(0)
  logits = 3 * rng.standard_normal((2, 3, 4, 19)).astype(np.float32)
  predictions = logits.argmax(-1).astype(np.int32)
  total, _ = jit_cross_entropy(logits, ids)
  np.testing.assert_allclose(total, losses_by_hand(logits.astype(float), ids), rtol=1e-5)
  # Bit for bit: what the network says at an ignored pixel changes nothing.
  other = np.where((ids == 255)[..., None], -logits, logits)
  assert total == jit_cross_entropy(other, ids)[0]

  def confusion(part):
    return np.asarray(jit_confusion(ids[part], predictions[part]))

  expected = np.zeros((19, 19), np.int64)
  np.add.at(expected, (ids[ids != 255], predictions[ids != 255]), 1)
  np.testing.assert_array_equal(confusion(slice(None)), expected)
  np.testing.assert_array_equal(confusion(slice(1)) + confusion(slice(1, 2)), expected)
  assert expected.sum() == (ids != 255).sum()


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_ids_outside_the_classes_are_refused_with_their_counts(pets, dtype):
  """Of {0, 18, 19, 200, 255, -1}, and -1 as files hold it: 255 in 8 bits, 65535 in 16."""
  classes = [{'name': str(i), 'color': [i, 0, 0]} for i in range(19)]
  (pets / 'classes.json').write_text(json.dumps({'classes': classes, 'ignore': [255]}))
  path = pets / 'labels/train/home/tom.png'
  ids = np.zeros(SIZE, np.int64)
  ids[0, :5], ids[1, :4], ids[2, :3], ids[3, :2], ids[4, 0] = 18, 19, 200, 255, -1
  Image.fromarray(ids.astype(dtype)).save(path)
  of_minus_1 = ', 65535 (1 pixel)' if dtype == np.uint16 else ''
  expected = f'{path}: label id 19 (4 pixels), 200 (3 pixels){of_minus_1} not in the label set'
  assert expected in error_of('folder', 'train', pets)

  ids[(ids == 19) | (ids == 200) | (ids == -1)] = 18
  Image.fromarray(ids.astype(dtype)).save(path)
  dataset = load_dataset('folder', 'train', root=pets)
  train_ids = dataset.label_set.to_train_ids(decode_label(dataset[0]['label'], 'x'), 'x')
  np.testing.assert_array_equal(train_ids, ids)


@pytest.fixture
def checks(monkeypatch):
  """The data sets whose files were checked."""
  checked = []

  def check_pairs(what, *args):
    checked.append(what)
    return data_checks.check_pairs(what, *args)

  monkeypatch.setattr(builder, 'check_pairs', check_pairs)
  return checked


def test_files_are_checked_once(cityscapes, pets, cache, checks):
  for _ in range(2):
    load_dataset('cityscapes', 'val', root=cityscapes)
    load_dataset('folder', 'train', root=pets)
  assert checks == ['cityscapes val', 'folder train']
  assert cache.is_dir()


def test_cache_dir_comes_before_the_place_of_tfds(pets, cache, tmp_path):
  load_dataset('folder', 'train', root=pets, cache_dir=tmp_path / 'other')
  assert (tmp_path / 'other').is_dir()
  assert not cache.exists()


@pytest.mark.parametrize('change', ['content', 'time', 'name', 'classes', 'another'])
def test_a_changed_folder_is_prepared_anew(pets, checks, rng, change):
  before = repr(load_dataset('folder', 'train', root=pets))
  path = pets / 'images/train/home/tom.png'
  label = pets / 'labels/train/home/tom.png'
  if change == 'content':
    save(path, image(rng, SIZE))
  elif change == 'time':
    os.utime(label, ns=(0, label.stat().st_mtime_ns + 1))
  elif change == 'name':
    path.rename(path.with_name('felix.png'))
    label.rename(label.with_name('felix.png'))
  elif change == 'classes':
    (pets / 'classes.json').write_text(json.dumps({**CLASSES, 'ignore': [0, 1]}))
  else:
    save(path.with_name('felix.png'), image(rng))
    save(label.with_name('felix.png'), np.full(SIZE, 10))
  dataset = load_dataset('folder', 'train', root=pets)
  assert repr(dataset) != before
  assert len(checks) == 2
  assert dataset[-1]['image'] == max((pets / 'images/train/home').iterdir()).read_bytes()


def test_an_error_while_writing_leaves_nothing_that_looks_prepared(cityscapes, cache, monkeypatch):
  def interrupt(self, path):
    if 'ulm' in path.name:
      raise KeyboardInterrupt
    return path.read_bytes()

  with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
    context.setattr(builder.FolderBuilder, '_label_bytes', interrupt)
    load_dataset('cityscapes', 'val', root=cityscapes)
  assert not list(cache.rglob('*.json'))
  assert len(list(load_dataset('cityscapes', 'val', root=cityscapes))) == 3


def test_a_killed_run_is_swept_up(cityscapes, cache):
  result = run_python(
    """
    import os, signal, sys
    from if_jax.data import builder
    from if_jax.data.datasets import load_dataset

    def die(self, path):
      if 'ulm' in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
      return path.read_bytes()

    builder.FolderBuilder._label_bytes = die
    load_dataset('cityscapes', 'val', root=sys.argv[1])
    """,
    cityscapes,
  )
  assert result.returncode == -signal.SIGKILL
  assert len(list(cache.rglob('incomplete.*'))) == 1
  assert len(list(load_dataset('cityscapes', 'val', root=cityscapes))) == 3
  assert not list(cache.rglob('incomplete.*'))


def test_of_several_that_load_at_once_one_prepares(cityscapes, checks, monkeypatch):
  write = builder.FolderBuilder._label_bytes

  def slow(self, path):
    time.sleep(0.05)
    return write(self, path)

  monkeypatch.setattr(builder.FolderBuilder, '_label_bytes', slow)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    loads = [pool.submit(load_dataset, 'cityscapes', 'val', root=cityscapes) for _ in range(4)]
    datasets = [load.result() for load in loads]
  assert checks == ['cityscapes val']
  assert all(list(dataset) == list(datasets[0]) for dataset in datasets)


def test_several_shards_keep_the_order(cityscapes, cache, monkeypatch):
  whole = list(load_dataset('cityscapes', 'val', root=cityscapes))
  monkeypatch.setattr(builder, '_SHARD_BYTES', 500)
  dataset = load_dataset('cityscapes', 'val', root=cityscapes, cache_dir=cache / 'shards')
  assert len(list((cache / 'shards').rglob('*array_record*'))) == 3
  assert list(dataset) == whole


def test_a_full_disk_is_told_before_writing(cityscapes, monkeypatch):
  usage = shutil.disk_usage('/')._replace(free=100)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(OSError, match=r'make room or give another cache_dir'):
    load_dataset('cityscapes', 'val', root=cityscapes)


class TFDSCityscapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """With the name, the configuration and the features of TFDS's own builder."""

  name = 'cityscapes'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = (tfds.core.BuilderConfig(name='semantic_segmentation'),)

  def _info(self):
    features = {
      'image_id': tfds.features.Text(),
      'image_left': tfds.features.Image(shape=(*SIZE, 3), encoding_format='png'),
      'segmentation_label': tfds.features.Image(
        shape=(*SIZE, 1), encoding_format='png', use_colormap=True
      ),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'validation': self._generate_examples()}

  def _generate_examples(self):
    rng = np.random.default_rng(0)
    for city in ('bonn', 'bad-honnef', 'ulm'):
      image_id = f'{city}_000000_000019'
      yield (
        image_id,
        {
          'image_id': image_id,
          'image_left': png(image(rng)),
          'segmentation_label': png(np.full(SIZE, 7)),
        },
      )


@pytest.fixture
def prepared_by_tfds(tmp_path):
  tfds.disable_progress_bar()
  made = TFDSCityscapes(data_dir=tmp_path / 'tfds', file_format='array_record')
  made.download_and_prepare()
  return tmp_path / 'tfds'


def test_reads_what_tfds_has_prepared(prepared_by_tfds):
  dataset = load_dataset('tfds:cityscapes', 'val', root=prepared_by_tfds)
  expected = {
    example['image_id']: example['image_left']
    for _, example in TFDSCityscapes(data_dir=prepared_by_tfds)._generate_examples()
  }
  assert len(dataset) == 3
  for sample in dataset:
    city, stem = sample['name'].split('/')
    image_id = stem.removesuffix('_leftImg8bit')
    assert image_id.startswith(f'{city}_')
    assert sample['image'] == expected.pop(image_id)
    ids = decode_label(sample['label'], 'x')
    assert not dataset.label_set.to_train_ids(ids, 'x').any()
  assert not expected
  assert repr(pickle.loads(pickle.dumps(dataset))) == repr(dataset)


@pytest.fixture
def tfrecords(prepared_by_tfds):
  """The same data set in TFDS's usual format, written by another library."""
  (records,) = prepared_by_tfds.rglob('*.array_record-*')
  made = tfds.builder_from_directory(records.parent)
  raw = made.as_data_source(
    'validation', deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
  )
  path = records.with_name(records.name.replace('array_record', 'tfrecord'))
  writer = RecordWriter(str(path))
  for record in raw:
    writer.write(record)
  writer.close()
  info = records.with_name('dataset_info.json')
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  return path


def test_tfrecords_are_read_without_tensorflow(prepared_by_tfds, tfrecords):
  (records,) = prepared_by_tfds.rglob('*.array_record-*')
  records.unlink()
  dataset = load_dataset('tfds:cityscapes', 'val', root=prepared_by_tfds)
  samples = list(dataset)
  assert len(samples) == 3
  expected = {
    example['image_id']: example['image_left']
    for _, example in TFDSCityscapes(data_dir=prepared_by_tfds)._generate_examples()
  }
  for sample in samples:
    image_id = sample['name'].split('/')[1].removesuffix('_leftImg8bit')
    assert sample['image'] == expected[image_id]
  assert list(pickle.loads(pickle.dumps(dataset))) == samples


@pytest.mark.parametrize('cut', [1, 20])
def test_cut_tfrecords_are_an_error(prepared_by_tfds, tfrecords, cut):
  tfrecords.write_bytes(tfrecords.read_bytes()[:-cut])
  with pytest.raises(ValueError, match=r'tfrecord-00000-of-00001: cut off or no TFRecord file'):
    len(load_dataset('tfds:cityscapes', 'val', root=prepared_by_tfds))


def test_damaged_array_records_are_an_error(prepared_by_tfds):
  (path,) = prepared_by_tfds.rglob('*.array_record-*')
  whole = path.read_bytes()
  in_first = whole.index(b'PNG')
  flipped = whole[:in_first] + b'?' + whole[in_first + 1 :]
  for damaged in (flipped, whole[:-10], whole[: len(whole) // 2], b''):
    path.write_bytes(damaged)
    dataset = load_dataset('tfds:cityscapes', 'val', root=prepared_by_tfds)
    with pytest.raises(
      ValueError, match=rf'^{path.parent}: example 0 of validation cannot be read'
    ):
      dataset[0]
  path.unlink()
  with pytest.raises(ValueError, match=r'example 0 .*No such file'):
    load_dataset('tfds:cityscapes', 'val', root=prepared_by_tfds)[0]


def test_what_tfds_has_prepared_is_checked(prepared_by_tfds, capsys):
  config = default.get_config()
  config.data.update({'name': 'tfds:cityscapes', 'root': str(prepared_by_tfds)})
  config.data.train_split = 'val'
  assert check_data(config) == 0
  assert capsys.readouterr().out.startswith('tfds:cityscapes val: 3 images of 8x12 ')
  (path,) = prepared_by_tfds.rglob('*.array_record-*')
  whole = path.read_bytes()
  in_last = whole.rindex(b'PNG')
  path.write_bytes(whole[:in_last] + b'?' + whole[in_last + 1 :])
  assert check_data(config) == 1
  line, end = capsys.readouterr().out.splitlines()
  assert line.startswith(f'{path.parent}: example 2 of validation cannot be read (')
  assert end == '1 problem in tfds:cityscapes val'


def test_what_tfds_has_not_prepared_is_told(prepared_by_tfds, tmp_path):
  assert f'no prepared data set in {tmp_path}/cityscapes' in error_of(
    'tfds:cityscapes', 'val', tmp_path
  )
  message = error_of('tfds:cityscapes', 'train', prepared_by_tfds)
  assert message.endswith("has no split 'train'; it has validation")
