"""An ONNX graph in the making: of its operations and constants, what is needed is written."""

import ast
import hashlib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

# onnxruntime reads these since 1.17, of January 2024.
_OPSET = 18
_IR_VERSION = 9

# In the sizes that JAX tells.
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
}


class Node:
  """One operation and its only result.

  Sizes, int64 [1], are nodes that can be computed with, see `Graph.size`.

  Attributes:
    op: name of the operation; empty for the input of the graph.
    inputs: nodes and constants; None: one that is left out.
    attributes: of the operation.
    name: of the result.
  """

  def __init__(self, graph: 'Graph', op: str, inputs: Sequence['Value | None'], **attributes):
    self.graph, self.op, self.inputs, self.attributes = graph, op, inputs, attributes
    self.name = f'{op or "input"}_{len(graph.nodes)}'
    graph.nodes.append(self)

  def __add__(self, other):
    return self.graph.add_size('Add', self, other)

  def __sub__(self, other):
    return self.graph.add_size('Sub', self, other)

  def __mul__(self, other):
    return self.graph.add_size('Mul', self, other)

  def __floordiv__(self, other):
    # ONNX rounds towards zero, which no size is below.
    return self.graph.add_size('Div', self, other)

  __radd__, __rmul__ = __add__, __mul__


Value = Node | np.ndarray


class Output(NamedTuple):
  """What a graph gives: its value, and the type that is declared."""

  value: Value
  dtype: np.dtype
  shape: Sequence


class Graph:
  """Operations in an order in which they can run, on one input.

  Args:
    name: of the input.
    dtype: of the input.
    shape: numbers and symbols, each of which is an axis of the input.
    known: values of symbols that are not free.
  """

  def __init__(self, name: str, dtype: np.dtype, shape: Sequence, known: Mapping[str, int]):
    self.nodes: list[Node] = []
    self.input = self.add('')
    self.input.name = name
    self._input_type = (dtype, shape)
    self._sizes: dict[str, int | Node] = {
      str(size): self.add('Shape', self.input, start=axis, end=axis + 1)
      for axis, size in enumerate(shape)
      if not isinstance(size, int)
    }
    self._sizes |= known
    self._computed: dict[tuple, Node] = {}
    self._shapes: dict[tuple[str, ...], Value] = {}

  def add(self, op: str, *inputs: Value | None, **attributes) -> Node:
    """Adds an operation and gives its result."""
    return Node(self, op, inputs, **attributes)

  def add_size(self, op: str, size: Node, other: int | Node) -> Node:
    """Adds what computes a size from two, once."""
    key = (op, id(size), other if isinstance(other, int) else id(other))
    if key not in self._computed:
      self._computed[key] = self.add(op, size, _as_value(other))
    return self._computed[key]

  def size(self, dimension) -> int | Node:
    """The value of a size that JAX tells as, say, floordiv(height - 1, 2) + 1."""
    text = str(dimension)
    if text not in self._sizes:
      # JAX's notation is Python's, with ^ for powers.
      self._sizes[text] = self._compute(ast.parse(text.replace('^', '**'), mode='eval').body)
    return self._sizes[text]

  def _compute(self, tree: ast.expr) -> int | Node:
    match tree:
      case ast.Constant(value=int(value)):
        return value
      case ast.Name(id=name):
        return self._sizes[name]
      case ast.UnaryOp(op=ast.USub(), operand=operand):
        return self._compute(operand) * -1
      case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(exponent))):
        return math.prod([self._compute(left)] * exponent)
      case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
        return _OPERATORS[type(op)](self._compute(left), self._compute(right))
      case ast.Call(func=ast.Name(id='floordiv'), args=[left, right]):
        return operator.floordiv(self._compute(left), self._compute(right))
    raise NotImplementedError(f'no translation to ONNX for the size {ast.unparse(tree)}')

  def shape(self, dimensions: Sequence) -> Value:
    """Sizes as one int64 [N]."""
    key = tuple(map(str, dimensions))
    if key not in self._shapes:
      sizes = [_as_value(self.size(dimension)) for dimension in dimensions]
      known = [size for size in sizes if isinstance(size, np.ndarray)]
      is_known = len(known) == len(sizes)
      self._shapes[key] = np.concatenate(known) if is_known else self.add('Concat', *sizes, axis=0)
    return self._shapes[key]

  def to_model(self, outputs: Mapping[str, Output]) -> onnx.ModelProto:
    """The model that gives these outputs, checked by ONNX."""
    # Names are free to choose for what comes out of an operation, not for constants.
    results = [self.add('Identity', output.value) for output in outputs.values()]
    for name, node in zip(outputs, results, strict=True):
      node.name = name
    needed = {id(node) for node in results}
    for node in reversed(self.nodes):
      if id(node) in needed:
        needed |= {id(value) for value in node.inputs}
    constants = _Constants()
    nodes = [
      helper.make_node(
        node.op, [constants.name_of(x) for x in node.inputs], [node.name], **node.attributes
      )
      for node in self.nodes
      if id(node) in needed and node is not self.input
    ]
    graph = helper.make_graph(
      nodes,
      'network',
      [self._declare(self.input.name, *self._input_type)],
      [self._declare(name, dtype, shape) for name, (_, dtype, shape) in outputs.items()],
      list(constants.tensors.values()),
    )
    versions = {'opset_imports': [helper.make_opsetid('', _OPSET)], 'ir_version': _IR_VERSION}
    model = helper.make_model(graph, producer_name='if_jax', **versions)
    onnx.checker.check_model(model)
    return model

  def _declare(self, name, dtype, shape):
    sizes = [(self.size(x), x) for x in shape]
    shape = [str(x) if isinstance(size, Node) else size for size, x in sizes]
    return helper.make_tensor_value_info(name, element_type(dtype), shape)


def element_type(dtype: np.dtype) -> int:
  """ONNX's number for a dtype."""
  return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class _Constants:
  """Arrays by content: a network that runs at four scales has its weights once."""

  def __init__(self):
    self.tensors: dict[tuple, onnx.TensorProto] = {}

  def name_of(self, value: Value | None) -> str:
    if not isinstance(value, np.ndarray):
      return value.name if value else ''
    content = value.tobytes()
    key = (value.shape, value.dtype, hashlib.sha256(content).digest())
    if key not in self.tensors:
      self.tensors[key] = helper.make_tensor(
        f'constant_{len(self.tensors)}', element_type(value.dtype), value.shape, content, raw=True
      )
    return self.tensors[key].name


def _as_value(size: int | Node) -> Value:
  return size if isinstance(size, Node) else np.array([size], np.int64)
