"""Confusion matrix, IoU and the boundary measures against brute force and outside numbers."""

import pathlib
import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from if_jax.metrics import (
  BoundaryMetrics,
  boundary_f_score,
  boundary_iou,
  confusion_matrix,
  count_confusion,
  iou_from_confusion,
)

DATA = pathlib.Path(__file__).parent / 'data'


def random_maps(seed, size, num_classes, ignored_share=0.1, agreement=0.7):
  """Blocky labels with ignored pixels, and predictions that agree with most of them."""
  rng = np.random.RandomState(seed)
  blocks = rng.randint(0, num_classes, (-(-size[0] // 3), -(-size[1] // 3)))
  labels = np.kron(blocks, np.ones((3, 3), int))[: size[0], : size[1]]
  agree = rng.uniform(size=size) < agreement
  predictions = np.where(agree, labels, rng.randint(0, num_classes, size))
  labels = np.where(rng.uniform(size=size) < ignored_share, 255, labels)
  return labels.astype(np.int32), predictions.astype(np.int32)


def confusion_by_loop(labels, predictions, num_classes):
  counts = np.zeros((num_classes, num_classes), np.int64)
  for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
    if 0 <= label < num_classes:
      counts[label, prediction] += 1
  return counts


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), num_classes=st.integers(1, 25))
def test_confusion_equals_a_loop_over_pixels(seed, num_classes):
  labels, predictions = random_maps(seed, (9, 14), num_classes)
  counts = confusion_matrix(labels, predictions, num_classes=num_classes)
  assert counts.dtype == jnp.int32
  expected = confusion_by_loop(labels, predictions, num_classes)
  np.testing.assert_array_equal(counts, expected)
  np.testing.assert_array_equal(count_confusion(labels, predictions, num_classes), expected)


def test_confusion_ignores_every_label_outside_the_classes():
  labels = np.array([[0, 1, 2, 255, 3, -1, -255, 200]])
  predictions = np.array([[0, 2, 2, 1, 1, 0, 2, 0]])
  for count in (confusion_matrix, count_confusion):
    counts = count(labels, predictions, num_classes=3)
    np.testing.assert_array_equal(counts, [[1, 0, 0], [0, 0, 1], [0, 0, 1]])


def test_confusion_drops_predictions_outside_the_classes():
  for count in (confusion_matrix, count_confusion):
    counts = count(np.array([[0, 1, 1]]), np.array([[-1, 2, 1]]), num_classes=2)
    np.testing.assert_array_equal(counts, [[0, 0], [0, 1]])


def test_masking_equals_dropping():
  labels, predictions = random_maps(1, (4 * 6, 8), 5)
  labels, predictions = labels.reshape(4, 6, 8), predictions.reshape(4, 6, 8)
  of_kept = confusion_matrix(labels[[0, 2]], predictions[[0, 2]], num_classes=5)
  per_image = np.array([True, False, True, False])
  for valid in (per_image, np.broadcast_to(per_image[:, None, None], labels.shape)):
    masked = confusion_matrix(labels, predictions, num_classes=5, valid=valid)
    np.testing.assert_array_equal(masked, of_kept)
  rows = np.arange(6) < 2
  masked = confusion_matrix(labels, predictions, num_classes=5, valid=np.broadcast_to(rows, (4, 6)))
  top = confusion_matrix(labels[:, :2], predictions[:, :2], num_classes=5)
  np.testing.assert_array_equal(masked, top)


def test_confusion_adds_up_over_images():
  labels, predictions = random_maps(2, (3 * 5, 7), 4)
  labels, predictions = labels.reshape(3, 5, 7), predictions.reshape(3, 5, 7)
  total = sum(
    confusion_matrix(*pair, num_classes=4) for pair in zip(labels, predictions, strict=True)
  )
  np.testing.assert_array_equal(confusion_matrix(labels, predictions, num_classes=4), total)


def test_confusion_is_the_same_under_jit_and_pmap():
  labels, predictions = random_maps(3, (12, 10), 6)
  valid = np.ones(12, bool)
  expected = confusion_matrix(labels, predictions, num_classes=6, valid=valid)

  def count(labels, predictions, valid):
    with jax.numpy_rank_promotion('raise'):
      return confusion_matrix(labels, predictions, num_classes=6, valid=valid)

  np.testing.assert_array_equal(jax.jit(count)(labels, predictions, valid), expected)
  mapped = jax.pmap(count)(labels[None], predictions[None], valid[None])
  np.testing.assert_array_equal(mapped[0], expected)


def test_confusion_is_exact_where_float32_stops_counting():
  labels = np.ones((4097, 4097), np.uint8)
  counts = confusion_matrix(labels, labels, num_classes=2)
  assert counts.tolist() == [[0, 0], [0, 4097**2]]
  assert float(np.float32(4097**2)) != 4097**2


def test_confusion_of_bytes_with_more_classes_than_bytes():
  labels = np.array([[0, 254, 255]], np.uint8)
  counts = confusion_matrix(labels, labels, num_classes=300)
  assert counts.sum() == 3 and counts[255, 255] == 1


def test_confusion_names_what_does_not_fit():
  labels = np.zeros((2, 3, 4), np.int32)
  with pytest.raises(ValueError, match=r'\(2, 3, 4\), but predictions \(2, 3\)'):
    confusion_matrix(labels, labels[..., 0], num_classes=2)
  with pytest.raises(ValueError, match=r'predictions must be class numbers.*float32'):
    confusion_matrix(labels, labels.astype(np.float32), num_classes=2)
  with pytest.raises(ValueError, match=r'valid has shape \(3,\)'):
    confusion_matrix(labels, labels, num_classes=2, valid=np.ones(3, bool))


def test_iou_equals_the_reference_numbers():
  reference = np.load(DATA / 'metrics.npz')
  confusion = confusion_matrix(reference['labels'], reference['predictions'], num_classes=19)
  np.testing.assert_array_equal(confusion, reference['confusion'])
  result = iou_from_confusion(confusion)
  np.testing.assert_allclose(result['iou'], reference['iou'], rtol=0, atol=1e-12)
  assert result['miou'] == pytest.approx(float(reference['miou']), abs=1e-12)
  assert result['pixel_accuracy'] == pytest.approx(float(reference['pixel_acc']), abs=1e-12)
  assert result['class_accuracy'] == pytest.approx(float(reference['mean_acc']), abs=1e-12)


@pytest.mark.parametrize('seed', range(4))
def test_iou_equals_the_cityscapes_evaluator(seed):
  evaluator = pytest.importorskip(
    'cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling',
    reason='the evaluator comes with the test extra',
  )
  from cityscapesscripts.helpers.labels import labels as city_labels

  rng = np.random.RandomState(seed)
  id_of_class = {label.trainId: label.id for label in city_labels}
  ids = [id_of_class[c] for c in range(19)]
  absent, never_found, never_labelled, never_predicted = rng.permutation(19)[:4]
  confusion = rng.randint(1, 10**7, (19, 19))
  confusion[never_found, never_found] = 0
  confusion[never_labelled] = 0
  confusion[:, never_predicted] = 0
  confusion[absent], confusion[:, absent] = 0, 0

  args = SimpleNamespace(evalLabels=[label.id for label in city_labels if label.id >= 0])
  theirs = np.zeros((34, 34), np.ulonglong)
  theirs[np.ix_(ids, ids)] = confusion
  # Ground truth that the evaluator ignores; it must not reach a score.
  theirs[0] = rng.randint(0, 10**7, 34)
  scores = {c: evaluator.getIouScoreForLabel(ids[c], theirs, args) for c in range(19)}
  result = iou_from_confusion(confusion)
  np.testing.assert_allclose(result['iou'], list(scores.values()), rtol=0, atol=1e-9)
  assert result['miou'] == pytest.approx(evaluator.getScoreAverage(scores, args), abs=1e-9)
  np.testing.assert_array_equal(np.flatnonzero(np.isnan(result['iou'])), [absent])


def test_iou_policies_on_a_matrix_done_by_hand():
  # Class 0: 6 right, 2 taken for class 2. 1: nowhere. 2: never labelled. 3: never found.
  confusion = np.array([[6, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]])
  result = iou_from_confusion(confusion)
  np.testing.assert_allclose(result['iou'], [0.6, np.nan, 0, 0])
  np.testing.assert_allclose(result['precision'], [0.75, np.nan, 0, np.nan])
  np.testing.assert_allclose(result['recall'], [0.75, np.nan, np.nan, 0])
  assert result['miou'] == pytest.approx(0.2)
  assert result['pixel_accuracy'] == pytest.approx(0.6)
  assert result['class_accuracy'] == pytest.approx(0.375)
  assert result['frequency_weighted_iou'] == pytest.approx(0.8 * 0.6)


def test_iou_of_nothing_is_nan_and_of_perfection_one():
  nothing = iou_from_confusion(np.zeros((3, 3), np.int64))
  assert all(np.isnan(value).all() for value in nothing.values())
  perfect = iou_from_confusion(np.diag([5, 1, 10**12]))
  assert all((np.asarray(value) == 1).all() for value in perfect.values())


@pytest.mark.parametrize('wrong', [np.zeros((2, 3), int), np.zeros(4, int), np.eye(2)])
def test_iou_wants_a_square_matrix_of_integers(wrong):
  with pytest.raises(ValueError, match='square matrix of integers'):
    iou_from_confusion(wrong)


def boundary_by_loop(mask, counted):
  """The boundary of one class, pixel by pixel, from pairs of which both are counted."""
  height, width = mask.shape
  boundary = np.zeros_like(mask)
  for y in range(height):
    for x in range(width):
      for v, u in ((y, x + 1), (y + 1, x), (y + 1, x + 1)):
        v, u = min(v, height - 1), min(u, width - 1)
        if counted[y, x] and counted[v, u] and mask[y, x] != mask[v, u]:
          boundary[y, x] = True
  return boundary


def f_by_loop(labels, predictions, num_classes, radius, policy):
  """F, precision, recall for every class, from all pairs of boundary pixels."""
  known = labels < num_classes
  counted = known if policy == 'present' else np.ones_like(known)
  scores = np.full((3, num_classes), np.nan if policy == 'present' else 1.0)
  for c in range(num_classes):
    true = np.argwhere(boundary_by_loop((labels == c) & known, counted))
    found = np.argwhere(boundary_by_loop((predictions == c) & known, counted))
    if len(true) and len(found):
      near = ((true[:, None] - found[None]) ** 2).sum(-1) <= radius**2
      precision, recall = near.any(0).mean(), near.any(1).mean()
    elif len(true) or len(found):
      precision, recall = float(not len(found)), float(not len(true))
    else:
      continue
    total = precision + recall
    scores[:, c] = 2 * precision * recall / total if total else 0.0, precision, recall
  return scores


@settings(max_examples=25, deadline=None)
@given(
  seed=st.integers(0, 10**6),
  height=st.integers(1, 14),
  width=st.integers(1, 14),
  policy=st.sampled_from(['present', 'gscnn']),
)
def test_boundary_f_equals_brute_force(seed, height, width, policy):
  labels, predictions = random_maps(seed, (height, width), 4, ignored_share=0.15)
  score = boundary_f_score(
    labels, predictions, num_classes=5, tolerances=[1, 1.5, 3], policy=policy
  )
  for t, radius in enumerate([1, 1.5, 3]):
    expected = f_by_loop(labels, predictions, 5, radius, policy)
    found = np.stack([score.f[t], score.precision[t], score.recall[t]])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('tolerance', ['1', '2', '3', '5', '0.02'])
def test_boundary_f_equals_the_reference_numbers(tolerance):
  reference = np.load(DATA / 'boundary_f.npz')
  score = boundary_f_score(
    reference['labels'],
    reference['predictions'],
    num_classes=19,
    tolerances=[float(tolerance)],
    policy='gscnn',
  )
  for name in ('f', 'precision'):
    expected = reference[f'th{tolerance}.{name}']
    np.testing.assert_allclose(getattr(score, name)[0], expected, rtol=0, atol=1e-9)


def test_boundary_f_of_a_shift_jumps_at_the_shift():
  labels = np.zeros((20, 40), int)
  labels[:, 20:] = 1
  predictions = np.roll(labels, 3, axis=1)
  predictions[:, :3] = 0
  score = boundary_f_score(labels, predictions, num_classes=2, tolerances=[1, 2, 3, 9])
  np.testing.assert_array_equal(score.f, [[0, 0], [0, 0], [1, 1], [1, 1]])
  perfect = boundary_f_score(labels, labels, num_classes=2, tolerances=[1])
  np.testing.assert_array_equal(perfect.f, [[1, 1]])


def test_boundary_f_of_classes_that_are_absent():
  labels = np.zeros((8, 8), int)
  predictions = labels.copy()
  predictions[2:5, 2:5] = 1
  ours = boundary_f_score(labels, predictions, num_classes=3, tolerances=[1])
  np.testing.assert_array_equal(ours.f, [[0, 0, np.nan]])
  np.testing.assert_array_equal(ours.precision, [[0, 0, np.nan]])
  np.testing.assert_array_equal(ours.recall, [[1, 1, np.nan]])
  published = boundary_f_score(labels, predictions, num_classes=3, tolerances=[1], policy='gscnn')
  np.testing.assert_array_equal(published.f, [[0, 0, 1]])


def test_ignored_pixels_make_no_boundary():
  labels = np.zeros((10, 10), int)
  labels[3:7, 3:7] = 255
  predictions = np.zeros((10, 10), int)
  ours = boundary_f_score(labels, predictions, num_classes=1, tolerances=[1])
  assert np.isnan(ours.f).all()
  # Whatever is predicted there.
  predictions[4:6, 4:6] = 1
  labels[0, :5], predictions[0, :5] = 1, 1
  ours = boundary_f_score(labels, predictions, num_classes=2, tolerances=[1])
  np.testing.assert_array_equal(ours.f, [[1, 1]])
  intersection, union = boundary_iou(labels, predictions, num_classes=2, width=1)
  np.testing.assert_array_equal(intersection, union)
  # Class 0: the frame's 36 pixels but the 5 of class 1, and 5 more that touch those.
  np.testing.assert_array_equal(union, [36 - 5 + 5, 5])


def test_a_tolerance_below_one_is_a_share_of_the_diagonal():
  labels, predictions = random_maps(5, (30, 40), 3)  # Diagonal 50.
  as_share = boundary_f_score(labels, predictions, num_classes=3, tolerances=[0.05])
  in_pixels = boundary_f_score(labels, predictions, num_classes=3, tolerances=[3])
  np.testing.assert_array_equal(as_share.f, in_pixels.f)
  band = boundary_iou(labels, predictions, num_classes=3, width=0.05)
  np.testing.assert_array_equal(band, boundary_iou(labels, predictions, num_classes=3, width=2))


def iou_by_erosion(labels, predictions, num_classes, width):
  """Bands by eroding `width` times with 3 x 3 in plain NumPy."""
  known = labels < num_classes

  def band(mask):
    solid = np.pad(mask | ~known, 1)
    for _ in range(width):
      inner = np.pad(solid, 1)
      shifts = [
        inner[1 + v : 1 + v + solid.shape[0], 1 + u : 1 + u + solid.shape[1]]
        for v in (-1, 0, 1)
        for u in (-1, 0, 1)
      ]
      solid = np.logical_and.reduce(shifts)
    return mask & ~solid[1:-1, 1:-1]

  bands = [
    (band((labels == c) & known), band((predictions == c) & known)) for c in range(num_classes)
  ]
  return [(a & b).sum() for a, b in bands], [(a | b).sum() for a, b in bands]


@settings(max_examples=25, deadline=None)
@given(
  seed=st.integers(0, 10**6),
  height=st.integers(1, 20),
  width=st.integers(1, 20),
  band=st.integers(1, 6),
)
def test_boundary_iou_equals_repeated_erosion(seed, height, width, band):
  labels, predictions = random_maps(seed, (height, width), 2, 0.05, agreement=0.95)
  found = boundary_iou(labels, predictions, num_classes=3, width=band)
  np.testing.assert_array_equal(found, iou_by_erosion(labels, predictions, 3, band))


def test_the_usual_band_of_a_cityscapes_image_is_eleven_pixels():
  labels = np.zeros((1024, 2048), np.uint8)
  intersection, union = boundary_iou(labels, labels, num_classes=1)
  assert intersection == union == 1024 * 2048 - (1024 - 22) * (2048 - 22)


def test_boundary_measures_leave_their_inputs_alone():
  labels, predictions = random_maps(6, (12, 12), 3)
  copies = labels.copy(), predictions.copy()
  labels.setflags(write=False)
  predictions.setflags(write=False)
  metrics = BoundaryMetrics(3, tolerances=[2], policy='gscnn')
  metrics.update(labels, predictions)
  np.testing.assert_array_equal(labels, copies[0])
  np.testing.assert_array_equal(predictions, copies[1])


def test_sums_merge_to_the_same_result_in_any_grouping():
  images = [random_maps(seed, (16, 20), 4, agreement=0.9) for seed in range(5)]
  # A class that only some images have counts in those alone.
  images[0][0][images[0][0] == 3] = 0
  images[0][1][images[0][1] == 3] = 0
  settings_ = {'num_classes': 5, 'tolerances': (1, 3, 0.05), 'width': 2}
  whole, left, right = (BoundaryMetrics(**settings_) for _ in range(3))
  for i, image in enumerate(images):
    whole.update(*image)
    (left if i < 2 else right).update(*image)
  left.merge(pickle.loads(pickle.dumps(right)))
  result = left.compute()
  for name, value in whole.compute().items():
    np.testing.assert_allclose(result[name], value, rtol=0, atol=1e-12)

  per_image = np.stack(
    [boundary_f_score(*i, num_classes=5, tolerances=(1, 3, 0.05)).f[1] for i in images]
  )
  assert np.isnan(per_image[0, 3]) and not np.isnan(per_image[1:, 3]).any()
  expected = np.nanmean(per_image[:, :4], axis=0)
  np.testing.assert_allclose(result['boundary_f@3px_per_class'], [*expected, np.nan])
  assert result['boundary_f@3px'] == pytest.approx(expected.mean())
  assert 'boundary_f@0.05' in result
  sums = np.sum([boundary_iou(*i, num_classes=5, width=2) for i in images], axis=0)
  np.testing.assert_allclose(result['boundary_iou_per_class'][:4], sums[0, :4] / sums[1, :4])
  assert result['boundary_iou'] == pytest.approx((sums[0, :4] / sums[1, :4]).mean())


def test_an_image_less_sum_is_nan_and_other_settings_do_not_merge():
  metrics = BoundaryMetrics(2, tolerances=(2,))
  assert all(np.isnan(value).all() for value in metrics.compute().values())
  with pytest.raises(ValueError, match='different settings'):
    metrics.merge(BoundaryMetrics(2, tolerances=(3,)))


def test_boundary_measures_name_what_does_not_fit():
  labels = np.zeros((3, 4), int)
  score = {'num_classes': 2, 'tolerances': [1]}
  with pytest.raises(ValueError, match=r'\(3, 4\) and predictions \(4, 3\)'):
    boundary_f_score(labels, labels.T, **score)
  with pytest.raises(ValueError, match=r'\(1, 3, 4\)'):
    boundary_f_score(labels[None], labels[None], **score)
  with pytest.raises(ValueError, match=r'labels must be class numbers.*float64'):
    boundary_iou(labels * 1.0, labels, num_classes=2)
  with pytest.raises(ValueError, match='tolerance is 0'):
    boundary_f_score(labels, labels, num_classes=2, tolerances=[2, 0])
  with pytest.raises(ValueError, match='width is -1'):
    boundary_iou(labels, labels, num_classes=2, width=-1)
  with pytest.raises(ValueError, match="policy is 'davis'"):
    boundary_f_score(labels, labels, policy='davis', **score)
