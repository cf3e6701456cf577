"""Resizing and warping against PyTorch's numbers."""

import functools
from pathlib import Path

import cv2
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.ndimage import gaussian_filter

from if_jax.ops import convolution
from if_jax.ops.blur import gaussian_blur
from if_jax.ops.boundaries import boundary_map, soft_boundary_map
from if_jax.ops.convolution import conv2d
from if_jax.ops.enlarged import best_class
from if_jax.ops.resize import resize_bilinear
from if_jax.ops.warp import affine_warp, homography_warp

REFERENCE = np.load(Path(__file__).parent / 'data' / 'operators.npz')


def _nhwc(name):
  return jnp.asarray(REFERENCE[name].transpose(0, 2, 3, 1))


def _weights(length, out, align_corners):
  """The [out, length] matrix of linear interpolation, from NumPy's."""
  if align_corners:
    centre = np.linspace(0, length - 1, out)
  else:
    centre = (np.arange(out) + 0.5) * (length / out) - 0.5
  return np.stack([np.interp(centre, np.arange(length), unit) for unit in np.eye(length)], 1)


@pytest.mark.parametrize('name', ['up', 'odd_up', 'down', 'mixed', 'up_align_corners'])
def test_resize_matches_pytorch(name):
  expected = _nhwc(f'resize.{name}')
  actual = resize_bilinear(_nhwc('resize.in'), expected.shape[1:3], align_corners='align' in name)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize('size', [(2, 3), (3, 9), (18, 12), (24, 36), (7, 36), (6, 5)])
def test_whole_factors_equal_the_general_path(size):
  """The short cuts and a matrix of all weights are two ways to the same numbers."""
  image = jax.random.normal(jax.random.key(0), (2, 6, 9, 3))
  rows, columns = _weights(6, size[0], False), _weights(9, size[1], False)
  expected = np.einsum('ph,bhwc,qw->bpqc', rows, image, columns)
  np.testing.assert_allclose(resize_bilinear(image, size), expected, atol=1e-5)


