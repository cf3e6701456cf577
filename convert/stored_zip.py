"""Zip files of the plain kind that PyTorch writes: nothing compressed or encrypted, under 4 GiB.

Python's zipfile reads more kinds than a checkpoint can be, takes 20 times the size of a hostile
directory in memory and raises eight types of errors on damaged files. What is left of the format
without all that is three records.
"""

import io
import os
import struct
import zlib
from dataclasses import dataclass

import numpy as np

_END_OF_DIRECTORY = struct.Struct('<4s4H2IH')
_DIRECTORY_ENTRY = struct.Struct('<4s6H3I5H2I')
_LOCAL_HEADER = struct.Struct('<4s5H3I2H')


@dataclass(frozen=True, slots=True)
class Entry:
  """Where a file lies in the zip: its local header, its size in bytes and its CRC-32."""

  offset: int
  size: int
  crc: int


def read_directory(file: io.BufferedReader, max_bytes: int) -> dict[bytes, Entry]:
  """Lists a zip file.

  Args:
    file: open for reading.
    max_bytes: the largest directory to take into memory, in bytes.

  Returns:
    Entries by name. Together they claim no more bytes than the file has.

  Raises:
    ValueError: the file is not a whole, plain zip.
  """
  file_size = file.seek(0, os.SEEK_END)
  file.seek(max(0, file_size - _END_OF_DIRECTORY.size))
  end = file.read(_END_OF_DIRECTORY.size)
  if len(end) < _END_OF_DIRECTORY.size or not end.startswith(b'PK\x05\x06'):
    raise ValueError('cut short: the end of the zip is missing; download it again')
  *_, count, size, offset, _ = _END_OF_DIRECTORY.unpack(end)
  if 0xFFFFFFFF in (size, offset) or count == 0xFFFF:
    raise ValueError('a zip of over 4 GiB or 65,534 entries, which is not read')
  if size > max_bytes:
    raise ValueError(f'the directory of its zip has {size} bytes, more than {max_bytes}; refused')
  file.seek(offset)
  directory = file.read(size)
  entries = {}
  position = 0
  for _ in range(count):
    name, entry, position = _read_entry(directory, position)
    if name in entries:
      raise ValueError('damaged: two files in the zip have the same name')
    entries[name] = entry
  if sum(entry.size for entry in entries.values()) > file_size:
    raise ValueError('damaged: the files in the zip claim more bytes than it has')
  return entries


def read_into(file: io.BufferedReader, entry: Entry, raw: np.ndarray) -> None:
  """Reads a file in the zip and checks its CRC-32.

  Args:
    file: the zip, open for reading.
    entry: from `read_directory`.
    raw: uint8 [entry.size], filled.

  Raises:
    ValueError: the file is not there or damaged.
  """
  file.seek(entry.offset)
  header = file.read(_LOCAL_HEADER.size)
  if len(header) < _LOCAL_HEADER.size or not header.startswith(b'PK\x03\x04'):
    raise ValueError('damaged: a file in the zip does not start where its directory says')
  *_, name_size, extra_size = _LOCAL_HEADER.unpack(header)
  file.seek(name_size + extra_size, os.SEEK_CUR)
  if file.readinto(raw.data) < raw.size or zlib.crc32(raw.data) != entry.crc:
    raise ValueError('damaged: its bytes do not match their checksum (CRC-32); download it again')


def _read_entry(directory: bytes, position: int) -> tuple[bytes, Entry, int]:
  end = position + _DIRECTORY_ENTRY.size
  record = directory[position:end]
  if len(record) < _DIRECTORY_ENTRY.size or not record.startswith(b'PK\x01\x02'):
    raise ValueError('damaged: the directory of the zip is broken')
  fields = _DIRECTORY_ENTRY.unpack(record)
  flags, method = fields[3:5]
  crc, packed_size, size, name_size, extra_size, comment_size = fields[7:13]
  if flags & 1:
    raise ValueError('encrypted, which no checkpoint is; refused')
  if method != 0 or packed_size != size:
    raise ValueError('compressed, which no checkpoint is; refused')
  name = directory[end : end + name_size]
  return name, Entry(fields[16], size, crc), end + name_size + extra_size + comment_size
