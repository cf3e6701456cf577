"""PyTorch networks with the weights of ours, as they are, folded and compiled."""

import copy
import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.pytorch_networks import MultiScaleSegmenter, OCRSegmenter, PlainSegmenter
from convert import to_torch
from if_jax.models import MODELS, create_model
from if_jax.ops.normalize import MEAN, STD

# How hard `torch.compile` tries.
EFFORTS = ('off', 'default', 'max-autotune')


def create_peer(name: str, variables: Mapping, num_classes: int = 19) -> nn.Module:
  """Makes the network of a name, with an edge head, in `channels_last`, on the GPU if there is one.

  Args:
    name: a key of `if_jax.models.MODELS`.
    variables: those of `create_model(name, num_classes)`, which are copied.
    num_classes: K.
  Returns:
    A module whose `backbone` gives features, and which itself gives what `create_model`'s gives,
    but where ours has logits of enlarged probabilities, these themselves: 'edge_probabilities' and
    'aux_edge_probabilities' [B, 2, H, W], that there is an edge and that there is none.
  """
  # No memory of its own: it gets the entries as they are.
  with torch.device('meta'):
    network = create_network(name, num_classes)
  entries = {path: torch.tensor(x) for path, x in to_torch(variables, name).items()}
  network.load_state_dict(entries, strict=True, assign=True)
  return network.to(device(), memory_format=torch.channels_last)


def create_network(name: str, num_classes: int = 19) -> nn.Module:
  """The same with PyTorch's initial weights, on its default device and in its default layout."""
  options = MODELS[name].options
  spec = options['backbone_spec']
  if name == 'ocrnet48_hms':
    return MultiScaleSegmenter(spec, num_classes)
  if options.get('head') == 'ocr':
    return OCRSegmenter(spec, num_classes)
  hidden, bias = options.get('head_features', 15 * spec.width), options.get('head_bias', True)
  return PlainSegmenter(spec, num_classes, hidden, bias)


def draw_variables(name: str, num_classes: int = 19, seed: int = 0) -> dict:
  """Draws variables for which activations neither grow nor vanish, without compiling anything."""
  image = jnp.zeros((1, 64, 64, 3))
  shapes = jax.eval_shape(create_model(name, num_classes).init, jax.random.key(0), image)
  rng = np.random.default_rng(seed)

  def draw(leaf, shape):
    if leaf in ('scale', 'var'):
      return rng.uniform(0.5, 1.0, shape)
    if leaf in ('bias', 'mean'):
      return 0.1 * rng.standard_normal(shape)
    return rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))

  flat = {path: draw(path[-1], x.shape) for path, x in flatten_dict(shapes).items()}
  return jax.tree.map(np.float32, unflatten_dict(flat))


def fold_batch_norm(network: nn.Module) -> nn.Module:
  """A copy for evaluation alone, in which every batch norm is part of the convolution before it."""
  network = copy.deepcopy(network).eval()
  leaves = [(path, m) for path, m in network.named_modules() if not list(m.children())]
  for (conv_path, conv), (norm_path, norm) in itertools.pairwise(leaves):
    if isinstance(norm, nn.BatchNorm2d):
      network.set_submodule(conv_path, fuse_conv_bn_eval(conv, norm))
      network.set_submodule(norm_path, nn.Identity())
  return network.to(memory_format=torch.channels_last)


def compile_peer(function: Callable, effort: str, *, frozen: bool = False) -> Callable:
  """Compiles a function of tensors whose shapes stay.

  Args:
    function: of tensors.
    effort: 'default', or 'max-autotune' to try several kernels.
    frozen: its weights stay, so that they can be laid out for the CPU.
  """
  options = {'max_autotune': effort == 'max-autotune'}
  if torch.cuda.is_available():
    # Kernels are launched all at once: without it, a GPU waits for Python.
    options['triton.cudagraphs'] = True
  elif frozen:
    options['freezing'] = True
  return torch.compile(function, dynamic=False, options=options)


def device() -> str:
  """Where PyTorch computes."""
  return 'cuda' if torch.cuda.is_available() else 'cpu'


# Tensors of the module: compiled functions take no NumPy arrays, and no copies between devices.
_SCALE, _OFFSET = (
  torch.tensor(x, device=device())[:, None, None] for x in (1 / (255 * STD), -MEAN / STD)
)


def normalize(image: Tensor) -> Tensor:
  """uint8 [B, 3, H, W] to float32, as `if_jax.ops.normalize`."""
  return image * _SCALE + _OFFSET


def to_torch_maps(maps: np.ndarray) -> Tensor:
  """[B, H, W, C] to [B, C, H, W] in `channels_last`."""
  return torch.tensor(np.asarray(maps), device=device()).permute(0, 3, 1, 2)


def from_torch_maps(maps: Tensor) -> np.ndarray:
  """[B, C, H, W] of any float dtype to float32 [B, H, W, C]."""
  return maps.detach().float().permute(0, 2, 3, 1).cpu().numpy()
