"""Weight folders: written whole, read back equal, refused with a sentence."""

import json
import re
import struct

import numpy as np
import pytest
import yaml
from flax.traverse_util import flatten_dict, unflatten_dict
from fuzz.fuzz_weights import CARDS, VARIABLES, file_of

from if_jax import weights
from if_jax.data.labels import CAMVID
from if_jax.models import create_model
from if_jax.weights import (
  WEIGHTS_FILE,
  check_fits,
  label_set_of,
  load_weights,
  make_card,
  merge_weights,
  model_shapes,
  packaged_weights,
  save_weights,
)

MODEL = create_model('hrnet16_slim', 11)


@pytest.fixture(scope='module')
def variables():
  rng = np.random.RandomState(0)
  # Positive, as variances are.
  drawn = {
    path: rng.uniform(0.5, 1.5, shape).astype(np.float32)
    for path, shape in model_shapes(MODEL).items()
  }
  return unflatten_dict(drawn, sep='/')


def test_round_trip_keeps_bits_and_card(variables, tmp_path):
  transposed = {'params': {'kernel': np.arange(12, dtype=np.float32).reshape(3, 4).T}}
  save_weights(tmp_path, transposed, {'model': 'x'})
  np.testing.assert_equal(load_weights(tmp_path)[0], transposed)
  save_weights(tmp_path, variables, make_card('hrnet16_slim', MODEL, CAMVID, step=7))
  loaded, card = load_weights(tmp_path)
  np.testing.assert_equal(loaded, variables)
  assert (card['model'], card['edge_head'], card['step']) == ('hrnet16_slim', True, 7)
  labels = label_set_of(card)
  assert (labels.name, labels.class_names) == (CAMVID.name, CAMVID.class_names)
  np.testing.assert_array_equal(labels.colors, CAMVID.colors)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['README.md', 'config.json', WEIGHTS_FILE]


def test_who_may_read_the_card_may_read_the_weights(variables, tmp_path):
  save_weights(tmp_path, variables, {'model': 'hrnet18'})
  (tmp_path / 'usual').touch()
  assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_float16_halves_the_file_and_is_read_as_float32(variables, tmp_path):
  card = make_card('hrnet16_slim', MODEL, CAMVID)
  save_weights(tmp_path, variables, card)
  size = (tmp_path / WEIGHTS_FILE).stat().st_size
  save_weights(tmp_path, variables, card, dtype=np.float16)
  assert (tmp_path / WEIGHTS_FILE).stat().st_size < 0.53 * size
  loaded = load_weights(tmp_path)[0]
  for path, x in flatten_dict(loaded).items():
    given = flatten_dict(variables)[path]
    assert x.dtype == np.float32
    # Ten bits behind the point; drawn from 0.5 to 1.5.
    np.testing.assert_allclose(x, given, rtol=2**-11, atol=0)
  save_weights(tmp_path / 'again', loaded, card, dtype=np.float16)
  np.testing.assert_equal(load_weights(tmp_path / 'again')[0], loaded)


def test_what_a_dtype_cannot_hold_is_refused_before_anything_is_written(tmp_path):
  large = {'params': {'a': np.float32([1, 65519]), 'b': np.float32([1, -65520])}}
  with pytest.raises(ValueError, match='too large for float16: params/b; store them as float32'):
    save_weights(tmp_path / 'x', large, CARDS[0], dtype=np.float16)
  with pytest.raises(ValueError, match='float32 or float16, not float64'):
    save_weights(tmp_path / 'x', large, CARDS[0], dtype=np.float64)
  assert not (tmp_path / 'x').exists()
  save_weights(tmp_path / 'x', {'params': {'a': np.float32([np.nan])}}, CARDS[0], dtype=np.float16)
  with pytest.raises(ValueError, match='the weights are not finite: params/a'):
    load_weights(tmp_path / 'x')


def test_weights_of_the_package_are_found_by_name(tmp_path, monkeypatch):
  packaged = tmp_path / 'package'
  monkeypatch.setattr(weights, 'PACKAGED', packaged)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r'no weights in town: .* by name, the package has none$'):
    load_weights('town')
  for name, card in (('town', CARDS[0]), ('back', CARDS[1]), ('inversenet', CARDS[2])):
    save_weights(packaged / name, VARIABLES, card)
  assert packaged_weights() == ['back', 'town']
  assert load_weights('town')[1] == CARDS[0]
  with pytest.raises(ValueError, match=r'no weights in twon: .* the package has back, town$'):
    load_weights('twon')
  with pytest.raises(ValueError, match=r'no weights in \.\./package/town'):
    load_weights('../package/town')
  # What is there goes before what the package has.
  save_weights('town', VARIABLES, CARDS[1])
  assert load_weights('town')[1] == CARDS[1]


