"""Fuzzes the reader of PyTorch's files: python tests/fuzz/fuzz_pytorch_file.py -max_total_time=60

See launch.py. The seeds were saved by PyTorch 2.13 in both formats: a bare state dict, and one with
what the released files hold beside it (in the legacy format with the names of NumPy 1, as they do).
"""

import io
import zipfile
from pathlib import Path

SEEDS = Path(__file__).parent / 'seeds'


def seeds() -> list[bytes]:
  """The content of whole files, and the pickles in those that are zips."""
  files = [path.read_bytes() for path in sorted(SEEDS.glob('*.pth'))]
  return files + [pickle for file in files if (pickle := _pickle_in(file))]


def check(data: bytes, folder: Path) -> bool:
  """Reads data; whether it was a checkpoint.

  A pickle alone is put into a zip with a right checksum, or no mutation of it would be read.

  Raises:
    AssertionError: it was refused without a sentence that names the file.
    Exception: it was not refused as it should be.
  """
  # Here, for atheris to watch what it imports.
  from convert.pytorch_file import CheckpointError, read, state_dict

  path = folder / 'mutated.pth'
  # A file that is emptied to be written anew goes to the disk at once, in milliseconds.
  path.unlink(missing_ok=True)
  path.write_bytes(_zip_of(data) if data.startswith(b'\x80\x02}') else data)
  try:
    file = read(path)
    state_dict(file)
  except CheckpointError as error:
    assert str(error).startswith(f'{path}: ') and str(error).isprintable(), str(error)
    return False
  return True


def _pickle_in(file: bytes) -> bytes:
  if not zipfile.is_zipfile(io.BytesIO(file)):
    return b''
  with zipfile.ZipFile(io.BytesIO(file)) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith('/data.pkl')]
    return archive.read(name)


def _zip_of(pickle: bytes) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('archive/data.pkl', pickle)
    archive.writestr('archive/data/0', bytes(24))
    archive.writestr('archive/data/1', bytes(8))
  return buffer.getvalue()


if __name__ == '__main__':
  from launch import fuzz

  fuzz('pytorch_file', check, seeds, ['convert.pytorch_file'])
