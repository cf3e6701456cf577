"""The InverseForm loss: how far predicted boundaries seem to have moved from the true ones."""

import difflib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from einops import rearrange

from if_jax.losses.motion import keep_motion
from if_jax.ops.resize import resize_bilinear
from if_jax.ops.transforms import (
  NUM_PARAMETERS,
  matrix_from_parameters,
  nearest_rotation,
  rotation_angle,
  safe_norm,
)

# Prediction and target, float32 [N, T, T, 1] in [0, 1], to transform parameters [N, P].
InverseNet = Callable[[jax.Array, jax.Array], jax.Array]


def inverseform(
  edge_logits: jax.Array,
  edges: jax.Array,
  inverse_net: InverseNet,
  *,
  tile_rows: int = 3,
  tile_columns: int | None = None,
  tile_size: int = 224,
  distance: str = 'euclidean',
  gradient: str = 'motion',
  valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The distance from the identity of the transform between predicted and true boundaries.

  Both maps are resized and cut into tiles; the inverse network estimates, tile by tile, the
  transform that takes the true boundaries to the predicted ones. Tiles without a true boundary
  have no such transform and count for nothing.

  Args:
    edge_logits: float [B, H, W, 1], before the sigmoid.
    edges: float [B, H, W, 1] in {0, 1}.
    inverse_net: (prediction, target) -> [N, P], both float32 [N, tile_size, tile_size, 1] in
      [0, 1]; its weights are frozen, the gradient flows through the prediction. For empty tiles,
      too, it must be finite.
    tile_rows: tiles over the height.
    tile_columns: tiles over the width; None: as many as keep them nearly square.
    tile_size: pixels of a tile's side as the network sees it.
    distance: 'euclidean', any P, or 'geodesic', P of 4, 6 or 8.
    gradient: 'motion': only the part that moves the predicted boundaries as transforms of P
      parameters do (homographies if P is none of 4, 6, 8), see `if_jax.losses.motion`; 'full':
      also what changes the network's answer without moving anything.
    valid: bool [B, H, W, 1]; both maps are 0 where it is False. None: all pixels count.
  Returns:
    (total, count): float32 scalars; distances summed over the tiles with a true boundary (above
    0.5 in the tile that the network sees), and how many those are.
  Raises:
    ValueError: at trace time, for shapes that do not fit, an unknown distance or gradient, an
      empty grid.
  Example:
    >>> mean_difference = lambda prediction, target: jnp.mean(prediction - target, (1, 2))
    >>> edges = jnp.eye(8).reshape(1, 8, 8, 1)  # a diagonal: through two tiles of four
    >>> total, count = inverseform(
    ...   jnp.full((1, 8, 8, 1), -9.0), edges, mean_difference, tile_rows=2, tile_size=4
    ... )
    >>> round(float(total), 2), int(count)
    (0.5, 2)

  Source: Borse et al., InverseForm (2021), sections 3.2 and 3.3.
  Differs: see `inverseform_as_released` and docs/deviations.md.
  """
  return inverseform_of_probability(
    jax.nn.sigmoid(edge_logits.astype(jnp.float32)),
    edges,
    inverse_net,
    tile_rows=tile_rows,
    tile_columns=tile_columns,
    tile_size=tile_size,
    distance=distance,
    gradient=gradient,
    valid=valid,
  )


def inverseform_of_probability(
  probability: jax.Array,
  edges: jax.Array,
  inverse_net: InverseNet,
  *,
  tile_rows: int = 3,
  tile_columns: int | None = None,
  tile_size: int = 224,
  distance: str = 'euclidean',
  gradient: str = 'motion',
  valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`inverseform` for boundaries that are no logits, such as those of `soft_boundary_map`.

  Args:
    probability: float [B, H, W, 1] in [0, 1].
    edges: this and the others as in `inverseform`.
    inverse_net: see there.
    tile_rows: see there.
    tile_columns: see there.
    tile_size: see there.
    distance: see there.
    gradient: see there.
    valid: see there.
  Returns:
    (total, count), as `inverseform`.
  Raises:
    ValueError: as `inverseform`.
  """
  _check_maps(probability, edges, valid)
  distance_fn = choose('distance', distance, DISTANCES)
  gradient_fn = choose('gradient', gradient, GRADIENTS)
  if tile_columns is None:
    tile_columns = max(1, round(tile_rows * edges.shape[2] / edges.shape[1]))
  probability, edges = probability.astype(jnp.float32), edges.astype(jnp.float32)
  if valid is not None:
    probability, edges = jnp.where(valid, probability, 0), jnp.where(valid, edges, 0)
  prediction = cut_tiles(probability, tile_rows, tile_columns, tile_size)
  target = cut_tiles(edges, tile_rows, tile_columns, tile_size)
  estimate = inverse_net(gradient_fn(prediction, target, inverse_net), target)
  has_boundary = jnp.any(target > 0.5, axis=(1, 2, 3))
  distances = jnp.where(has_boundary, distance_fn(estimate), 0)
  return jnp.sum(distances), jnp.sum(has_boundary, dtype=jnp.float32)


def inverseform_as_released(
  edge_logits: jax.Array,
  edges: jax.Array,
  inverse_net: InverseNet,
  *,
  tile_rows: int = 3,
  tile_columns: int = 6,
  tile_size: int = 224,
) -> tuple[jax.Array, jax.Array]:
  """The term as the InverseForm release computes it, for comparison: nothing learns from it.

  The release takes a log-softmax over the one edge channel, which is 0 whatever the logits are:
  the network sees an empty prediction, and the gradient is exactly 0.

  Args:
    edge_logits: float [B, H, W, 1]; probabilities would make no difference.
    edges: float [B, H, W, 1] in {0, 1}.
    inverse_net: as in `inverseform`.
    tile_rows: tiles over the height, of whatever image.
    tile_columns: tiles over the width.
    tile_size: pixels of a tile's side as the network sees it.
  Returns:
    (total, count): float32 scalars; Euclidean distances summed over all tiles, how many there are.
  Raises:
    ValueError: at trace time, for shapes that do not fit and an empty grid.
  Source: `InverseTransform2D` of the InverseForm release.
  """
  _check_maps(edge_logits, edges)
  grid = tile_rows, tile_columns, tile_size
  prediction = cut_tiles(jax.nn.log_softmax(edge_logits.astype(jnp.float32)), *grid)
  target = cut_tiles(edges.astype(jnp.float32), *grid)
  distances = euclidean_distance(inverse_net(prediction, target))
  return jnp.sum(distances), jnp.float32(distances.size)


def cut_tiles(maps: jax.Array, rows: int, columns: int, tile_size: int) -> jax.Array:
  """Resizes maps bilinearly to a grid of square tiles and cuts them out, row by row.

  Args:
    maps: float [B, H, W, C].
    rows: tiles over the height.
    columns: tiles over the width.
    tile_size: T, pixels of a tile's side.
  Returns:
    [B * rows * columns, T, T, C]: the tiles of the first map from left to right and from top to
    bottom, then those of the next.
  Raises:
    ValueError: at trace time, if the grid is empty or `maps` has not four axes.
  Example:
    >>> cut_tiles(jnp.arange(8.0).reshape(1, 2, 4, 1), 1, 2, 2)[..., 0].tolist()
    [[[0.0, 1.0], [4.0, 5.0]], [[2.0, 3.0], [6.0, 7.0]]]

  """
  if min(rows, columns) < 1 or tile_size < 2:
    raise ValueError(
      'tiles need at least one row, one column and two pixels, got '
      f'{rows} x {columns} of {tile_size}'
    )
  maps = resize_bilinear(maps, (rows * tile_size, columns * tile_size))
  return rearrange(maps, 'b (r h) (c w) k -> (b r c) h w k', r=rows, c=columns)


def euclidean_distance(estimate: jax.Array, truth: jax.Array | None = None) -> jax.Array:
  """The norm of the difference of transform parameters; at 0 its gradient is 0.

  Args:
    estimate: float [N, P].
    truth: float [N, P]; None: the identity, all 0.
  Returns:
    float [N].
  Raises:
    ValueError: at trace time, if the shapes do not fit.
  Example:
    >>> euclidean_distance(jnp.array([[0.0, 3.0, 4.0, 0.0]])).tolist()
    [5.0]

  Source: InverseForm, section 3.3. The network's training and the loss use the same one.
  """
  _check_parameters(estimate, truth)
  return safe_norm(estimate if truth is None else estimate - truth)


def geodesic_distance(
  estimate: jax.Array, truth: jax.Array | None = None, *, residual_weight: float = 0.1
) -> jax.Array:
  r"""The angle of what is left to turn, and how far it is from a rotation at all.

  With M the matrix :math:`\theta^{-1} \hat\theta`, P the rotation nearest to M and R = M - P, it is
  :math:`\arccos((\mathrm{tr} P - 1) / 2) + \lambda \, \mathrm{tr}(R^T R)`.

  Args:
    estimate: float [N, P], as `matrix_from_parameters` takes them.
    truth: float [N, P]; None: the identity.
    residual_weight: lambda.
  Returns:
    float [N], the first term in radians. At the identity its gradient is 0.
  Raises:
    ValueError: at trace time, if the shapes do not fit or P is not 4, 6 or 8.
  Source: InverseForm, section 3.3, after AETv2 (Qi et al., 2019).
  """
  _check_parameters(estimate, truth)
  matrix = matrix_from_parameters(estimate)
  if truth is not None:
    matrix = jnp.linalg.solve(matrix_from_parameters(truth), matrix)
  rotation = nearest_rotation(matrix)
  residual = jnp.sum(jnp.square(matrix - rotation), axis=(1, 2))
  return rotation_angle(rotation) + residual_weight * residual


DISTANCES = {'euclidean': euclidean_distance, 'geodesic': geodesic_distance}


def _motion(prediction, target, inverse_net):
  num_outputs = jax.eval_shape(inverse_net, prediction, target).shape[-1]
  return keep_motion(prediction, num_outputs if num_outputs in NUM_PARAMETERS else 8)


GRADIENTS = {'motion': _motion, 'full': lambda prediction, *_: prediction}


def choose(kind: str, name: str, choices: Mapping[str, Callable]) -> Callable:
  """The choice of that name; ValueError with the nearest if there is none."""
  if name not in choices:
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    raise ValueError(f'unknown {kind} {name!r}; there are {", ".join(choices)}.{hint}')
  return choices[name]


def _check_maps(predicted, edges, valid=None):
  shape = predicted.shape
  if len(shape) != 4 or shape[-1] != 1 or edges.shape != shape:
    raise ValueError(
      f'predicted boundaries and edges must both be [B, H, W, 1], got {shape} and {edges.shape}'
    )
  if valid is not None and valid.shape != shape:
    raise ValueError(f'valid must have the shape of edges, {shape}, got {valid.shape}')


def _check_parameters(estimate, truth):
  if estimate.ndim != 2 or (truth is not None and truth.shape != estimate.shape):
    given = estimate.shape if truth is None else f'{estimate.shape} and {truth.shape}'
    raise ValueError(f'transform parameters must be [N, P], got {given}')
