"""One step of training an inverse network, and its scores: pure functions of drawn pairs."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from if_jax.boundary_pairs import PairSettings, corrupt, draw_pairs, label_crops
from if_jax.guard import skip_unless_finite
from if_jax.losses.inverseform import DISTANCES
from if_jax.ops.transforms import matrix_from_parameters, parameters_from_matrix
from if_jax.ops.warp import homography_warp

# Tiles with a smaller share of boundary pixels have no transform to find: their answer is 0.
_EMPTY = 1e-3
# Pairs that are drawn at once for evaluation, and how often.
_EVAL_BATCH_SIZE, _NUM_EVAL_BATCHES = 16, 8


class TrainState(flax.struct.PyTreeNode):
  """What a step changes.

  Attributes:
    step: int32, how many were taken.
    variables: of the network.
    opt_state: of the optimiser.
    skipped: int32, how many of the steps changed nothing, because something was not finite.
  """

  step: jax.Array | np.ndarray
  variables: Any
  opt_state: Any
  skipped: jax.Array | np.int32 = np.int32(0)


def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  settings: PairSettings,
  distance: str,
  seed: int,
  axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of training, on pairs drawn from this device's crops.

  Args:
    state: the same on all devices.
    batch: this device's part: 'label' uint8 [B, S, S], of `label_crops`, and maybe 'predicted',
      see `draw_pairs`.
    model: of `create_inversenet`.
    optimizer: of its variables.
    settings: of the pairs.
    distance: a key of `if_jax.losses.inverseform.DISTANCES`, from the true transform.
    seed: of what is drawn.
    axis_name: of the devices; None: this one holds the whole batch.
  Returns:
    (the next state, {name: its mean over the whole batch}); 'skipped_steps' int32 counts all so
    far that were not finite and so changed nothing.
  """
  # Threefry, the usual generator, takes as long as the network on a CPU.
  rng = jax.random.fold_in(jax.random.key(seed, impl='rbg'), state.step)
  if axis_name is not None:
    rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
  prediction, target, truth = draw_pairs(
    rng, batch['label'], settings, predicted=batch.get('predicted')
  )
  truth = jnp.where(has_boundary(target)[:, None], truth, 0)

  def loss_of(variables):
    estimates = model.apply(variables, prediction, target, every_round=True)
    distances = jax.vmap(lambda estimate: DISTANCES[distance](estimate, truth))(estimates)
    # The rounds before the last count half.
    loss = (jnp.mean(distances) + jnp.mean(distances[-1]) / len(distances)) / 2
    errors = pair_errors(estimates[-1], truth, settings.tile_size)
    return loss, {'loss': loss, **{name: jnp.mean(x) for name, x in errors.items()}}

  gradients, metrics = jax.grad(loss_of, has_aux=True)(state.variables)
  if axis_name is not None:
    gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
  metrics['gradient_norm'] = optax.tree.norm(gradients)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.variables)
  after = state.replace(
    step=state.step + 1,
    variables=optax.apply_updates(state.variables, updates),
    opt_state=opt_state,
  )
  checked = metrics['loss'], metrics['gradient_norm'], after.variables
  after = skip_unless_finite(state, after, checked)
  return after, metrics | {'skipped_steps': after.skipped}


def pair_errors(estimate: jax.Array, truth: jax.Array, tile_size: int) -> dict[str, jax.Array]:
  """Errors [N] of transform parameters [N, P], absolute and means over both axes.

  'shift_error' is in pixels of a tile, 'scale_error' in the logarithm of the scale.
  """
  estimate, truth = (
    parameters_from_matrix(matrix_from_parameters(x), 4) for x in (estimate, truth)
  )
  difference = jnp.abs(estimate - truth)
  return {
    'shift_error': jnp.mean(difference[:, :2], axis=1) * tile_size / 2,
    'scale_error': jnp.mean(difference[:, 2:], axis=1),
  }


def has_boundary(target: jax.Array) -> jax.Array:
  """Whether tiles [N, T, T, 1] show enough of a boundary to tell where it is, bool [N]."""
  return jnp.mean(target, axis=(1, 2, 3)) > _EMPTY


class Evaluator:
  """Scores variables of an inverse network on pairs that are the same each time.

  Args:
    model: of `create_inversenet`.
    label_maps: uint8 [H, W] each, that it is not trained on.
    settings: of the pairs.
    distance: as in `train_step`.
  """

  def __init__(
    self,
    model: nn.Module,
    label_maps: Sequence[np.ndarray],
    settings: PairSettings,
    distance: str,
  ):
    self._label_maps = label_maps
    self._scores = jax.jit(
      functools.partial(_scores, model=model, settings=settings, distance=distance)
    )

  def __call__(self, variables: dict[str, Any]) -> dict[str, float]:
    """Returns means over the tiles that have a boundary.

    Of `pair_errors`, those of predictions that are the warped truth ('clean_...') and of others
    that look as networks predict ('corrupt_...'); and how far from the identity the network finds
    a truth beside itself ('distance_aligned') and shifted by 10 pixels of 224
    ('distance_shifted').
    """
    batches = []
    for i in range(_NUM_EVAL_BATCHES):
      crops = label_crops(self._label_maps, _EVAL_BATCH_SIZE, np.random.default_rng(i))
      batches.append(jax.device_get(self._scores(variables, crops, jax.random.key(i))))
    scores = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    counted = scores.pop('has_boundary')
    if not counted.any():
      raise ValueError('no boundary in any tile of the val split; give sources that have some')
    return {name: float(np.mean(x[counted])) for name, x in scores.items()}


def _scores(variables, labels, rng, *, model, settings, distance):
  """What `Evaluator` gives, [N] each, and which tiles to count."""
  clean, target, truth = draw_pairs(rng, labels, dataclasses.replace(settings, clean=1.0))
  shift = jnp.broadcast_to(jnp.array([10 / 112, 0, 0, 0]), (len(target), 4))
  predictions = {
    'clean': clean,
    'corrupt': corrupt(jax.random.fold_in(rng, 1), clean, jnp.roll(target, 1, axis=0)),
    'aligned': target,
    'shifted': homography_warp(target, matrix_from_parameters(shift)),
  }
  every_target = jnp.concatenate([target] * len(predictions))
  estimate = model.apply(variables, jnp.concatenate([*predictions.values()]), every_target)
  estimates = dict(zip(predictions, jnp.split(estimate, len(predictions)), strict=True))
  scores = {'has_boundary': has_boundary(target)}
  for kind in ('clean', 'corrupt'):
    errors = pair_errors(estimates[kind], truth, settings.tile_size)
    scores |= {f'{kind}_{name}': x for name, x in errors.items()}
  for kind in ('aligned', 'shifted'):
    scores[f'distance_{kind}'] = DISTANCES[distance](estimates[kind])
  return scores
