"""Which classes a data set has, and how they are written in its label files.

Three numberings meet here: the *train ids* 0..K-1 that models and losses use, with 255 for
ignored pixels; the *label ids* in the files; and the colours for people.
"""

import collections
import dataclasses
import functools
import json
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

IGNORE = 255
# What the lookup tables hold for an id that the label set does not know.
_UNKNOWN = 254
_MAX_CLASS_FILE = 1 << 20

_CLASS_FILE_TEMPLATE = """\
A class file is JSON of this form; "id" is what the label files hold (0 to 255; left out, the
place in the list), "ignore" lists the ids, or in colour-coded masks the colours, of ignored pixels:
{
  "classes": [
    {"name": "road", "color": [128, 64, 128], "id": 0},
    {"name": "building", "color": [70, 70, 70], "id": 1}
  ],
  "ignore": [255]
}"""


@dataclasses.dataclass(frozen=True, eq=False)
class LabelSet:
  """The classes of a data set, with their ids in files and their colours.

  Attributes:
    name: what messages and reports call it.
    class_names: one for each train id.
    colors: uint8 [K, 3], RGB.
    label_ids: uint8 [K], the id that files hold for each train id.
    ignored_ids: ids in files whose pixels count for nothing.
    ignored_colors: RGB colours in colour-coded masks whose pixels count for nothing.

  Raises:
    ValueError: on construction, if two classes share a name, an id or a colour, if an ignored
      one is also a class, or if there are more than 254 classes.

  Example:
    >>> pets = LabelSet('pets', ('cat', 'dog'), np.uint8([[255, 0, 0], [0, 0, 255]]),
    ...                 np.uint8([1, 2]), ignored_ids=(0,))
    >>> pets.to_train_ids(np.uint8([[1, 2, 0]]), 'mask.png')
    array([[  0,   1, 255]], dtype=uint8)
  """

  name: str
  class_names: tuple[str, ...]
  colors: np.ndarray = dataclasses.field(repr=False)
  label_ids: np.ndarray = dataclasses.field(repr=False)
  ignored_ids: tuple[int, ...] = ()
  ignored_colors: tuple[tuple[int, int, int], ...] = ()
  ignore_label = IGNORE

  def __post_init__(self):
    count = self.num_classes
    if not 0 < count <= _UNKNOWN:
      raise ValueError(f'{self.name}: {count} classes; a label set has 1 to {_UNKNOWN}')
    for what, value, shape in (
      ('colors', self.colors, (count, 3)),
      ('label_ids', self.label_ids, (count,)),
    ):
      if value.dtype != np.uint8 or value.shape != shape:
        raise ValueError(
          f'{self.name}: {what} is {value.dtype} {value.shape}, uint8 {shape} is needed'
        )
    ids = [*self.label_ids.tolist(), *self.ignored_ids]
    colors = [*map(tuple, self.colors.tolist()), *self.ignored_colors]
    for what, values in (('name', self.class_names), ('id', ids), ('colour', colors)):
      repeated = [value for value, times in collections.Counter(values).items() if times > 1]
      if repeated:
        raise ValueError(f'{self.name}: {what} {min(repeated)} is given more than once')
    if self.ignored_colors and not self.ignored_ids:
      raise ValueError(f'{self.name}: ignored_colors need an id in ignored_ids to stand for them')

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @functools.cached_property
  def _train_id_of(self) -> np.ndarray:
    table = np.full(256, _UNKNOWN, np.uint8)
    table[self.label_ids] = np.arange(self.num_classes)
    table[list(self.ignored_ids)] = IGNORE
    return table

  def to_train_ids(self, ids: np.ndarray, source: str) -> np.ndarray:
    """Turns the ids of a label file into train ids.

    Args:
      ids: integer [H, W], as `decode_label` gives them.
      source: the file's name, for the message.

    Returns:
      uint8 [H, W]: 0..K-1, and 255 for ignored pixels.

    Raises:
      ValueError: if an id is neither a class nor ignored; the message names `source` and every
        such id with its number of pixels.
    """
    if ids.dtype == np.uint8:
      train_ids = self._train_id_of[ids]
    else:
      in_table = (ids >= 0) & (ids < 256)
      train_ids = np.where(in_table, self._train_id_of[ids & 255], np.uint8(_UNKNOWN))
    unknown = train_ids == _UNKNOWN
    if unknown.any():
      found = _count_text(*np.unique(ids[unknown], return_counts=True))
      ignored = f', or {self.ignored_ids[0]} to ignore them' if self.ignored_ids else ''
      raise ValueError(
        f'{source}: label id {found} not in the label set {self.name!r}; '
        f'give these pixels one of its ids {_ranges(self.label_ids.tolist())}{ignored}, '
        'or add the id to the label set'
      )
    return train_ids

  def to_label_ids(self, train_ids: np.ndarray) -> np.ndarray:
    """Turns train ids into the ids that files hold, as the Cityscapes server wants them.

    Args:
      train_ids: integer [H, W] of 0..K-1, or 255, which becomes the first ignored id.

    Returns:
      uint8 [H, W].

    Raises:
      ValueError: if a value is no train id, or is 255 and the label set ignores no id.
    """
    table = np.full(256, -1, np.int16)
    table[: self.num_classes] = self.label_ids
    table[IGNORE] = self.ignored_ids[0] if self.ignored_ids else -1
    in_table = (train_ids >= 0) & (train_ids < 256)
    ids = np.where(in_table, table[train_ids & 255], -1)
    if (ids < 0).any():
      raise ValueError(
        f'train ids {np.unique(train_ids[ids < 0]).tolist()} have no label id in {self.name!r}, '
        f'which has {self.num_classes} classes and the ignored ids {list(self.ignored_ids)}'
      )
    return ids.astype(np.uint8)

  def color_to_ids(self, mask: np.ndarray, source: str) -> np.ndarray:
    """Turns a colour-coded mask into label ids, by exact equality of colours.

    Args:
      mask: uint8 [H, W, 3], RGB.
      source: the file's name, for the message.

    Returns:
      uint8 [H, W] of label ids; an ignored colour becomes the first ignored id.

    Raises:
      ValueError: if a colour is neither a class nor ignored; the message names `source` and
        every such colour with its number of pixels.
    """
    colors = np.concatenate([self.colors, np.array(self.ignored_colors, np.uint8).reshape(-1, 3)])
    ids = np.concatenate(
      [self.label_ids, np.full(len(self.ignored_colors), (*self.ignored_ids, 0)[0], np.uint8)]
    )
    order = np.argsort(_packed(colors))
    known = _packed(colors)[order]
    pixels = _packed(mask)
    place = np.minimum(np.searchsorted(known, pixels), len(known) - 1)
    unknown = known[place] != pixels
    if unknown.any():
      values, counts = np.unique(mask[unknown], axis=0, return_counts=True)
      found = _count_text(map(tuple, values.tolist()), counts)
      raise ValueError(
        f'{source}: colour {found} not in the label set {self.name!r}; use the exact colours '
        'of its classes (no smoothing, no JPEG), or list the colour as a class or as ignored'
      )
    return ids[order][place]

  def to_json(self) -> dict:
    """The content of a class file that `label_set_from_json` reads back."""
    classes = zip(self.class_names, self.colors.tolist(), self.label_ids.tolist(), strict=True)
    return {
      'classes': [{'name': name, 'color': color, 'id': id_} for name, color, id_ in classes],
      'ignore': [*self.ignored_ids, *map(list, self.ignored_colors)],
    }


