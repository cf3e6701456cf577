"""The optimiser and its learning rate schedule."""

import jax
import optax


def make_schedule(
  learning_rate: float, num_steps: int, *, power: float = 0.9, warmup_steps: int = 0
) -> optax.Schedule:
  """Polynomial decay to 0 after a linear warm-up.

  Args:
    learning_rate: the peak.
    num_steps: of the whole training, the warm-up among them.
    power: learning_rate * (1 - progress)**power; 0.9 in HRNet's recipe, 2 in HMS's.
    warmup_steps: from 0 to the peak.
  """
  decay = optax.polynomial_schedule(learning_rate, 0.0, power, max(1, num_steps - warmup_steps))
  if not warmup_steps:
    return decay
  warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(
  schedule: optax.Schedule, *, name: str = 'sgd', momentum: float = 0.9, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
  """The optimiser of the networks' recipes, or one that gets going faster from random weights.

  Weights of convolutions decay, which are the arrays called 'kernel', here and in vectors of
  `if_jax.packing.pack`; biases and the scales of normalisation do not.

  Args:
    schedule: step to learning rate.
    name: 'sgd', as PyTorch's: the decay is added to the gradient before the momentum; or 'adamw'.
    momentum: of SGD, and AdamW's first decay rate.
    weight_decay: per step, times the learning rate.
  Raises:
    ValueError: another name.
  """

  def kernels(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)

  if name == 'adamw':
    return optax.adamw(schedule, b1=momentum, weight_decay=weight_decay, mask=kernels)
  if name != 'sgd':
    raise ValueError(f'no optimizer {name!r}; there are sgd and adamw')
  return optax.chain(
    optax.add_decayed_weights(weight_decay, mask=kernels),
    optax.sgd(schedule, momentum=momentum),
  )
