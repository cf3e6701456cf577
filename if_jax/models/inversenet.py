"""Inverse-transformation networks: two boundary maps to the transform between them."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.traverse_util import flatten_dict

from if_jax.ops.transforms import displacement_basis, transform_points
from if_jax.ops.warp import pixel_centres
from if_jax.weights import (
  INVERSENET,
  PACKAGED,
  list_problems,
  load_weights,
  shape_differences,
)

# A GPU would round positions to three digits.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

# The pixels of a tile that one cell of the feature map stands for, along each axis.
CELL = 8


class InverseMatcher(nn.Module):
  """Matches the cells of both maps, and fits the transform to the matches by least squares.

  Convolutions turn each map into a grid of features, a cell for 8 x 8 pixels. Each cell of the
  prediction is compared with all cells of the target; a softmax gives the mean and the covariance
  of its place there, so that a cell on a straight line knows where it is across the line but not
  along it. The transform is the least-squares fit to these places, each weighted by its precision
  and by the confidence that the cell has a counterpart at all. A few rounds, each looking for the
  counterparts in a narrower neighbourhood of where the last transform put them, make it exact.

  Nothing but small features is learned: 42 thousand weights. Without matches the fit is the
  identity, so that empty tiles give 0.

  Attributes:
    num_outputs: P, 4, 6 or 8 transform parameters, see `if_jax.ops.transforms`.
    width: channels of the convolutions.
    num_features: channels that are compared.
    gates: standard deviation of the neighbourhood in each round at first, in cells of a tile of
      224; learned.
  """

  num_outputs: int = 4
  width: int = 48
  num_features: int = 32
  gates: tuple[float, ...] = (8.0, 4.0, 2.5, 2.0)

  @nn.compact
  def __call__(
    self, prediction: jax.Array, target: jax.Array, *, every_round: bool = False
  ) -> jax.Array:
    """Estimates the transform between tiles: `prediction` = warp(`target`, transform).

    Args:
      prediction: float32 [N, T, T, 1] in [0, 1], predicted boundary probability; T a multiple of
        16, 224 in the weights that come with the package.
      target: float32 [N, T, T, 1] in [0, 1], true boundaries.
      every_round: give the estimates of all rounds, which training supervises.
    Returns:
      float32 [N, num_outputs], or [rounds, N, num_outputs].
    Raises:
      ValueError: at trace time, for a tile size that does not fit.
    """
    if prediction.shape != target.shape or any(n % (2 * CELL) for n in target.shape[1:3]):
      raise ValueError(
        f'prediction and target must both be [N, T, T, 1] with T a multiple of {2 * CELL}, got '
        f'{prediction.shape} and {target.shape}'
      )
    # Not in one batch: the target needs no gradient, and is the same for all of a model's heads.
    features_of = self._features()
    queries, keys = features_of(prediction), features_of(target)
    points = pixel_centres(keys.shape[1:3])
    # Every other cell of the prediction, along both axes, is enough to fit to.
    queries = rearrange(queries[:, ::2, ::2], 'n h w c -> n (h w) c')
    keys = rearrange(keys, 'n h w c -> n (h w) c')
    query_points = rearrange(points[::2, ::2], 'h w d -> (h w) d')
    points = rearrange(points, 'h w d -> (h w) d')

    def scalar(name, value):
      return jnp.exp(self.param(f'log_{name}', nn.initializers.constant(jnp.log(value)), ()))

    confidence = jnp.exp(nn.Dense(1, kernel_init=nn.initializers.zeros, name='confidence')(queries))
    temperature = scalar('temperature', self.num_features**0.5 / 2.7)
    gates = jnp.exp(self.param('log_gates', lambda _: jnp.log(jnp.array(self.gates) / 14)))
    unmatched = self.param('unmatched', nn.initializers.zeros, (len(self.gates),))
    blur, prior = scalar('blur', 0.4), scalar('prior', 1.0)

    estimate = jnp.zeros((target.shape[0], self.num_outputs))
    estimates = []
    for gate, threshold in zip(gates, unmatched, strict=True):
      centres = transform_points(estimate, query_points)
      mean, covariance, log_mass = _match(queries / temperature, keys, centres, points, gate)
      # In cells, like everything learned about accuracy.
      cell_area = (2 * CELL / target.shape[1]) ** 2
      precision = _inverse(covariance / cell_area + blur * jnp.eye(2))
      weight = confidence[..., 0] * nn.sigmoid(log_mass - threshold)
      estimate = _fit(
        query_points, mean, precision * weight[..., None, None], prior, self.num_outputs
      )
      estimates.append(estimate)
    return jnp.stack(estimates) if every_round else estimate

  def _features(self):
    """A function of [N, T, T, 1] that gives [N, T / 8, T / 8, num_features]."""
    down = nn.Conv(self.width, (3, 3), strides=2, padding=1, name='down')
    context = nn.Conv(self.width, (3, 3), padding=1, name='context')
    features = nn.Conv(self.num_features, (3, 3), padding=1, use_bias=False, name='features')

    def apply(maps):
      # Blocks of pixels as channels: convolutions of one channel are slow everywhere.
      x = rearrange(maps, 'n (h a) (w b) 1 -> n h w (a b)', a=CELL // 2, b=CELL // 2)
      return features(nn.relu(context(nn.relu(down(x)))))

    return apply


class InverseMLP(nn.Module):
  """The fully connected network of the InverseForm release. Reverse mode only.

  Attributes:
    num_outputs: 4 in the release: normalised shifts and scales, all 0 for equal maps.
    hidden: widths of the layers between; the first holds nearly all of the 100 M weights.

  Source: Borse et al., InverseForm (2021); layers of the released
  `distance_measures_regressor.pth`.
  """

  num_outputs: int = 4
  hidden: tuple[int, ...] = (1000, 32)

  @nn.compact
  def __call__(
    self, prediction: jax.Array, target: jax.Array, *, every_round: bool = False
  ) -> jax.Array:
    """Estimates the transform between tiles.

    Args:
      prediction: float32 [N, 224, 224, 1] in [0, 1], predicted boundary probability.
      target: float32 [N, 224, 224, 1] in [0, 1], true boundaries.
      every_round: as in `InverseMatcher`; this network has one.
    Returns:
      float32 [N, num_outputs].
    """
    tiles = jnp.concatenate([prediction, target], axis=-1)
    x = rearrange(tiles, 'n h w c -> n (c h w)')
    for i, width in enumerate(self.hidden):
      x = nn.relu(nn.Dense(width, dot_general=_dense_product, name=f'hidden{i}')(x))
    x = nn.Dense(self.num_outputs, name='out')(x)
    return x[None] if every_round else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense_product(x, kernel, dimension_numbers, precision):
  """What `nn.Dense` does, of [N, C] and [C, D]. Reverse mode only.

  A kernel of 400 MB comes first, and so it does in the gradient of x: on XLA's CPU backend 96 ms,
  and 126 the other way round; the gradient of x 46, not 60.
  """
  del dimension_numbers
  return jnp.matmul(kernel.T, jax.lax.optimization_barrier(x.T), precision=precision).T


def _dense_product_forward(x, kernel, dimension_numbers, precision):
  return _dense_product(x, kernel, dimension_numbers, precision), (x, kernel)


def _dense_product_backward(dimension_numbers, precision, operands, gradient):
  del dimension_numbers
  x, kernel = operands
  x_gradient = jnp.matmul(kernel, gradient.T, precision=precision)
  kernel_gradient = jnp.matmul(x.T, gradient, precision=precision)
  return jax.lax.optimization_barrier(x_gradient).T, kernel_gradient


_dense_product.defvjp(_dense_product_forward, _dense_product_backward)

# The architecture on a weight folder's card -> network.
INVERSE_NETS: dict[str, Callable[..., nn.Module]] = {
  'matcher': InverseMatcher,
  'mlp': InverseMLP,
}


def load_inversenet(
  name_or_path: str | os.PathLike = 'default', *, num_outputs: int | None = None
) -> tuple[Callable[..., Any], dict[str, Any]]:
  """Loads a trained inverse network.

  Args:
    name_or_path: 'default', which comes with the package; or a weight folder of
      `--mode=train_inversenet` (WORKDIR/inversenet) or of `python -m convert --model=inversenet`.
    num_outputs: P, 4, 6 or 8; None: what the weights were trained with. `InverseMatcher` fits
      any of them with the same weights; the released network has 4.
  Returns:
    (apply_fn, variables): `apply_fn(variables, prediction, target)` gives the transform parameters
    float32 [N, P] of float32 [N, T, T, 1] in [0, 1]; variables are NumPy arrays. What losses take
    is `functools.partial(apply_fn, variables)`.
  Raises:
    ValueError: a folder that is not there, holds another network, or does not fit.
  """
  # Not by that name alone: a run has a folder of the same name.
  packaged = PACKAGED / INVERSENET
  folder = packaged if name_or_path == 'default' else Path(name_or_path).expanduser()
  if not folder.is_dir():
    raise ValueError(
      f"no inverse network in {folder}: there is no such folder; give 'default', or a weight "
      'folder of --mode=train_inversenet or of `python -m convert --model=inversenet`'
    )
  variables, card = load_weights(folder)
  if card['model'] != 'inversenet':
    raise ValueError(
      f'the weights in {folder} are of {card["model"]}, not of an inverse network; give a folder '
      'of --mode=train_inversenet or of `python -m convert --model=inversenet`'
    )
  missing = [key for key in ('architecture', 'num_outputs', 'tile_size') if key not in card]
  if missing:
    raise ValueError(f'the card in {folder} lacks {", ".join(missing)}; make the folder again')
  if num_outputs is None:
    num_outputs = card['num_outputs']
  model = create_inversenet(card['architecture'], num_outputs)
  tile = jnp.zeros((1, card['tile_size'], card['tile_size'], 1))
  expected, given = (
    {path: x.shape for path, x in flatten_dict(tree, sep='/').items()}
    for tree in (jax.eval_shape(model.init, jax.random.key(0), tile, tile), variables)
  )
  problems = list_problems(shape_differences(expected, given))
  if problems:
    raise ValueError(
      f'the weights in {folder} do not fit {card["architecture"]} with {num_outputs} outputs: '
      f'{problems}'
    )
  return model.apply, variables


def create_inversenet(architecture: str, num_outputs: int = 4) -> nn.Module:
  """Makes an inverse network by the name of its architecture, a key of `INVERSE_NETS`."""
  if architecture not in INVERSE_NETS:
    raise ValueError(f'no inverse network {architecture!r}; there are {", ".join(INVERSE_NETS)}')
  return INVERSE_NETS[architecture](num_outputs=num_outputs)


def _match(queries, keys, centres, points, gate):
  """Where each query's counterpart is: mean [N, Q, 2], covariance [N, Q, 2, 2], log of its mass.

  The mass is what matches within the gate, a Gaussian of standard deviation `gate` about
  `centres` [N, Q, 2], as a density per cell.
  """
  # exp(-|point - centre|^2 / (2 gate^2)) as part of the product; what all keys share cancels.
  num_tiles = queries.shape[0]
  queries = jnp.concatenate([queries, centres / gate**2], axis=-1)
  places = jnp.broadcast_to(points, (num_tiles, *points.shape))
  keys = jnp.concatenate([keys, places], axis=-1)
  bias = -jnp.sum(points**2, axis=-1) / (2 * gate**2)
  scores = _einsum('nqc,nkc->nqk', queries, keys) + bias
  largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - largest)
  x, y = points.T
  moments = _einsum(
    'nqk,km->nqm', weights, jnp.stack([jnp.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
  )
  mass = moments[..., 0]
  mean_x, mean_y, xx, xy, yy = jnp.moveaxis(moments[..., 1:] / mass[..., None], -1, 0)
  mean = jnp.stack([mean_x, mean_y], axis=-1)
  xx, xy, yy = xx - mean_x**2, xy - mean_x * mean_y, yy - mean_y**2
  covariance = jnp.stack([jnp.stack([xx, xy], -1), jnp.stack([xy, yy], -1)], -2)
  gate_in_cells = gate * jnp.sqrt(points.shape[0]) / 2
  log_mass = (
    jnp.log(mass)
    + largest[..., 0]
    - jnp.sum(centres**2, axis=-1) / (2 * gate**2)
    - jnp.log(2 * jnp.pi * gate_in_cells**2)
  )
  return mean, covariance, log_mass


def _fit(points, matches, precision, prior, num_outputs):
  """The transform that takes points [Q, 2] nearest to their matches [N, Q, 2]."""
  basis = displacement_basis(points, matches, num_outputs)
  weighted = _einsum('nqdp,nqde->nqpe', basis, precision)
  normal = _einsum('nqpe,nqer->npr', weighted, basis) + prior * jnp.eye(num_outputs)
  right = _einsum('nqpe,nqe->np', weighted, matches - points)
  solution = jnp.linalg.solve(normal, right[..., None])[..., 0]
  if num_outputs == 4:
    shift, scale = jnp.split(solution, 2, axis=-1)
    return jnp.concatenate([shift, jnp.log(jnp.clip(1 + scale, 0.3, 3.0))], axis=-1)
  return solution


def _inverse(matrix):
  """The inverses of symmetric, positive [..., 2, 2]."""
  a, b, c = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 1]
  determinant = jnp.maximum(a * c - b * b, 1e-4)
  rows = jnp.stack([jnp.stack([c, -b], -1), jnp.stack([-b, a], -1)], -2)
  return rows / determinant[..., None, None]
