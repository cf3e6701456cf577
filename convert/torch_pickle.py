"""The few things that the pickle of a PyTorch checkpoint is made of, built as numpy arrays."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from convert.restricted_pickle import Name, RestrictedUnpickler

STORAGE_DTYPES = {
  'torch.HalfStorage': np.dtype('<f2'),
  'torch.BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'torch.FloatStorage': np.dtype('<f4'),
  'torch.DoubleStorage': np.dtype('<f8'),
  'torch.ComplexFloatStorage': np.dtype('<c8'),
  'torch.ComplexDoubleStorage': np.dtype('<c16'),
  'torch.CharStorage': np.dtype('<i1'),
  'torch.ShortStorage': np.dtype('<i2'),
  'torch.IntStorage': np.dtype('<i4'),
  'torch.LongStorage': np.dtype('<i8'),
  'torch.ByteStorage': np.dtype('<u1'),
  'torch.BoolStorage': np.dtype('?'),
}
_SCALAR_CODES = frozenset(
  ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'c8', 'c16')
)

# All tensors over the size of the file. Tensors that share their numbers or repeat them (stride 0)
# take nothing here, but from everyone who copies them.
_MAX_REPEAT = 8


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
  """The numbers that tensors are views of, in one dimension."""

  numbers: np.ndarray


class CheckpointUnpickler(RestrictedUnpickler):
  """Builds the few things that a checkpoint is made of.

  Args:
    data: the pickles.
    file_size: bytes of the whole file, the measure of what its tensors may take.
    load_storage: (key, dtype, count) -> count numbers; called once for each key.
  """

  allowed_names = frozenset(
    (
      *STORAGE_DTYPES,
      'collections.OrderedDict',
      'torch._utils._rebuild_tensor',
      'torch._utils._rebuild_tensor_v2',
      'torch._utils._rebuild_parameter',
      'numpy.dtype',
      'numpy.core.multiarray.scalar',
      'numpy._core.multiarray.scalar',
      '_codecs.encode',
    )
  )

  def __init__(
    self, data: bytes, file_size: int, load_storage: Callable[[str, np.dtype, int], np.ndarray]
  ):
    super().__init__(data)
    self.storages: dict[str, Storage] = {}
    self._load_storage = load_storage
    self._free_bytes = _MAX_REPEAT * file_size

  def persistent_load(self, identifier: Any) -> Storage:
    # The sixth part, in the legacy format only, was for views of storages and is always None.
    if isinstance(identifier, tuple) and len(identifier) == 6 and identifier[5] is None:
      identifier = identifier[:5]
    match identifier:
      case (str(), Name(kind), str(key), str(), int(count)) if kind in STORAGE_DTYPES:
        dtype = STORAGE_DTYPES[kind]
      case _:
        raise ValueError('damaged: its pickle refers to a storage in an unknown way')
    if key not in self.storages:
      self.storages[key] = Storage(self._load_storage(key, dtype, count))
    storage = self.storages[key]
    if storage.numbers.dtype != dtype or storage.numbers.size != count:
      raise ValueError(f'damaged: storage {ascii(key)[:60]} has two sizes or types')
    return storage

  def call(self, name: str, arguments: tuple) -> Any:
    match name.split('.')[-1], arguments:
      case 'OrderedDict', ():
        return OrderedDict()
      case '_rebuild_tensor', (Storage(numbers), offset, size, stride):
        return self._tensor(numbers, offset, size, stride)
      case '_rebuild_tensor_v2', (Storage(numbers), offset, size, stride, _, _):
        return self._tensor(numbers, offset, size, stride)
      case '_rebuild_parameter', (np.ndarray() as tensor, _, _):
        return tensor
      case 'dtype', (str(code), *_) if code in _SCALAR_CODES:
        return np.dtype(code)
      case 'scalar', (np.dtype() as dtype, bytes(raw)) if len(raw) == dtype.itemsize:
        return np.frombuffer(raw, dtype)[0]
      # How protocol 2 stores the bytes of a scalar.
      case 'encode', (str(text), str(encoding)) if encoding == 'latin1' and len(text) <= 16:
        return text.encode(encoding)
    raise ValueError(f'its pickle calls {name} in a way that no checkpoint needs; refused')

  def set_state(self, target: Any, state: Any) -> None:
    match target, state:
      case OrderedDict(), dict():
        return
      case np.dtype(), (int(), str(byteorder), *_) if byteorder in ('<', '|'):
        return
    super().set_state(target, state)

  def _tensor(self, numbers: np.ndarray, offset: Any, size: Any, stride: Any) -> np.ndarray:
    if not (
      isinstance(size, tuple)
      and isinstance(stride, tuple)
      and len(size) == len(stride) <= 32
      and all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
    ):
      raise ValueError('damaged: a tensor in it has no proper size')
    # max: numpy bounds the sizes of an empty array as well.
    self._free_bytes -= math.prod(max(n, 1) for n in size) * numbers.itemsize
    if self._free_bytes < 0:
      raise ValueError(f'its tensors are over {_MAX_REPEAT} times as large as it is; refused')
    if 0 in size:
      return np.empty(size, numbers.dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= numbers.size:
      raise ValueError('damaged: a tensor in it reaches beyond its storage')
    # The stride of a dimension of one is never used, and can be any number.
    strides = [
      step * numbers.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)
    ]
    return np.ndarray(
      size, numbers.dtype, numbers.view(np.uint8), offset * numbers.itemsize, strides
    )