def test_a_program_for_any_size_resizes_as_one_for_each():
  """Larger, smaller, by whole factors and by others; `jax.export` gives sizes as symbols."""
  sizes = [lambda h, w: (4 * h, (w + 1) // 2), lambda h, w: ((h - 1) // 2 + 1, 2 * w - 3)]
  symbols = jax.export.symbolic_shape('h, w', constraints=['h >= 4', 'w >= 4'])
  for size_of in sizes:
    resize = jax.jit(lambda x, size_of=size_of: resize_bilinear(x, size_of(*x.shape[1:3])))
    program = jax.export.export(resize)(jax.ShapeDtypeStruct((2, *symbols, 3), jnp.float32))
    for shape in ((6, 9), (13, 8)):
      image = jax.random.normal(jax.random.key(0), (2, *shape, 3))
      rows, columns = (
        _weights(old, new, False) for old, new in zip(shape, size_of(*shape), strict=True)
      )
      expected = np.einsum('ph,bhwc,qw->bpqc', rows, image, columns)
      np.testing.assert_allclose(program.call(image), expected, atol=1e-5)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(
  'size', [(18, 12), (24, 12), (6, 36), (7, 13), (3, 5), (12, 1), (9, 20), (4, 9)]
)
def test_the_gradient_of_a_resize_is_its_transpose(size, align_corners):
  shape = (2, 6, 1 if size[1] == 1 else 12, 3)
  rng = np.random.default_rng(0)
  image, gradient = rng.normal(size=shape), rng.normal(size=(2, *size, 3))
  resize = functools.partial(resize_bilinear, size=size, align_corners=align_corners)
  actual = jax.vjp(resize, jnp.float32(image))[1](jnp.float32(gradient))[0]
  rows, columns = (
    np.asarray(_weights(old, new, align_corners and old != new))
    for old, new in zip(shape[1:3], size, strict=True)
  )
  expected = np.einsum('bYXc,Yy,Xx->byxc', gradient, rows, columns)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_resize_keeps_constants_and_dtype():
  image = jnp.full((1, 5, 7, 2), 3, jnp.bfloat16)
  resized = resize_bilinear(image, (11, 21))
  assert resized.dtype == jnp.bfloat16
  np.testing.assert_array_equal(resized.astype(jnp.float32), 3)


@pytest.mark.parametrize('channels', [1, 2])
def test_no_images_resize_to_none(channels):
  assert resize_bilinear(jnp.zeros((0, 8, 10, channels)), (7, 14)).shape == (0, 7, 14, channels)


@pytest.mark.parametrize('size', [(24, 36), (18, 72), (6, 9), (30, 9)])
def test_the_best_class_is_that_of_enlarged_logits(size):
  """But where two classes are equal to a rounding."""
  logits = 10 * jax.random.normal(jax.random.key(0), (2, 6, 9, 7))
  rows, columns = _weights(6, size[0], False), _weights(9, size[1], False)
  enlarged = np.einsum('ph,bhwc,qw->bpqc', rows, logits, columns)
  best = best_class(logits, size)
  assert best.dtype == jnp.int32
  assert best.shape == (2, *size)
  chosen = np.take_along_axis(enlarged, np.asarray(best)[..., None], -1)[..., 0]
  np.testing.assert_allclose(chosen, enlarged.max(-1), atol=1e-5)


def test_of_equal_classes_the_first_is_best():
  logits = jnp.array([-5.0, 2.0, 2.0, 2.0]) * jnp.ones((1, 2, 2, 1))
  np.testing.assert_array_equal(best_class(logits, (8, 8)), 1)
  np.testing.assert_array_equal(best_class(logits[..., 3:], (8, 8)), 0)


def test_resize_names_a_wrong_shape():
  with pytest.raises(ValueError, match=r'\[B, H, W, C\], got shape \(4, 4, 3\)'):
    resize_bilinear(jnp.zeros((4, 4, 3)), (2, 2))


def test_warp_matches_pytorch_in_value_and_gradients():
  image, theta, cotangent = _nhwc('warp.image'), REFERENCE['warp.theta'], _nhwc('warp.cotangent')
  warped, pullback = jax.vjp(affine_warp, image, jnp.asarray(theta))
  d_image, d_theta = pullback(cotangent)
  # Both sides stand 1e-5 from the same computation in float64, hence the bar on the largest value.
  # The first transform is the identity, where the slope jumps: its gradient is one of many.
  for actual, expected in [
    (warped, _nhwc('warp.out')),
    (d_image, _nhwc('warp.dimage')),
    (d_theta[1:], REFERENCE['warp.dtheta'][1:]),
  ]:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_warp_identity_and_far_away():
  image = jax.random.normal(jax.random.key(0), (2, 6, 9, 3))
  identity = jnp.tile(jnp.eye(2, 3), (2, 1, 1))
  np.testing.assert_allclose(affine_warp(image, identity), image, atol=1e-5)
  np.testing.assert_array_equal(affine_warp(image, identity.at[:, 0, 2].set(1e9)), 0)


def test_warp_under_jit_and_vmap_equals_eager():
  image = jax.random.normal(jax.random.key(0), (3, 6, 9, 2))
  theta = jnp.tile(jnp.eye(2, 3), (3, 1, 1)) + 0.1 * jax.random.normal(jax.random.key(1), (3, 2, 3))
  expected = affine_warp(image, theta)
  np.testing.assert_allclose(jax.jit(affine_warp)(image, theta), expected, atol=1e-5)
  one = jax.vmap(lambda i, t: affine_warp(i[None], t[None])[0])
  np.testing.assert_allclose(one(image, theta), expected, atol=1e-5)


def test_warp_names_wrong_shapes():
  with pytest.raises(ValueError, match=r'theta \[B, 2, 3\]'):
    affine_warp(jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 6)))