def _header_and_text(folder):
  empty, header, text = (folder / 'README.md').read_text(encoding='utf-8').split('---\n', 2)
  assert not empty
  return yaml.safe_load(header), text


def test_the_readme_says_what_the_hub_wants_to_know(variables, tmp_path):
  card = make_card('hrnet16_slim', MODEL, CAMVID, step=850, miou=0.4321, license='apache-2.0')
  save_weights(tmp_path, variables, card)
  header, text = _header_and_text(tmp_path)
  (result,) = header.pop('model-index')[0]['results']
  assert header == {
    'library_name': 'if_jax',
    'license': 'apache-2.0',
    'pipeline_tag': 'image-segmentation',
    'tags': ['jax', 'flax', 'hrnet16_slim'],
    'datasets': ['camvid'],
    'metrics': ['mean_iou'],
  }
  assert result['dataset'] == {'name': 'camvid', 'type': 'camvid'}
  assert result['metrics'] == [{'type': 'mean_iou', 'value': 0.4321}]
  for said in ('11 of camvid: Sky, Building', '43.2%', '850 steps', '0.485, 0.456, 0.406'):
    assert said in text
  num_parameters = sum(x.size for x in flatten_dict(variables['params']).values())
  assert f'network `hrnet16_slim`, {num_parameters:,} parameters' in text


def test_a_readme_says_nothing_that_is_not_known(tmp_path):
  save_weights(tmp_path, VARIABLES, CARDS[1])
  header, text = _header_and_text(tmp_path)
  assert header == {'library_name': 'if_jax', 'tags': ['jax', 'flax', 'hrnet18']}
  assert 'backbone `hrnet18`, 3 parameters' in text
  odd = CARDS[0] | {'label_set': CARDS[0]['label_set'] | {'name': 'a: "b"\n---\nlicense: mit'}}
  save_weights(tmp_path, VARIABLES, odd)
  header, _ = _header_and_text(tmp_path)
  assert header['datasets'] == [odd['label_set']['name']] and 'license' not in header


def test_a_backbone_has_no_classes():
  with pytest.raises(ValueError, match='those of a backbone'):
    label_set_of({'model': 'hrnet18', 'part': 'backbone'})


def test_a_disk_that_is_full_leaves_the_old_weights(tmp_path, monkeypatch):
  save_weights(tmp_path, VARIABLES, CARDS[0])
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

  def full_disk(tensors, path, metadata):
    path.write_bytes(b'half')
    raise OSError('No space left on device')

  monkeypatch.setattr('if_jax.weights.save_file', full_disk)
  with pytest.raises(OSError, match='No space left'):
    save_weights(tmp_path, VARIABLES, CARDS[1])
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damaged_and_absent_files_are_told(tmp_path):
  with pytest.raises(ValueError, match='no weights in'):
    load_weights(tmp_path)
  save_weights(tmp_path, {'params': {'a': np.zeros(9, np.float32)}}, {'model': 'x'})
  whole = (tmp_path / WEIGHTS_FILE).read_bytes()
  for content in (whole[:-4], whole[:10], b'', b'x' * 100):
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ValueError, match='cannot be read'):
      load_weights(tmp_path)


def _refusal(folder, data):
  (folder / WEIGHTS_FILE).write_bytes(data)
  with pytest.raises(ValueError) as caught:
    load_weights(folder)
  sentence = str(caught.value)
  assert sentence.startswith(f'{folder / WEIGHTS_FILE}') and sentence.isprintable()
  return sentence


def _tensor(shape=(1,), start=0, end=4, dtype='F32'):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, end]}


