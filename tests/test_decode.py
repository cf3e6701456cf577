import io
import resource

import cv2
import numpy as np
import pytest
from image_files import PALETTE, encode, palette_image, png, with_orientation
from PIL import Image, ImageOps

from if_jax.data.decode import (
  MAX_PIXELS,
  decode_color_label,
  decode_image,
  decode_label,
  image_size,
  is_color_label,
  require_upright,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), np.uint8)
IDS = RNG.integers(0, 19, (20, 30), np.uint8)


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'PPM', 'TIFF'])
def test_an_image_is_decoded_to_its_pixels(kind):
  np.testing.assert_array_equal(decode_image(encode(RGB, kind), 'x'), RGB)


def test_a_jpeg_is_decoded_as_pillow_does():
  data = encode(RGB, 'JPEG', quality=90)
  expected = np.asarray(Image.open(io.BytesIO(data)))
  # Equal here; another build of the JPEG library may round otherwise.
  np.testing.assert_allclose(decode_image(data, 'x'), expected, atol=2)


def test_grey_transparent_and_palette_images_become_rgb():
  grey = np.repeat(IDS[..., None], 3, -1)
  np.testing.assert_array_equal(decode_image(encode(IDS), 'x'), grey)
  np.testing.assert_array_equal(decode_image(encode(Image.fromarray(IDS).convert('LA')), 'x'), grey)
  transparent = np.dstack([RGB, RNG.integers(0, 256, (20, 30), np.uint8)])
  np.testing.assert_array_equal(decode_image(encode(transparent), 'x'), RGB)
  colors = np.reshape(PALETTE, (256, 3))[IDS]
  np.testing.assert_array_equal(decode_image(encode(palette_image(IDS)), 'x'), colors)


def test_16_bit_images_are_divided_and_not_clipped():
  deep = RNG.integers(0, 65536, (20, 30), np.uint16)
  difference = decode_image(encode(deep), 'x')[..., 0] - deep / 257
  assert np.abs(difference).max() <= 1


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_a_rotation_in_exif_is_not_applied(kind):
  data = encode(RGB, kind, exif=with_orientation(6))
  assert decode_image(data, 'x').shape == (20, 30, 3)
  assert image_size(data) == (20, 30)
  np.testing.assert_array_equal(decode_image(data, 'x'), decode_image(encode(RGB, kind), 'x'))


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_upright_turns_and_mirrors_as_exif_asks(kind, orientation):
  smooth = cv2.resize(RGB[::5, ::5], (30, 20))  # Which JPEG hardly changes.
  data = encode(smooth, kind, exif=with_orientation(orientation), quality=95)
  expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  upright = decode_image(data, 'x', upright=True)
  assert upright.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))
  # Both are 2 apart at most; turned another way, 250.
  np.testing.assert_allclose(upright, np.asarray(expected).astype(int), atol=4)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF', 'WEBP'])
def test_what_viewers_turn_is_refused(kind):
  for orientation in range(2, 9):
    with pytest.raises(ValueError, match=rf'^a\.img: EXIF orientation {orientation}: .*upright'):
      require_upright(encode(RGB, kind, exif=with_orientation(orientation)), 'a.img')
  for orientation in (0, 1, 9):
    require_upright(encode(RGB, kind, exif=with_orientation(orientation)), 'a.img')
  require_upright(encode(RGB, kind), 'a.img')


def test_what_cannot_be_read_of_exif_turns_nothing():
  start, byte_order, rest = encode(RGB, 'JPEG', exif=with_orientation(6)).partition(b'Exif\0\0')
  require_upright(start + byte_order + b'??' + rest[2:], 'x')


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF'])
def test_a_grey_label_keeps_its_ids(kind):
  ids = decode_label(encode(IDS, kind), 'x')
  assert ids.dtype == np.uint8
  np.testing.assert_array_equal(ids, IDS)


def test_a_palette_label_keeps_its_indices():
  data = encode(palette_image(IDS))
  np.testing.assert_array_equal(decode_label(data, 'x'), IDS)
  assert not is_color_label(data, 'x')


def test_a_16_bit_label_keeps_its_ids():
  deep = RNG.integers(0, 65536, (20, 30), np.uint16)
  ids = decode_label(encode(deep), 'x')
  assert ids.dtype == np.int32
  np.testing.assert_array_equal(ids, deep)


def test_a_1_bit_label_holds_0_and_1():
  ids = decode_label(encode(IDS > 9), 'x')
  assert ids.dtype == np.uint8
  np.testing.assert_array_equal(ids, IDS > 9)