# Drawn, not round: on a pixel's centre no gradient equals its differences.
HOMOGRAPHIES = np.eye(3) + 0.2 * np.random.RandomState(0).standard_normal((2, 3, 3))
HOMOGRAPHIES[:, 2, 2] = 1


def test_homography_of_an_affine_matrix_is_the_affine_warp():
  image = jax.random.normal(jax.random.key(0), (2, 6, 9, 3))
  matrix = jnp.float32(HOMOGRAPHIES).at[:, 2].set(jnp.array([0.0, 0.0, 1.0]))
  np.testing.assert_array_equal(homography_warp(image, matrix), affine_warp(image, matrix[:, :2]))


def test_homography_matches_opencv():
  """OpenCV works in pixels, of whose sides it keeps 32 positions."""
  height, width = 40, 60
  noise = np.random.RandomState(0).standard_normal((2, height, width))
  images = np.stack([cv2.GaussianBlur(image, (0, 0), 3) for image in noise])
  to_pixels = np.array(
    [[width / 2, 0, width / 2 - 0.5], [0, height / 2, height / 2 - 0.5], [0, 0, 1]]
  )
  flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  expected = [
    cv2.warpPerspective(
      image, to_pixels @ matrix @ np.linalg.inv(to_pixels), (width, height), flags=flags
    )
    for image, matrix in zip(images, HOMOGRAPHIES, strict=True)
  ]
  warped = homography_warp(jnp.float32(images[..., None]), jnp.float32(HOMOGRAPHIES))[..., 0]
  difference = np.abs(warped - np.float32(expected))
  assert difference.max() < 0.05 * np.abs(images).max()
  assert difference.mean() < 0.002 * np.abs(images).max()


def test_gradients_of_a_homography_match_differences():
  with jax.enable_x64(True):
    image = jnp.asarray(np.random.RandomState(0).standard_normal((2, 6, 9, 2)))
    matrix = jnp.asarray(HOMOGRAPHIES).at[1, 2, 0].set(1.73)  # A fifth of it lies behind.
    check_grads(jax.jit(homography_warp), (image, matrix), order=1, modes=['rev'], eps=1e-6)


@pytest.mark.parametrize('slope', [1.5, 1e3, 1e30])
def test_at_and_behind_the_horizon_there_is_nothing(slope):
  """Where 1 + slope * x is 0 or less; for 1.5 it is 0 at the centre of the first of three."""
  matrix = jnp.array([[[1.0, 0, 0], [0, 1, 0], [slope, 0, 1]]])
  image = jnp.ones((1, 2, 3, 1))
  warped, pullback = jax.vjp(jax.jit(homography_warp), image, matrix)
  np.testing.assert_array_equal(warped[0, :, 0], 0)
  np.testing.assert_array_equal(warped[0, :, 1], 1)
  gradients = pullback(jnp.ones_like(warped))
  assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_homography_names_wrong_shapes():
  with pytest.raises(ValueError, match=r'matrix \[B, 3, 3\]'):
    homography_warp(jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 2, 3)))


BOUNDARIES = np.load(Path(__file__).parent / 'data' / 'boundaries.npz')


@pytest.mark.parametrize('radius', [1, 2, 3])
def test_boundary_map_as_released_matches_the_original(radius):
  labels = jnp.asarray(BOUNDARIES['labels'][None], jnp.int32)
  edges = boundary_map(labels, radius=radius, as_released=True)[0, ..., 0]
  differ = np.argwhere(edges != BOUNDARIES[f'radius{radius}'])
  # For a class that does not occur, SciPy's distance transform measures to a point outside the
  # top left corner; the original marks two pixels for it at radius 3.
  assert differ.tolist() == ([[0, 0], [0, 1]] if radius == 3 else [])


