"""The optimisers against PyTorch's, and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from if_jax.models import create_model
from if_jax.optimizers import make_optimizer, make_schedule
from if_jax.weights import model_shapes


def test_weight_decay_and_momentum_are_pytorchs():
  torch = pytest.importorskip('torch')
  kernel, bias = np.float32([[1.0, -2.0]]), np.float32([3.0])
  gradients = {'kernel': np.float32([[0.5, 0.25]]), 'bias': np.float32([0.125])}
  params = {'kernel': jnp.asarray(kernel), 'bias': jnp.asarray(bias)}
  schedule = make_schedule(0.1, 10, power=0.9, warmup_steps=2)
  optimizer = make_optimizer(schedule, momentum=0.9, weight_decay=0.01)
  opt_state = optimizer.init(params)
  theirs = {name: torch.tensor(x, requires_grad=True) for name, x in params.items()}
  groups = [
    {'params': [theirs['kernel']], 'weight_decay': 0.01},
    {'params': [theirs['bias']], 'weight_decay': 0.0},
  ]
  sgd = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
  for step in range(5):
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    params = optax.apply_updates(params, updates)
    for group in sgd.param_groups:
      group['lr'] = 0.1 * step / 2 if step < 2 else 0.1 * (1 - (step - 2) / 8) ** 0.9
    for name, gradient in gradients.items():
      theirs[name].grad = torch.tensor(gradient)
    sgd.step()
  for name, expected in theirs.items():
    np.testing.assert_allclose(params[name], expected.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_only_the_weights_of_convolutions_decay(name):
  """Without a gradient: those with more axes than one shrink by the rate times the decay."""
  shapes = model_shapes(create_model('hrnet16_slim', 3))
  small = {path: np.ones([1] * len(shape), np.float32) for path, shape in shapes.items()}
  params = unflatten_dict(small, sep='/')['params']
  optimizer = make_optimizer(make_schedule(0.5, 10), name=name, weight_decay=0.25)
  nothing = jax.tree.map(np.zeros_like, params)
  updates, _ = optimizer.update(nothing, optimizer.init(params), params)
  kinds = set()
  for path, update in flatten_dict(updates).items():
    decays = update.ndim > 1
    kinds.add((path[-1], decays))
    np.testing.assert_allclose(update, -0.125 if decays else 0, err_msg=path)
  assert kinds == {('kernel', True), ('bias', False), ('scale', False)}


def test_an_unknown_optimizer_is_told():
  with pytest.raises(ValueError, match="no optimizer 'adam'; there are sgd and adamw"):
    make_optimizer(make_schedule(0.1, 10), name='adam')
