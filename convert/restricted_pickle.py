"""A pickle machine that builds plain values and runs nothing.

Python's unpickler imports and calls whatever a file names, and some of its opcodes take memory by
a number in the file. This machine knows the opcodes of protocol 2, which is what `torch.save`
writes, and nothing else. A name that a pickle refers to stays a name: it is looked for in a list,
never imported, and `call` of a subclass decides what it may build.
"""

import pickle
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Name:
  """Stands for the class or function that a pickle refers to."""

  name: str


class RestrictedUnpickler:
  """Reads the pickles that lie one behind the other in `data`; a subclass says what they may name.

  Args:
    data: the bytes; `position` moves behind each pickle that was read.
    position: where the first pickle starts.

  Raises:
    ValueError: from `load`, for anything that is not a harmless pickle of protocol 2.

  Differs: from `pickle.Unpickler`, `find_class` does not exist, names that are not in
    `allowed_names` are refused, and keys of dictionaries are strings or 64-bit integers (a deeply
    nested tuple as a key crashes the interpreter, large integers can be chosen to collide).
  """

  allowed_names: Collection[str] = ()

  def __init__(self, data: bytes, position: int = 0):
    self.position = position
    self._data = data
    self._stack: list[Any] = []
    self._outer_stacks: list[list[Any]] = []
    self._memo: dict[int, Any] = {}

  def call(self, name: str, arguments: tuple) -> Any:
    """Builds what the call of an allowed name stands for; refuses unless overridden."""
    raise ValueError(f'its pickle calls {name}, which is refused')

  def set_state(self, target: Any, state: Any) -> None:
    """Takes the state that a pickle gives an object; refuses unless overridden."""
    raise ValueError(f'its pickle sets the state of a {type(target).__name__}, which is refused')

  def persistent_load(self, identifier: Any) -> Any:
    """Gives the object outside of the pickle that is meant; refuses unless overridden."""
    raise ValueError('its pickle refers to an object outside of it, which is refused')

  def load(self) -> Any:
    """Reads the next pickle and returns its value."""
    self._stack, self._outer_stacks, self._memo = [], [], {}
    try:
      while (opcode := self._take(1)) != pickle.STOP:
        handler = _HANDLERS.get(opcode)
        if handler is None:
          raise ValueError(
            f'its pickle uses opcode 0x{opcode.hex()}, which no checkpoint needs; refused'
          )
        handler(self)
      return self._pop()
    except (IndexError, KeyError):
      # From the stack or the memo; data that end too early are found by _take.
      raise ValueError('damaged: its pickle takes a value that it never made') from None
    except UnicodeError:
      raise ValueError('damaged: a text in its pickle is not UTF-8') from None

  def _take(self, count: int) -> bytes:
    taken = self._data[self.position : self.position + count]
    if len(taken) < count:
      raise ValueError(
        f'cut short: its pickle does not end within {len(self._data)} bytes; download it again'
      )
    self.position += count
    return taken

  def _number(self, layout: struct.Struct) -> Any:
    return layout.unpack(self._take(layout.size))[0]

  def _line(self) -> str:
    end = self._data.find(b'\n', self.position)
    line = self._take((len(self._data) if end < 0 else end) + 1 - self.position)
    return line[:-1].decode()

  def _pop(self) -> Any:
    return self._stack.pop()

  def _pop_to_mark(self) -> list[Any]:
    values = self._stack
    self._stack = self._outer_stacks.pop()
    return values

  def _proto(self) -> None:
    protocol = self._take(1)[0]
    if protocol != 2:
      raise ValueError(f'its pickle is of protocol {protocol}; checkpoints are of protocol 2')

  def _mark(self) -> None:
    self._outer_stacks.append(self._stack)
    self._stack = []

  def _push_number(self, layout: struct.Struct) -> None:
    self._stack.append(self._number(layout))

  def _push_long(self) -> None:
    raw = self._take(self._number(_UINT8))
    self._stack.append(int.from_bytes(raw, 'little', signed=True))

  def _push_text(self, length: struct.Struct) -> None:
    self._stack.append(self._take(self._number(length)).decode())

  def _push_name(self) -> None:
    name = f'{self._line()}.{self._line()}'
    if name not in self.allowed_names:
      shown = name if name.isprintable() and len(name) <= 100 else ascii(name[:100])
      raise ValueError(f'refers to {shown}, which no checkpoint needs; refused, nothing was run')
    self._stack.append(Name(name))

  def _tuple(self, count: int) -> None:
    if count > len(self._stack):
      raise IndexError
    self._stack[-count:] = [tuple(self._stack[-count:])]

  def _tuple_to_mark(self) -> None:
    values = tuple(self._pop_to_mark())
    self._stack.append(values)

  def _append(self, values: list[Any]) -> None:
    target = self._stack[-1]
    if not isinstance(target, list):
      raise ValueError(f'damaged: its pickle appends to a {type(target).__name__}')
    target.extend(values)

  def _set_items(self, items: list[Any]) -> None:
    target = self._stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
      raise ValueError(f'damaged: its pickle sets an item of a {type(target).__name__}')
    for key, value in zip(items[::2], items[1::2], strict=True):
      if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2**63):
        raise ValueError(
          f'its pickle has a {type(key).__name__} as a key; checkpoints have strings and integers'
        )
      target[key] = value

  def _set_item(self) -> None:
    value, key = self._pop(), self._pop()
    self._set_items([key, value])

  def _reduce(self) -> None:
    arguments, function = self._pop(), self._pop()
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
      raise ValueError(f'damaged: its pickle calls a {type(function).__name__}')
    self._stack.append(self.call(function.name, arguments))

  def _build(self) -> None:
    state = self._pop()
    self.set_state(self._stack[-1], state)

  def _persistent_id(self) -> None:
    self._stack.append(self.persistent_load(self._pop()))

  def _put(self, layout: struct.Struct) -> None:
    self._memo[self._number(layout)] = self._stack[-1]

  def _get(self, layout: struct.Struct) -> None:
    self._stack.append(self._memo[self._number(layout)])