def load_label_set(path: str | Path) -> LabelSet:
  """Reads a class file: the names, colours and file ids of the classes of one's own data.

  Args:
    path: a JSON file, see the message of the errors for its form.

  Returns:
    The label set, named after the folder of the file.

  Raises:
    FileNotFoundError: if there is no such file; the message shows what to write.
    ValueError: if it is not a class file; the message names the entry and shows what to write.
  """
  path = Path(path)
  try:
    if path.stat().st_size > _MAX_CLASS_FILE:
      raise ValueError(f'over {_MAX_CLASS_FILE >> 20} MiB, which no class file has')
    content = json.loads(path.read_text(encoding='utf-8'))
    return label_set_from_json(path.absolute().parent.name, content)
  except RecursionError:
    raise ValueError(f'{path}: nested too deeply.\n{_CLASS_FILE_TEMPLATE}') from None
  except FileNotFoundError:
    raise FileNotFoundError(f'{path}: no class file here.\n{_CLASS_FILE_TEMPLATE}') from None
  except ValueError as error:  # A JSONDecodeError is one, and so is a UnicodeDecodeError.
    raise ValueError(f'{path}: {error}.\n{_CLASS_FILE_TEMPLATE}') from None


def label_set_from_json(name: str, content: Any) -> LabelSet:
  """A label set from the content of a class file, as `LabelSet.to_json` gives it.

  Every entry is checked, so that a slip is told by its place and not by a traceback.
  """
  if not isinstance(content, dict) or not isinstance(content.get('classes'), list):
    raise ValueError('not an object with a list "classes"')
  _refuse_other_keys('the class file', content, {'classes', 'ignore'})
  names, colors, ids = [], [], []
  for place, entry in enumerate(content['classes']):
    where = f'class {place}'
    if not isinstance(entry, dict):
      raise ValueError(f'{where} is {reprlib.repr(entry)}, not an object with "name" and "color"')
    _refuse_other_keys(where, entry, {'name', 'color', 'id'})
    names.append(_class_name(where, entry.get('name')))
    colors.append(_color(f'{where} ({entry["name"]})', entry.get('color')))
    ids.append(_byte(f'"id" of {where} ({entry["name"]})', entry.get('id', place)))

  ignored = content.get('ignore', [])
  if not isinstance(ignored, list):
    raise ValueError(f'"ignore" is {reprlib.repr(ignored)}, not a list')
  ignored_ids = [_byte('an entry of "ignore"', x) for x in ignored if not isinstance(x, list)]
  ignored_colors = [_color('an entry of "ignore"', x) for x in ignored if isinstance(x, list)]
  if ignored_colors and not ignored_ids:
    ignored_ids = [max(set(range(256)) - set(ids), default=IGNORE)]
  return LabelSet(
    name,
    tuple(names),
    np.array(colors, np.uint8).reshape(-1, 3),
    np.array(ids, np.uint8),
    tuple(ignored_ids),
    tuple(ignored_colors),
  )


