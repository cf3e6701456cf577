import colorsys
import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from if_jax.data.augment import (
  MEAN_COLOR,
  Augmentation,
  adjust_brightness,
  adjust_contrast,
  adjust_hue,
  adjust_saturation,
  color_jitter,
  random_blur,
  random_flip,
  random_pad,
  random_scale_crop,
)

GEOMETRY_ONLY = Augmentation((96, 128), brightness=0, contrast=0, saturation=0, hue=0)
PALETTE = np.uint8([[200, 30, 30], [30, 200, 30], [30, 30, 200], [220, 220, 40], [10, 10, 10]])


def noise(rng, height, width):
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(rng, height=64, width=96):
  """Smooth colours of all kinds, as unlike noise as a photograph is."""
  return cv2.resize(noise(rng, 8, 12), (width, height), interpolation=cv2.INTER_CUBIC)


def row_numbers(height, width):
  return np.repeat(np.arange(height, dtype=np.uint8)[:, None], width, axis=1)


def test_image_and_label_move_together():
  rng = np.random.default_rng(0)
  agreed = counted = 0
  for _ in range(50):
    height, width = rng.integers(60, 250, 2)
    label = cv2.resize(
      rng.integers(0, 5, (6, 8), dtype=np.uint8), (width, height), interpolation=cv2.INTER_NEAREST
    )
    image, label = GEOMETRY_ONLY(PALETTE[label], label, rng)
    distance = np.abs(image[:, :, None].astype(int) - PALETTE).sum(-1)
    flat = cv2.erode(label, np.ones((3, 3))) == cv2.dilate(label, np.ones((3, 3)))
    inside = flat & (label != 255)
    agreed += (distance.argmin(-1) == label)[inside].sum()
    counted += inside.sum()
  assert counted > 100_000
  assert agreed / counted >= 0.99


@pytest.mark.parametrize('scale', [0.5, 0.7, 1.0, 1.37, 2.0])
def test_pixel_centres_stay_centres_in_both(scale):
  # Both hold the column number, so both must show where an output pixel lies, without a shift
  # between them. OpenCV's INTER_NEAREST would be off by 0.21 of a pixel at 0.7, and 0.5 at 0.5.
  columns = np.tile(np.arange(250, dtype=np.uint8), (200, 1))
  image = np.repeat(columns[..., None], 3, axis=2)
  shifts = []
  for seed in range(20):
    rng = np.random.default_rng(seed)
    out, label = random_scale_crop(image, columns, rng, (64, 96), (scale, scale))
    # Rounding to a level, and the tie at 0.5, are worth half a level either way.
    shifts.append((out[..., 0].astype(float) - label)[:, 4:-4])
  assert np.abs(np.stack(shifts)).max() <= 1
  assert abs(np.mean(shifts)) < (0.51 if scale == 0.5 else 0.13)


def test_crop_then_resize_equals_resize_then_crop():
  rng = np.random.default_rng(1)
  image = photo(rng, 120, 160)
  whole = cv2.resize(image, (320, 240), interpolation=cv2.INTER_LINEAR)
  rows = row_numbers(120, 160)
  columns = row_numbers(160, 120).T
  for seed in range(10):
    crops = [
      random_scale_crop(image, label, np.random.default_rng(seed), (64, 80), (2.0, 2.0))
      for label in (rows, np.ascontiguousarray(columns))
    ]
    top, left = 2 * int(crops[0][1][0, 0]), 2 * int(crops[1][1][0, 0])
    expected = whole[top : top + 64, left : left + 80].astype(int)
    difference = np.abs(crops[0][0] - expected)[1:-1, 1:-1]  # The crop's rim sees nothing outside.
    assert difference.max() <= 1


