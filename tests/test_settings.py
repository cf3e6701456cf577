"""From a configuration to what it names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from if_jax import settings
from if_jax.losses import LossWeights
from if_jax.settings import loss_from_config, model_from_config, weights_folder


def test_which_weights_are_meant(tmp_path):
  config = default.get_config()
  best = tmp_path / 'run' / 'best'
  assert weights_folder(config, str(tmp_path / 'run')) == best
  config.init_from = str(tmp_path / 'start')
  assert weights_folder(config, str(tmp_path / 'run')) == tmp_path / 'start'
  best.mkdir(parents=True)
  with pytest.raises(ValueError, match=r'both .*start .* and .*best hold weights'):
    weights_folder(config, str(tmp_path / 'run'))
  config.init_from = str(best)
  assert weights_folder(config, str(tmp_path / 'run')) == best


@pytest.mark.parametrize('dtype', ['bf16', 'float16', 'int32'])
def test_other_dtypes_are_refused(dtype):
  config = default.get_config()
  config.model.dtype = dtype
  with pytest.raises(ValueError, match=f"dtype='{dtype}'; give float32 or bfloat16"):
    model_from_config(config, 3)


def test_a_key_that_does_not_exist_cannot_be_set():
  config = default.get_config()
  with pytest.raises(AttributeError, match='num_steps'):
    config.train.num_step = 3


@pytest.fixture
def loaded(monkeypatch):
  """The inverse networks that were asked for, and their outputs; a stand-in is given."""
  asked = []

  def load(name, *, num_outputs):
    asked.append((name, num_outputs))
    return lambda scale, a, b: scale * jnp.mean(a - b, (1, 2)), np.float32([1, 2, 3, 4])

  monkeypatch.setattr(settings, 'load_inversenet', load)
  return asked


def test_the_loss_is_the_joint_loss_as_configured(loaded, monkeypatch):
  monkeypatch.setattr(settings, 'joint_loss', lambda *values, **options: (values, options))
  config = default.get_config()
  config.loss.inversenet = 'some/folder'
  config.loss.segmentation = 'ohem'
  config.loss.distance = 'geodesic'
  config.loss.boundary_radius = 1
  config.loss.num_outputs = 6
  config.loss.tile_rows = 2
  config.loss.tile_size = 64
  config.loss.gradient = 'full'
  config.loss.inverseform_on = 'classes'
  config.loss.inverseform_start = 0.25
  config.train.num_steps = 1000
  config.loss.weights.attention = 0.7
  loss_fn = loss_from_config(config, axis_name='devices')
  assert loaded == [('some/folder', 6)]
  # An argument for a compiled step, not a constant in it.
  (variables,) = jax.tree.leaves(loss_fn)
  np.testing.assert_array_equal(variables, [1, 2, 3, 4])
  values, options = loss_fn('outputs', 'labels')
  assert values == ('outputs', 'labels')
  answer = options.pop('inverse_net')(np.ones((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)))
  np.testing.assert_array_equal(answer, [[1, 2, 3, 4]])
  assert options == {
    'weights': LossWeights(attention=0.7),
    'segmentation': 'ohem',
    'boundary_radius': 1,
    'tile_rows': 2,
    'tile_size': 64,
    'distance': 'geodesic',
    'gradient': 'full',
    'inverseform_on': 'classes',
    'inverseform_from': 250,
    'axis_name': 'devices',
  }


def test_a_start_beyond_the_training_is_refused():
  config = default.get_config()
  config.loss.inverseform_start = 1.0
  with pytest.raises(ValueError, match=r'inverseform_start=1.0; give 0 \(at once\) to below 1'):
    loss_from_config(config)


@pytest.mark.parametrize('edge_head', [True, False])
def test_boundaries_that_are_not_there_are_told(edge_head):
  config = default.get_config()
  config.model.edge_head = edge_head
  config.loss.inverseform_on = 'class'
  message = r"config.loss.inverseform_on 'class'; there are edge_head, classes. .* 'classes'"
  with pytest.raises(ValueError, match=message):
    loss_from_config(config)


def test_between_classes_the_loss_needs_no_edge_head(loaded):
  config = default.get_config()
  config.model.edge_head = False
  config.loss.inverseform_on = 'classes'
  assert jax.tree.leaves(loss_from_config(config))
  assert loaded


@pytest.mark.parametrize('without', ['network', 'weight', 'edge head'])
def test_an_inverse_network_that_nothing_uses_is_not_loaded(loaded, without):
  config = default.get_config()
  config.loss.inversenet = '' if without == 'network' else 'default'
  config.loss.weights.inverseform = 0.0 if without == 'weight' else 0.3
  config.model.edge_head = without != 'edge head'
  assert not jax.tree.leaves(loss_from_config(config))
  assert not loaded
