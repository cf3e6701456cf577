import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from if_jax.data import class_uniform
from if_jax.data.augment import Augmentation
from if_jax.data.class_uniform import class_centroids, draw_centroid, tile_centroids
from if_jax.data.datasets import Dataset, load_dataset
from if_jax.data.labels import LabelSet
from if_jax.data.pipeline import train_batches

LABELS = LabelSet(
  'test',
  ('common', 'rare', 'nowhere'),
  np.uint8([[1, 1, 1], [2, 2, 2], [3, 3, 3]]),
  np.uint8([7, 8, 11]),
  ignored_ids=(0,),
)


def png(array):
  return cv2.imencode('.png', array)[1].tobytes()


class Memory:
  """Examples whose images are of one colour, their number, with the given train ids."""

  def __init__(self, labels):
    self.labels = labels

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    label = self.labels[index]
    ids = np.where(label == 255, 0, LABELS.label_ids[label % 3])
    image = np.full((*label.shape, 3), index, np.uint8)
    return {'image': png(image), 'label': png(ids), 'name': f'{index}.png'}


def dataset_of(labels):
  return Dataset('memory', 'train', LABELS, Memory([np.uint8(label) for label in labels]))


@settings(max_examples=60, deadline=None)
@given(
  height=st.integers(1, 40),
  width=st.integers(1, 40),
  tile=st.tuples(st.integers(1, 50), st.integers(1, 50)),
  seed=st.integers(0, 2**32 - 1),
)
def test_every_class_of_every_tile_has_its_innermost_pixel(height, width, tile, seed):
  rng = np.random.default_rng(seed)
  label = rng.choice(np.uint8([0, 1, 18, 255]), (height, width), p=rng.dirichlet(np.ones(4)))
  found = tile_centroids(label, tile)
  rows, columns = (
    np.linspace(0, length, max(1, round(length / side)) + 1).round().astype(int)
    for length, side in zip(label.shape, tile, strict=True)
  )
  expected = 0
  for (top, bottom), (left, right) in itertools.product(
    itertools.pairwise(rows), itertools.pairwise(columns)
  ):
    for class_id in set(label[top:bottom, left:right].ravel()) - {255}:
      pixels = np.argwhere(label[top:bottom, left:right] == class_id) + np.array([top, left])
      distances = np.linalg.norm(pixels - pixels.mean(0), axis=1)
      (place,) = (
        (y, x) for k, y, x in found if k == class_id and top <= y < bottom and left <= x < right
      )
      assert label[place] == class_id
      assert np.linalg.norm(place - pixels.mean(0)) <= distances.min() + 1e-9
      expected += 1
  assert len(found) == expected


def test_the_place_of_a_ring_is_on_the_ring():
  ring = cv2.circle(np.zeros((41, 41), np.uint8), (20, 20), 15, 1, 2)
  place = {class_id: (y, x) for class_id, y, x in tile_centroids(ring, (41, 41))}[1]
  assert ring[place] == 1 and ring[20, 20] == 0


def test_centroids_say_where_each_class_is():
  rng = np.random.default_rng(0)
  labels = rng.choice([0, 255], (5, 24, 32))
  labels[3, 5, 7] = 1
  common, rare, nowhere = class_centroids(dataset_of(labels), (12, 16))
  assert rare.tolist() == [[3, 5, 7]]
  assert nowhere.shape == (0, 3)
  assert common.dtype == np.int32 and len(common) == 5 * 4
  assert all(labels[tuple(place)] == 0 for place in common)


def test_classes_are_drawn_alike_and_so_are_their_places():
  centroids = [np.arange(300).reshape(100, 3), np.int32([[900, 1, 2]]), np.arange(12).reshape(4, 3)]
  rng = np.random.default_rng(1)
  drawn = [draw_centroid(centroids, rng) for _ in range(3000)]
  assert abs(drawn.count((900, (1, 2))) - 1000) < 4 * (3000 * 2 / 9) ** 0.5
  last = [drawn.count((i, (i + 1, i + 2))) for i in (0, 3, 6, 9)]
  # The first four places of the first class are the same: a hundredth of a third for each.
  assert np.abs(np.array(last) - 1000 * (1 / 4 + 1 / 100)).max() < 4 * 240**0.5


def starts(place, length, crop):
  """Where a crop may start that lies in the image and shows the place, if one is given."""
  return [
    start for start in range(length - crop + 1) if place is None or start <= place < start + crop
  ]


def chance(dataset, index, centre, crop, class_id):
  """The share of the crops of one example, around a place or anywhere, that show a class."""
  label = dataset.source.labels[index]
  row, column = centre or (None, None)
  corners = itertools.product(
    starts(row, label.shape[0], crop[0]), starts(column, label.shape[1], crop[1])
  )
  return np.mean([(label[y : y + crop[0], x : x + crop[1]] == class_id).any() for y, x in corners])


