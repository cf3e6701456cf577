"""HRNet: branches of four resolutions that keep exchanging features."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from if_jax.models.layers import (
  BasicBlock,
  Bottleneck,
  ConvNorm,
  ModuleDef,
  add_relu,
  conv_norm,
)
from if_jax.ops.resize import resize_bilinear


@dataclasses.dataclass(frozen=True)
class HRNetSpec:
  """What tells one HRNet from another.

  Attributes:
    width: channels of the finest branch; each coarser branch has twice as many.
    modules: exchange modules in stages 2, 3 and 4.
    blocks: residual blocks per branch between two exchanges.
    stem_blocks: bottlenecks in stage 1.
    patch_stem: a 2x2 convolution of stride 2 stands in front: the branches then start at 1/8.
  """

  width: int
  modules: tuple[int, int, int]
  blocks: int
  stem_blocks: int
  patch_stem: bool = False


class HRNet(nn.Module):
  """The backbone: an image to the features of its four branches, joined at the finest one's size.

  Source: Wang et al., Deep High-Resolution Representation Learning for Visual Recognition (2019);
  repository HRNet/HRNet-Semantic-Segmentation.
  """

  spec: HRNetSpec
  conv: ModuleDef
  norm: ModuleDef
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """float [B, H, W, 3] to [B, ceil(H / 4), ceil(W / 4), 15 * width] (an eighth: patch stem)."""
    spec = self.spec
    parts: dict[str, Any] = {'conv': self.conv, 'norm': self.norm}
    module_type: ModuleDef = ExchangeModule
    block_type: ModuleDef = Bottleneck
    if self.remat:
      module_type, block_type = (
        nn.remat(m, static_argnums=(2,)) for m in (module_type, block_type)
      )

    if spec.patch_stem:
      x = self.conv(3, 2, 2, padding=0, name='conv0')(x)
    for i in (1, 2):
      conv, norm = self.conv(64, 3, 2, name=f'conv{i}'), self.norm(name=f'bn{i}')
      x = conv_norm(conv, norm, x, train)
    for i in range(spec.stem_blocks):
      x = block_type(**parts, features=64, name=f'layer1_{i}')(x, train)

    branches = [x]
    for stage, num_modules in enumerate(spec.modules, start=2):
      widths = [spec.width * 2**i for i in range(stage)]
      branches = self._add_branch(branches, widths, stage - 1, train)
      for i in range(num_modules):
        module = module_type(**parts, blocks=spec.blocks, name=f'stage{stage}_{i}')
        branches = module(branches, train)
    size = branches[0].shape[1:3]
    return jnp.concatenate([resize_bilinear(b, size) for b in branches], axis=-1)

  def _add_branch(self, branches, widths, index, train):
    """Starts the next coarser branch from the coarsest one; the first time widths change too."""

    def transition(x, branch, stride):
      name = f'transition{index}_{branch}'
      return ConvNorm(self.conv, self.norm, widths[branch], 3, stride, name=name)(x, train)

    new = transition(branches[-1], len(branches), 2)
    if index == 1:
      branches = [transition(branches[0], 0, 1)]
    return [*branches, new]


class ExchangeModule(nn.Module):
  """Residual blocks on every branch, then every branch receives the sum of all of them."""

  conv: ModuleDef
  norm: ModuleDef
  blocks: int

  @nn.compact
  def __call__(self, branches: list[jax.Array], train: bool) -> list[jax.Array]:
    branches = list(branches)
    for i, x in enumerate(branches):
      for j in range(self.blocks):
        x = BasicBlock(self.conv, self.norm, name=f'branch{i}_{j}')(x, train)
      branches[i] = x
    results = []
    for i, like in enumerate(branches):
      *parts, last = (self._exchange(x, j, i, like, train) for j, x in enumerate(branches))
      results.append(add_relu(sum(parts), last))
    return results

  def _exchange(self, x, source, target, like, train):
    """Brings branch `source` to the width and size of branch `target`, those of `like`."""
    if source == target:
      return x
    width = like.shape[-1]
    if source > target:
      # A 1x1 convolution is the same before or after enlarging, and cheaper before.
      name = f'fuse{target}_{source}'
      x = ConvNorm(self.conv, self.norm, width, relu=False, name=name)(x, train)
      return resize_bilinear(x, like.shape[1:3])
    for step in range(target - source):
      last = step == target - source - 1
      x = ConvNorm(
        self.conv,
        self.norm,
        width if last else x.shape[-1],
        kernel_size=3,
        stride=2,
        relu=not last,
        name=f'fuse{target}_{source}_{step}',
      )(x, train)
    return x
