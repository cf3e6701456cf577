"""Changes to files that a reader must survive; those of JSON keep most of it readable."""

import copy
import json
import random
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Stands for a list in a list in a list, deeper than Python can follow.
_NESTED = 'nested'
_DEPTH = 100_000
# Wrong in type, size or kind somewhere.
_VALUES = (
  *(None, True, -1, 0, 1, 2**31, 2**62, 2**64, 10**400, 0.5, 1e308, float('nan'), float('-inf')),
  *('', 'F64', 'BF16', 'F4', 'inversenet', '../x', '\x1b[2J', '\n', '\ud800', 'Straße', 'x' * 5000),
  *([], [0] * 300, [[0, 0, 0]], [2**62, 4, 0], [0, 2**62], [4, 8], [8, 4], {}, {'name': 'x'}),
  _NESTED,
)
_NAMES = ('params', 'params/conv', 'params//x', '/', '', '/' * 5000, 'batch_stats/bn/var', '\x1b')


def mutated(rng: random.Random, data: bytes) -> bytes:
  """Changes data in a few places: entries, if it is JSON (not each time), or bytes."""
  if data.startswith(b'{') and rng.random() < 0.7:
    try:
      return _mutated_json(rng, json.loads(data))
    except (ValueError, RecursionError):
      pass
  return _mutated_bytes(rng, data)


def read_mutations(
  check: Callable[[bytes, Path], bool], seeds: Sequence[bytes], folder: Path, count: int
) -> dict[str, float]:
  """Gives mutations of the seeds to a reader, the same ones each time.

  Args:
    check: (content of a file, folder to write it to) -> whether it was read; it raises on a bug.
    seeds: all of them are read as they are.
    folder: to write to.
    count: of mutations.
  Returns:
    'read', the number of mutations that were read; 'slowest', seconds; 'megabytes', the most memory
    that this process ever took.
  """
  rng = random.Random(0)
  assert all(check(seed, folder) for seed in seeds)
  num_read, slowest = 0, 0.0
  for _ in range(count):
    data = mutated(rng, rng.choice(seeds))
    start = time.process_time()
    num_read += check(data, folder)
    slowest = max(slowest, time.process_time() - start)
  # Not rusage: that counts the memory of the parent at the fork.
  status = Path('/proc/self/status').read_text()
  megabytes = int(status.partition('VmHWM:')[2].split()[0]) / 1024
  return {'read': num_read, 'slowest': slowest, 'megabytes': megabytes}


def _mutated_bytes(rng: random.Random, data: bytes) -> bytes:
  data = bytearray(data)
  for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(7)
    if kind == 0:
      data[at : at + 1] = bytes([rng.randrange(256)])
    elif kind == 1:
      data[at : at + 1] = bytes(b ^ 1 << rng.randrange(8) for b in data[at : at + 1])
    elif kind == 2:
      del data[at : at + rng.choice([1, 2, 4, 30])]
    elif kind == 3:
      other = rng.randrange(len(data) + 1)
      data[at:at] = data[other : other + rng.choice([1, 2, 8, 60])]
    elif kind == 4:
      number = rng.choice([0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1])
      data[at : at + 4] = struct.pack('<I', number)
    elif kind == 5:
      data[at : at + 8] = struct.pack('<Q', rng.choice([2**62, 2**63, 2**64 - 1]))
    elif rng.random() < 0.2:
      del data[at:]
  return bytes(data)


def _mutated_json(rng: random.Random, tree: Any) -> bytes:
  for _ in range(rng.choice([1, 1, 1, 2, 4])):
    places = _places(tree)
    if not places:
      break
    (parent, key), (other, other_key) = rng.choices(places, k=2)
    kind = rng.randrange(5)
    if kind == 0:
      parent[key] = copy.deepcopy(rng.choice(_VALUES))
    elif kind == 1:
      parent[key] = copy.deepcopy(other[other_key])
    elif kind == 2 and isinstance(parent, dict):
      parent[rng.choice(_NAMES)] = copy.deepcopy(parent[key])
    elif kind == 3 and isinstance(parent[key], int):
      parent[key] += rng.choice([-4, -1, 1, 4])
    else:
      del parent[key]
  text = json.dumps(tree).replace(json.dumps(_NESTED), '[' * _DEPTH + ']' * _DEPTH)
  names = [json.dumps(key) for parent, key in _places(tree) if isinstance(parent, dict)]
  if names and rng.random() < 0.1:
    old, new = rng.choices(names, k=2)
    text = text.replace(f'{old}:', f'{new}:', 1)  # A name is often given twice then.
  return text.encode()


def _places(tree: Any) -> list[tuple[Any, Any]]:
  """(list or dictionary, index or key) of everything in a tree."""
  places, waiting = [], [tree]
  while waiting:
    parent = waiting.pop()
    keys = list(parent) if isinstance(parent, dict) else range(len(parent))
    places += [(parent, key) for key in keys]
    waiting += [parent[key] for key in keys if isinstance(parent[key], dict | list)]
  return places
