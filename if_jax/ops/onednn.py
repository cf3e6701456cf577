"""Convolutions by oneDNN, which JAX's builds for x86 CPUs hold and XLA's own programs pass by.

oneDNN is Intel's library of neural network kernels, the one that PyTorch calls on CPUs. Here its
convolution is called as XLA's oneDNN rewriter would call it, if it were switched on in the builds
that PyPI has. Bias, residual and ReLU are applied while a value is still in a register.

Programs with such calls are for evaluation: they have no gradients, and can neither be exported nor
kept on disk, for XLA has no way to write them down (`if_jax.compilation_cache.not_kept`).
"""

import json
import os
import platform
import sys

import jax
import jax.numpy as jnp
import jaxlib

# The call has no promise of stability, and one that XLA cannot read ends the process: these are the
# versions of jaxlib with which `conv2d` was compared with XLA's, of all kernel sizes and strides.
KNOWN_VERSIONS = (
  '0.10.0', '0.10.1', '0.10.2', '0.11.0', '0.11.1', '0.11.2', '0.12.0', '0.12.0.1',
)  # fmt: skip
# So many are worth compiling anew: it takes 4 s, and saves from 0.03 s an image (hrnet16_slim,
# 512 x 1024) to 1 s (ocrnet48).
MANY_IMAGES = 150
# 'off' or 0 in the environment: never.
SWITCH = 'IF_JAX_ONEDNN'


def why_not(dtype: jax.typing.DTypeLike = jnp.float32) -> str | None:
  """Says in words why `conv2d` does not work, here and with this dtype; None: it does."""
  if jnp.dtype(dtype) != jnp.float32:
    return f'it computes in float32, not {jnp.dtype(dtype).name}'
  switch = os.environ.get(SWITCH, '')
  if switch.lower() in ('off', '0', 'false', 'no'):
    return f'{SWITCH} is {switch}'
  if jax.default_backend() != 'cpu':
    return f'it is for CPUs, and the backend is {jax.default_backend()}'
  if not sys.platform.startswith('linux') or platform.machine() != 'x86_64':
    return f'it is for Linux on x86_64, and this is {sys.platform} on {platform.machine()}'
  if jaxlib.__version__ not in KNOWN_VERSIONS:
    return f'it was tried with jaxlib {", ".join(KNOWN_VERSIONS)}; this is {jaxlib.__version__}'
  return None


def conv2d(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  residual: jax.Array | None = None,
  *,
  stride: int = 1,
  padding: int = 0,
  relu: bool = False,
) -> jax.Array:
  """A 2-D convolution with square kernel, and what follows it, in one call. No gradients.

  Unlike XLA's, its ReLU makes 0 of what is not a number.

  Args:
    x: float32 [B, H, W, C].
    kernel: float32 [k, k, C, D].
    bias: float32 [D], added.
    residual: float32 [B, H', W', D], added after it.
    stride: along both axes.
    padding: zeros around the image, in pixels.
    relu: whether what is negative in the end becomes 0.
  Returns:
    float32 [B, H', W', D] with H' = (H + 2 * padding - k) // stride + 1.
  Raises:
    ValueError: shapes or dtypes that do not fit; they would end the process.
  """
  k, _, channels, features = kernel.shape
  height, width = ((side + 2 * padding - k) // stride + 1 for side in x.shape[1:3])
  result = jax.ShapeDtypeStruct((x.shape[0], height, width, features), jnp.float32)
  wanted = {
    'x': (x, (*x.shape[:3], channels)),
    'kernel': (kernel, (k, k, channels, features)),
    'bias': (bias, (features,)),
    'residual': (residual, result.shape),
  }
  for name, (array, shape) in wanted.items():
    if array is not None and (array.shape != shape or array.dtype != jnp.float32):
      raise ValueError(f'{name} must be float32 {shape}, got {array.dtype} {array.shape}')
  operands, steps = [x, kernel], []
  if bias is not None:
    operands.append(bias)
    steps.append('BIAS')
  if residual is not None:
    operands.append(residual)
    steps.append('BINARY_ADD')
  if relu:
    steps.append('RELU')
  images = {'dims': 4, 'data': {'batch_dim': 0, 'feature_dim': 3, 'spatial_dims': [1, 2]}}
  # xla/service/cpu/onednn_config.proto, in which a dilation of 1 is none.
  convolution = {
    'dims': 4,
    'input': images,
    'kernel': {
      'dims': 4,
      'filter': {'input_feature_dim': 2, 'output_feature_dim': 3, 'spatial_dims': [0, 1]},
    },
    'output': images,
    'window': {
      'size': [k, k],
      'pad_left': [padding] * 2,
      'pad_right': [padding] * 2,
      'strides': [stride] * 2,
      'window_dilations': [1, 1],
    },
    'fusions': {'ops': steps},
    'feature_groups': 1,
  }
  call = jax.ffi.ffi_call(
    '__onednn$convolution',
    result,
    # With these, XLA takes the text for its own configuration of the instruction.
    custom_call_api_version=2,
    legacy_backend_config=json.dumps({'onednn_conv_config': convolution}),
  )
  return call(*operands)
