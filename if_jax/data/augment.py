"""Random scale, crop, flip and colours for pairs of image and label, on the host.

Every function takes uint8 and gives uint8, draws from the generator it is handed and from nothing
else, and leaves its arguments as they are. OpenCV does the work: a crop of 512x1024 from a
Cityscapes image costs about a tenth of decoding the image.
"""

import dataclasses

import cv2
import numpy as np

from if_jax.data.labels import IGNORE

# ImageNet's mean in RGB: close to zero once an image is normalised.
MEAN_COLOR = (124, 116, 104)
# NVIDIA's range for random blur, in pixels.
_BLUR_SIGMAS = (0.15, 1.3)


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Makes the training crop of one pair; the defaults are the public recipes for Cityscapes.

  Attributes:
    crop_size: (height, width) of what comes out, pixels.
    scale_range: the image is enlarged by a factor drawn uniformly from this range.
    flip: whether half of the crops are mirrored, left to right.
    brightness: strength of the colour jitter, see `color_jitter`; 0 turns a part of it off.
    contrast: likewise.
    saturation: likewise.
    hue: likewise; at most 0.5, which is every hue.
    blur_probability: share of crops that a Gaussian blurs, of random width; 1 in NVIDIA's recipe,
      0 in HRNet's.

  Raises:
    ValueError: on construction, if a value is outside its range.

  Example:
    >>> image, label = np.zeros((300, 400, 3), np.uint8), np.zeros((300, 400), np.uint8)
    >>> image, label = Augmentation((256, 512))(image, label, np.random.default_rng(0))
    >>> image.shape, label.shape
    ((256, 512, 3), (256, 512))

  Source: HRNet-Semantic-Segmentation, `lib/datasets/base_dataset.py` (scale, crop 512x1024, flip);
  NVIDIA/semantic-segmentation, `transforms/` and `train.py` (scale 0.5 to 2, colours 0.25, blur).
  Differs: HRNet draws the scale from 0.5, 0.6 ... 2.1, NVIDIA enlarges with bicubic weights; both
  pad with black on fixed sides, and change the colours of the padding too.
  """

  crop_size: tuple[int, int] = (512, 1024)
  scale_range: tuple[float, float] = (0.5, 2.0)
  flip: bool = True
  brightness: float = 0.25
  contrast: float = 0.25
  saturation: float = 0.25
  hue: float = 0.25
  blur_probability: float = 0.0

  def __post_init__(self):
    if len(self.crop_size) != 2 or min(self.crop_size) < 1:
      raise ValueError(f'crop_size is {self.crop_size}; give (height, width), each at least 1')
    if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
      raise ValueError(
        f'scale_range is {self.scale_range}; give (smallest, largest) factor, above 0'
      )
    for name, largest in (
      ('brightness', 1),
      ('contrast', 1),
      ('saturation', 1),
      ('hue', 0.5),
      ('blur_probability', 1),
    ):
      value = getattr(self, name)
      if not 0 <= value <= largest:
        raise ValueError(f'{name} is {value}; give a number from 0 to {largest}')

  def __call__(
    self,
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    centre: tuple[int, int] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws one crop.

    Args:
      image: uint8 [H, W, 3], RGB, of any size.
      label: uint8 [H, W], train ids, 255 ignored.
      rng: says which crop; the same state gives the same one.
      centre: (row, column) of a pixel of the source that the crop must show; None for any crop.

    Returns:
      image uint8 [h, w, 3] and label uint8 [h, w], of `crop_size`.

    Raises:
      ValueError: if the two are not uint8 or not of one size.
    """
    if image.dtype != np.uint8 or label.dtype != np.uint8 or image.shape != (*label.shape, 3):
      raise ValueError(
        f'image is {image.dtype} {image.shape} and label {label.dtype} {label.shape}; '
        'uint8 [H, W, 3] and uint8 [H, W] of one size are needed'
      )
    image, label = random_scale_crop(image, label, rng, self.crop_size, self.scale_range, centre)
    if self.flip:
      image, label = random_flip(image, label, rng)
    image = color_jitter(image, rng, self.brightness, self.contrast, self.saturation, self.hue)
    if self.blur_probability > 0:
      image = random_blur(image, rng, self.blur_probability)
    # Last, so that the padding keeps the mean colour and does not count in the mean of contrast.
    return random_pad(image, label, rng, self.crop_size)


