"""The zip reader against files that Python's zipfile writes, and against damaged ones."""

import io
import struct
import zipfile

import numpy as np
import pytest

from convert.stored_zip import read_directory, read_into

FILES = {
  'a/data.pkl': b'pickle',
  'a/data/0': bytes(range(256)) * 8,
  'a/data/1': b'one',
  'a/empty': b'',
  'ä': b'umlaut',
}


def _zip(compression=zipfile.ZIP_STORED):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', compression) as archive:
    for name, content in FILES.items():
      archive.writestr(name, content)
  return buffer.getvalue()


def _read_all(data):
  file = io.BytesIO(data)
  contents = {}
  for name, entry in read_directory(file, max_bytes=2**16).items():
    raw = np.empty(entry.size, np.uint8)
    read_into(file, entry, raw)
    contents[name.decode()] = raw.tobytes()
  return contents


def _patched(data, signature, offset, value):
  at = data.index(signature) + offset
  return data[:at] + value + data[at + len(value) :]


def test_reads_what_zipfile_wrote():
  assert _read_all(_zip()) == FILES


def test_every_flipped_content_byte_is_found():
  data = _zip()
  start = data.index(FILES['a/data/0'])
  for at in range(start, start + 256):
    with pytest.raises(ValueError, match='CRC-32'):
      _read_all(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])


def test_every_cut_is_found():
  data = _zip()
  for size in range(len(data)):
    with pytest.raises(ValueError, match=r'cut short|damaged'):
      _read_all(data[:size])


def test_compressed_is_refused():
  with pytest.raises(ValueError, match='compressed'):
    _read_all(_zip(zipfile.ZIP_DEFLATED))
  with pytest.raises(ValueError, match='compressed'):
    _read_all(_patched(_zip(), b'PK\x01\x02', 10, b'\x08\x00'))


def test_encrypted_is_refused():
  with pytest.raises(ValueError, match='encrypted'):
    _read_all(_patched(_zip(), b'PK\x01\x02', 8, b'\x01\x00'))


def test_sizes_that_the_file_cannot_have_are_refused():
  huge = struct.pack('<2I', 2**31, 2**31)
  with pytest.raises(ValueError, match='more bytes than it has'):
    _read_all(_patched(_zip(), b'PK\x01\x02', 20, huge))


def test_files_that_share_their_bytes_are_refused():
  # A zip bomb that needs no compression: many names for the same bytes.
  data = _zip()
  start, end = data.index(b'PK\x01\x02'), data.index(b'PK\x05\x06')
  at = data.index(b'PK\x01\x02', start + 4)
  record = data[at : data.index(b'PK\x01\x02', at + 4)]
  copies = b''.join(record.replace(b'data/0', b'data/%d' % i) for i in range(2, 10))
  count, size = len(FILES) + 8, end - start + len(copies)
  tail = struct.pack('<4s4H2IH', b'PK\x05\x06', 0, 0, count, count, size, start, 0)
  with pytest.raises(ValueError, match='more bytes than it has'):
    _read_all(data[:end] + copies + tail)


def test_the_same_name_twice_is_refused():
  with pytest.raises(ValueError, match='same name'):
    _read_all(_zip().replace(b'a/data/1', b'a/data/0'))


@pytest.mark.parametrize(
  ('size', 'count', 'match'),
  [(2**17, 4, 'refused'), (2**32 - 1, 4, 'over 4 GiB'), (60, 2**16 - 1, 'over 4 GiB')],
)
def test_a_directory_too_large_is_refused(size, count, match):
  tail = struct.pack('<4s4H2IH', b'PK\x05\x06', 0, 0, count, count, size, 0, 0)
  with pytest.raises(ValueError, match=match):
    _read_all(_zip()[:-22] + tail)