def _refuse_other_keys(where: str, entry: dict, known: set[str]):
  for key in entry.keys() - known:
    raise ValueError(
      f'{where} has the unknown key {reprlib.repr(key)}; known: {", ".join(sorted(known))}'
    )


def _class_name(where: str, value) -> str:
  if not isinstance(value, str) or not value:
    raise ValueError(f'{where} has no "name"')
  if not value.isprintable() or len(value) > 100:
    raise ValueError(f'"name" of {where} is {reprlib.repr(value)}, not up to 100 letters')
  return value


def _byte(where: str, value) -> int:
  if type(value) is not int or not 0 <= value <= 255:
    raise ValueError(f'{where} is {reprlib.repr(value)}, not a whole number from 0 to 255')
  return value


def _color(where: str, value) -> tuple[int, int, int]:
  if not isinstance(value, list) or len(value) != 3:
    raise ValueError(f'{where} has the colour {reprlib.repr(value)}, not [red, green, blue]')
  red, green, blue = (_byte(f'the colour of {where}', part) for part in value)
  return red, green, blue


def _packed(colors: np.ndarray) -> np.ndarray:
  """RGB [..., 3] as one int32 [...] each."""
  red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
  return red << 16 | green << 8 | blue


def _count_text(values, counts: np.ndarray, limit: int = 10) -> str:
  """'77 (12 pixels), 200 (1 pixel)', and how many more beyond `limit`."""
  parts = [
    f'{value} ({count} pixel{"s" if count > 1 else ""})'
    for value, count in zip(values, counts.tolist(), strict=True)
  ]
  more = f' and {len(parts) - limit} more' if len(parts) > limit else ''
  return ', '.join(parts[:limit]) + more


def _ranges(ids: list[int]) -> str:
  """[0, 1, 2, 5] as '0-2, 5'."""
  runs = []
  for value in sorted(ids):
    if runs and value == runs[-1][1] + 1:
      runs[-1][1] = value
    else:
      runs.append([value, value])
  return ', '.join(str(first) if first == last else f'{first}-{last}' for first, last in runs)


# Train id order and colours of cityscapesscripts' helpers/labels.py. Its 35th label, the licence
# plate with id -1, is never drawn into a labelIds file. 255 stays unknown on purpose: it would mean
# that a trainIds file, whose 0 to 18 are other classes, stands where a labelIds file should.
CITYSCAPES = LabelSet(
  'cityscapes',
  (
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light', 'traffic sign',
    'vegetation', 'terrain', 'sky', 'person', 'rider', 'car', 'truck', 'bus', 'train',
    'motorcycle', 'bicycle',
  ),
  np.array([
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
    (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
    (0, 80, 100), (0, 0, 230), (119, 11, 32),
  ], np.uint8),
  np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8),
  ignored_ids=(0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30),
)  # fmt: skip

# The 11 classes to which SegNet's authors reduced the 32 of CamVid, in their order and colours.
CAMVID = LabelSet(
  'camvid',
  (
    'Sky', 'Building', 'Pole', 'Road', 'Pavement', 'Tree', 'SignSymbol', 'Fence', 'Car',
    'Pedestrian', 'Bicyclist',
  ),
  np.array([
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
  ], np.uint8),
  np.arange(11, dtype=np.uint8),
  ignored_ids=(11,),
)  # fmt: skip
