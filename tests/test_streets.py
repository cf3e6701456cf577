"""Street scenes: the same everywhere, true to their labels, and with every class in them."""

import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import if_jax
from if_jax.data.labels import CITYSCAPES
from if_jax.data.streets import Streets, draw
from if_jax.data.streets.classes import (
  BICYCLE,
  CAR,
  FENCE,
  IGNORED,
  MOTORCYCLE,
  RIDER,
  ROAD,
  SKY,
  TERRAIN,
  VEGETATION,
  WALL,
)
from if_jax.data.streets.drawing import Camera, Light, Painter
from if_jax.data.streets.shapes import quads, xyz

SMALL = (64, 128)
EGO_VEHICLE = 1


@pytest.fixture(scope='module')
def scenes():
  """Images uint8 [200, H, W, 3] and train ids [200, H, W] of 200 scenes."""
  drawn = [draw(np.random.default_rng((0, k)), SMALL) for k in range(200)]
  return tuple(np.stack(arrays) for arrays in zip(*drawn, strict=True))


def decode(png: bytes) -> np.ndarray:
  return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def test_the_same_seed_and_index_give_the_same_bytes():
  assert Streets(3, SMALL, seed=4)[2] == Streets(1000, SMALL, seed=4)[2]


def test_another_index_or_another_seed_gives_another_scene():
  streets = Streets(4, SMALL)
  images = [streets[k]['image'] for k in range(4)] + [Streets(4, SMALL, seed=1)[0]['image']]
  assert len(set(images)) == 5


def test_another_process_draws_the_same_bytes():
  code = (
    'import hashlib; from if_jax.data.streets import Streets; e = Streets(9, (64, 128))[8];'
    "print(hashlib.sha256(e['image'] + e['label']).hexdigest())"
  )
  root = str(Path(if_jax.__file__).parents[1])
  environment = os.environ | {'PYTHONPATH': root, 'PYTHONHASHSEED': '12345'}
  printed = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True
  )
  here = Streets(9, SMALL)[8]
  expected = hashlib.sha256(here['image'] + here['label']).hexdigest()
  assert printed.stdout.strip() == expected


def test_the_scene_of_a_seed_is_kept_for_life():
  # Class shares and not a hash: OpenCV's versions may fill the edge of a polygon differently.
  shares = np.bincount(draw(np.random.default_rng((0, 7)), SMALL)[1].ravel(), minlength=256)
  shares = {int(k): 100 * shares[k] / (SMALL[0] * SMALL[1]) for k in np.flatnonzero(shares)}
  expected = {
    0: 44.0, 1: 1.3, 2: 15.4, 3: 0.3, 4: 2.3, 5: 3.2, 7: 1.6, 8: 0.1, 9: 1.9, 10: 9.4, 13: 5.1,
    14: 10.9, 15: 4.5,
  }  # fmt: skip
  for k in shares.keys() | expected.keys():
    assert shares.get(k, 0) == pytest.approx(expected.get(k, 0), abs=0.5), k


@pytest.mark.parametrize('size', [(97, 131), (64, 128), (131, 64), (16, 16)])
def test_an_example_has_the_size_asked_for(size):
  example = Streets(5, size)[4]
  image, label = decode(example['image']), decode(example['label'])
  assert image.shape == (*size, 3) and image.dtype == np.uint8
  assert label.shape == size and label.dtype == np.uint8
  assert example['name'] == 'streets_000004'


def test_label_files_hold_the_label_ids_of_cityscapes():
  streets, seen = Streets(12, (48, 96)), set()
  for k in range(12):
    _, train_ids = draw(np.random.default_rng((0, k)), (48, 96))
    label = decode(streets[k]['label'])
    counts = train_ids != IGNORED
    np.testing.assert_array_equal(label[counts], CITYSCAPES.label_ids[train_ids[counts]])
    assert (label[~counts] == EGO_VEHICLE).all()
    np.testing.assert_array_equal(CITYSCAPES.to_train_ids(label, 'label'), train_ids)
    seen |= set(np.unique(label).tolist())
  assert {7, 11, 21, 23, 24, 26, EGO_VEHICLE} <= seen  # road, building, vegetation, sky, ...


def test_png_colours_are_in_the_order_that_png_has():
  image, _ = draw(np.random.default_rng((0, 0)), SMALL)
  np.testing.assert_array_equal(decode(Streets(1, SMALL)[0]['image'])[..., ::-1], image)


