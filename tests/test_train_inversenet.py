"""The training of inverse networks: it learns, it resumes, it runs from the command line."""

import functools
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import metrics_of, run_main

from configs import inversenet as inversenet_config
from if_jax import inversenet_step
from if_jax import train_inversenet as train_module
from if_jax.boundary_pairs import PairSettings, draw_parameters
from if_jax.data.labels import IGNORE
from if_jax.inversenet_step import pair_errors, train_step
from if_jax.models.inversenet import InverseMatcher, InverseMLP, create_inversenet, load_inversenet
from if_jax.ops.transforms import matrix_from_parameters
from if_jax.ops.warp import homography_warp
from if_jax.optimizers import make_optimizer
from if_jax.train_inversenet import crop_batches, initial_state, load_maps, train_inversenet
from if_jax.weights import load_weights

# Compiled with few optimisations, in a third of the time.
fast_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture
def plain_pairs(monkeypatch):
  """Pairs of rectangles' outlines, quick to compile: those of training have tests of their own."""

  def draw(rng, labels, settings, predicted=None):
    target = labels[..., None].astype(jnp.float32)
    parameters = draw_parameters(rng, len(labels), settings)
    return homography_warp(target, matrix_from_parameters(parameters)), target, parameters

  monkeypatch.setattr(inversenet_step, 'draw_pairs', draw)


