"""The benchmarks measure what they say, and run at a tiny size."""

import argparse
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

pytest.importorskip('matplotlib')

from benchmarks import (
  basin_of_attraction,
  free_edge_logits,
  inversenet_accuracy,
  loss_figures,
  loss_gradients,
  operations,
  tiles,
)
from if_jax.ops.convolution import conv2d


@jax.tree_util.Partial
def centroid_net(prediction, target):
  """Measures shifts by the centres of mass, exactly while nothing leaves the tile."""

  def centre(maps):
    y, x = ((2 * jnp.arange(n) + 1) / n - 1 for n in maps.shape[1:3])
    mass = jnp.maximum(jnp.sum(maps, (1, 2)), 1e-6)
    x, y = (jnp.sum(maps * at, (1, 2)) / mass for at in (x[:, None], y[:, None, None]))
    return jnp.concatenate([x, y, jnp.zeros_like(x), jnp.zeros_like(x)], -1)

  return centre(target) - centre(prediction)


@pytest.fixture(scope='module', autouse=True)
def _compile_in_haste():
  """Runs slower and compiles in a third of the time, which is what counts here."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def quick(monkeypatch):
  """Spares the compilation of a network, and of what makes maps dirty."""
  for module in (inversenet_accuracy, basin_of_attraction, free_edge_logits):
    monkeypatch.setattr(module, 'read_inverse_net', lambda _: centroid_net)
  monkeypatch.setattr(inversenet_accuracy, 'corrupt', lambda rng, edges, others: edges / 2)
  return monkeypatch


def run(module, folder, *arguments):
  module.main(['--num_images=2', '--num_tiles=3', f'--output={folder}', *arguments])
  name = module.__name__.rpartition('.')[2]
  assert (folder / f'{name}.png').stat().st_size > 10_000
  record = json.loads((folder / f'{name}.json').read_text())
  assert record['command'].startswith(f'python -m benchmarks.{name} --num_images=2')
  return record


@pytest.mark.usefixtures('quick')
def test_accuracy_of_a_network_that_measures_shifts(tmp_path):
  record = run(inversenet_accuracy, tmp_path, '--num_curve_tiles=2')
  assert [row['maps'] for row in record['accuracy']] == 2 * ['clean', 'corrupt']
  assert sum(row['tiles'] for row in record['by_density']) == 3
  shift, scale = record['growth']
  assert shift['ratio'] < 1e-3 and scale['d at 0'] == shift['d at 0']


@pytest.mark.usefixtures('quick')
def test_errors_are_those_of_the_network():
  blob = np.zeros((1, 224, 224, 1), np.float32)
  blob[:, 100:120, 90:130] = 1
  some = tiles.Tiles(blob, (blob > 0.5).mean((1, 2, 3)), {'classes': blob})
  errors = inversenet_accuracy.errors_by_kind(centroid_net, some, seed=0)
  # The scales are drawn from within 20 %, and this network says that they are 1.
  assert (errors['clean'][:, 2:] < np.log(1.2)).all() and (errors['clean'][:, 2:] > 1e-3).all()
  np.testing.assert_array_equal(errors['classes'], errors['clean'])
  moved_only = inversenet_accuracy.distance_curves(centroid_net, some, seed=0)['clean', 'shift']
  np.testing.assert_allclose(moved_only[0] * 112, np.arange(21), atol=0.02)


def test_rank_correlation_is_scipys():
  distances = np.random.default_rng(0).normal(size=(4, 21))
  expected = [spearmanr(row, np.arange(21)).statistic for row in distances]
  np.testing.assert_allclose(inversenet_accuracy.rank_correlation(distances), expected)
  assert inversenet_accuracy.rank_correlation(np.ones((1, 21))).tolist() == [0]


def test_basin_of_a_network_that_measures_shifts(tmp_path, quick):
  quick.setattr(basin_of_attraction, '_NUM_TRIAL_TILES', 3)
  quick.setattr(basin_of_attraction, 'RATES', (1.0,))
  quick.setattr(basin_of_attraction, 'SHIFTS', (2, 5))
  quick.setattr(basin_of_attraction, 'SCALES', (0.05,))
  quick.setattr(basin_of_attraction, '_PROFILE_SHIFTS', np.array([-9, 0, 9]))
  record = run(basin_of_attraction, tmp_path, '--steps=5')
  assert record['tiles'] == 3
  ends = {(row['start'], row['loss']): row['median final shift, px'] for row in record['rows']}
  assert len(ends) == 9
  assert ends['shift 2 px', 'balanced cross-entropy'] < 1


def test_descent_ends_where_the_loss_is_least():
  blob = np.zeros((2, 224, 224, 1), np.float32)
  blob[:, 100:120, 90:130] = 1
  start = 10 * tiles.random_shifts(np.random.default_rng(0), 2)
  end = basin_of_attraction.descend(
    start,
    blob,
    inverse_net=centroid_net,
    loss_fn=basin_of_attraction.inverseform_loss,
    num_steps=30,
    momentum=0.7,
    rate=1.0,
  )
  assert not basin_of_attraction.within(start, 5).any()
  assert basin_of_attraction.within(np.array(end) * [1, 1, 0, 0], 0.5).all()


def test_free_logits(tmp_path, quick):
  quick.setattr(free_edge_logits, '_NUM_RECORDS', 2)
  quick.setattr(free_edge_logits, '_NUM_PICTURES', 1)
  record = run(free_edge_logits, tmp_path, '--steps=4')
  assert (tmp_path / 'free_edge_logits_tiles.png').is_file()
  gain = {row['idea']: row['gain'] for row in record['rows']}
  assert gain.keys() == free_edge_logits.IDEAS.keys()
  assert gain['cross-entropy (bound)'] > 0.1
  assert len({row['F before'] for row in record['rows']}) == 1


def test_boundary_f_counts_what_is_near():
  line, beside, far = np.zeros((3, 20, 20, 1))
  line[:, 5], beside[:, 7], far[:, 8] = 1, 1, 1
  assert free_edge_logits.boundary_f(line, line, 2.0) == 1
  assert free_edge_logits.boundary_f(beside, line, 2.0) == 1
  assert free_edge_logits.boundary_f(far, line, 2.0) == 0
  # Half of what is found is near, and all that is true is found.
  both = np.maximum(line, np.roll(line, 9, axis=1))
  assert free_edge_logits.boundary_f(both, line, 2.0) == pytest.approx(2 / 3)
  assert free_edge_logits.boundary_f(np.zeros_like(line), line, 2.0) == 0


def test_batches_give_what_the_whole_gives():
  x = np.arange(60.0)
  doubled, shapes = tiles.in_batches(lambda a: (2 * a, np.full(len(a), len(a))), x)
  np.testing.assert_array_equal(doubled, 2 * x)
  assert set(shapes) == {25}


def test_tiles_are_chosen_by_their_share():
  share = np.linspace(0, 0.1, 11, dtype=np.float32)
  all_tiles = tiles.Tiles(np.arange(11), share, {})
  chosen = all_tiles.choose(4, 0.045, seed=0)
  assert len(set(chosen.truth)) == 4 and (chosen.share >= 0.045).all()
  with pytest.raises(ValueError, match='no tile has 50% of boundary pixels'):
    all_tiles.choose(4, 0.5, seed=0)


def test_predicted_tiles_lie_on_the_true_ones(monkeypatch):
  def perfect(folder):
    # Answers with what it is shown: the images of this test are its labels.
    predictor = types.SimpleNamespace(edge_head=False, label_set=tiles_source.label_set)
    return type('Perfect', (), {**vars(predictor), '__call__': lambda _, image: {'label': image}})()

  parser = argparse.ArgumentParser()
  tiles.add_arguments(parser, num_tiles=3)
  arguments = parser.parse_args(['--num_images=1'])
  tiles_source = tiles.load_dataset('streets', 'val', num_examples=1)
  label = tiles.decode_label(tiles_source[0]['label'], '')
  train_ids = tiles_source.label_set.to_train_ids(label, '')
  monkeypatch.setattr(tiles, 'Predictor', perfect)
  monkeypatch.setattr(tiles, 'decode_image', lambda *_: train_ids)
  some = tiles.read_tiles(arguments, 'weights')
  assert some.truth.shape[1:] == (224, 224, 1)
  np.testing.assert_array_equal(some.predicted['classes'], some.truth)


def test_mistakes_are_told_in_a_sentence(capsys):
  with pytest.raises(SystemExit):
    inversenet_accuracy.main(['--dataset=camvid'])
  assert 'the data set camvid needs root' in capsys.readouterr().err


def test_the_loss_is_drawn(tmp_path, monkeypatch):
  monkeypatch.setattr(loss_figures, 'load_inversenet', lambda _: (centroid_net,))
  loss_figures.main([f'--output={tmp_path}', '--seed=1', '--shift', '5', '-3', '--scale=1'])
  record = json.loads((tmp_path / 'loss_figures.json').read_text())
  moved = [row['moved by'] for row in record['rows']]
  np.testing.assert_allclose(moved, [5, -3, 1, 1], rtol=1e-5)
  assert min(record['loss'], key=record['loss'].get) == '0.0'
  assert 10_000 < (tmp_path / 'loss_figures.png').stat().st_size < 300_000


def test_a_picture_without_a_street_around_it_is_refused(tmp_path):
  with pytest.raises(SystemExit):
    loss_figures.main([f'--output={tmp_path}', '--column=0'])


def test_operations_of_a_product_are_those_of_its_definition():
  matrices = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((5, 7), jnp.float32)
  assert operations.operations(jnp.matmul, *matrices) == 2 * 3 * 5 * 7


def test_operations_of_a_convolution_are_those_of_its_definition_whatever_the_processor():
  x, kernel = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((1, 64, 64, 520), (3, 3, 520, 512)))
  count = operations.operations(lambda x, kernel: conv2d(x, kernel, 1, 1), x, kernel)
  # Pixels at the edges see 2 of 3 rows or columns.
  assert count == pytest.approx(2 * (3 * 64 - 2) ** 2 * 520 * 512, rel=1e-3)


def test_gradients_of_terms_that_share_nothing_are_at_right_angles(monkeypatch, tmp_path):
  class Network(nn.Module):
    """Classes and boundaries from channels of their own."""

    @nn.compact
    def __call__(self, image, train):
      features = nn.Conv(20, (1, 1), name='backbone')(image)
      return {'logits': features[..., :19], 'edge_logits': features[..., 19:]}

  variables = jax.device_get(Network().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), True))
  monkeypatch.setattr(loss_gradients, 'load_weights', lambda _: (variables, {'edge_head': True}))
  monkeypatch.setattr(loss_gradients, 'model_from_card', lambda *_: Network())
  monkeypatch.setattr('if_jax.settings.load_inversenet', lambda *_, **__: (centroid_net,))
  flags = '--dataset=streets', '--crop=64,64', '--tile_rows=1', '--batch_size=2', '--num_batches=1'
  loss_gradients.main(['any', *flags, f'--output={tmp_path}'])
  rows = json.loads((tmp_path / 'loss_gradients.json').read_text())['rows']
  by_term = {row.pop('term'): row for row in rows}
  assert list(by_term) == list(loss_gradients.TERMS)
  assert by_term['segmentation']['cosine'] == pytest.approx(1)
  for term in ('boundary', 'inverseform'):
    assert by_term[term]['cosine'] == pytest.approx(0, abs=1e-6)
    assert min(by_term[term]['at edge logits'], by_term[term]['at the backbone']) > 0
  # It looks at the edge head, and teaches it nothing.
  assert by_term['attention']['at edge logits'] == by_term['segmentation']['at edge logits'] == 0
