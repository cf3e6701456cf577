"""Weight folders: written whole, read back equal, refused with a sentence."""

import numpy as np
import pytest

from if_jax.data.labels import CAMVID
from if_jax.models import create_model
from if_jax.weights import (
  WEIGHTS_FILE,
  check_fits,
  label_set_of,
  load_weights,
  make_card,
  merge_weights,
  save_weights,
)

MODEL = create_model('hrnet16_slim', 11)


@pytest.fixture(scope='module')
def variables():
  from flax.traverse_util import unflatten_dict

  from if_jax.weights import model_shapes

  rng = np.random.RandomState(0)
  drawn = {
    path: rng.standard_normal(shape).astype(np.float32)
    for path, shape in model_shapes(MODEL).items()
  }
  return unflatten_dict(drawn, sep='/')


def test_round_trip_keeps_bits_and_card(variables, tmp_path):
  transposed = {'params': {'kernel': np.arange(12.0).reshape(3, 4).T}}
  save_weights(tmp_path, transposed, {'model': 'x'})
  np.testing.assert_equal(load_weights(tmp_path)[0], transposed)
  save_weights(tmp_path, variables, make_card('hrnet16_slim', MODEL, CAMVID, step=7))
  loaded, card = load_weights(tmp_path)
  np.testing.assert_equal(loaded, variables)
  assert (card['model'], card['edge_head'], card['step']) == ('hrnet16_slim', True, 7)
  labels = label_set_of(card)
  assert (labels.name, labels.class_names) == (CAMVID.name, CAMVID.class_names)
  np.testing.assert_array_equal(labels.colors, CAMVID.colors)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['config.json', WEIGHTS_FILE]


def test_a_backbone_has_no_classes():
  with pytest.raises(ValueError, match='those of a backbone'):
    label_set_of({'model': 'hrnet18', 'part': 'backbone'})


def test_damaged_and_absent_files_are_told(tmp_path):
  with pytest.raises(ValueError, match='no weights in'):
    load_weights(tmp_path)
  save_weights(tmp_path, {'params': {'a': np.zeros(9, np.float32)}}, {'model': 'x'})
  whole = (tmp_path / WEIGHTS_FILE).read_bytes()
  for content in (whole[:-4], whole[:10], b'', b'x' * 100):
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ValueError, match='cannot be read'):
      load_weights(tmp_path)


def test_weights_of_another_model_are_refused_by_name(variables):
  check_fits(MODEL, variables, 'here')
  with pytest.raises(ValueError, match='1 missing: params/head/classifier/kernel') as error:
    check_fits(MODEL, _without(variables, 'head', 'classifier'), 'here')
  assert 'the weights in here do not fit' in str(error.value)
  with pytest.raises(ValueError, match='mis-shaped'):
    check_fits(create_model('hrnet16_slim', 5), variables, 'here')


def test_a_start_takes_what_fits(variables):
  """A backbone alone, and a checkpoint of other classes; nothing else may differ."""
  other = create_model('hrnet16_slim', 5)
  initial = _zeros(other)
  backbone = {collection: {'backbone': tree['backbone']} for collection, tree in variables.items()}
  merged = merge_weights(initial, backbone, 'here')
  np.testing.assert_equal(merged['params']['backbone'], variables['params']['backbone'])
  np.testing.assert_equal(merged['params']['head'], initial['params']['head'])
  merged = merge_weights(initial, variables, 'here')
  np.testing.assert_equal(merged['params']['head']['hidden'], variables['params']['head']['hidden'])
  np.testing.assert_equal(
    merged['params']['head']['classifier'], initial['params']['head']['classifier']
  )
  with pytest.raises(ValueError, match='unexpected'):
    merge_weights(_zeros(create_model('hrnet18', 11)), variables, 'here')


def _zeros(model):
  from flax.traverse_util import unflatten_dict

  from if_jax.weights import model_shapes

  return unflatten_dict(
    {k: np.zeros(s, np.float32) for k, s in model_shapes(model).items()}, sep='/'
  )


def _without(variables, module, part):
  params = dict(variables['params'])
  params[module] = {k: v for k, v in params[module].items() if k != part}
  return {**variables, 'params': params}