@pytest.mark.parametrize('radius', [1, 2, 5])
def test_boundary_map_matches_brute_force(radius):
  labels = BOUNDARIES['labels'][:40, :50].astype(np.int32)
  expected = np.zeros(labels.shape)
  for y, x in np.argwhere(labels < 19):
    for v, u in np.argwhere((labels < 19) & (labels != labels[y, x])):
      if (v - y) ** 2 + (u - x) ** 2 <= radius**2:
        expected[y, x] = 1
        break
  actual = jax.jit(boundary_map, static_argnames='radius')(jnp.asarray(labels)[None], radius=radius)
  np.testing.assert_array_equal(actual[0, ..., 0], expected)
  assert 0 < expected.mean() < 1


def test_no_boundary_at_the_frame_or_at_ignored_pixels():
  labels = jnp.full((1, 9, 9), 7).at[:, 3:6, 3:6].set(255)
  np.testing.assert_array_equal(boundary_map(labels), 0)


@pytest.mark.parametrize(('size', 'radius'), [((40, 50), 1), ((40, 50), 3), ((2, 9), 4)])
def test_soft_boundaries_of_certain_classes_are_the_boundary_map(size, radius):
  labels = np.random.RandomState(6).randint(0, 3, (1, *size)).repeat(2, axis=1).repeat(2, axis=2)
  labels = jnp.asarray(labels[:, : size[0], : size[1]])
  soft = soft_boundary_map(jax.nn.one_hot(labels, 3), radius=radius)
  np.testing.assert_array_equal(soft, boundary_map(labels, radius=radius))
  assert soft.any()


def test_a_soft_boundary_is_the_largest_difference_within_the_radius():
  probabilities = np.random.RandomState(6).dirichlet(np.ones(4), (7, 8)).astype(np.float32)
  expected = np.zeros((7, 8))
  for y, x, v, u in np.ndindex(7, 8, 7, 8):
    if (v - y) ** 2 + (u - x) ** 2 <= 4:
      difference = np.abs(probabilities[y, x] - probabilities[v, u]).sum() / 2
      expected[y, x] = max(expected[y, x], difference)
  inputs = jnp.asarray(probabilities)[None]
  np.testing.assert_allclose(soft_boundary_map(inputs)[0, ..., 0], expected, atol=1e-6)
  check_grads(soft_boundary_map, (inputs,), order=1, modes=['rev'], eps=1e-4, rtol=0.01)


def test_soft_boundaries_know_no_pixels_that_are_not_valid():
  labels = jnp.array([[[0] * 6 + [255] * 4 + [0] * 3 + [1] * 3]])
  valid = (labels < 255)[..., None]

  def soft(probabilities):
    return soft_boundary_map(probabilities, valid=valid)

  probabilities = jax.nn.one_hot(jnp.where(labels < 255, labels, 1), 2)
  np.testing.assert_array_equal(soft(probabilities), boundary_map(labels))
  _, pull_back = jax.vjp(soft, 0.8 * probabilities + 0.1)
  (gradient,) = pull_back(jnp.ones(valid.shape))
  assert not gradient[0, 0, 6:10].any() and gradient[0, 0, 10:].any()


def test_soft_boundaries_name_a_wrong_shape():
  with pytest.raises(ValueError, match=r'probabilities must be \[B, H, W, K\], got \(3, 4, 5\)'):
    soft_boundary_map(jnp.zeros((3, 4, 5)))
  with pytest.raises(ValueError, match='radius must be at least 1 pixel, got 0'):
    soft_boundary_map(jnp.zeros((1, 3, 4, 5)), radius=0)
  with pytest.raises(ValueError, match='probabilities must be float, got int32'):
    soft_boundary_map(jnp.zeros((1, 3, 4, 5), int))
  assert np.isnan(soft_boundary_map(jnp.full((1, 1, 3, 2), np.nan))).all()
  with pytest.raises(ValueError, match=r'valid must be .* \(1, 3, 4, 5\), got \(1, 3, 4\)'):
    soft_boundary_map(jnp.zeros((1, 3, 4, 5)), valid=jnp.ones((1, 3, 4), bool))


