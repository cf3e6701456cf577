"""From a configuration to what it names."""

import pytest

from configs import default
from if_jax.settings import model_from_config, weights_folder


def test_which_weights_are_meant(tmp_path):
  config = default.get_config()
  best = tmp_path / 'run' / 'best'
  assert weights_folder(config, str(tmp_path / 'run')) == best
  config.init_from = str(tmp_path / 'start')
  assert weights_folder(config, str(tmp_path / 'run')) == tmp_path / 'start'
  best.mkdir(parents=True)
  with pytest.raises(ValueError, match=r'both .*start .* and .*best hold weights'):
    weights_folder(config, str(tmp_path / 'run'))
  config.init_from = str(best)
  assert weights_folder(config, str(tmp_path / 'run')) == best


@pytest.mark.parametrize('dtype', ['bf16', 'float16', 'int32'])
def test_other_dtypes_are_refused(dtype):
  config = default.get_config()
  config.model.dtype = dtype
  with pytest.raises(ValueError, match=f"dtype='{dtype}'; give float32 or bfloat16"):
    model_from_config(config, 3)


def test_a_key_that_does_not_exist_cannot_be_set():
  config = default.get_config()
  with pytest.raises(AttributeError, match='num_steps'):
    config.train.num_step = 3
