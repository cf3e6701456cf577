"""Streams of training batches and of evaluation examples, loaded in threads or processes by grain.

What a stream gives depends on its arguments alone, never on timing: training batch `k` is the same
for any number of workers, and the examples of all processes together are the same for any number
of processes. So a run resumes at a step by its number; no iterator has to be saved.
"""

import functools
import multiprocessing
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import cv2
import grain
import numpy as np
from absl import flags

from if_jax.data.augment import Augmentation
from if_jax.data.class_uniform import draw_centroid
from if_jax.data.decode import decode_image, decode_label
from if_jax.data.labels import LabelSet

# Each holds a batch ready, and 12 crops of 512x1024 are 44 MB. More speed comes from workers.
_MAX_THREADS = 8


class Examples(Protocol):
  """What the pipelines read: a `Dataset` of `if_jax.data.datasets`, or a class of one's own."""

  @property
  def label_set(self) -> LabelSet: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    """Gives {'image': bytes of a file, 'label': bytes of a file, 'name': str}."""


class Stream(Iterator[dict]):
  """A running pipeline: an iterator, and a context manager that stops its threads and processes."""

  def __init__(self, dataset: grain.IterDataset):
    self._running = [iter(dataset)]
    # Runs once: at close(), when nobody holds the stream any more, or when the program ends.
    # Later than that, grain's workers leave shared memory behind and complain.
    self._finalizer = weakref.finalize(self, _stop, self._running)

  def __next__(self) -> dict:
    if not self._running:
      raise ValueError('this stream is closed; make a new one, from the next step on')
    try:
      element = next(self._running[0])
    except RuntimeError as error:
      if 'Worker process was terminated' not in str(error):
        raise
      raise ChildProcessError(
        f'a process that loads images died ({str(error).splitlines()[0]}); often memory was short: '
        'lower config.data.num_workers, and the same command goes on from the newest checkpoint'
      ) from None
    if isinstance(element, Exception):
      raise element
    return {key: _own(value) for key, value in element.items()}

  def __enter__(self) -> 'Stream':
    return self

  def __exit__(self, *_):
    self.close()

  def close(self) -> None:
    """Stops the workers and drops what they have prepared; may be called again."""
    self._finalizer()


def train_batches(
  dataset: Examples,
  augmentation: Augmentation,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  num_workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  class_uniform: float = 0.0,
  centroids: Sequence[np.ndarray] = (),
) -> Stream:
  """Endless batches of augmented crops, in a new random order each epoch.

  Every epoch holds every example once; batches run across its end, so that none is left out and a
  data set may be smaller than a batch.

  With `class_uniform`, an epoch has as many crops, but each of them gives way, with that
  probability, to a crop around a class: a class is drawn, the rare as often as the common, then
  one of its centroids. Of the examples in the epoch's order, about 1 - class_uniform remain.

  Args:
    dataset: where the files come from.
    augmentation: makes a crop of each pair.
    batch_size: B, examples in a step over all processes.
    seed: decides order and augmentation; 0 to 2^32 - 1.
    start_step: the first step to give; the stream from there on is the same as of one that
      started at 0.
    num_workers: processes that load; 0 loads in threads of this one. A script that uses some must
      be guarded by `if __name__ == '__main__':`, because they import it. They hand over batches
      in shared memory, some four each, of which containers may have little (`--shm-size`).
    process_index: which of the processes of a job this one is.
    process_count: how many there are.
    class_uniform: share of the crops that are drawn class by class, 0 to 1; NVIDIA takes 0.5.
    centroids: of `class_centroids`, where `class_uniform` is not 0.

  Returns:
    A stream of {'image': uint8 [B / process_count, h, w, 3], RGB,
    'label': int32 [B / process_count, h, w], train ids, 255 ignored}. Close it, or use `with`.

  Raises:
    ValueError: at once, if an argument is out of range or the data set is empty; from the stream,
      if a file is broken, with its name.

  Source: for `class_uniform`, NVIDIA/semantic-segmentation, `datasets/uniform.py`.
  Differs: theirs gives each class the same number of crops in an epoch, not only on average.
  """
  _check_processes(dataset, num_workers, process_index, process_count)
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f'batch_size is {batch_size} over {process_count} process(es); '
      'it must be a multiple of their number'
    )
  if not 0 <= seed < 2**32:
    raise ValueError(f'seed is {seed}; give a whole number from 0 to 2^32 - 1')
  if start_step < 0:
    raise ValueError(f'start_step is {start_step}; give 0 or the number of steps already done')
  if not 0 <= class_uniform <= 1:
    raise ValueError(f'class_uniform is {class_uniform}; give a share of the crops, from 0 to 1')
  # A class that the data set does not have cannot be drawn.
  centroids = [places for places in centroids if len(places)]
  if class_uniform and not centroids:
    raise ValueError(
      f'class_uniform is {class_uniform} without centroids of any class; give those of '
      'class_centroids, or 0 if every pixel is ignored'
    )

  make_crop = functools.partial(_train_example, dataset, augmentation, class_uniform, centroids)
  batches = (
    grain.MapDataset.range(len(dataset))
    .seed(seed)
    .shuffle()
    .repeat()
    # The generator is made of the seed and of the example's place in the endless stream.
    .random_map(make_crop)
    # Without drop_remainder, grain's length of an endless stream overflows at one example a batch.
    .batch(batch_size // process_count, drop_remainder=True)[process_index::process_count][
      start_step:
    ]
  )
  return Stream(_load(batches, num_workers))