def test_scales_are_uniform_over_the_range():
  label = np.ascontiguousarray(row_numbers(250, 250).T)
  image = np.zeros((250, 250, 3), np.uint8)
  rng = np.random.default_rng(2)
  scales = []
  for _ in range(600):
    _, crop = random_scale_crop(image, label, rng, (64, 64), (0.5, 2.0))
    scales.append(64 / (int(crop.max()) - int(crop.min()) + 1))
  quartiles = np.quantile(scales, [0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_allclose(quartiles, [0.5, 0.875, 1.25, 1.625, 2.0], atol=0.1)


def test_crops_reach_every_row_and_none_outside():
  label = row_numbers(40, 30)
  image = np.zeros((40, 30, 3), np.uint8)
  rng = np.random.default_rng(3)
  tops = [random_scale_crop(image, label, rng, (16, 16), (1.0, 1.0))[1][0, 0] for _ in range(400)]
  assert set(tops) == set(range(25))


@settings(max_examples=60, deadline=None)
@given(
  size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
  place=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
  crop=st.tuples(st.integers(1, 70), st.integers(1, 70)),
  seed=st.integers(0, 2**32 - 1),
)
def test_the_crop_shows_its_centre(size, place, crop, seed):
  row, column = (int(share * length) for share, length in zip(place, size, strict=True))
  label = np.zeros(size, np.uint8)
  label[row, column] = 1
  image = np.zeros((*size, 3), np.uint8)
  # An image that is not made smaller keeps all of its pixels.
  enlarging = dataclasses.replace(GEOMETRY_ONLY, crop_size=crop, scale_range=(1.0, 2.0))
  _, out = enlarging(image, label, np.random.default_rng(seed), (row, column))
  assert (out == 1).any()


@pytest.mark.parametrize(
  'scale, row, tops',
  [
    (1.0, 20, range(5, 21)),
    (1.0, 3, range(0, 4)),
    (1.0, 39, [24]),
    (2.0, 20, range(13, 21)),
    (0.25, 20, [0]),
  ],
)
def test_the_place_of_a_centre_in_its_crop_is_any(scale, row, tops):
  label = row_numbers(40, 30)
  image = np.zeros((40, 30, 3), np.uint8)
  rng = np.random.default_rng(15)
  seen = [
    int(random_scale_crop(image, label, rng, (16, 16), (scale, scale), (row, 9))[1].min())
    for _ in range(300)
  ]
  if scale < 1:  # The whole image, of which the smaller one shows every fourth row.
    assert max(seen) < 4
  else:
    assert set(seen) == set(tops)


@settings(max_examples=60, deadline=None)
@given(
  height=st.integers(1, 90),
  width=st.integers(1, 90),
  crop=st.tuples(st.integers(1, 70), st.integers(1, 70)),
  seed=st.integers(0, 2**32 - 1),
)
def test_any_source_gives_the_crop_size(height, width, crop, seed):
  rng = np.random.default_rng(seed)
  image, label = noise(rng, height, width), row_numbers(height, width)
  before = image.copy(), label.copy()
  out, out_label = Augmentation(crop, blur_probability=0.5)(image, label, rng)
  assert out.shape == (*crop, 3) and out_label.shape == crop
  assert out.dtype == out_label.dtype == np.uint8
  inside = out_label != 255
  assert inside.any()
  assert out_label[inside].max() < height
  assert (out[~inside] == MEAN_COLOR).all()
  # What is left and right of the picture, above and below, is padding; the picture has no holes.
  assert inside.sum() == inside.any(0).sum() * inside.any(1).sum()
  np.testing.assert_array_equal(image, before[0])
  np.testing.assert_array_equal(label, before[1])


def test_a_source_smaller_than_the_crop_is_padded_not_stretched():
  rng = np.random.default_rng(4)
  image = noise(rng, 97, 131)
  label = rng.integers(0, 19, (97, 131), dtype=np.uint8)
  plain = dataclasses.replace(
    GEOMETRY_ONLY, crop_size=(128, 160), scale_range=(1.0, 1.0), flip=False
  )
  tops, lefts = set(), set()
  for _ in range(60):
    out, out_label = plain(image, label, rng)
    top, left = np.argwhere(out_label != 255).min(0)
    picture = slice(top, top + 97), slice(left, left + 131)
    np.testing.assert_array_equal(out[picture], image)
    np.testing.assert_array_equal(out_label[picture], label)
    assert (out_label == 255).sum() == 128 * 160 - 97 * 131
    tops.add(int(top))
    lefts.add(int(left))
  assert len(tops) > 15 and len(lefts) > 15


def test_a_source_smaller_than_the_crop_is_scaled_too():
  image, label = np.zeros((80, 60, 3), np.uint8), np.zeros((80, 60), np.uint8)
  for scale, size in ((0.5, (40, 30)), (1.5, (120, 90)), (2.0, (128, 120))):
    out = random_scale_crop(image, label, np.random.default_rng(0), (128, 128), (scale, scale))
    assert out[0].shape == (*size, 3) and out[1].shape == size


def test_padding_is_imagenets_mean():
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  assert np.abs((np.array(MEAN_COLOR) / 255 - mean) / std).max() < 0.01
  image, label = random_pad(
    np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.uint8), np.random.default_rng(0), (2, 3)
  )
  assert not image.any() and not label.any()


def test_half_of_the_crops_are_mirrored():
  rng = np.random.default_rng(5)
  image, label = noise(rng, 20, 31), row_numbers(31, 20).T
  mirrored = 0
  for _ in range(400):
    out, out_label = random_flip(image, label, rng)
    is_mirrored = not np.array_equal(out, image)
    mirrored += is_mirrored
    step = -1 if is_mirrored else 1
    np.testing.assert_array_equal(out[:, ::step], image)
    np.testing.assert_array_equal(out_label[:, ::step], label)
  assert 160 < mirrored < 240


@pytest.mark.parametrize('factor', [0.75, 0.9, 1.0, 1.25])
@pytest.mark.parametrize(
  'adjust, enhancer',
  [
    (adjust_brightness, ImageEnhance.Brightness),
    (adjust_contrast, ImageEnhance.Contrast),
    (adjust_saturation, ImageEnhance.Color),
  ],
)
def test_colours_change_as_in_pillow(adjust, enhancer, factor):
  # torchvision hands Pillow images to these classes.
  image = photo(np.random.default_rng(6))
  expected = np.asarray(enhancer(Image.fromarray(image)).enhance(factor)).astype(int)
  assert np.abs(adjust(image, factor) - expected).max() <= 1


@pytest.mark.parametrize('turn', [-0.25, 0.1015625, 0.25, 0.5])
def test_hue_turns_by_a_part_of_the_circle(turn):
  image = photo(np.random.default_rng(7), 32, 48)
  expected = []
  for pixel in image.reshape(-1, 3) / 255:
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    expected.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
  difference = np.abs(adjust_hue(image, turn).reshape(-1, 3) - 255 * np.array(expected))
  # A step of the hue's byte is 6 levels of a channel; the saturation is rounded to a byte too.
  assert difference.mean() < 1.5 and difference.max() <= 10


def test_hue_turns_red_to_green_and_leaves_grey():
  red, grey = np.full((2, 2, 3), (255, 0, 0), np.uint8), np.full((2, 2, 3), 77, np.uint8)
  assert np.abs(adjust_hue(red, 1 / 3) - np.array([0, 255, 0])).max() <= 4
  np.testing.assert_array_equal(adjust_hue(grey, 0.3), grey)


def test_no_jitter_at_zero_strength():
  rng = np.random.default_rng(8)
  image = noise(rng, 20, 30)
  np.testing.assert_array_equal(color_jitter(image, rng, 0, 0, 0, 0), image)


def test_jitter_fills_its_range_and_keeps_to_it():
  rng = np.random.default_rng(9)
  grey = np.full((2, 2, 3), 100, np.uint8)
  levels = [color_jitter(grey, rng, 0.25, 0, 0, 0).max() for _ in range(300)]
  assert min(levels) in (75, 76) and max(levels) in (124, 125)
  assert 97 < np.mean(levels) < 103


@pytest.mark.parametrize(
  'part, strength',
  [
    ('brightness', 0.25),
    ('contrast', 0.25),
    ('saturation', 0.25),
    ('hue', 0.25),
    ('blur_probability', 1.0),
  ],
)
def test_every_change_of_colour_reaches_the_crop(part, strength):
  off = dataclasses.replace(GEOMETRY_ONLY, flip=False, scale_range=(1.0, 1.0), crop_size=(32, 32))
  image = noise(np.random.default_rng(14), 32, 32)
  label = np.zeros((32, 32), np.uint8)
  unchanged, _ = off(image, label, np.random.default_rng(0))
  np.testing.assert_array_equal(unchanged, image)
  changed, _ = dataclasses.replace(off, **{part: strength})(image, label, np.random.default_rng(0))
  assert np.abs(changed.astype(int) - image).mean() > 1


def test_blur_smooths_and_keeps_the_mean():
  rng = np.random.default_rng(10)
  image = noise(rng, 64, 64)
  np.testing.assert_array_equal(random_blur(image, rng, 0.0), image)
  spread = [random_blur(image, rng, 1.0).std() for _ in range(30)]
  assert max(spread) <= image.std() and min(spread) < 0.5 * image.std()
  assert abs(random_blur(image, rng, 1.0).mean() - image.mean()) < 1


def test_the_generator_alone_decides():
  rng = np.random.default_rng(11)
  image, label = photo(rng, 100, 150), rng.integers(0, 19, (100, 150), dtype=np.uint8)
  augment = Augmentation((64, 64), blur_probability=0.5)
  first, again, other = (
    augment(image, label, np.random.default_rng(seed)) for seed in (12, 12, 13)
  )
  np.testing.assert_array_equal(first[0], again[0])
  np.testing.assert_array_equal(first[1], again[1])
  assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
  'field, value',
  [
    ('crop_size', (0, 64)),
    ('crop_size', (64,)),
    ('scale_range', (0.0, 1.0)),
    ('scale_range', (2.0, 0.5)),
    ('brightness', -0.1),
    ('contrast', 1.5),
    ('saturation', float('nan')),
    ('hue', 0.6),
    ('blur_probability', 2.0),
  ],
)
def test_values_out_of_range_are_named(field, value):
  with pytest.raises(ValueError, match=f'^{field} is .*; give'):
    Augmentation(**{field: value})


@pytest.mark.parametrize(
  'image, label',
  [
    (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 6), np.uint8)),
    (np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.uint8)),
    (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.int32)),
    (np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)),
  ],
)
def test_arrays_that_are_no_pair_are_refused(image, label):
  with pytest.raises(ValueError, match='of one size are needed'):
    Augmentation()(image, label, np.random.default_rng(0))
