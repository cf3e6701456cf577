"""From images to class scores: one pass, or an average over scales, flips and windows."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from if_jax.ops import onednn
from if_jax.ops.enlarged import best_class
from if_jax.ops.normalize import normalize
from if_jax.ops.resize import resize_bilinear, scale_size

Outputs = dict[str, jax.Array]
# Normalised images to a model's outputs.
Forward = Callable[[jax.Array], Outputs]


@dataclasses.dataclass(frozen=True)
class Looks:
  """How many looks the network gets at an image; probabilities are averaged over them.

  Attributes:
    scales: ratios of the image's size.
    flip: also look at the mirrored image.
    window: (height, width) in pixels of a window that slides over larger images; None: whole.
    stride: (height, width) in pixels between windows; None: two thirds of the window.

  Raises:
    ValueError: on construction, if a value makes no sense.
  """

  scales: tuple[float, ...] = (1.0,)
  flip: bool = False
  window: tuple[int, int] | None = None
  stride: tuple[int, int] | None = None

  def __post_init__(self):
    if not self.scales or min(self.scales) <= 0:
      raise ValueError(f'scales must be positive ratios, at least one, got {self.scales}')
    if self.stride and not self.window:
      raise ValueError(f'stride={self.stride} needs a window to slide')
    for name in ('window', 'stride'):
      size = getattr(self, name)
      if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f'{name} must be (height, width) in pixels, got {size}')
    sides = zip(self.stride or (), self.window or (), strict=False)
    if any(s > w for s, w in sides):
      raise ValueError(f'stride={self.stride} skips pixels between windows of {self.window}')


def for_many_images(model: nn.Module, num_images: int) -> nn.Module:
  """The same network, with convolutions by oneDNN where they work and so many images pay."""
  if not hasattr(model, 'onednn') or num_images < onednn.MANY_IMAGES or onednn.why_not(model.dtype):
    return model
  return model.clone(onednn=True)


def can_be_kept(model: nn.Module) -> bool:
  """Whether a compiled program of this network can be kept on disk."""
  return not getattr(model, 'onednn', False)


def predict(
  model: nn.Module,
  variables: Mapping,
  images: jax.Array,
  looks: Looks = Looks(),
) -> Outputs:
  """Segments a batch of images, one after the other.

  An image's answer does not depend on its batch: convolutions of other batch sizes round
  otherwise, and a class that wins by a rounding would come and go with the batch size. One image
  of a street fills a device.

  Args:
    model: of `create_model`.
    variables: its parameters and statistics.
    images: uint8 [B, H, W, 3], RGB.
    looks: those to average.
  Returns:
    'label' int32 [B, H, W], the best class, and with an edge head 'edge_probability' float32
    [B, H, W, 1] in [0, 1].
  """

  def one(image):
    outputs = predict_batch(model, variables, image[None], looks)
    return jax.tree.map(lambda x: x[0], outputs)

  return jax.lax.map(one, images)


def predict_batch(model, variables: Mapping, images: jax.Array, looks: Looks = Looks()) -> Outputs:
  """Segments a batch of images at once; else as `predict`."""
  images = normalize(images)
  if looks == Looks():
    label, edges = _one_look(model, variables, images)
  else:
    forward = functools.partial(model.apply, variables, train=False)
    mean = _mean_over_looks(forward, images, looks)
    label, edges = jnp.argmax(mean['classes'], -1), mean.get('edges')
  outputs = {'label': label.astype(jnp.int32)}
  if edges is not None:
    outputs['edge_probability'] = edges
  return outputs


def _one_look(model, variables, images):
  """Without an average the logits decide as they are: no softmax over the largest tensor of all."""
  # A network around ours may change logits and hand on the rest: then its logits decide.
  is_ours = hasattr(model, 'small_logits')
  if is_ours:
    model = model.clone(small_logits=True)
  outputs = model.apply(variables, images, train=False)
  if is_ours and 'small_logits' in outputs:
    label = best_class(outputs['small_logits'], images.shape[1:3])
  else:
    label = jnp.argmax(outputs['logits'], -1)
  edges = outputs.get('edge_logits')
  return label, None if edges is None else jax.nn.sigmoid(edges)


def _mean_over_looks(forward: Forward, images: jax.Array, looks: Looks) -> Outputs:
  size = images.shape[1:3]
  total, count = None, 0
  for scale in looks.scales:
    scaled = resize_bilinear(images, scale_size(size, scale))
    for flipped in (False, True) if looks.flip else (False,):
      look = scaled[:, :, ::-1] if flipped else scaled
      if looks.window:
        outputs = _slide(forward, look, looks.window, looks.stride)
      else:
        outputs = _probabilities(forward(look))
      if flipped:
        outputs = {name: x[:, :, ::-1] for name, x in outputs.items()}
      outputs = {name: resize_bilinear(x, size) for name, x in outputs.items()}
      total = outputs if total is None else jax.tree.map(jnp.add, total, outputs)
      count += 1
  return jax.tree.map(lambda x: x / count, total)


def _probabilities(outputs: Outputs) -> Outputs:
  result = {'classes': jax.nn.softmax(outputs['logits'])}
  if 'edge_logits' in outputs:
    result['edges'] = jax.nn.sigmoid(outputs['edge_logits'])
  return result


def _slide(
  forward: Forward, images: jax.Array, window: tuple[int, int], stride: tuple[int, int] | None
) -> Outputs:
  """Averages the probabilities of overlapping windows; a smaller image is one padded window."""
  height, width = images.shape[1:3]
  stride = stride or (max(1, 2 * window[0] // 3), max(1, 2 * window[1] // 3))
  pad = [(0, max(0, side - length)) for side, length in zip(window, (height, width), strict=True)]
  # Zero is the mean colour.
  padded = jnp.pad(images, ((0, 0), *pad, (0, 0)))
  rows, columns = (
    _starts(length, side, step)
    for length, side, step in zip(padded.shape[1:3], window, stride, strict=True)
  )
  corners = jnp.array([(y, x) for y in rows for x in columns])

  def look(corner):
    crop = jax.lax.dynamic_slice(
      padded, (0, *corner, 0), (images.shape[0], *window, images.shape[3])
    )
    return _probabilities(forward(crop))

  def add(sums, corner):
    def put(total, part):
      at = (0, *corner, 0)
      old = jax.lax.dynamic_slice(total, at, part.shape)
      return jax.lax.dynamic_update_slice(total, old + part, at)

    outputs = look(corner)
    outputs['count'] = jnp.ones((1, *window, 1))
    return jax.tree.map(put, sums, outputs), None

  shapes = jax.eval_shape(look, corners[0])
  sums = {
    name: jnp.zeros((x.shape[0], *padded.shape[1:3], x.shape[3])) for name, x in shapes.items()
  }
  sums['count'] = jnp.zeros((1, *padded.shape[1:3], 1))
  sums, _ = jax.lax.scan(add, sums, corners)
  count = sums.pop('count')
  return {name: (x / count)[:, :height, :width] for name, x in sums.items()}


def _starts(length: int, side: int, step: int) -> list[int]:
  """Where windows begin so that they cover `length`; the last ends with it."""
  starts = list(range(0, max(1, length - side), step))
  return sorted({*starts, length - side})