def test_all_classes_occur_in_a_fair_share_of_scenes(scenes):
  _, labels = scenes
  counts = np.stack([np.bincount(label.ravel(), minlength=256) for label in labels])
  occurs = (counts[:, :19] >= 4).mean(0)
  names = CITYSCAPES.class_names
  assert (occurs > 0.15).all(), {n: o for n, o in zip(names, occurs, strict=True) if o <= 0.15}
  shares = dict(zip(names, counts[:, :19].sum(0) / counts.sum(), strict=True))
  assert 0.2 < shares['road'] < 0.45
  assert 0.05 < shares['sky'] < 0.3
  assert 0.1 < shares['building'] < 0.35
  assert 0.03 < shares['car'] < 0.15
  assert min(shares.values()) > 0.0003, shares
  assert counts[:, IGNORED].sum() / counts.sum() < 0.05
  assert set(np.flatnonzero(counts.sum(0))) == {*range(19), IGNORED}


def test_sky_is_above_the_road_in_every_column(scenes):
  _, labels = scenes
  rows = np.arange(SMALL[0])[:, None]
  lowest_sky = np.where(labels == SKY, rows, -1).max(1)
  highest_road = np.where(labels == ROAD, rows, SMALL[0]).min(1)
  assert (lowest_sky < highest_road).all()


def test_ignored_pixels_are_one_bonnet_at_the_lower_edge(scenes):
  _, labels = scenes
  ignored = labels == IGNORED
  assert 0.1 < ignored.any((1, 2)).mean() < 0.5
  # Below an ignored pixel everything is ignored.
  assert (np.diff(ignored.astype(int), axis=1) >= 0).all()


def test_edges_of_the_labels_lie_on_edges_of_the_image(scenes):
  images, labels = scenes
  grey = images.mean(-1)
  steps = np.abs(np.diff(grey, axis=1)[:, :, :-1]) + np.abs(np.diff(grey, axis=2)[:, :-1])
  here, below, beside = labels[:, :-1, :-1], labels[:, 1:, :-1], labels[:, :-1, 1:]
  borders = (below != here) | (beside != here)

  def mean_step(down: int, right: int) -> float:
    moved = np.roll(steps, (-down, -right), (1, 2))[:, 4:-4, 4:-4]
    return moved[borders[:, 4:-4, 4:-4]].mean()

  unmoved = mean_step(0, 0)
  shifts = [(d, r) for d in range(-3, 4) for r in range(-3, 4) if (d, r) != (0, 0)]
  assert unmoved > max(mean_step(*shift) for shift in shifts)
  assert unmoved > 2 * steps[~borders].mean()


def test_colour_alone_does_not_tell_the_classes_apart(scenes):
  images, labels = scenes
  colours, truth = images[:, ::3, ::3].reshape(-1, 3), labels[:, ::3, ::3].ravel()
  cells = (colours // 16).astype(int) @ [256, 16, 1]
  odd = np.arange(len(truth)) % 2 == 1
  votes = np.zeros((4096, 256), int)
  np.add.at(votes, (cells[odd], truth[odd]), 1)
  guess = votes.argmax(1)[cells[~odd]]
  ious = [
    np.sum((guess == k) & (truth[~odd] == k)) / np.sum((guess == k) | (truth[~odd] == k))
    for k in range(19)
  ]
  assert np.mean(ious) < 0.2
  # Yet it tells something: the sky is not the road, and leaves are not cars.
  assert ious[SKY] > 0.4


def test_riders_ride(scenes):
  _, labels = scenes
  ridden = [
    np.isin(cv2.dilate(np.uint8(label == RIDER), np.ones((5, 5))) * (label + 1),
            [BICYCLE + 1, MOTORCYCLE + 1]).any()
    for label in labels
    if (label == RIDER).sum() > 20
  ]  # fmt: skip
  assert len(ridden) > 20 and np.mean(ridden) > 0.8  # of some only the upper half is seen


def test_a_larger_image_shows_the_same_scene():
  for k in range(4):
    small = draw(np.random.default_rng((0, k)), SMALL)[1]
    large = draw(np.random.default_rng((0, k)), (2 * SMALL[0], 2 * SMALL[1]))[1]
    assert (large[1::2, 1::2] == small).mean() > 0.9


def test_a_source_survives_pickling_and_says_what_it_is():
  streets = Streets(12, [32, 64], seed=np.int64(3))
  copy = pickle.loads(pickle.dumps(streets))
  assert repr(copy) == repr(streets) == 'Streets(num_examples=12, size=(32, 64), seed=3)'
  assert copy[np.int64(11)] == streets[11]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'num_examples': 0}, 'num_examples is 0; streets needs 1 or more'),
    ({'num_examples': 1, 'size': (8, 512)}, r'size is \(8, 512\); streets needs \(height, width\)'),
    ({'num_examples': 1, 'size': (256,)}, r'size is \(256,\); streets needs \(height, width\)'),
    ({'num_examples': 1, 'size': 256}, r'size is 256; streets needs \(height, width\)'),
    ({'num_examples': 1, 'seed': -1}, 'seed is -1; streets needs 0 or more'),
  ],
)
def test_mistakes_are_told_in_a_sentence(arguments, message):
  with pytest.raises(ValueError, match=message):
    Streets(**arguments)


