"""The Python of the documentation runs as it stands."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def _blocks(page):
  return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize('page', ['README.md', 'docs/inversenet.md'])
def test_the_loss_can_be_taken_along(page):
  (block,) = [text for text in _blocks(page) if 'inverseform(' in text]
  labels = jnp.zeros((1, 32, 64), jnp.int32).at[:, 10:20, 20:40].set(1)
  names = {'labels': labels, 'edge_logits': jnp.zeros((1, 32, 64, 1))}
  exec(block, names)
  assert np.isfinite(names['loss'])
  assert 0 < names['count'] <= 18
  assert 0 < names['loss'] < 1
