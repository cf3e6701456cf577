import json
import pickle

import numpy as np
import pytest

from if_jax.data.labels import CAMVID, CITYSCAPES, IGNORE, LabelSet, load_label_set

ROAD = {'name': 'road', 'color': [128, 64, 128], 'id': 3}
SKY = {'name': 'sky', 'color': [70, 130, 180], 'id': 200}


def write_classes(folder, content):
  path = folder / 'classes.json'
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


def test_cityscapes_is_the_table_of_cityscapesscripts():
  official = pytest.importorskip('cityscapesscripts.helpers.labels').labels
  # The licence plate has id -1, which is never drawn into a file.
  drawn = [label for label in official if label.id >= 0]
  ids = np.uint8([[label.id for label in drawn]])
  assert CITYSCAPES.to_train_ids(ids, 'x').tolist() == [[label.trainId for label in drawn]]
  assert len(drawn) == CITYSCAPES.num_classes + len(CITYSCAPES.ignored_ids) == 34

  evaluated = sorted((x for x in drawn if not x.ignoreInEval), key=lambda label: label.trainId)
  assert CITYSCAPES.class_names == tuple(label.name for label in evaluated)
  assert CITYSCAPES.colors.tolist() == [list(label.color) for label in evaluated]
  assert CITYSCAPES.label_ids.tolist() == [label.id for label in evaluated]


def test_camvid_keeps_its_ids_and_ignores_void():
  assert CAMVID.to_train_ids(np.arange(12, dtype=np.uint8), 'x').tolist() == [*range(11), IGNORE]


@pytest.mark.parametrize('label_set', [CITYSCAPES, CAMVID], ids=lambda label_set: label_set.name)
def test_train_ids_come_back_from_label_ids_and_colors(label_set):
  train_ids = np.uint8([[*range(label_set.num_classes), IGNORE]])
  ids = label_set.to_label_ids(train_ids)
  assert ids.dtype == np.uint8
  np.testing.assert_array_equal(label_set.to_train_ids(ids, 'x'), train_ids)
  np.testing.assert_array_equal(
    label_set.color_to_ids(label_set.colors[None], 'x')[0], label_set.label_ids
  )


@pytest.mark.parametrize('dtype', [np.uint8, np.int16, np.int32, np.uint16])
def test_every_dtype_of_ids_gives_the_same_train_ids(dtype):
  ids = np.arange(34).reshape(2, 17)
  train_ids = CITYSCAPES.to_train_ids(ids.astype(dtype), 'x')
  assert train_ids.dtype == np.uint8
  np.testing.assert_array_equal(train_ids, CITYSCAPES.to_train_ids(ids.astype(np.uint8), 'x'))


def test_unknown_ids_are_named_with_their_pixel_counts():
  ids = np.full((4, 5), 7, np.int32)
  ids[0, :3], ids[1, 0], ids[2] = 77, 26001, -1
  with pytest.raises(ValueError) as raised:
    CITYSCAPES.to_train_ids(ids, 'lindau_labelIds.png')
  message = str(raised.value)
  assert message.startswith(
    'lindau_labelIds.png: label id -1 (5 pixels), 77 (3 pixels), 26001 (1 pixel) not in'
  )
  assert 'give these pixels one of its ids 7-8, 11-13, 17, 19-28, 31-33, or 0' in message


def test_a_train_id_file_in_place_of_label_ids_is_refused():
  with pytest.raises(ValueError, match=r'label id 255 \(1 pixel\) not in'):
    CITYSCAPES.to_train_ids(np.uint8([[7, 8, 255]]), 'labelTrainIds.png')


def test_a_long_list_of_unknown_ids_is_cut():
  with pytest.raises(ValueError, match=r'109 \(1 pixel\) and 20 more not in'):
    CAMVID.to_train_ids(np.arange(100, 130, dtype=np.uint8), 'x')


def test_train_ids_without_a_label_id_are_refused():
  with pytest.raises(ValueError, match=r'train ids \[11, 254\] have no label id'):
    CAMVID.to_label_ids(np.uint8([0, 11, 254]))
  two = LabelSet('two', ('a', 'b'), np.uint8([[0, 0, 1], [0, 0, 2]]), np.uint8([0, 1]))
  with pytest.raises(ValueError, match=r'train ids \[255\] have no label id'):
    two.to_label_ids(np.uint8([0, 255]))


def test_a_label_set_can_be_sent_to_another_process():
  CITYSCAPES.to_train_ids(np.uint8([7]), 'x')
  copy = pickle.loads(pickle.dumps(CITYSCAPES))
  assert repr(copy) == repr(CITYSCAPES)
  assert copy.to_train_ids(np.uint8([7, 0, 33]), 'x').tolist() == [0, IGNORE, 18]


def test_load_label_set(tmp_path):
  path = write_classes(tmp_path, {'classes': [ROAD, SKY], 'ignore': [0, 255]})
  label_set = load_label_set(path)
  assert label_set.name == tmp_path.name
  assert label_set.class_names == ('road', 'sky')
  assert label_set.colors.tolist() == [[128, 64, 128], [70, 130, 180]]
  assert label_set.to_train_ids(np.uint8([3, 200, 0, 255]), 'x').tolist() == [0, 1, 255, 255]


