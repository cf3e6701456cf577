"""The pickle machine against Python's own pickler, and against pickles that mean harm."""

import os
import pickle
import struct
import tracemalloc

import pytest

from convert.restricted_pickle import Name, RestrictedUnpickler


class _Lists(RestrictedUnpickler):
  """Allows one name, whose call gives a list of its arguments."""

  allowed_names = frozenset(['package.make'])

  def call(self, name, arguments):
    return [name, *arguments]


PLAIN_VALUES = [
  None,
  True,
  False,
  0,
  -1,
  255,
  65535,
  -(2**31),
  2**63,
  -(10**30),
  0.1,
  float('inf'),
  '',
  'Straße',
  'x' * 300,
  (),
  (1,),
  (1, 2),
  (1, 2, 3),
  (1, 2, 3, 4),
  [],
  [1],
  list(range(3000)),
  {},
  {'a': 1},
  {i: [str(i)] for i in range(3000)},
  {'nested': [{'deep': ((), [({},)])}]},
]


@pytest.mark.parametrize('value', PLAIN_VALUES, ids=lambda value: repr(value)[:20])
def test_plain_values_are_what_was_pickled(value):
  assert RestrictedUnpickler(pickle.dumps(value, 2)).load() == value


def test_shared_and_recursive_objects_stay_so():
  shared = ['shared']
  recursive = [shared, shared]
  recursive.append(recursive)
  loaded = RestrictedUnpickler(pickle.dumps(recursive, 2)).load()
  assert loaded[0] is loaded[1]
  assert loaded[2] is loaded


def test_pickles_one_behind_the_other():
  machine = RestrictedUnpickler(pickle.dumps([1], 2) + pickle.dumps('two', 2) + b'rest')
  assert (machine.load(), machine.load()) == ([1], 'two')
  assert machine._data[machine.position :] == b'rest'


def test_strings_of_python_2():
  assert RestrictedUnpickler(b'\x80\x02U\x03abcT\x02\x00\x00\x00de\x86.').load() == ('abc', 'de')


def test_a_name_stays_a_name_and_a_call_goes_to_the_subclass():
  assert _Lists(b'\x80\x02cpackage\nmake\n.').load() == Name('package.make')
  assert _Lists(b'\x80\x02cpackage\nmake\nK\x07\x85R.').load() == ['package.make', 7]


class _Harm:
  def __init__(self, function, *arguments):
    self.reduced = function, arguments

  def __reduce__(self):
    return self.reduced


class _Empty:
  pass


def _harms(sentinel):
  touch = f'open({str(sentinel)!r}, "w").close()'
  return {
    'system': pickle.dumps(_Harm(os.system, f'touch {sentinel}'), 2),
    'eval': pickle.dumps(_Harm(eval, touch), 2),
    'exec': pickle.dumps({'epoch': [_Harm(exec, touch)]}, 2),
    'getattr': pickle.dumps(_Harm(getattr, _Harm(__import__, 'os'), 'getcwd'), 2),
    'open': pickle.dumps(_Harm(open, str(sentinel), 'w'), 2),
    'instance': pickle.dumps(_Empty(), 2),
    'protocol 4': b'\x80\x04' + pickle.dumps(_Harm(eval, touch), 4)[2:],
    'STACK_GLOBAL': b'\x80\x02\x8c\x02os\x8c\x06system\x93.',
    'INST': f"\x80\x02(S'touch {sentinel}'\nios\nsystem\n.".encode('latin1'),
    'OBJ': f"\x80\x02(cos\nsystem\nS'touch {sentinel}'\no.".encode('latin1'),
    'NEWOBJ': b'\x80\x02cpackage\nmake\n)\x81.',
    'BUILD': b'\x80\x02cpackage\nmake\n)R}b.',
    'EXT1': b'\x80\x02\x82\x01.',
    'BINPERSID': b'\x80\x02K\x01Q.',
    'protocol 0': f"cos\nsystem\n(S'touch {sentinel}'\ntR.".encode('latin1'),
    'call of a string': b'\x80\x02X\x09\x00\x00\x00os.system)R.',
    'attribute of a name': b'\x80\x02cpackage\nmake.__globals__\n.',
    'control characters': b'\x80\x02cos\x1b[2J\nsystem\n.',
  }


@pytest.mark.parametrize('harm', _harms('x'))
def test_harm_is_refused_and_nothing_runs(tmp_path, harm):
  sentinel = tmp_path / 'ran'
  with pytest.raises(ValueError) as caught:
    _Lists(_harms(sentinel)[harm]).load()
  assert not sentinel.exists()
  assert str(caught.value).isprintable()


def test_the_sentinel_would_have_been_seen(tmp_path):
  sentinel = tmp_path / 'ran'
  pickle.loads(_harms(sentinel)['system'])
  assert sentinel.exists()


def test_the_refused_name_is_told():
  with pytest.raises(ValueError, match=r'refers to posix\.system, .* nothing was run'):
    RestrictedUnpickler(_harms('x')['system']).load()


DAMAGES = {
  'empty': b'',
  'no end': b'\x80\x02]',
  'empty stack': b'\x80\x02.',
  'no mark': b'\x80\x02t.',
  'tuple of too few': b'\x80\x02K\x01\x86.',
  'memo that was never filled': b'\x80\x02h\x01.',
  'append to a tuple': b'\x80\x02)K\x01a.',
  'item of a list': b'\x80\x02]K\x01K\x01s.',
  'key without a value': b'\x80\x02}(K\x01u.',
  'list as a key': b'\x80\x02}]K\x01s.',
  'tuple as a key': b'\x80\x02})K\x01s.',
  'large number as a key': b'\x80\x02}\x8a\x09' + b'\xff' * 8 + b'\x00K\x01s.',
  'not UTF-8': b'\x80\x02X\x01\x00\x00\x00\xff.',
  'name that is not UTF-8': b'\x80\x02c\xff\n\xff\n.',
  'name without an end': b'\x80\x02cos',
  'unknown opcode': b'\x80\x02\xff.',
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_a_value_error(damage):
  with pytest.raises(ValueError, match=r'damaged|cut short|checkpoint'):
    RestrictedUnpickler(DAMAGES[damage]).load()


@pytest.mark.parametrize(
  'bomb',
  [
    b'\x96' + struct.pack('<Q', 2**34) + b'.',  # BYTEARRAY8 takes its memory before it reads
    b'\x8d' + struct.pack('<Q', 2**34) + b'.',  # BINUNICODE8
    b'X' + struct.pack('<I', 2**32 - 1) + b'.',
    b'\x8b' + struct.pack('<I', 2**31 - 1) + b'.',  # LONG4
    b']r' + struct.pack('<I', 2**32 - 1) + b'0',  # a memo index; Python's memo is an array
  ],
)
def test_a_number_in_the_file_takes_no_memory(bomb):
  tracemalloc.start()
  try:
    with pytest.raises(ValueError):
      RestrictedUnpickler(b'\x80\x02' + bomb).load()
    assert tracemalloc.get_traced_memory()[1] < 100_000
  finally:
    tracemalloc.stop()


def test_depth_takes_no_recursion():
  depth = 100_000
  loaded = RestrictedUnpickler(b'\x80\x02)' + b'\x85' * depth + b'.').load()
  for _ in range(depth):
    (loaded,) = loaded
  assert loaded == ()
