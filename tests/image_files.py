"""Image files in memory, the usual ones and those that no program writes."""

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

PALETTE = np.random.default_rng(0).integers(0, 256, 768, np.uint8).tolist()


def encode(pixels, kind='PNG', **options):
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  data = io.BytesIO()
  image.save(data, kind, **options)
  return data.getvalue()


def palette_image(ids):
  image = Image.fromarray(ids).convert('P')
  image.frombytes(ids.tobytes())
  image.putpalette(PALETTE)
  return image


def png(height, width, bit_depth, rows):
  """A grey PNG written by hand: Pillow writes no 2 and 4 bits, and no sizes that are not true."""

  def chunk(kind, content):
    checksum = struct.pack('>I', zlib.crc32(kind + content))
    return struct.pack('>I', len(content)) + kind + content + checksum

  header = struct.pack('>IIBBBBB', width, height, bit_depth, 0, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(rows))
    + chunk(b'IEND', b'')
  )


def with_orientation(orientation):
  """EXIF that asks viewers to turn or mirror the image."""
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  return exif