def test_ids_left_out_are_the_places_in_the_list(tmp_path):
  classes = [{'name': x['name'], 'color': x['color']} for x in (ROAD, SKY)]
  assert load_label_set(write_classes(tmp_path, {'classes': classes})).label_ids.tolist() == [0, 1]


def test_ignored_colors_become_an_ignored_id_that_no_class_has(tmp_path):
  last = {**SKY, 'id': 255}
  path = write_classes(tmp_path, {'classes': [ROAD, last], 'ignore': [[0, 0, 0]]})
  label_set = load_label_set(path)
  ids = label_set.color_to_ids(np.uint8([[[128, 64, 128], [0, 0, 0], [70, 130, 180]]]), 'x')
  assert ids.tolist() == [[3, 254, 255]]
  assert label_set.to_train_ids(ids, 'x').tolist() == [[0, IGNORE, 1]]


def test_colors_are_found_as_by_comparing_each(tmp_path):
  rng = np.random.default_rng(0)
  mask = CITYSCAPES.colors[rng.integers(0, 19, (30, 40))]
  expected = np.zeros((30, 40), np.uint8)
  for color, label_id in zip(CITYSCAPES.colors, CITYSCAPES.label_ids, strict=True):
    expected[(mask == color).all(-1)] = label_id
  np.testing.assert_array_equal(CITYSCAPES.color_to_ids(mask, 'x'), expected)


def test_unknown_colors_are_named_with_their_pixel_counts():
  mask = np.tile(CITYSCAPES.colors[:1], (3, 4, 1))
  mask[0, :2], mask[2, 3] = (255, 255, 255), (1, 2, 3)
  with pytest.raises(
    ValueError,
    match=r'm\.png: colour \(1, 2, 3\) \(1 pixel\), \(255, 255, 255\) \(2 pixels\) not in',
  ):
    CITYSCAPES.color_to_ids(mask, 'm.png')


def test_a_missing_class_file_shows_what_to_write(tmp_path):
  with pytest.raises(FileNotFoundError, match='no class file here') as raised:
    load_label_set(tmp_path / 'classes.json')
  message = str(raised.value)
  template = message[message.index('{') :]
  assert load_label_set(write_classes(tmp_path, template)).class_names == ('road', 'building')


@pytest.mark.parametrize(
  ('content', 'complaint'),
  [
    ('{"classes": [', r'Expecting value: line 1 column 14'),
    ([ROAD], 'not an object with a list "classes"'),
    ({'classes': []}, '0 classes; a label set has 1 to 254'),
    ({'classes': ['road']}, "class 0 is 'road', not an object"),
    ({'classes': [{**ROAD, 'colour': 1}]}, "class 0 has the unknown key 'colour'"),
    ({'classes': [ROAD], 'ignored': []}, "the class file has the unknown key 'ignored'"),
    ({'classes': [{'color': [1, 2, 3]}]}, 'class 0 has no "name"'),
    ({'classes': [{'name': 'road'}]}, r'class 0 \(road\) has the colour None'),
    ({'classes': [{**ROAD, 'color': [1, 2, 256]}]}, r'the colour of class 0 \(road\) is 256'),
    ({'classes': [ROAD, {**SKY, 'id': 256}]}, r'"id" of class 1 \(sky\) is 256'),
    ({'classes': [{**ROAD, 'id': True}]}, r'"id" of class 0 \(road\) is True'),
    ({'classes': [ROAD, {**SKY, 'id': 3}]}, 'id 3 is given more than once'),
    ({'classes': [ROAD, {**SKY, 'name': 'road'}]}, 'name road is given more than once'),
    ({'classes': [ROAD, {**SKY, 'color': [128, 64, 128]}]}, r'colour \(128, 64, 128\) is given'),
    ({'classes': [ROAD], 'ignore': [3]}, 'id 3 is given more than once'),
    ({'classes': [ROAD], 'ignore': 255}, '"ignore" is 255, not a list'),
    ({'classes': [ROAD], 'ignore': [-1]}, 'an entry of "ignore" is -1'),
    ('[' * 100_000, 'nested too deeply'),
    ('{"classes": [' + '9' * 5000 + ']}', 'Exceeds the limit'),
    (' ' * 2_000_000, 'over 1 MiB'),
    ({'classes': ['x' * 9000]}, "class 0 is 'xxxxxxxxxxxx...xxxxxxxxxxxxx', not an object"),
    ({'classes': [{**ROAD, 'name': '\x1b[2J'}]}, r"is '\\x1b\[2J', not up to 100 letters"),
    ({'classes': [{**ROAD, 'name': 'x' * 101}]}, 'not up to 100 letters'),
    ({'classes': [{**ROAD, 'id': float('nan')}]}, r'"id" of class 0 \(road\) is nan'),
    # As long as a class file may be, and told without comparing all with all.
    ({'classes': [ROAD], 'ignore': [[i >> 8, i & 255, 0] for i in range(20_000)] * 2}, 'colour '),
    (
      {'classes': [{'name': str(i), 'color': [i, 0, 0], 'id': i} for i in range(255)]},
      '255 classes; a label set has 1 to 254',
    ),
  ],
)
def test_a_wrong_class_file_is_told_by_its_entry(tmp_path, content, complaint):
  path = write_classes(tmp_path, content)
  with pytest.raises(ValueError, match=complaint) as raised:
    load_label_set(path)
  assert str(raised.value).startswith(f'{path}: ')
  assert 'A class file is JSON of this form' in str(raised.value)
