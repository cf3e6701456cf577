"""From JAX to ONNX: the trace of a network, operation by operation.

What is translated is what JAX traces, so that no network is described twice. Arrays of four axes
are [B, C, H, W] in the graph, as ONNX's convolutions want them; constants are computed here, and
batch normalisations end up in the weights of the convolutions before them.
"""

import math
import string
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.extend.core
import numpy as np
import onnx

from if_jax.onnx_graph import Graph, Node, Output, Value, element_type

# Of an array [B, H, W, C]: how it is transposed to be stored, and to be read again.
_STORE, _READ = (0, 3, 1, 2), (0, 2, 3, 1)


def to_onnx(
  function: Callable[[Any, jax.Array], dict[str, jax.Array]],
  variables: Any,
  images: jax.ShapeDtypeStruct,
  known: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
  """Makes a function with its weights an ONNX model.

  Args:
    function: of weights and images to named arrays.
    variables: the weights, arrays in any tree; they become constants.
    images: [B, H, W, C], whose sizes may be symbols of `jax.export.symbolic_shape`.
    known: sizes that take the place of symbols.
  Returns:
    A model of 'images' to the named arrays; symbols that are left are sizes it works for.
  Raises:
    NotImplementedError: `function` does what no network of this package does.
  """
  trace = jax.jit(function).trace(variables, images)
  graph = Graph('images', images.dtype, images.shape, known or {})
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]
  values = _run(graph, trace.jaxpr, [*leaves, _store(graph.input, 4)])
  outputs = {}
  # JAX lists what is in a dict in the order of its keys.
  for name, value, var in zip(
    sorted(trace.out_info), values, trace.jaxpr.jaxpr.outvars, strict=True
  ):
    aval = var.aval
    outputs[name] = Output(_read(value, aval.ndim), aval.dtype, aval.shape)
  return graph.to_model(outputs)