@pytest.mark.parametrize(
  ('entries', 'told'),
  [
    ({'params//x': _tensor()}, "an entry 'params//x', which no network has"),
    ({'opt/x': _tensor()}, "an entry 'opt/x'"),
    ({'params': _tensor()}, "an entry 'params'"),
    ({'params/\x1b[2J': _tensor()}, r"an entry 'params/\x1b[2J'"),
    ({'params' + '/a' * 100: _tensor()}, 'which no network has'),
    ({'params/a': _tensor(), 'params/a/b': _tensor(start=4, end=8)}, 'that is itself an array'),
    ({'params/a': _tensor(dtype='I32')}, 'params/a is of type I32; weights are F32'),
    ({'params/a': _tensor(dtype='BF16', shape=(2,))}, 'is of type BF16'),
    ({'params/a': _tensor(dtype='\x1b[2J')}, 'unknown variant'),
    ({'params/a': _tensor(), 'params/b': _tensor()}, 'invalid offset'),
    ({'params/a': _tensor(end=2**40, shape=(2**38,))}, 'file not fully covered'),
    ({'params/a': _tensor(end=0, shape=(2**62, 4, 0))}, 'overflow'),
    ({'params/a': _tensor(end=0, shape=(0, 2**62))}, 'too big'),
    ({'params/a': _tensor(shape=(1,) * 100)}, 'maximum supported dimension'),
  ],
)
def test_entries_that_no_network_has_are_refused(tmp_path, entries, told):
  header = {'__metadata__': {'card': json.dumps(CARDS[0])}, **entries}
  ends = [entry['data_offsets'][1] for entry in entries.values()]
  data = file_of(json.dumps(header).encode(), min(max(ends), 8))
  assert told in _refusal(tmp_path, data)


@pytest.mark.parametrize(
  ('card', 'told'),
  [
    ('null', 'does not say which model'),
    ('["model"]', 'does not say which model'),
    ('{"model": "x"', 'Expecting'),
    ('[' * 100_000, 'nested too deeply'),
    ('9' * 5000, 'Exceeds the limit'),
    ({'model': 3}, '"model" on its card is 3, not the name of a network'),
    ({'model': '../x'}, '"model" on its card'),
    ({'model': 'x' * 5000}, '"model" on its card'),
    (CARDS[0] | {'edge_head': 1}, '"edge_head" on its card is 1, not true or false'),
    (CARDS[1] | {'part': ['backbone']}, '"part" on its card'),
    (CARDS[2] | {'architecture': []}, '"architecture" on its card is []'),
    (CARDS[2] | {'num_outputs': 4.0}, '"num_outputs" on its card is 4.0, not 4, 6 or 8'),
    (CARDS[2] | {'tile_size': 10**9}, '"tile_size" on its card is 1000000000'),
    (CARDS[2] | {'tile_size': float('nan')}, '"tile_size" on its card is nan'),
    ({'model': 'x', 'label_set': []}, '"label_set" is [], not an object with a "name"'),
    ({'model': 'x', 'label_set': {'name': '\n'}}, 'not an object with a "name"'),
    ({'model': 'x', 'label_set': {'name': 'a'}}, 'not an object with a list "classes"'),
    ({'model': 'x', 'label_set': {'name': 'a', 'classes': [[[]]]}}, 'class 0 is [[]]'),
    ({'model': 'x', 'label_set': CARDS[0]['label_set']}, 'whether there is an edge head'),
  ],
)
def test_a_card_that_readers_cannot_use_is_refused(tmp_path, card, told):
  text = card if isinstance(card, str) else json.dumps(card)
  header = json.dumps({'__metadata__': {'card': text}}).encode()
  assert told in _refusal(tmp_path, file_of(header, 0))


def test_a_header_is_bounded_before_it_is_read(tmp_path):
  assert 'a header of 1152921504606846976 bytes' in _refusal(tmp_path, struct.pack('<Q', 1 << 60))
  assert 'header of 5000000 bytes in a' in _refusal(tmp_path, struct.pack('<Q', 5_000_000) + b'{}')
  assert 'more than 4194304' in _refusal(tmp_path, file_of(b'{}' + b' ' * 5_000_000))


def test_numbers_that_no_network_has_are_refused_by_name(tmp_path):
  def told(params, batch_stats):
    save_weights(tmp_path, {'params': params, 'batch_stats': batch_stats}, CARDS[0])
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as caught:
      load_weights(tmp_path)
    return str(caught.value)

  fine, negative = {'a': np.ones(3)}, {'bn': {'mean': -np.ones(2), 'var': np.float32([1, -1e-9])}}
  assert 'are not finite: params/a;' in told({'a': np.float32([1, np.nan])}, {})
  many = {f'layer{i}': np.float32(-np.inf) for i in range(9)}
  assert 'not finite: params/layer0, params/layer1' in told({**fine, **many}, {})
  assert 'params/layer4 and 4 more' in told({**fine, **many}, {})
  assert 'running variances are negative: batch_stats/bn/var;' in told(fine, negative)


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
  return unflatten_dict(
    {k: np.zeros(s, np.float32) for k, s in model_shapes(model).items()}, sep='/'
  )


def _without(variables, module, part):
  params = dict(variables['params'])
  params[module] = {k: v for k, v in params[module].items() if k != part}
  return {**variables, 'params': params}
