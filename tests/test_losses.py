"""Losses against the numbers of the original code, and the properties they must have."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from if_jax.losses import LossWeights, boundary_bce, cross_entropy, edge_attention, joint_loss

REFERENCE = np.load(Path(__file__).parent / 'data' / 'losses.npz')


@pytest.fixture(scope='module')
def inputs():
  """Logits [2, 72, 120, 19], labels, edge logits and edges, drawn as tests/data/README.md says."""
  rng = np.random.RandomState(2000)
  rng.uniform(size=(5, 1, 224, 224))
  rng.uniform(size=(5, 1, 224, 224))
  logits = 3 * rng.standard_normal((2, 19, 72, 120))
  labels = rng.randint(0, 19, (2, 72, 120))
  labels[rng.uniform(size=labels.shape) < 0.1] = 255
  labels[:, :10] = 255
  edge_logits = 2 * rng.standard_normal((2, 1, 72, 120))
  edges = rng.uniform(size=(2, 1, 72, 120)) < 0.15
  np.testing.assert_array_equal(labels, REFERENCE['labels'])
  return (
    jnp.asarray(logits.transpose(0, 2, 3, 1), jnp.float32),
    jnp.asarray(labels, jnp.int32),
    jnp.asarray(edge_logits.transpose(0, 2, 3, 1), jnp.float32),
    jnp.asarray(edges.transpose(0, 2, 3, 1), jnp.float32),
  )


def _assert_gradient(gradient, name):
  expected = REFERENCE[name].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(
    gradient[:, ::6, ::6], expected, rtol=0, atol=1e-4 * np.abs(expected).max()
  )
  np.testing.assert_allclose(jnp.linalg.norm(gradient), REFERENCE[f'{name}.norm'], rtol=1e-4)


def test_cross_entropy_matches_the_original(inputs):
  logits, labels, *_ = inputs
  value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels)[0])(logits)
  np.testing.assert_allclose(value, REFERENCE['cross_entropy'], rtol=1e-4)
  _assert_gradient(gradient, 'cross_entropy.dlogits')


def test_boundary_bce_matches_the_original(inputs):
  *_, edge_logits, edges = inputs

  def mean(x):
    total, count = boundary_bce(x, edges)
    return total / count

  value, gradient = jax.value_and_grad(mean)(edge_logits)
  np.testing.assert_allclose(value, REFERENCE['boundary_bce'], rtol=1e-4)
  _assert_gradient(gradient, 'boundary_bce.dedge')


def test_edge_attention_matches_the_original_at_its_threshold(inputs):
  """The original compares 0.8 with the logit: a probability of sigmoid(0.8)."""
  logits, labels, edge_logits, _ = inputs
  threshold = float(jax.nn.sigmoid(0.8))

  def loss(x):
    return edge_attention(x, labels, edge_logits, threshold=threshold)[0]

  value, gradient = jax.value_and_grad(loss)(logits)
  np.testing.assert_allclose(value, REFERENCE['edge_attention'], rtol=1e-4)
  _assert_gradient(gradient, 'edge_attention.dlogits')


def test_cross_entropy_perfect_and_uniform():
  labels = jnp.arange(12).reshape(1, 3, 4) % 5
  total, count = cross_entropy(100 * jax.nn.one_hot(labels, 5), labels)
  assert (float(total), float(count)) == (0.0, 1.0)
  total, _ = cross_entropy(jnp.zeros((1, 3, 4, 5)), labels)
  np.testing.assert_allclose(total, np.log(5), rtol=1e-6)


@pytest.mark.parametrize('ignored', [255, -1, 19, 200])
def test_ignored_pixels_count_for_nothing(inputs, ignored):
  """Whatever the logits are there, value and gradient are those of the image without them."""
  logits, labels, *_ = inputs
  masked = labels.at[:, :36].set(ignored)
  value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, masked)[0])(logits)
  np.testing.assert_allclose(value, cross_entropy(logits[:, 36:], labels[:, 36:])[0], rtol=1e-5)
  np.testing.assert_array_equal(gradient[:, :36], 0)
  assert np.isfinite(gradient).all()


def test_an_image_without_labels_adds_nothing(inputs):
  logits, labels, *_ = inputs
  value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels.at[1].set(255))[0])(logits)
  np.testing.assert_allclose(value, cross_entropy(logits[:1], labels[:1])[0], rtol=1e-5)
  np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize('edges', [0.0, 1.0])
def test_boundary_bce_without_boundaries_or_without_others_is_zero(edges):
  logits = jnp.linspace(-100, 100, 16).reshape(1, 4, 4, 1)
  value, gradient = jax.value_and_grad(lambda x: boundary_bce(x, jnp.full_like(x, edges))[0])(
    logits
  )
  assert float(value) == 0
  assert np.isfinite(gradient).all()


def test_joint_loss_adds_its_weighted_terms(inputs):
  logits, labels, edge_logits, _ = inputs
  outputs = {
    'logits': logits, 'edge_logits': edge_logits,
    'aux_logits': logits / 2, 'aux_edge_logits': edge_logits / 2,
  }  # fmt: skip
  weights = LossWeights()
  total, terms = jax.jit(lambda o: joint_loss(o, labels, weights=weights))(outputs)
  main = terms['segmentation'] + 0.3 * terms['boundary'] + 0.1 * terms['attention']
  auxiliary = terms['aux_segmentation'] + 0.3 * terms['aux_boundary'] + 0.1 * terms['aux_attention']
  np.testing.assert_allclose(total, main + 0.4 * auxiliary, rtol=1e-6)
  np.testing.assert_allclose(2 * terms['segmentation'], REFERENCE['cross_entropy'], rtol=1e-4)


def test_joint_loss_without_edges_is_cross_entropy(inputs):
  logits, labels, *_ = inputs
  total, terms = joint_loss({'logits': logits}, labels, weights=LossWeights())
  assert list(terms) == ['segmentation']
  np.testing.assert_allclose(2 * total, REFERENCE['cross_entropy'], rtol=1e-4)


def test_shapes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match=r'\(1, 4, 4, 3\) and \(1, 4, 5\)'):
    cross_entropy(jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 5), jnp.int32))
  with pytest.raises(ValueError, match='differ in shape'):
    boundary_bce(jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 4, 4)))