@pytest.mark.parametrize('share', [0.3, 1.0])
def test_rare_classes_are_in_as_many_crops_as_they_should(share):
  labels = np.zeros((10, 24, 32), np.uint8)
  labels[4, 3, 28] = 1
  dataset, crop = dataset_of(labels), (8, 8)
  centroids = class_centroids(dataset, crop)
  anywhere = np.mean([chance(dataset, i, None, crop, 1) for i in range(10)])
  around = np.mean(
    [
      np.mean([chance(dataset, i, (y, x), crop, 1) for i, y, x in places])
      for places in centroids[:2]
    ]
  )
  expected = (1 - share) * anywhere + share * around
  assert anywhere < 0.01 and around > 0.5
  plain = Augmentation(crop, (1.0, 1.0), False, 0, 0, 0, 0)
  with train_batches(
    dataset, plain, batch_size=10, seed=0, class_uniform=share, centroids=centroids
  ) as stream:
    crops = np.concatenate([next(stream)['label'] for _ in range(40)])
  shown = (crops == 1).any((1, 2)).mean()
  assert abs(shown - expected) < 4 * (expected * (1 - expected) / len(crops)) ** 0.5


def test_a_crop_around_a_class_shows_it():
  rng = np.random.default_rng(2)
  labels = rng.choice([0, 1, 255], (4, 30, 40), p=[0.05, 0.001, 0.949])
  dataset = dataset_of(labels)
  centroids = class_centroids(dataset, (16, 24))
  enlarging = Augmentation((16, 24), (1.0, 2.0))
  with train_batches(
    dataset, enlarging, batch_size=10, seed=0, class_uniform=1.0, centroids=centroids[1:]
  ) as stream:
    for _ in range(12):
      assert (next(stream)['label'] == 1).any((1, 2)).all()


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(3)
  for kind in ('images', 'labels'):
    (tmp_path / 'pets' / kind).mkdir(parents=True)
  (tmp_path / 'pets' / 'classes.json').write_text(
    '{"classes": [{"name": "cat", "color": [1, 2, 3]}, {"name": "dog", "color": [4, 5, 6]}]}'
  )
  for name in 'abc':
    pixels = rng.integers(0, 2, (16, 16), np.uint8)
    (tmp_path / 'pets' / 'images' / f'{name}.png').write_bytes(png(pixels))
    (tmp_path / 'pets' / 'labels' / f'{name}.png').write_bytes(png(pixels))
  return tmp_path


@pytest.fixture
def decoded(monkeypatch):
  """The names of the labels that were decoded, in a list that can be cleared."""
  names = []

  def decode_label(data, name):
    names.append(name)
    return original(data, name)

  original = class_uniform.decode_label
  monkeypatch.setattr(class_uniform, 'decode_label', decode_label)
  return names


def test_a_data_set_is_searched_once_and_anew_when_it_changes(folder, decoded):
  def search(tile_size):
    decoded.clear()
    dataset = load_dataset('folder', 'all', root=folder / 'pets', cache_dir=folder / 'cache')
    return class_centroids(dataset, tile_size), len(decoded)

  first, count = search((8, 8))
  assert count == 3
  again, count = search((8, 8))
  assert count == 0
  for ours, theirs in zip(first, again, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert search((16, 16))[1] == 3
  (folder / 'pets' / 'labels' / 'b.png').write_bytes(png(np.zeros((16, 16), np.uint8)))
  (cat, dog), count = search((8, 8))
  assert count == 3
  assert 1 in cat[:, 0] and 1 not in dog[:, 0]


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'emptied', 'zeros'])
def test_what_the_disk_has_damaged_is_searched_anew(folder, decoded, damage):
  dataset = load_dataset('folder', 'all', root=folder / 'pets', cache_dir=folder / 'cache')
  first = class_centroids(dataset, (8, 8))
  (path,) = folder.rglob('centroids-*')
  whole = path.read_bytes()
  flipped = whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]
  contents = {'cut': whole[:-16], 'flipped': flipped, 'emptied': b'', 'zeros': bytes(len(whole))}
  path.write_bytes(contents[damage])
  decoded.clear()
  for ours, theirs in zip(class_centroids(dataset, (8, 8)), first, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert len(decoded) == 3
  assert path.read_bytes() == whole


def test_what_cannot_be_kept_is_searched_all_the_same(folder, decoded, monkeypatch):
  dataset = load_dataset('folder', 'all', root=folder / 'pets', cache_dir=folder / 'cache')
  before = sorted(folder.rglob('*'))

  def refuse(*_):
    raise PermissionError

  monkeypatch.setattr(class_uniform.os, 'replace', refuse)
  assert [len(places) for places in class_centroids(dataset, (16, 16))] == [3, 3]
  assert sorted(folder.rglob('*')) == before


def test_a_broken_label_is_named():
  dataset = dataset_of(np.zeros((3, 4, 4)))
  dataset.source.labels[1] = np.full((4, 4), 255, np.uint8)
  assert [len(places) for places in class_centroids(dataset, (4, 4))] == [2, 0, 0]

  class Broken(Memory):
    def __getitem__(self, index):
      return super().__getitem__(index) | {'label': b'no image'}

  broken = Dataset('memory', 'train', LABELS, Broken(dataset.source.labels))
  with pytest.raises(ValueError, match=r'^\d\.png: no image'):
    class_centroids(broken, (4, 4))
