"""PyTorch's checkpoint files: reading that runs nothing and needs no PyTorch, and writing.

Both formats hold a pickle of the objects around the tensors, and the numbers of each storage as
raw bytes: the zip format (PyTorch >= 1.6) as files in a zip, the legacy format one behind the
other after the pickle. Checkpoints come from the network, so every size in them is compared with
the file before memory is taken, and the pickle goes to a machine that can only build values.
"""

import hashlib
import io
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert import stored_zip
from convert.torch_pickle import STORAGE_DTYPES, CheckpointUnpickler

_ZIP_HEAD = b'PK\x03\x04'
_LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)

# The largest pickle and the largest zip directory, in bytes. The largest released model with its
# optimizer has 0.43 MB of pickle; a hostile one takes up to 65 times its size in memory.
_MAX_OVERHEAD = 4 * 2**20
# Letters of a tensor's name, which messages repeat; the longest that is released has 73.
_MAX_NAME = 500

# DataParallel, any number of times, around or inside a module that holds the network as `model`.
_WRAPPERS = re.compile(r'(module\.)*(model\.)?(module\.)*')


class CheckpointError(ValueError):
  """A file is no checkpoint of weights, or a damaged or dangerous one; the text names the file."""


@dataclass(frozen=True, eq=False)
class PytorchFile:
  """What a checkpoint file holds.

  Attributes:
    path: the file.
    format: 'zip' or 'legacy'.
    sha256: SHA-256 of the whole file, in hexadecimal. The legacy format has no checksum of its
      own: only a known SHA-256 shows a flipped bit in it.
    content: the object that was saved, tensors as arrays. They are writable; as in PyTorch,
      tensors that were views of one storage share its memory.
  """

  path: Path
  format: str
  sha256: str
  content: Any


def read(path: str | os.PathLike) -> PytorchFile:
  """Reads a `.pth` file of either format without PyTorch and without running anything in it.

  Memory is taken once for the tensors; the file itself is not held.

  Args:
    path: the file.

  Returns:
    What the file holds.

  Raises:
    CheckpointError: it is not a checkpoint of weights, whole and harmless.
    FileNotFoundError: there is no such file.

  Differs: from `torch.load`, only tensors, parameters, `OrderedDict`, Python's plain types and
    numpy's scalars are built; the checksums of the zip format are compared; attributes of an
    `OrderedDict` (`_metadata` of a state dict) are dropped.
  """
  path = Path(path)
  if not path.exists():
    raise FileNotFoundError(f'{path}: there is no such file')
  if not path.is_file():
    raise CheckpointError(f'{path}: not a file; a checkpoint is a single file')
  with path.open('rb') as file:
    try:
      file_format, content = _read_content(file)
    except ValueError as error:
      raise CheckpointError(f'{path}: {error}') from None
    file.seek(0)
    sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
  return PytorchFile(path, file_format, sha256, content)


def state_dict(file: PytorchFile) -> dict[str, np.ndarray]:
  """Finds the weights in a checkpoint: the whole of it, or its entry of a customary name.

  Args:
    file: from `read`.

  Returns:
    Arrays by name, in the order of the file. The prefixes `module.` (of `DataParallel`) and
    `model.` are taken off where every name has them.

  Raises:
    CheckpointError: the checkpoint holds no state dict, or one with names that no network has.

  Example:
    >>> weights = {'module.fc.weight': np.zeros((3, 2)), 'module.fc.bias': np.zeros(3)}
    >>> file = PytorchFile(Path('x.pth'), 'zip', '', {'epoch': 1, 'state_dict': weights})
    >>> list(state_dict(file))
    ['fc.weight', 'fc.bias']
  """
  found = file.content
  if isinstance(found, dict):
    for key in ('state_dict', 'model', 'model_state_dict', 'net'):
      if isinstance(found.get(key), dict):
        found = found[key]
        break
  wanted = 'looked for tensors by name at the top, state_dict, model, model_state_dict and net'
  if not isinstance(found, dict) or not found:
    raise CheckpointError(f'{file.path}: holds no state dict, it is {_described(found)}; {wanted}')
  for name, value in found.items():
    if not isinstance(name, str) or not isinstance(value, np.ndarray):
      raise CheckpointError(
        f'{file.path}: holds no state dict, {ascii(name)[:60]} is {_described(value)}; {wanted}'
      )
  common = os.path.commonprefix(list(found))  # noqa: RUF071, by characters is what is meant
  wrappers = _WRAPPERS.match(common)
  prefix = wrappers[0] if wrappers else ''
  weights = {name.removeprefix(prefix): array for name, array in found.items()}
  for name in weights:
    if not name.isprintable() or len(name) > _MAX_NAME:
      raise CheckpointError(
        f'{file.path}: has a tensor named {ascii(name)[:60]}, which no network has'
      )
  return weights