def eval_examples(
  dataset: Examples,
  *,
  num_workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Stream:
  """Every example once, whole and in order, one at a time because their sizes may differ.

  Args:
    dataset: where the files come from.
    num_workers: as for `train_batches`.
    process_index: this process gives the examples process_index, process_index + process_count...
    process_count: how many processes share the data set.

  Returns:
    A stream of {'image': uint8 [H, W, 3], RGB, 'label': uint8 [H, W], train ids, 255 ignored,
    'name': str, 'index': int, the place in the data set}. Close it, or use `with`.

  Raises:
    ValueError: at once, if an argument is out of range or the data set is empty; from the stream,
      if a file is broken, with its name.
  """
  _check_processes(dataset, num_workers, process_index, process_count)
  decode = functools.partial(_eval_example, dataset.label_set)
  examples = grain.MapDataset.source(dataset).map_with_index(decode)[process_index::process_count]
  return Stream(_load(examples, num_workers))


def _check_processes(dataset: Examples, num_workers: int, process_index: int, process_count: int):
  if len(dataset) == 0:
    raise ValueError(f'{dataset} has no examples; check its folder and split')
  if num_workers < 0:
    raise ValueError(f'num_workers is {num_workers}; give 0 for threads, or a number of processes')
  if not 0 <= process_index < process_count:
    raise ValueError(
      f'process_index is {process_index} with process_count {process_count}; '
      'it must be from 0 to process_count - 1'
    )


def _load(dataset: grain.MapDataset, num_workers: int) -> grain.IterDataset:
  """Computes elements ahead of time, no more of them than there are threads or workers."""
  dataset = grain.MapDataset.source(_ErrorsAsElements(dataset))
  if num_workers == 0:
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    return dataset.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=threads))
  # What Python asks, too, when the process is started: then a page of tracebacks comes of it.
  if getattr(multiprocessing.current_process(), '_inheriting', False):
    raise ValueError(
      f'num_workers is {num_workers}, and worker processes import the script: put what it does '
      "under `if __name__ == '__main__':`, or use num_workers=0"
    )
  _mark_grain_flags_as_parsed()
  in_line = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  workers = grain.MultiprocessingOptions(num_workers)
  return dataset.to_iter_dataset(in_line).mp_prefetch(workers, worker_init_fn=_begin_worker)


class _ErrorsAsElements:
  """Gives the elements of a data set, or in the place of one that cannot be made, its error.

  Raised inside a grain worker, an error holds on to a batch in shared memory for as long as it
  lives, because of the frames in its traceback. So it goes on as an element, with their text.
  """

  def __init__(self, dataset: grain.MapDataset):
    self._dataset = dataset

  def __len__(self) -> int:
    return len(self._dataset)

  def __getitem__(self, index: int) -> dict | Exception:
    try:
      return self._dataset[index]
    except Exception as error:
      error.add_note(''.join(traceback.format_tb(error.__traceback__)))
      return error.with_traceback(None)


def _mark_grain_flags_as_parsed():
  """Lets grain's workers start where nobody parses flags, as in a notebook or a test.

  grain reads its own settings from absl flags, which raise UnparsedFlagAccessError until
  `app.run`. Only its own are touched: the caller's still tell that they were not parsed.
  """
  if not flags.FLAGS.is_parsed():
    for name in flags.FLAGS:
      if name.startswith('grain_'):
        flags.FLAGS[name].present = 1


def _begin_worker(worker_index: int, worker_count: int):
  """Fits a worker process into the run."""
  # Or OpenCV starts a thread per core in each of them.
  cv2.setNumThreads(1)
  # Ctrl-C and Slurm reach all processes: the run decides when its workers end.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int):
  """Ends the process soon after its parent, which may have been killed hard."""
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)


def _decode_pair(label_set: LabelSet, example: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  name = example['name']
  image = decode_image(example['image'], name)
  label = label_set.to_train_ids(decode_label(example['label'], name), name)
  if image.shape[:2] != label.shape:
    raise ValueError(
      f'{name}: the image is {image.shape[0]}x{image.shape[1]} pixels but its label '
      f'{label.shape[0]}x{label.shape[1]}; give them one size'
    )
  return image, label


def _train_example(
  dataset: Examples,
  augmentation: Augmentation,
  class_uniform: float,
  centroids: Sequence[np.ndarray],
  index: int,
  rng: np.random.Generator,
) -> dict:
  centre = None
  if class_uniform and rng.random() < class_uniform:
    index, centre = draw_centroid(centroids, rng)
  image, label = augmentation(*_decode_pair(dataset.label_set, dataset[index]), rng, centre)
  return {'image': image, 'label': label.astype(np.int32)}


def _eval_example(label_set: LabelSet, index: int, example: dict) -> dict:
  image, label = _decode_pair(label_set, example)
  return {'image': image, 'label': label, 'name': example['name'], 'index': index}


def _own(value):
  """Copies an array out of shared memory, which is freed too late if the caller holds it."""
  if isinstance(value, grain.multiprocessing.SharedMemoryArray):
    return np.array(value)
  return value


def _stop(running: list[grain.DatasetIterator]):
  """Closes the iterator and lets go of it, because its destructor fails once Python shuts down."""
  running.pop().close()