def test_blur_matches_scipy_for_each_map_by_its_own_sigma():
  maps = np.random.RandomState(5).uniform(size=(2, 20, 30, 1)).astype(np.float32)
  actual = gaussian_blur(jnp.asarray(maps), jnp.array([0.7, 1.5]), radius=6)
  for blurred, sharp, sigma in zip(actual, maps, (0.7, 1.5), strict=True):
    expected = gaussian_filter(sharp[..., 0], sigma, mode='constant', radius=6)
    np.testing.assert_allclose(blurred[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize(
  ('kernel_size', 'stride', 'padding', 'size', 'channels', 'features'),
  [
    (3, 1, 1, (7, 9), 3, 4),
    (3, 1, 1, (1, 2), 3, 4),
    (3, 1, 1, (5, 4), 9, 2),
    (3, 1, 1, (3, 4), 48, 50),
    (3, 2, 1, (7, 8), 3, 4),
    (3, 2, 1, (7, 8), 64, 2),
    (3, 2, 1, (6, 5), 64, 3),
    (3, 2, 1, (1, 2), 64, 3),
    (1, 1, 0, (4, 5), 3, 4),
    (2, 2, 0, (6, 8), 3, 4),
  ],
)
def test_convolution_and_its_gradients_match_pytorch(
  kernel_size, stride, padding, size, channels, features
):
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *size, channels)).astype(np.float32)
  scale = (3 / max(channels, 3)) ** 0.5
  kernel = scale * rng.normal(size=(kernel_size, kernel_size, channels, features))
  kernel = kernel.astype(np.float32)
  convolve = functools.partial(conv2d, stride=stride, padding=padding)
  result, transpose = jax.vjp(convolve, jnp.asarray(x), jnp.asarray(kernel))
  gradient = rng.normal(size=result.shape).astype(np.float32)

  inputs = [torch.from_numpy(a).requires_grad_() for a in (x, kernel)]
  expected = torch.nn.functional.conv2d(
    inputs[0].permute(0, 3, 1, 2), inputs[1].permute(3, 2, 0, 1), stride=stride, padding=padding
  ).permute(0, 2, 3, 1)
  expected.backward(torch.from_numpy(gradient))
  np.testing.assert_allclose(result, expected.detach().numpy(), atol=1e-5)
  for actual, wanted in zip(transpose(jnp.asarray(gradient)), inputs, strict=True):
    np.testing.assert_allclose(actual, wanted.grad.numpy(), atol=2e-5)


