"""Averages over looks, on models whose answer is known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from if_jax.inference import Looks, predict
from if_jax.models.hrnet import HRNetSpec
from if_jax.models.segmenter import Segmenter
from if_jax.ops.normalize import MEAN, STD, normalize

IMAGES = np.random.RandomState(0).randint(0, 256, (2, 37, 53, 3), np.uint8)


class PixelModel:
  """Looks at each pixel alone, so that no flip and no window can change its answer."""

  def apply(self, variables, image, train):
    assert not train
    return {'logits': image @ variables['classes'], 'edge_logits': image @ variables['edges']}


class ColumnModel:
  """Says 'class 1' in the left half of whatever it is shown."""

  def apply(self, variables, image, train):
    left = jnp.arange(image.shape[2]) < image.shape[2] // 2
    score = jnp.broadcast_to(10.0 * left, image.shape[:3])
    return {'logits': jnp.stack([jnp.zeros_like(score), score], -1)}


VARIABLES = {
  'classes': jax.random.normal(jax.random.key(0), (3, 4)),
  'edges': jax.random.normal(jax.random.key(1), (3, 1)),
}


def test_normalize_is_imagenets():
  expected = (IMAGES / 255 - MEAN) / STD
  np.testing.assert_allclose(normalize(jnp.asarray(IMAGES)), expected, atol=1e-5)


@pytest.mark.parametrize(
  'tta',
  [
    Looks(flip=True),
    Looks(window=(16, 20)),
    Looks(window=(16, 20), stride=(5, 20), flip=True),
    Looks(window=(37, 53)),
    Looks(window=(64, 40)),  # higher than the image: padded
  ],
)
def test_flips_and_windows_leave_a_pixelwise_model_as_it_is(tta):
  plain = predict(PixelModel(), VARIABLES, IMAGES)
  averaged = jax.jit(lambda images: predict(PixelModel(), VARIABLES, images, tta))(IMAGES)
  assert averaged['label'].shape == IMAGES.shape[:3]
  np.testing.assert_array_equal(averaged['label'], plain['label'])
  np.testing.assert_allclose(averaged['edge_probability'], plain['edge_probability'], atol=1e-5)


class Biased(nn.Module):
  """A network around another, that changes its logits and hands on the rest."""

  inner: nn.Module

  @nn.compact
  def __call__(self, image, train):
    outputs = self.inner(image, train)
    return outputs | {'logits': outputs['logits'] + 1e4 * jax.nn.one_hot(2, 5)}


@pytest.mark.parametrize('size', [(64, 96), (63, 97)])
def test_a_networks_label_is_its_best_logit(size):
  """Whether or not logits are enlarged one class at a time, and whoever changed them."""
  spec = HRNetSpec(width=8, modules=(1, 1, 1), blocks=1, stem_blocks=1, patch_stem=True)
  model = Segmenter(spec, num_classes=5, edge_head=False, small_logits=True)
  images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  # Apart by more than a rounding.
  variables['params']['head']['classifier']['bias'] = jnp.arange(5.0) / 1000
  label = jax.jit(lambda images: predict(model, variables, images)['label'])(images)
  logits = jax.jit(lambda x: model.apply(variables, x)['logits'])(normalize(images))
  assert len(np.unique(label)) > 1
  assert np.mean(label == np.argmax(logits, -1)) > 0.999
  around = {name: {'inner': tree} for name, tree in variables.items()}
  changed = jax.jit(lambda images: predict(Biased(model), around, images)['label'])(images)
  np.testing.assert_array_equal(changed, 2)


def test_scales_average_probabilities():
  tta = Looks(scales=(0.5, 1.0, 2.0))
  constant = np.full((1, 20, 30, 3), 77, np.uint8)
  one = predict(PixelModel(), VARIABLES, constant)
  mean = predict(PixelModel(), VARIABLES, constant, tta)
  np.testing.assert_array_equal(mean['label'], one['label'])
  np.testing.assert_allclose(mean['edge_probability'], one['edge_probability'], atol=1e-5)


def test_a_flip_mirrors_the_answer_back():
  """Half of the looks call the left half class 1, the other half the right: no side wins."""
  one = predict(ColumnModel(), {}, IMAGES[:, :, :52])['label']
  assert one[:, :, :26].min() == 1
  assert one[:, :, 26:].max() == 0
  averaged = predict(ColumnModel(), {}, IMAGES[:, :, :52], Looks(flip=True))
  assert averaged['label'].min() == averaged['label'].max()


def test_each_window_is_looked_at_alone():
  tta = Looks(window=(37, 26), stride=(37, 26))
  label = predict(ColumnModel(), {}, IMAGES[:, :, :52], tta)['label']
  expected = np.tile([1] * 13 + [0] * 13, 2)
  np.testing.assert_array_equal(label, np.broadcast_to(expected, label.shape))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'scales': ()}, 'at least one'),
    ({'scales': (1.0, -1.0)}, 'positive'),
    ({'window': (5,)}, r'window must be \(height, width\)'),
    ({'stride': (5, 5)}, 'needs a window'),
    ({'window': (8, 8), 'stride': (8, 9)}, 'skips pixels'),
  ],
)
def test_options_without_sense_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    Looks(**options)