@pytest.mark.parametrize('bit_depth', [1, 2, 4, 8])
def test_grey_levels_of_few_bits_are_ids_and_not_brightnesses(bit_depth):
  ids = np.uint8(np.arange(16).reshape(2, 8) % 2**bit_depth)
  bits = np.unpackbits(ids[..., None], axis=-1)[..., 8 - bit_depth :].reshape(2, -1)
  rows = b''.join(b'\0' + row.tobytes() for row in np.packbits(bits, axis=-1))
  np.testing.assert_array_equal(decode_label(png(2, 8, bit_depth, rows), 'x'), ids)


def test_a_color_label_is_refused_as_ids_and_read_as_colors():
  for data in (encode(RGB), encode(np.dstack([RGB, IDS]))):
    with pytest.raises(ValueError, match=r'^m\.png: a label of mode RGBA?, one channel'):
      decode_label(data, 'm.png')
    assert is_color_label(data, 'm.png')
    np.testing.assert_array_equal(decode_color_label(data, 'm.png'), RGB)


@pytest.mark.parametrize('pixels', [IDS, RGB], ids=['grey', 'rgb'])
def test_a_jpeg_label_is_refused_whatever_its_name(pixels):
  for decode in (decode_label, decode_color_label):
    with pytest.raises(ValueError, match=r'^m\.png: a JPEG.*save it as PNG'):
      decode(encode(pixels, 'JPEG'), 'm.png')


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
@pytest.mark.parametrize('share', [0.5, 0.9])
def test_a_truncated_image_is_an_error(kind, share):
  data = encode(cv2.resize(RGB, (300, 200)), kind)
  with pytest.raises(ValueError, match=r'^a\.img: broken image \(.*[Tt]runcated'):
    decode_image(data[: int(share * len(data))], 'a.img')


@pytest.mark.parametrize('share', [0.5, 0.9])
def test_a_truncated_label_is_an_error(share):
  for data in (encode(IDS), encode(palette_image(IDS)), encode(IDS.astype(np.uint16))):
    with pytest.raises(ValueError, match=r'^a\.png: broken image'):
      decode_label(data[: int(share * len(data))], 'a.png')


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('decode', [decode_image, decode_label])
def test_no_flipped_bit_of_a_png_changes_pixels_in_silence(decode, dtype):
  data = encode(IDS[:10, :10].astype(dtype))
  whole = decode(data, 'x')
  refused = 0
  bits = range(0, 8 * len(data), 5)
  for bit in bits:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
      np.testing.assert_array_equal(decode(bytes(flipped), 'x'), whole)
    except ValueError as error:
      assert str(error).startswith('x: ')
      refused += 1
  # The others are in the end marker, after the pixels.
  assert refused >= len(bits) - 8 * 12 / 5


@pytest.mark.parametrize(
  ('data', 'reason'),
  [(b'', 'an empty file'), (b'<html>404</html>' * 20, 'no image of the formats PNG, JPEG')],
)
def test_what_is_no_image_is_an_error(data, reason):
  for read in (decode_image, decode_label, decode_color_label, is_color_label, require_upright):
    with pytest.raises(ValueError, match=rf'^a\.png: {reason}'):
      read(data, 'a.png')


@pytest.mark.parametrize(
  'size', [(8192, MAX_PIXELS // 8192 + 1), (12_000, 12_000), (60_000, 60_000)]
)
def test_a_header_that_claims_too_many_pixels_is_an_error(size):
  data = png(*size, 8, b'')
  for read in (decode_image, decode_label, is_color_label):
    with pytest.raises(ValueError, match=rf'^bomb\.png: .*more than {MAX_PIXELS}.*make it smaller'):
      read(data, 'bomb.png')


def test_a_chunk_that_claims_gigabytes_takes_no_memory():
  data = bytearray(encode(RGB))
  data[33:37] = b'\x7f\xff\xff\xff'  # The length of the first chunk after the header.
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for read in (decode_image, decode_label, decode_color_label):
    with pytest.raises(ValueError, match=r'^bomb\.png: broken image'):
      read(bytes(data), 'bomb.png')
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown < 100_000  # Kilobytes, on Linux.


def test_image_size_reads_the_header_of_bytes_and_files(tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(encode(RGB))
  assert image_size(path) == image_size(str(path)) == image_size(path.read_bytes()) == (20, 30)
  # Half a file still has its header.
  assert image_size(encode(RGB)[:200]) == (20, 30)
  with pytest.raises(FileNotFoundError):
    image_size(tmp_path / 'b.png')