def _run(graph: Graph, closed, arguments: list[Value]) -> list[Value]:
  """Adds all operations of a trace to the graph, and gives the values that it returns."""
  jaxpr = closed.jaxpr
  values = {}

  def value_of(var):
    if isinstance(var, jax.extend.core.Literal):
      return np.asarray(var.val, var.aval.dtype)
    return values[var]

  values.update(zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
  values.update(zip(jaxpr.invars, arguments, strict=True))
  for eqn in jaxpr.eqns:
    inputs = [value_of(var) for var in eqn.invars]
    values.update(zip(eqn.outvars, _translate(graph, eqn, inputs), strict=True))
  return [value_of(var) for var in jaxpr.outvars]


def _translate(graph: Graph, eqn, inputs: list[Value]) -> list[Value]:
  name = eqn.primitive.name
  if eqn.params.get('name') == '_resize_symbolic':
    return [_resize(graph, eqn, *inputs)]
  inner = eqn.params.get('jaxpr' if name == 'jit' else 'call_jaxpr')
  if inner is not None:
    return _run(graph, inner, inputs)
  if all(isinstance(x, np.ndarray) for x in inputs):
    compute = _ON_CONSTANTS.get(name, eqn.primitive.bind)
    return [np.asarray(compute(*inputs, **eqn.params))]
  if name not in _RULES:
    raise NotImplementedError(f'no translation to ONNX for the operation {name}')
  inputs = [_store(x, x.ndim) if isinstance(x, np.ndarray) else x for x in inputs]
  return [_RULES[name](graph, eqn, *inputs)]


def _store(value: Value, rank: int) -> Value:
  return _transpose(value, _STORE) if rank == 4 else value


def _read(value: Value, rank: int) -> Value:
  return _transpose(value, _READ) if rank == 4 else value


def _transpose(value: Value, order: tuple[int, ...]) -> Value:
  if isinstance(value, np.ndarray):
    return value.transpose(order)
  if value.op == 'Transpose' and [value.attributes['perm'][i] for i in order] == [0, 1, 2, 3]:
    (original,) = value.inputs
    assert original is not None
    return original
  return value.graph.add('Transpose', value, perm=order)


def _unary(op):
  return lambda graph, eqn, x: graph.add(op, x)


def _binary(op):
  return lambda graph, eqn, x, y: graph.add(op, x, y)


def _reduction(op):
  def reduce(graph, eqn, x):
    axes = np.array(eqn.params['axes'], np.int64)
    return graph.add(op, _read(x, eqn.invars[0].aval.ndim), axes, keepdims=0)

  return reduce


def _multiply(graph, eqn, x, y):
  convolution, factor = _with_constant(x, y)
  if convolution is None:
    return graph.add('Mul', x, y)
  image, kernel, bias = convolution.inputs
  inputs = (image, kernel * factor.reshape(-1, 1, 1, 1), bias * factor.reshape(-1))
  return graph.add('Conv', *inputs, **convolution.attributes)


def _add(graph, eqn, x, y):
  convolution, term = _with_constant(x, y)
  if convolution is None:
    return graph.add('Add', x, y)
  image, kernel, bias = convolution.inputs
  return graph.add('Conv', image, kernel, bias + term.reshape(-1), **convolution.attributes)


def _with_constant(x, y):
  """The convolution and the constant by channel, if the two are that; else (None, None)."""
  for one, other in ((x, y), (y, x)):
    if isinstance(one, Node) and one.op == 'Conv' and isinstance(other, np.ndarray):
      channels = len(one.inputs[1])
      if other.size == 1 or other.shape == (1, channels, 1, 1):
        return one, other
  return None, None


def _maximum(graph, eqn, x, y):
  if isinstance(y, np.ndarray) and y.ndim == 0 and y == 0:
    return graph.add('Relu', x)
  return graph.add('Max', x, y)


def _convolve(graph, eqn, x, kernel):
  p = eqn.params
  numbers = p['dimension_numbers']
  layouts = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
  if layouts != (_STORE, (3, 2, 0, 1), _STORE) or p['lhs_dilation'] != (1, 1):
    raise NotImplementedError(f'no translation to ONNX for a convolution of {numbers}')
  # From the stored layout, as if it were an image, to ONNX's [out, in, height, width].
  kernel = _read(kernel, 4).transpose(3, 2, 0, 1)
  return _add_convolution(
    graph,
    x,
    kernel,
    strides=p['window_strides'],
    pads=[side[i] for i in (0, 1) for side in p['padding']],
    dilations=p['rhs_dilation'],
    group=p['feature_group_count'],
  )


def _add_convolution(graph, x, kernel, **attributes):
  bias = np.zeros(len(kernel), kernel.dtype)
  return graph.add('Conv', x, kernel, bias, kernel_shape=kernel.shape[2:], **attributes)


def _multiply_matrices(graph, eqn, x, y):
  (x_summed, y_summed), (x_batch, y_batch) = eqn.params['dimension_numbers']
  ranks = [var.aval.ndim for var in eqn.invars]
  if isinstance(y, np.ndarray) and ranks == [4, 2] and (*x_summed, *y_summed) == (3, 0):
    return _add_convolution(graph, x, y.T[:, :, None, None])
  letters = iter(string.ascii_letters)
  x_axes = [next(letters) for _ in range(ranks[0])]
  same = dict(zip((*y_summed, *y_batch), (*x_summed, *x_batch), strict=True))
  y_axes = [x_axes[same[i]] if i in same else next(letters) for i in range(ranks[1])]
  batch = [x_axes[i] for i in x_batch]
  summed = [x_axes[i] for i in x_summed]
  free = [a for a in (*x_axes, *y_axes) if a not in batch and a not in summed]
  x_axes, y_axes, axes = (
    ''.join(axes[i] for i in _STORE) if len(axes) == 4 else ''.join(axes)
    for axes in (x_axes, y_axes, [*batch, *free])
  )
  return graph.add('Einsum', x, y, equation=f'{x_axes},{y_axes}->{axes}')


def _concatenate(graph, eqn, *inputs):
  axis = eqn.params['dimension']
  stored_axis = _STORE.index(axis) if eqn.outvars[0].aval.ndim == 4 else axis
  return graph.add('Concat', *inputs, axis=stored_axis)


def _reshape(graph, eqn, x):
  shape = eqn.outvars[0].aval.shape
  x = _read(x, eqn.invars[0].aval.ndim)
  return _store(graph.add('Reshape', x, graph.shape(shape)), len(shape))


def _broadcast(graph, eqn, x):
  old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
  kept = eqn.params['broadcast_dimensions']
  x = _read(x, len(old))
  added = [axis for axis in range(len(new)) if axis not in kept]
  if added:
    x = graph.add('Unsqueeze', x, np.array(added, np.int64))
  if math.prod(new[axis] for axis in added) != 1 or old != tuple(new[axis] for axis in kept):
    x = graph.add('Expand', x, graph.shape(new))
  return _store(x, len(new))


def _argmax(graph, eqn, x):
  (axis,) = eqn.params['axes']
  x = _read(x, eqn.invars[0].aval.ndim)
  index = graph.add('ArgMax', x, axis=axis, keepdims=0)
  return graph.add('Cast', index, to=element_type(eqn.params['index_dtype']))


def _cast(graph, eqn, x):
  return graph.add('Cast', x, to=element_type(eqn.params['new_dtype']))


def _resize(graph, eqn, x):
  batch, height, width, channels = eqn.outvars[0].aval.shape
  sizes = graph.shape((batch, channels, height, width))
  return graph.add(
    'Resize', x, None, None, sizes, mode='linear', coordinate_transformation_mode='half_pixel'
  )


# JAX would compile these for each shape that a constant has.
_ON_CONSTANTS = {
  'add': lambda x, y, **_: x + y,
  'mul': lambda x, y, **_: x * y,
  'rsqrt': lambda x, **_: 1 / np.sqrt(x),
  'squeeze': lambda x, dimensions: x.squeeze(dimensions),
  'sub': lambda x, y, **_: x - y,
}

_RULES = {
  'add': _add,
  'argmax': _argmax,
  'broadcast_in_dim': _broadcast,
  'concatenate': _concatenate,
  'conv_general_dilated': _convolve,
  'convert_element_type': _cast,
  'div': _binary('Div'),
  'dot_general': _multiply_matrices,
  'exp': _unary('Exp'),
  'log': _unary('Log'),
  'logistic': _unary('Sigmoid'),
  'max': _maximum,
  'mul': _multiply,
  'neg': _unary('Neg'),
  'reduce_max': _reduction('ReduceMax'),
  'reduce_sum': _reduction('ReduceSum'),
  'reshape': _reshape,
  'stop_gradient': lambda graph, eqn, x: x,
  'sub': _binary('Sub'),
}
