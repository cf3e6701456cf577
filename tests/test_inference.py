"""Averages over looks, on models whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from if_jax.inference import Looks, predict
from if_jax.ops.normalize import MEAN, STD, normalize
from if_jax.ops.resize import resize_bilinear

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


def test_small_logits_decide_where_there_are_some():
  """They are those that a network with larger pixels enlarges."""
  image = IMAGES[:, :36, :52]

  class LargePixels(PixelModel):
    def apply(self, variables, image, train):
      outputs = super().apply(variables, image[:, ::4, ::2], train)
      return {
        'logits': resize_bilinear(outputs['logits'], image.shape[1:3]),
        'small_logits': outputs['logits'],
      }

  class LargePixelsAlone(LargePixels):
    def apply(self, *args, **kwargs):
      return {'logits': super().apply(*args, **kwargs)['logits']}

  expected = predict(LargePixelsAlone(), VARIABLES, image)['label']
  actual = jax.jit(lambda images: predict(LargePixels(), VARIABLES, images))(image)['label']
  # A rounding may decide where two classes meet.
  assert np.mean(actual == expected) > 0.999
  assert len(np.unique(actual)) == 4


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