def take_steps(model, settings, *, num_steps, distance='euclidean', batch_size=8):
  """The metrics of each step, and the last state."""
  optimizer = make_optimizer(lambda step: 3e-3, name='adamw')
  state = initial_state(model, optimizer, settings.tile_size, seed=0)
  step = functools.partial(
    train_step, model=model, optimizer=optimizer, settings=settings, distance=distance, seed=0
  )
  step, rng, history = fast_jit(step), np.random.RandomState(0), []
  for _ in range(num_steps):
    labels = np.zeros((batch_size, settings.tile_size, settings.tile_size), np.uint8)
    for tile in labels:
      for _ in range(3):
        y, x = rng.randint(0, settings.tile_size // 2, 2)
        height, width = rng.randint(8, settings.tile_size // 2, 2)
        tile[y : y + height, x : x + width] = 1
        tile[y + 2 : y + height - 2, x + 2 : x + width - 2] = 0
    state, metrics = step(state, {'label': labels})
    history.append(jax.device_get(metrics))
  return history, state


def test_training_lowers_the_loss(plain_pairs):
  settings = PairSettings(tile_size=64, max_scale=0.0)
  model = InverseMatcher(width=16, num_features=8, gates=(4.0, 2.0))
  history, state = take_steps(model, settings, num_steps=80)
  losses = [metrics['loss'] for metrics in history]
  assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
  assert int(state.step) == 80


def test_the_released_layout_learns(plain_pairs):
  history, _ = take_steps(InverseMLP(hidden=(64, 16)), PairSettings(tile_size=32), num_steps=60)
  losses = [metrics['loss'] for metrics in history]
  assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


@pytest.mark.parametrize(('num_parameters', 'distance'), [(6, 'euclidean'), (8, 'geodesic')])
def test_every_kind_of_transform_takes_a_step(plain_pairs, num_parameters, distance):
  settings = PairSettings(num_parameters, tile_size=32)
  model = InverseMatcher(num_parameters, width=8, num_features=4, gates=(4.0,))
  (metrics, _), state = take_steps(model, settings, num_steps=2, distance=distance)
  assert all(np.isfinite(x) for x in metrics.values())
  assert metrics['gradient_norm'] > 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_tiles_without_a_boundary_are_to_be_found_aligned(plain_pairs):
  """Whatever the transform was: the answer of a network without biases is right."""
  optimizer = make_optimizer(lambda step: 0.0)
  step = functools.partial(
    train_step,
    model=InverseMLP(hidden=(4,)),
    optimizer=optimizer,
    settings=PairSettings(tile_size=32, identity=0.0),
    distance='euclidean',
    seed=0,
  )
  state = initial_state(InverseMLP(hidden=(4,)), optimizer, tile_size=32, seed=0)
  _, metrics = fast_jit(step)(state, {'label': np.zeros((4, 32, 32), np.uint8)})
  assert (metrics['loss'], metrics['shift_error'], metrics['scale_error']) == (0, 0, 0)


def test_errors_are_in_pixels_and_logarithms_for_every_parameterisation():
  four = jnp.array([[0.25, -0.5, 0.1, 0.3]])
  six = jnp.array([[np.expm1(0.1), 0, 0.25, 0, np.expm1(0.3), -0.5]])
  eight = jnp.concatenate([six, jnp.zeros((1, 2))], axis=1)
  for truth in (four, six, eight):
    errors = pair_errors(jnp.zeros_like(truth), truth, 224)
    np.testing.assert_allclose(errors['shift_error'], [(28 + 56) / 2], rtol=1e-5)
    np.testing.assert_allclose(errors['scale_error'], [0.2], rtol=1e-5)


def test_crops_of_a_step_do_not_depend_on_where_the_run_started():
  maps = [np.arange(100, dtype=np.uint8).reshape(10, 10)]
  make_batches = functools.partial(crop_batches, maps, batch_size=2, seed=7)
  with make_batches(start_step=0) as whole, make_batches(start_step=2) as resumed:
    batches = [next(whole)['label'] for _ in range(4)]
    np.testing.assert_array_equal(batches[2:], [next(resumed)['label'] for _ in range(2)])
  assert (batches[0] != batches[1]).any()


def test_label_maps_come_from_all_sources():
  config = inversenet_config.get_config()
  config.sources.streets = 6
  (maps, predicted), (unseen, _) = (load_maps(config, split, True) for split in ('train', 'val'))
  assert (len(maps), len(predicted), len(unseen)) == (6, 0, 2)
  assert all(x.dtype == np.uint8 and x.shape == (360, 720) for x in maps + unseen)
  assert (maps[0] != unseen[0]).any()


def test_predicted_boundaries_are_cut_where_the_labels_are(monkeypatch):
  class Bright:
    """Takes the red of an image for the boundary probability."""

    edge_head = True

    def __call__(self, image):
      return {'edge_probability': image[..., :1] / 255}

  monkeypatch.setattr(train_module, 'Predictor', lambda name: {'bright': Bright()}[name])
  monkeypatch.setattr(train_module, 'decode_image', lambda data, name: repainted[data])
  monkeypatch.setattr(train_module, 'decode_label', lambda data, name: repainted[data][..., 0])
  repainted = np.random.default_rng(0).integers(0, 19, (3, 30, 50, 3), np.uint8)
  dataset = Painted(repainted)
  monkeypatch.setattr(train_module, 'load_dataset', lambda *_, **__: dataset)
  config = inversenet_config.get_config()
  config.predictions = 'bright'
  labels, predicted = load_maps(config, 'train', True)
  np.testing.assert_array_equal(predicted, labels)
  with crop_batches(labels, predicted, batch_size=4, seed=0, start_step=3) as stream:
    batch = next(stream)
  assert (batch['label'] == IGNORE).any()
  np.testing.assert_array_equal(
    batch['predicted'], np.where(batch['label'] == IGNORE, 0, batch['label'])
  )


class Painted(list):
  """A data set whose files are the numbers of its images, and whose ids stay as they are."""

  def __init__(self, images):
    super().__init__({'image': i, 'label': i, 'name': str(i)} for i in range(len(images)))
    self.label_set = types.SimpleNamespace(to_train_ids=lambda ids, name: ids)


def test_a_network_without_an_edge_head_predicts_no_boundaries(monkeypatch):
  config = inversenet_config.get_config()
  config.predictions = 'flat'
  flat = types.SimpleNamespace(edge_head=False)
  monkeypatch.setattr(train_module, 'Predictor', lambda name: flat)
  with pytest.raises(ValueError, match=r"config\.predictions='flat' has no edge head"):
    load_maps(config, 'train', True)


def test_the_configuration_describes_what_can_be_built():
  config = inversenet_config.get_config()
  PairSettings(config.num_outputs, config.tile_size, config.boundary_radius, **config.pairs)
  create_inversenet(config.name, config.num_outputs)
  assert 'python main.py --mode=train_inversenet' in inversenet_config.__doc__


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('num_outputs', 5, 'num_outputs=5; a transform has 4, 6 or 8'),
    ('distance', 'angle', "distance='angle'; there are euclidean, geodesic"),
    ('sources.streets', 0, 'sources names no data'),
    ('train.num_steps', 50, 'warmup_steps=50 leaves none'),
    ('train.log_every', 0, 'log_every=0; give at least 1'),
    ('name', 'cnn', "no inverse network 'cnn'"),
    ('tile_size', 100, 'a multiple of 16'),
    ('pairs.clean', 2.0, r'clean is 2\.0'),
  ],
)
def test_mistakes_are_told_before_anything_is_done(tmp_path, key, value, message):
  config = inversenet_config.get_config()
  config.sources.streets = 1
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=message):
    train_inversenet(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


SMALL = (
  '--mode=train_inversenet',
  '--config.name=mlp',
  '--config.sources.streets=2',
  '--config.tile_size=32',
  '--config.train.batch_size=4',
  '--config.train.num_steps=4',
  '--config.train.log_every=1',
  '--config.train.eval_every=2',
  '--config.train.checkpoint_every=2',
  '--config.optimizer.warmup_steps=1',
)


def test_the_command_trains_and_a_resumed_run_ends_the_same(tmp_path, monkeypatch):
  """Two forced devices; the second run starts from the checkpoint at step 2 of the first."""
  # The second run takes what the first one compiled.
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'compiled'))
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  run = run_main(*SMALL, f'--workdir={whole}', devices=2)
  assert run.returncode == 0, run.stderr
  assert f'--config.loss.inversenet={whole}/inversenet' in run.stdout
  assert f'The report is {whole}/report.html' in run.stdout
  lines = metrics_of(whole)
  assert [line['step'] for line in lines if 'train/loss' in line] == [1, 2, 3, 4]
  scores = [line for line in lines if 'val/clean_shift_error' in line]
  assert [line['step'] for line in scores] == [2, 4]
  assert all(np.isfinite(x) for line in lines for x in line.values())
  assert (whole / 'curves.png').is_file()
  report = (whole / 'report.html').read_text()
  assert 'Error of shifts' in report and 'sources.<' in report
  apply_fn, variables = load_inversenet(whole / 'inversenet')
  tiles = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
  assert jax.eval_shape(apply_fn, variables, tiles, tiles).shape == (1, 4)
  _, card = load_weights(whole / 'inversenet')
  assert card['step'] == 4
  assert {f'val/{name}': x for name, x in card['val'].items()}.items() <= scores[-1].items()

  shutil.copytree(whole, resumed)
  shutil.rmtree(resumed / 'checkpoints' / '4')
  again = run_main(*SMALL, f'--workdir={resumed}', devices=2)
  assert again.returncode == 0, again.stderr
  assert 'going on at step 2 of 4' in again.stdout
  assert metrics_of(resumed) == lines
  for file in ('model.safetensors', 'config.json'):
    assert (resumed / 'inversenet' / file).read_bytes() == (
      whole / 'inversenet' / file
    ).read_bytes()


def test_a_configuration_for_another_mode_is_told(tmp_path):
  for mode, name in (('train_inversenet', 'demo'), ('train', 'inversenet')):
    run = run_main(f'--mode={mode}', f'--config=configs/{name}.py', f'--workdir={tmp_path}/run')
    assert run.returncode == 2
    assert f'--mode={mode} does not go with this configuration' in run.stderr
    assert run.stderr.count('\n') == 1
