"""Bytes of image files to arrays, with one kind of error for whatever is wrong with them."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

# 8192 x 8192. A file of a few hundred kilobytes can claim, and fill, gigabytes.
MAX_PIXELS = 1 << 26
# Only these of Pillow's readers: some of the others start programs or have no size in their header.
_FORMATS = ('PNG', 'JPEG', 'BMP', 'PPM', 'TIFF', 'WEBP')
_INDEX_MODES = ('1', 'L', 'P', 'I', 'I;16', 'I;16B', 'I;16L')
_COLOR_MODES = ('RGB', 'RGBA')
# What Pillow's readers raise on files that are cut or altered.
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


def decode_image(data: bytes, source: str, *, upright: bool = False) -> np.ndarray:
  """Decodes an image to RGB, whatever its kind.

  Grey images are repeated over the channels, transparency is dropped, 16 bits become 8.

  Args:
    data: the content of a PNG, JPEG, BMP, PPM, TIFF or WebP file.
    source: the file's name, for the message.
    upright: turn and mirror the image as EXIF asks, which is how viewers show it; otherwise the
      pixels are given as they are stored, because label files carry no EXIF and a pair must agree.

  Returns:
    uint8 [H, W, 3], RGB.

  Raises:
    ValueError: if it is no image, is broken, or has more than `MAX_PIXELS` pixels.
  """
  with _open(data, source) as header:
    _verify(header, source)
  # OpenCV takes half to two thirds of Pillow's time but does not say what is wrong.
  flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
  stored = (header.height, header.width)
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  except cv2.error:
    image = None
  if image is None or image.shape[:2] not in ((stored, stored[::-1]) if upright else (stored,)):
    with _open(data, source) as again:
      _load(again, source)
    raise ValueError(f'{source}: OpenCV cannot decode this {header.format} image; save it as PNG')
  return image


def require_upright(data: bytes, source: str) -> None:
  """Refuses an image that viewers show turned or mirrored, as EXIF asks.

  Training takes the pixels as they are stored. A mask that was drawn over what a viewer shows then
  lies across them, and where height and width are alike no size tells of it.

  Raises:
    ValueError: naming the orientation and the mend.
  """
  with _open(data, source) as image:
    # To look for EXIF, Pillow decodes all of a PNG.
    if image.format == 'PNG' and b'eXIf' not in data:
      return
    try:
      orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _READ_ERRORS:  # Viewers cannot read it either, and the pixels are not concerned.
      return
  if orientation in range(2, 9):
    raise ValueError(
      f'{source}: EXIF orientation {orientation}: viewers turn or mirror what is stored, training '
      'does not; save it upright, or remove the tag if its label fits the stored pixels'
    )


def decode_label(data: bytes, source: str) -> np.ndarray:
  """Decodes a label file to the ids it holds; of a palette image, the indices.

  Args:
    data: the content of a PNG, or another lossless one-channel image, of 1 to 16 bits.
    source: the file's name, for the message.

  Returns:
    uint8 [H, W]; int32 [H, W] for a file of more than 8 bits.

  Raises:
    ValueError: if it is broken, has colours instead of ids, is a JPEG, whose compression
      changes ids, or has more than `MAX_PIXELS` pixels.
  """
  with _open_label(data, source) as image:
    if image.mode not in _INDEX_MODES:
      raise ValueError(
        f'{source}: a label of mode {image.mode}, one channel of class ids is needed; '
        'save it as a grey or palette PNG'
      )
    ids = _load(image, source)
    if image.format == 'PNG' and image.mode == 'L':
      # Pillow stretches grey levels of 2 and 4 bits to 0..255; byte 24 is the bit depth.
      ids = ids // {2: 85, 4: 17}.get(data[24], 1)
  return ids.astype(np.uint8 if ids.dtype.itemsize == 1 else np.int32)


def is_color_label(data: bytes, source: str) -> bool:
  """Whether a label file holds colours, which `decode_label` refuses, instead of ids."""
  with _open(data, source) as image:
    return image.mode in _COLOR_MODES


def decode_color_label(data: bytes, source: str) -> np.ndarray:
  """Decodes a label file that holds a colour for each class.

  Args:
    data: the content of a PNG, or another lossless image, with 3 or 4 channels.
    source: the file's name, for the message.

  Returns:
    uint8 [H, W, 3], RGB; transparency is dropped.

  Raises:
    ValueError: as for `decode_label`.
  """
  with _open_label(data, source) as image:
    return _load(image, source)[..., :3]


def image_size(data_or_path: bytes | str | Path) -> tuple[int, int]:
  """Reads (height, width) from the header of an image, without decoding it.

  Raises:
    ValueError: if it is no image or has more than `MAX_PIXELS` pixels.
    FileNotFoundError: if there is no such file.
  """
  if isinstance(data_or_path, bytes):
    file, source = data_or_path, 'the image'
  else:
    file, source = Path(data_or_path), str(data_or_path)
  with _open(file, source) as image:
    return image.height, image.width


def _open(data_or_path: bytes | Path, source: str) -> Image.Image:
  """Reads the header and holds its size against the bound, before memory is taken."""
  if data_or_path == b'':
    raise ValueError(f'{source}: an empty file; replace it')
  file = io.BytesIO(data_or_path) if isinstance(data_or_path, bytes) else data_or_path
  try:
    image = Image.open(file, formats=_FORMATS)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise ValueError(f'{source}: more than {MAX_PIXELS} pixels; make it smaller') from None
  except Image.UnidentifiedImageError:
    raise ValueError(
      f'{source}: no image of the formats {", ".join(_FORMATS)}; replace the file'
    ) from None
  except FileNotFoundError:
    raise
  except _READ_ERRORS as error:
    raise _broken(source, error) from None
  if image.width * image.height > MAX_PIXELS:
    image.close()
    raise ValueError(
      f'{source}: {image.height}x{image.width} pixels, more than {MAX_PIXELS}; make it smaller'
    )
  return image


def _open_label(data: bytes, source: str) -> Image.Image:
  with _open(data, source) as image:
    if image.format in ('JPEG', 'MPO'):
      raise ValueError(f'{source}: a JPEG, whose compression changes labels; save it as PNG')
    _verify(image, source)
  return _open(data, source)


def _verify(image: Image.Image, source: str):
  """Checks the lengths and checksums of a PNG's chunks; an image so checked is spent.

  Pillow itself stops at the last pixel, before the checksum: of all flips of one bit in a small
  16-bit label, 218 of 4824 gave other ids in silence. OpenCV takes the memory that a chunk claims
  to need, 2 GiB for a file of 200 bytes.
  """
  try:
    image.verify()
  except _READ_ERRORS as error:
    raise _broken(source, error) from None


def _load(image: Image.Image, source: str) -> np.ndarray:
  try:
    return np.asarray(image)
  except _READ_ERRORS as error:
    raise _broken(source, error) from None


def _broken(source: str, error: Exception) -> ValueError:
  return ValueError(f'{source}: broken image ({error}); replace the file')