def random_scale_crop(
  image: np.ndarray,
  label: np.ndarray,
  rng: np.random.Generator,
  crop_size: tuple[int, int],
  scale_range: tuple[float, float],
  centre: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Enlarges by a random factor and cuts at random, in the other order: only the crop is resized.

  The part of the source that the crop shows is cut out in whole pixels and resized to the crop,
  so the factor that is drawn is met to within half a source pixel over the crop. Pixel centres
  stay centres in image (bilinear, no antialiasing) and label (nearest), as with
  `align_corners=False`.

  Args:
    image: uint8 [H, W, 3].
    label: uint8 [H, W].
    rng: draws factor and place.
    crop_size: (h, w), pixels.
    scale_range: (smallest, largest) factor.
    centre: (row, column) of a pixel of the source; the place is drawn from those that show it.

  Returns:
    image uint8 [h', w', 3] and label uint8 [h', w']; h' < h or w' < w where the enlarged image is
    smaller than the crop, see `random_pad`.
  """
  scale = rng.uniform(*scale_range)
  row, column = centre or (None, None)
  rows, height = _random_span(label.shape[0], crop_size[0], scale, rng, row)
  columns, width = _random_span(label.shape[1], crop_size[1], scale, rng, column)
  size = (width, height)
  return (
    cv2.resize(image[rows, columns], size, interpolation=cv2.INTER_LINEAR),
    # Not INTER_NEAREST, which takes corners for centres and shifts labels by up to half a pixel.
    cv2.resize(label[rows, columns], size, interpolation=cv2.INTER_NEAREST_EXACT),
  )


def random_flip(
  image: np.ndarray, label: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Mirrors both, left to right, half of the time."""
  if rng.random() < 0.5:
    return cv2.flip(image, 1), cv2.flip(label, 1)
  return image, label


def random_pad(
  image: np.ndarray, label: np.ndarray, rng: np.random.Generator, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Puts a pair at a random place on a larger canvas of mean colour and ignored labels.

  Args:
    image: uint8 [H, W, 3], at most as large as `size`.
    label: uint8 [H, W].
    rng: draws the place.
    size: (h, w), pixels.

  Returns:
    image uint8 [h, w, 3] and label uint8 [h, w].
  """
  missing_rows, missing_columns = size[0] - label.shape[0], size[1] - label.shape[1]
  if missing_rows == missing_columns == 0:
    return image, label
  top = rng.integers(missing_rows, endpoint=True)
  left = rng.integers(missing_columns, endpoint=True)
  border = (top, missing_rows - top, left, missing_columns - left, cv2.BORDER_CONSTANT)
  return (
    cv2.copyMakeBorder(image, *border, value=MEAN_COLOR),
    cv2.copyMakeBorder(label, *border, value=IGNORE),
  )


def color_jitter(
  image: np.ndarray,
  rng: np.random.Generator,
  brightness: float,
  contrast: float,
  saturation: float,
  hue: float,
) -> np.ndarray:
  """Changes colours by four random factors, in a random order.

  Args:
    image: uint8 [H, W, 3], RGB.
    rng: draws factors and order.
    brightness: the factor is uniform in [1 - brightness, 1 + brightness].
    contrast: likewise.
    saturation: likewise.
    hue: the hue is turned by a part of the circle uniform in [-hue, hue].

  Returns:
    uint8 [H, W, 3].

  Source: torchvision's `ColorJitter`.
  """
  changes = [
    (adjust_brightness, 1, brightness),
    (adjust_contrast, 1, contrast),
    (adjust_saturation, 1, saturation),
    (adjust_hue, 0, hue),
  ]
  for i in rng.permutation(len(changes)):
    adjust, center, strength = changes[i]
    if strength > 0:
      image = adjust(image, rng.uniform(center - strength, center + strength))
  return image


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """Blends with black: 0 is black, 1 the image."""
  return cv2.LUT(image, _blend_table(factor, 0))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """Blends with the mean of its grey version: 0 is plain grey, 1 the image."""
  mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
  return cv2.LUT(image, _blend_table(factor, mean))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
  """Blends with its grey version: 0 is grey, 1 the image."""
  grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
  return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def adjust_hue(image: np.ndarray, turn: float) -> np.ndarray:
  """Turns every hue by a part of the circle: 1/3 makes red green, 0 changes a few levels."""
  hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # A full circle of hues is 256.
  hsv[..., 0] += np.uint8(round(turn * 256) % 256)
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def random_blur(image: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
  """Blurs with a Gaussian of random width, at times; uint8 [H, W, 3] to the same."""
  if rng.random() < probability:
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(*_BLUR_SIGMAS))
  return image


def _random_span(
  length: int, crop: int, scale: float, rng: np.random.Generator, centre: int | None
) -> tuple[slice, int]:
  """Along one axis: which pixels of the source to take, and how many to make of them."""
  span = max(1, round(crop / scale))
  if span > length:
    return slice(length), min(crop, max(1, round(length * scale)))
  first, last = 0, length - span
  if centre is not None:
    first, last = max(first, centre - span + 1), min(last, centre)
  start = rng.integers(first, last, endpoint=True)
  return slice(start, start + span), crop


def _blend_table(factor: float, other: float) -> np.ndarray:
  """uint8 [256], what becomes of each level when blended with the level `other`."""
  return np.rint(factor * np.arange(256) + (1 - factor) * other).clip(0, 255).astype(np.uint8)
