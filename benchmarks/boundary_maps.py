"""How long do the boundary maps of 19 classes take, on the device and as the original makes them?

Gated-SCNN and InverseForm take SciPy's distance transform of each class's mask and of its
complement, in the data loader. The maps are compared, pixel by pixel, before they are timed.

python -m benchmarks.boundary_maps
"""

import argparse
import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from scipy.ndimage import distance_transform_edt

from benchmarks.results import print_table, run
from benchmarks.timing import alternate, compare
from if_jax.data.streets import draw
from if_jax.ops.boundaries import boundary_map

_NUM_CLASSES = 19
_RADIUS = 2


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser('python -m benchmarks.boundary_maps', description=__doc__)
  parser.add_argument('--height', type=int, default=1024)
  parser.add_argument('--width', type=int, default=2048)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--output', default='runs/benchmarks', help='folder of the JSON')
  run(measure, parser, argv)


def measure(arguments: argparse.Namespace) -> dict:
  size = arguments.height, arguments.width
  labels = draw(np.random.default_rng(0), size)[1].astype(np.int32)
  on_device = jax.device_put(labels[None])
  ours, as_released = (
    jax.jit(functools.partial(boundary_map, radius=_RADIUS, as_released=flag))
    for flag in (False, True)
  )
  shown = np.intersect1d(labels, np.arange(1, _NUM_CLASSES + 1))
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    functions = {
      'ours': lambda: ours(on_device),
      'ours, as released': lambda: as_released(on_device),
      'SciPy, as the original': lambda: scipy_map(labels, range(1, _NUM_CLASSES + 1), map),
      'SciPy, all cores, classes that are there': lambda: scipy_map(labels, shown, pool.map),
    }
    maps = {name: np.squeeze(function()).astype(bool) for name, function in functions.items()}
    differing = check_maps(labels, *maps.values())
    rows = compare(alternate(functions, rounds=arguments.rounds), ours='ours')
  title = (
    f'{size[0]}x{size[1]}, a drawn street that shows {len(shown)} of the classes 1 to 19. Ours as '
    f'released and SciPy agree everywhere; ours differs in {differing} of {labels.size} pixels, '
    'all near the frame or ignored pixels, which make no boundaries'
  )
  print_table(title, rows)
  return {'size': size, 'classes shown': len(shown), 'differing': differing, 'rows': rows}


def scipy_map(labels: np.ndarray, classes: Iterable[int], map_fn: Callable) -> np.ndarray:
  """The boundaries of labels [H, W] by distance transforms, bool [H, W].

  Args:
    labels: integer [H, W].
    classes: that make boundaries; the original counts from 1.
    map_fn: `map`, or that of a pool: SciPy lets other threads run.
  Source: `onehot_to_binary_edges` of Gated-SCNN.
  """

  def near_contour(class_id):
    mask = np.pad(labels == class_id, 1)
    distance = distance_transform_edt(mask) + distance_transform_edt(~mask)
    return distance[1:-1, 1:-1] <= _RADIUS

  return functools.reduce(np.logical_or, map_fn(near_contour, classes))


def check_maps(labels, ours, as_released, original, fast) -> int:
  """How many pixels of our map are others than SciPy's.

  Raises:
    ValueError: they differ elsewhere than near the frame and ignored pixels, or the others at all.
  """
  if not (as_released == original).all() or not (fast == original).all():
    raise ValueError('ours as released and SciPy differ; their times cannot be compared')
  differs = ours != original
  labelled = np.pad(labels < _NUM_CLASSES, 1)
  if (distance_transform_edt(labelled)[1:-1, 1:-1][differs] > _RADIUS).any():
    raise ValueError('ours and SciPy differ inside the labelled area; they cannot be compared')
  return int(differs.sum())


if __name__ == '__main__':
  main()
