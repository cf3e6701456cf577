"""One step of training, a pure function of the state and a batch."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from if_jax.freezing import running_statistics, stop_gradients
from if_jax.guard import skip_unless_finite
from if_jax.ops.normalize import normalize
from if_jax.packing import pack, unpack


class TrainState(flax.struct.PyTreeNode):
  """What a step changes; all that a run needs to go on, beside its configuration.

  Attributes:
    step: int32, how many were taken.
    params: as optimised.
    batch_stats: running statistics of batch normalisation.
    opt_state: of the optimiser, for parameters as `if_jax.packing.pack` gives them.
    average: of the params and batch_stats over the last steps, or None.
    skipped: int32, how many of the steps changed nothing, because something was not finite.
  """

  step: jax.Array | np.ndarray
  params: Any
  batch_stats: Any
  opt_state: Any
  average: Any = None
  skipped: jax.Array | np.int32 = np.int32(0)

  @classmethod
  def create(
    cls,
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    frozen: tuple[str, ...] = (),
    averaged: bool = False,
  ) -> 'TrainState':
    """The state before the first step.

    Args:
      variables: 'params' and 'batch_stats'.
      optimizer: of `make_optimizer`.
      frozen: as in `train_step`.
      averaged: whether a moving average is kept.
    """
    params = jax.eval_shape(lambda tree: pack(tree, frozen), variables['params'])
    return cls(
      step=np.zeros((), np.int32),
      params=variables['params'],
      batch_stats=variables['batch_stats'],
      opt_state=optimizer.init(params),
      average=variables if averaged else None,
    )

  @property
  def variables(self) -> dict[str, Any]:
    """As optimised, for `model.apply`."""
    return {'params': self.params, 'batch_stats': self.batch_stats}

  @property
  def evaluated(self) -> dict[str, Any]:
    """What is evaluated, and kept if it is best: the average where there is one."""
    return self.variables if self.average is None else self.average


def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  loss_fn: Callable[
    [dict[str, jax.Array], jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
  ],
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  seed: int,
  accumulation: int = 1,
  ema_decay: float = 0.0,
  frozen: tuple[str, ...] = (),
  axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of training.

  With `accumulation`, the batch is worked off in parts, which needs the memory of one. It differs
  from a step on the whole batch where that is seen as a whole: batch normalisation and the shares
  of classes and of boundary pixels see a part, the running statistics move with each part, and
  the loss is the mean of the parts' losses.

  Args:
    state: the same on all devices.
    batch: this device's part: 'image' uint8 [B, H, W, 3] RGB, 'label' int32 [B, H, W].
    loss_fn: `(outputs, labels, step) -> (total, terms)` of this device; step is how many went
      before. An argument, not a constant: a `jax.tree_util.Partial` carries the inverse network's
      parameters, up to 400 MB.
    model: of `create_model`, with the same `axis_name`.
    optimizer: of `make_optimizer`.
    seed: of dropout.
    accumulation: into how many parts B is cut; they must be of equal size.
    ema_decay: of `state.average`, see `moving_average`; unused where that is None.
    frozen: paths of modules that stay as they are, see `check_frozen`; they do not even decay.
    axis_name: of the devices; None: this one holds the whole batch.
  Returns:
    (the next state, {term: its mean over the whole batch}); 'loss' is the weighted sum,
    'skipped_steps' int32 counts all so far that were not finite and so changed nothing.
  """
  rng = jax.random.fold_in(jax.random.key(seed), state.step)
  if axis_name is not None:
    rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))

  def loss_of_part(params, batch_stats, part, rng):
    with running_statistics(frozen):
      outputs, updated = model.apply(
        {'params': stop_gradients(params, frozen), 'batch_stats': batch_stats},
        normalize(part['image']),
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': rng},
      )
    total, terms = loss_fn(outputs, part['label'], state.step)
    return total, ({'loss': total, **terms}, updated['batch_stats'])

  gradients_of = jax.grad(loss_of_part, has_aux=True)
  if accumulation == 1:
    gradients, (metrics, batch_stats) = gradients_of(state.params, state.batch_stats, batch, rng)
  else:
    gradients, metrics, batch_stats = _accumulate(gradients_of, state, batch, rng, accumulation)
  gradients = pack(gradients, frozen)
  if axis_name is not None:
    gradients, metrics = jax.lax.psum((gradients, metrics), axis_name)
  metrics['gradient_norm'] = optax.tree.norm(gradients)
  before = _packed(state, frozen)
  updates, opt_state = optimizer.update(gradients, before.opt_state, before.params)
  after = before.replace(
    step=state.step + 1,
    params=optax.apply_updates(before.params, updates),
    batch_stats=pack(batch_stats),
    opt_state=opt_state,
  )
  if state.average is not None:
    average = moving_average(before.average, after.variables, state.step, ema_decay)
    after = after.replace(average=average)
  checked = metrics['loss'], metrics['gradient_norm'], after.params, after.batch_stats
  after = skip_unless_finite(before, after, checked)
  return _unpacked(after, state, frozen), metrics | {'skipped_steps': after.skipped}


def _packed(state, frozen):
  """The state with vectors in place of its arrays, but the frozen ones."""

  def packed(variables):
    return {
      'params': pack(variables['params'], frozen),
      'batch_stats': pack(variables['batch_stats']),
    }

  average = None if state.average is None else packed(state.average)
  return state.replace(**packed(state.variables), average=average)


def _unpacked(packed, state, frozen):
  """What was packed, and of `state` what is frozen."""

  def unpacked(variables, like):
    return {
      'params': unpack(variables['params'], like['params'], frozen),
      'batch_stats': unpack(variables['batch_stats'], like['batch_stats']),
    }

  average = None if state.average is None else unpacked(packed.average, state.average)
  return packed.replace(**unpacked(packed.variables, state.variables), average=average)


def _accumulate(gradients_of, state, batch, rng, num_parts):
  """Means of gradients and metrics over parts of a batch, and the batch statistics after it."""

  def add_part(carry, inputs):
    gradients, batch_stats = carry
    new, (metrics, batch_stats) = gradients_of(state.params, batch_stats, *inputs)
    return (jax.tree.map(jnp.add, gradients, new), batch_stats), metrics

  parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), batch)
  nothing = jax.tree.map(jnp.zeros_like, state.params)
  (gradients, batch_stats), metrics = jax.lax.scan(
    add_part, (nothing, state.batch_stats), (parts, jax.random.split(rng, num_parts))
  )
  gradients = jax.tree.map(lambda x: x / num_parts, gradients)
  return gradients, jax.tree.map(jnp.mean, metrics), batch_stats


def moving_average(average: Any, new: Any, step: jax.Array | np.ndarray, decay: float) -> Any:
  """Moves an exponential moving average a step on.

  The decay starts at 0.1 and rises with the steps, min(decay, (1 + step) / (10 + step)), so that
  random initial weights are soon forgotten.

  Args:
    average: a tree of arrays.
    new: the same tree, after the step.
    step: int32, how many went before.
    decay: in [0, 1), what is kept of the average late in training.
  Source: `tf.train.ExponentialMovingAverage` with `num_updates`.
  """
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  # In this form what does not change, stays: frozen parameters to the bit.
  return jax.tree.map(lambda old, x: old + (1 - decay) * (x - old), average, new)