def write(path: str | os.PathLike, state_dict: Mapping[str, np.ndarray]) -> None:
  """Writes weights as a `.pth` that PyTorch loads with `weights_only=True`.

  The file appears whole or not at all.

  Args:
    path: the file; an old one is replaced.
    state_dict: arrays by name; the file keeps their order.

  Raises:
    ImportError: PyTorch is not installed.
    CheckpointError: an entry has a dtype that checkpoints do not have.
  """
  path = Path(path)
  try:
    import torch
  except ImportError as error:
    raise ImportError(
      f'{path}: writing a .pth file needs PyTorch: pip install "if_jax[torch]"'
    ) from error
  tensors = OrderedDict()
  for name, value in state_dict.items():
    array = np.array(value, order='C')  # a copy: PyTorch warns of arrays that are read-only
    if array.dtype not in STORAGE_DTYPES.values():
      raise CheckpointError(
        f'{path}: entry {name!r} is of dtype {array.dtype}, which a checkpoint cannot hold'
      )
    if array.dtype == ml_dtypes.bfloat16:
      tensors[name] = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    else:
      tensors[name] = torch.from_numpy(array)
  unfinished = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    with unfinished.open('wb') as file:
      torch.save(tensors, file)
      file.flush()
      os.fsync(file.fileno())
    os.replace(unfinished, path)
  finally:
    unfinished.unlink(missing_ok=True)


def _described(value: Any) -> str:
  if not isinstance(value, dict):
    return f'of type {type(value).__name__}'
  keys = ', '.join(ascii(key)[:60] for key in list(value)[:8])
  return f'a dictionary with {len(value)} entries: {keys}{", ..." if len(value) > 8 else ""}'


def _read_content(file: io.BufferedReader) -> tuple[str, Any]:
  head = file.read(64)
  if head.startswith(_ZIP_HEAD):
    return 'zip', _read_zip(file)
  if head.startswith(_LEGACY_HEAD):
    return 'legacy', _read_legacy(file)
  if not head:
    raise ValueError('empty; download it again')
  if head.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'<'):
    raise ValueError('a web page, not a checkpoint: the download failed; download it again')
  if head.startswith(b'version https://git-lfs'):
    raise ValueError('a Git LFS pointer, not the checkpoint itself; fetch it with `git lfs pull`')
  if _LEGACY_HEAD.startswith(head) or _ZIP_HEAD.startswith(head):
    raise ValueError(f'cut short: it has only {len(head)} bytes; download it again')
  raise ValueError('not a checkpoint of PyTorch, neither in the zip nor in the legacy format')


def _read_zip(file: io.BufferedReader) -> Any:
  entries = stored_zip.read_directory(file, _MAX_OVERHEAD)
  folders = [name.removesuffix(b'data.pkl') for name in entries if name.endswith(b'/data.pkl')]
  if len(folders) != 1:
    raise ValueError('a zip, but not a checkpoint of PyTorch: it has no data.pkl')

  def load(name: str, dtype: np.dtype, count: int) -> np.ndarray:
    entry = entries.get(folders[0] + name.encode())
    if entry is None or entry.size != count * dtype.itemsize:
      raise ValueError(f'damaged: {ascii(name)[:60]} is missing in its zip or has a wrong size')
    numbers = np.empty(count, dtype)
    stored_zip.read_into(file, entry, numbers.view(np.uint8))
    _check_booleans(numbers)
    return numbers

  byteorder = entries.get(folders[0] + b'byteorder')  # absent before PyTorch 2.1
  if byteorder and load('byteorder', np.dtype('u1'), min(byteorder.size, 6)).tobytes() != b'little':
    raise ValueError('not written by a little-endian machine; save it again on one')
  pickle_size = entries[folders[0] + b'data.pkl'].size
  if pickle_size > _MAX_OVERHEAD:
    raise ValueError(f'its pickle has {pickle_size} bytes, more than {_MAX_OVERHEAD}; refused')
  return CheckpointUnpickler(
    load('data.pkl', np.dtype('u1'), pickle_size).tobytes(),
    file_size=os.fstat(file.fileno()).st_size,
    load_storage=lambda key, dtype, count: load(f'data/{key}', dtype, count),
  ).load()


def _read_legacy(file: io.BufferedReader) -> Any:
  free_bytes = file_size = os.fstat(file.fileno()).st_size

  def reserve(key: str, dtype: np.dtype, count: int) -> np.ndarray:
    nonlocal free_bytes
    free_bytes -= count * dtype.itemsize
    if count < 0 or free_bytes < 0:
      raise ValueError('cut short: it is smaller than its tensors; download it again')
    return np.empty(count, dtype)

  file.seek(len(_LEGACY_HEAD))
  data = file.read(min(file_size, _MAX_OVERHEAD))
  pickles = CheckpointUnpickler(data, file_size, load_storage=reserve)
  system = pickles.load()
  if not isinstance(system, dict) or system.get('little_endian') is not True:
    raise ValueError('not written by a little-endian machine; save it again on one')
  content = pickles.load()
  storages = pickles.storages
  keys = pickles.load()
  if (
    not isinstance(keys, list)
    or not all(isinstance(key, str) for key in keys)
    or len(keys) != len(storages)
    or set(keys) != set(storages)
  ):
    raise ValueError('damaged: its list of storages does not fit its tensors')
  # Only now is it known where the numbers lie: the tensors are views of arrays filled here.
  file.seek(len(_LEGACY_HEAD) + pickles.position)
  for key in keys:
    numbers = storages[key].numbers
    if file.read(8) != struct.pack('<q', numbers.size):
      raise ValueError('cut short or damaged: a storage does not have the size of its tensors')
    if file.readinto(numbers.view(np.uint8).data) < numbers.nbytes:
      raise ValueError('cut short: it ends within its tensors; download it again')
    _check_booleans(numbers)
  return content


def _check_booleans(numbers: np.ndarray) -> None:
  # numpy takes for granted that a boolean is 0 or 1.
  if numbers.dtype == bool and numbers.view(np.uint8).max(initial=0) > 1:
    raise ValueError('damaged: a boolean in it is neither 0 nor 1')