@pytest.mark.parametrize('size', [(1, 2), (2, 3), (7, 9), (8, 6)])
@pytest.mark.parametrize('stride', [1, 2])
def test_a_kernel_gradient_is_the_sum_of_those_of_rows(stride, size):
  """The form that large images take, with odd and even sides."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)
  convolve = functools.partial(convolution._apply, stride=stride, padding=1)
  result, transpose = jax.vjp(convolve, x, kernel)
  gradient = jnp.asarray(rng.normal(size=result.shape), jnp.float32)
  forms = convolution._kernel_gradient_of_3x3, convolution._kernel_gradient_of_stride_2
  actual = forms[stride - 1](x, kernel, gradient, rows=2)
  np.testing.assert_allclose(actual, transpose(gradient)[1], atol=1e-5)


@pytest.mark.parametrize('stride', [1, 2])
def test_kernel_gradients_of_large_images_in_bfloat16(stride):
  """Rows are added up in float32."""
  rng = np.random.default_rng(0)
  gradient_shape = (1, 112, 112, 48)
  shape = (1, 112 * stride, 112 * stride, 48)
  x = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
  gradient = jnp.asarray(rng.normal(size=gradient_shape), jnp.bfloat16)
  assert convolution._kernel_gradient_on_cpu((3, stride, 1), x, gradient)

  def kernel_gradient(x, gradient, convolve):
    kernel = jnp.zeros((3, 3, 48, 48), x.dtype)
    return jax.vjp(lambda kernel: convolve(x, kernel, stride, 1), kernel)[1](gradient)[0]

  actual = jax.jit(kernel_gradient, static_argnums=2)(x, gradient, conv2d)
  assert actual.dtype == jnp.bfloat16
  exact = x.astype(jnp.float32), gradient.astype(jnp.float32)
  expected = kernel_gradient(*exact, convolution._apply)
  # Half a unit in the last of bfloat16's eight digits, and some of float32's.
  np.testing.assert_allclose(actual.astype(jnp.float32), expected, rtol=2**-8, atol=1e-2)


@pytest.mark.parametrize(
  ('kernel_size', 'stride', 'channels', 'size'),
  [(1, 1, 4, 8), (3, 1, 16, 8), (3, 2, 64, 8), (3, 1, 64, 92), (3, 2, 64, 184)],
)
def test_devices_of_a_mesh_add_up_their_gradients_of_a_shared_kernel(
  kernel_size, stride, channels, size
):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('d',))
  shared, by_device = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec('d')
  x = jax.random.normal(jax.random.key(0), (1, size, size, channels))
  kernel = jax.random.normal(jax.random.key(1), (kernel_size, kernel_size, channels, channels))

  def total(kernel, x):
    return jax.lax.psum(jnp.sum(conv2d(x, kernel, stride, kernel_size // 2) ** 2), 'd')

  gradient = jax.jit(
    jax.shard_map(jax.grad(total), mesh=mesh, in_specs=(shared, by_device), out_specs=shared)
  )
  apply = functools.partial(convolution._apply, stride=stride, padding=kernel_size // 2)
  expected = jax.grad(lambda kernel: jnp.sum(apply(x, kernel) ** 2))(kernel)
  np.testing.assert_allclose(gradient(kernel, x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
  ('kernel_size', 'stride', 'channels', 'size'), [(1, 1, 4, 8), (3, 1, 64, 92), (3, 2, 64, 184)]
)
def test_gradients_where_types_say_which_device_holds_what(kernel_size, stride, channels, size):
  x = jax.random.normal(jax.random.key(0), (2, size, size, channels))
  kernel = jax.random.normal(jax.random.key(1), (kernel_size, kernel_size, channels, channels))

  def total(kernel, x):
    return jnp.sum(conv2d(x, kernel, stride, kernel_size // 2) ** 2)

  expected = jax.grad(total, (0, 1))(kernel, x)
  mesh = jax.make_mesh((1,), ('d',), axis_types=(jax.sharding.AxisType.Explicit,))
  with jax.set_mesh(mesh):
    x, kernel = (jax.device_put(y, jax.P(axis)) for y, axis in ((x, 'd'), (kernel, None)))
    actual = jax.jit(jax.grad(total, (0, 1)))(kernel, x)
  for gradient, one in zip(actual, expected, strict=True):
    np.testing.assert_allclose(gradient, one, atol=3e-5 * np.abs(one).max())


def test_programs_for_any_size_have_gradients():
  """Sizes that are symbols take no form that is for large images."""
  shape = jax.export.symbolic_shape('b, h, 8, 64', constraints=['h >= 8'])

  def gradient(x):
    kernel = jnp.ones((3, 3, 64, 64))
    return jax.grad(lambda kernel: jnp.sum(conv2d(x, kernel, 1, 1)))(kernel)

  program = jax.export.export(jax.jit(gradient))(jax.ShapeDtypeStruct(shape, jnp.float32))
  x = jax.random.normal(jax.random.key(0), (2, 9, 8, 64))
  np.testing.assert_allclose(program.call(x), gradient(x), rtol=1e-5, atol=1e-4)