@pytest.mark.parametrize('index', [-1, 3, 10**9])
def test_an_index_out_of_range_is_an_index_error(index):
  with pytest.raises(IndexError, match='of 3 street scenes'):
    Streets(3, SMALL)[index]


def test_iterating_gives_every_example_once():
  assert [example['name'] for example in Streets(3, (16, 32))] == [
    'streets_000000', 'streets_000001', 'streets_000002',
  ]  # fmt: skip


def painter(**changes) -> Painter:
  camera = Camera(height=1.5, focal=100.0, centre=(64, 48), half_width=64, roll=0, bend=0)
  light = Light(
    to_sun=xyz(0, 1, 0), sun=np.full(3, 0.3), ambient=np.full(3, 0.7), haze=np.full(3, 200.0),
    visibility=100.0, lamps=False,
  )  # fmt: skip
  return Painter(dataclasses.replace(camera, **changes), light, (48, 64))


def test_the_camera_projects_as_a_pin_hole():
  camera = painter().camera
  np.testing.assert_allclose(camera.project(xyz(0, 1.5, [1, 7, 90])), [[64, 48]] * 3)
  np.testing.assert_allclose(camera.project(xyz(2, 0, 10)), [64 + 20, 48 + 15])
  # A quarter turn clockwise takes what is on the right to below.
  np.testing.assert_allclose(painter(roll=np.pi / 2).camera.project(xyz(2, 1.5, 10)), [64, 68])
  # The bend moves a place 20 m ahead by 0.01 * 20^2 = 4 m, and so by 20 pixels.
  np.testing.assert_allclose(painter(bend=0.01).camera.project(xyz(0, 1.5, 20)), [64 + 20, 48])


def test_the_later_polygon_hides_the_earlier_and_a_veil_hides_it_in_the_labels_only():
  canvases = []
  for opacity in (1.0, 0.25):
    scene = painter()
    scene.fill(quads(xyz(-2, 0, 10), xyz(4), xyz(y=4)), (240, 0, 0), WALL, surface='glow')
    fence = quads(xyz(0, 0.5, 8), xyz(1), xyz(y=2))
    scene.fill(fence, (0, 0, 240), FENCE, surface='glow', opacity=opacity)
    scene.finish(np.random.default_rng(0))
    canvases.append(scene.canvas)
  opaque, veiled = canvases
  inside = opaque[..., 3] == FENCE
  assert inside.sum() > 300 and (opaque[..., 3] == WALL).sum() > 300
  np.testing.assert_array_equal(veiled[..., 3], opaque[..., 3])
  assert (opaque[inside][:, :3] == (0, 0, 240)).all()
  assert (veiled[inside][:, :3] == (180, 0, 60)).all()


def test_haze_hides_what_is_far_and_shade_darkens_what_faces_away():
  scene = painter()
  near, far = (quads(xyz(-1, 0, z), xyz(2), xyz(y=2)) for z in (5, 300))
  ground = quads(xyz(-1, 0, 5), xyz(2), xyz(z=2))
  scene.fill(np.concatenate([near, far, ground]), (100, 50, 20), CAR)
  (near, far, ground), *_ = scene._paints()
  assert far[0] > 0.9 * 200 > near[0]
  assert sum(ground[:3]) > sum(near[:3])  # the sun is overhead: it lights the ground more
  assert near[3] == CAR


def test_only_what_faces_the_camera_is_left_when_culling():
  counts = []
  for order in (1, -1):
    scene = painter()
    scene.fill(quads(xyz(-1, 0, 6), xyz(2), xyz(y=2))[:, ::order], (9, 9, 9), CAR, cull=True)
    scene.finish(np.random.default_rng(0))
    counts.append((scene.canvas[..., 3] == CAR).sum())
  assert counts[0] > 500 and counts[1] == 0


def test_a_distant_pole_is_still_a_pixel_wide():
  scene = painter()
  scene.rods(np.array([[(0.3, 0, 90), (0.3, 9, 90)]]), np.full((1, 2), 0.01), (0, 0, 0), TERRAIN)
  _, train_ids = scene.finish(np.random.default_rng(0))
  assert (train_ids == TERRAIN).any(1).sum() >= 4


def test_leaves_are_rougher_than_the_sky(scenes):
  images, labels = scenes
  grain = np.abs(np.diff(images.mean(-1), axis=2))
  same = labels[:, :, 1:] == labels[:, :, :-1]
  rough = [grain[same & (labels[:, :, 1:] == k)].mean() for k in (VEGETATION, ROAD, SKY)]
  assert rough[0] > 1.5 * rough[1] > 1.5 * rough[2]