_UINT8, _UINT16, _UINT32 = struct.Struct('<B'), struct.Struct('<H'), struct.Struct('<I')
_INT32, _FLOAT64 = struct.Struct('<i'), struct.Struct('>d')

_HANDLERS: dict[bytes, Callable[[RestrictedUnpickler], None]] = {
  pickle.PROTO: lambda machine: machine._proto(),
  pickle.MARK: lambda machine: machine._mark(),
  pickle.NONE: lambda machine: machine._stack.append(None),
  pickle.NEWTRUE: lambda machine: machine._stack.append(True),
  pickle.NEWFALSE: lambda machine: machine._stack.append(False),
  pickle.BININT: lambda machine: machine._push_number(_INT32),
  pickle.BININT1: lambda machine: machine._push_number(_UINT8),
  pickle.BININT2: lambda machine: machine._push_number(_UINT16),
  pickle.BINFLOAT: lambda machine: machine._push_number(_FLOAT64),
  pickle.LONG1: lambda machine: machine._push_long(),
  pickle.BINUNICODE: lambda machine: machine._push_text(_UINT32),
  pickle.BINSTRING: lambda machine: machine._push_text(_UINT32),
  pickle.SHORT_BINSTRING: lambda machine: machine._push_text(_UINT8),
  pickle.GLOBAL: lambda machine: machine._push_name(),
  pickle.EMPTY_TUPLE: lambda machine: machine._stack.append(()),
  pickle.TUPLE1: lambda machine: machine._tuple(1),
  pickle.TUPLE2: lambda machine: machine._tuple(2),
  pickle.TUPLE3: lambda machine: machine._tuple(3),
  pickle.TUPLE: lambda machine: machine._tuple_to_mark(),
  pickle.EMPTY_LIST: lambda machine: machine._stack.append([]),
  pickle.APPEND: lambda machine: machine._append([machine._pop()]),
  pickle.APPENDS: lambda machine: machine._append(machine._pop_to_mark()),
  pickle.EMPTY_DICT: lambda machine: machine._stack.append({}),
  pickle.SETITEM: lambda machine: machine._set_item(),
  pickle.SETITEMS: lambda machine: machine._set_items(machine._pop_to_mark()),
  pickle.REDUCE: lambda machine: machine._reduce(),
  pickle.BUILD: lambda machine: machine._build(),
  pickle.BINPERSID: lambda machine: machine._persistent_id(),
  pickle.BINPUT: lambda machine: machine._put(_UINT8),
  pickle.LONG_BINPUT: lambda machine: machine._put(_UINT32),
  pickle.BINGET: lambda machine: machine._get(_UINT8),
  pickle.LONG_BINGET: lambda machine: machine._get(_UINT32),
}
