import functools
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import time

import cv2
import numpy as np
import pytest
from absl import flags

from if_jax.data.augment import Augmentation
from if_jax.data.labels import LabelSet
from if_jax.data.pipeline import eval_examples, train_batches

CROP = Augmentation((16, 24))
# Each example is of one colour, its number, which this leaves as it is.
WHOLE = Augmentation((16, 16), (1.0, 1.0), False, 0, 0, 0, 0)
LABELS = LabelSet(
  'test',
  ('a', 'b', 'c'),
  np.uint8([[1, 1, 1], [2, 2, 2], [3, 3, 3]]),
  np.uint8([7, 8, 11]),
  ignored_ids=(0,),
)


def png(array):
  return cv2.imencode('.png', array)[1].tobytes()


class Memory:
  """A data set of `length` examples, of differing sizes, in memory."""

  def __init__(self, length):
    self.label_set = LABELS
    self.reads = 0
    self.examples = []
    rng = np.random.default_rng(0)
    for i in range(length):
      size = (16 + i % 5, 16 + i % 3)
      ids = rng.choice(np.uint8([0, 7, 8, 11]), size)
      image = np.full((*size, 3), i % 256, np.uint8)
      self.examples.append({'image': png(image), 'label': png(ids), 'name': f'town/{i}.png'})

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, index):
    self.reads += 1
    return self.examples[index]

  def __repr__(self):
    return f'Memory({len(self)})'


def take(stream, count):
  with stream:
    return [next(stream) for _ in range(count)]


def numbers(batch):
  """Which examples a batch of `WHOLE` crops is made of."""
  return batch['image'][:, 8, 8, 0].tolist()


def assert_equal(streams):
  for ours, theirs in zip(*streams, strict=True):
    assert ours.keys() == theirs.keys()
    for key in ours:
      np.testing.assert_array_equal(ours[key], theirs[key])
      assert type(ours[key]) is type(theirs[key])


def test_a_batch_is_crops_with_train_ids():
  dataset = Memory(6)
  (batch,) = take(train_batches(dataset, CROP, batch_size=4, seed=0), 1)
  assert batch.keys() == {'image', 'label'}
  assert batch['image'].shape == (4, 16, 24, 3) and batch['image'].dtype == np.uint8
  assert batch['label'].shape == (4, 16, 24) and batch['label'].dtype == np.int32
  assert set(np.unique(batch['label'])) == {0, 1, 2, 255}


@pytest.mark.parametrize('length, batch_size', [(7, 4), (5, 5), (1, 1), (3, 8), (1, 3)])
def test_every_epoch_holds_every_example_once(length, batch_size):
  epochs = 6
  steps = epochs * length // batch_size + 1
  batches = take(train_batches(Memory(length), WHOLE, batch_size=batch_size, seed=1), steps)
  order = np.concatenate([numbers(batch) for batch in batches])[: epochs * length]
  order = order.reshape(epochs, length)
  np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(length), (epochs, 1)))
  if length >= 5:
    assert len({tuple(epoch) for epoch in order}) > 3


def test_the_seed_decides_order_and_augmentation():
  dataset = Memory(9)
  first, again, other = (
    take(train_batches(dataset, CROP, batch_size=4, seed=seed), 5) for seed in (3, 3, 4)
  )
  assert_equal((first, again))
  assert not np.array_equal(first[0]['image'], other[0]['image'])


def test_augmentation_differs_from_epoch_to_epoch():
  batches = take(train_batches(Memory(1), CROP, batch_size=1, seed=0), 20)
  assert len({batch['label'].tobytes() for batch in batches}) > 15


@pytest.mark.parametrize('start_step', [1, 2, 5, 11])
def test_a_resumed_stream_equals_one_that_ran_through(start_step):
  dataset = Memory(7)  # Epochs end within the batches 1, 3, 5, 6, 8, 10 ...
  whole = take(train_batches(dataset, CROP, batch_size=4, seed=5), 15)
  rest = take(
    train_batches(dataset, CROP, batch_size=4, seed=5, start_step=start_step), 15 - start_step
  )
  assert_equal((whole[start_step:], rest))


@pytest.mark.parametrize('process_count', [2, 3, 6])
def test_processes_share_the_batches_of_one(process_count):
  dataset = Memory(7)
  whole = take(train_batches(dataset, CROP, batch_size=6, seed=6), 8)
  parts = [
    take(
      train_batches(
        dataset, CROP, batch_size=6, seed=6, process_index=i, process_count=process_count
      ),
      8,
    )
    for i in range(process_count)
  ]
  for step, batch in enumerate(whole):
    for key in batch:
      # In order: each example comes to the device that it would be on in one process.
      assert all(len(part[step][key]) == 6 // process_count for part in parts)
      shared = np.concatenate([part[step][key] for part in parts])
      np.testing.assert_array_equal(shared, batch[key])


def test_worker_processes_change_nothing():
  dataset = Memory(7)
  batches = functools.partial(train_batches, dataset, CROP, batch_size=4, seed=7)
  expected = take(batches(), 9)
  for num_workers, start_step in ((1, 0), (2, 3)):
    got = take(batches(num_workers=num_workers, start_step=start_step), 9 - start_step)
    assert_equal((expected[start_step:], got))
  # The caller's own flags must go on complaining that nobody parsed them.
  assert not flags.FLAGS.is_parsed()


def test_class_uniform_batches_depend_on_their_step_alone():
  dataset = Memory(7)
  centroids = [np.zeros((0, 3), int), np.int32([[1, 3, 3], [2, 9, 9]]), np.int32([[5, 0, 15]])]
  batches = functools.partial(
    train_batches, dataset, WHOLE, batch_size=6, seed=8, class_uniform=0.6, centroids=centroids
  )
  expected = take(batches(), 8)
  assert_equal((expected[5:], take(batches(start_step=5), 3)))
  assert_equal((expected[4:], take(batches(num_workers=2, start_step=4), 4)))
  parts = [take(batches(process_index=i, process_count=2), 8) for i in range(2)]
  for i, part in enumerate(parts):
    for whole, half in zip(expected, part, strict=True):
      np.testing.assert_array_equal(whole['image'][3 * i :][:3], half['image'])
  counts = np.bincount(np.concatenate([numbers(batch) for batch in expected]), minlength=7)
  assert counts.min() >= 1 and counts[5] > counts[[0, 3, 4, 6]].max()


def test_evaluation_gives_whole_examples_in_order():
  dataset = Memory(6)
  with eval_examples(dataset) as stream:
    examples = list(stream)
  assert [example['index'] for example in examples] == list(range(6))
  table = np.full(12, 255, np.uint8)
  table[[7, 8, 11]] = 0, 1, 2
  for i, example in enumerate(examples):
    assert example.keys() == {'image', 'label', 'name', 'index'}
    assert example['name'] == f'town/{i}.png'
    assert example['image'].dtype == example['label'].dtype == np.uint8
    assert example['image'].shape == (16 + i % 5, 16 + i % 3, 3)
    assert (example['image'] == i).all()
    ids = cv2.imdecode(np.frombuffer(dataset[i]['label'], np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(example['label'], table[ids])


@pytest.mark.parametrize('process_count', [1, 2, 3, 5, 9])
def test_every_example_is_evaluated_by_one_process(process_count):
  dataset = Memory(7)
  seen = [
    [
      example['index']
      for example in eval_examples(dataset, process_index=i, process_count=process_count)
    ]
    for i in range(process_count)
  ]
  assert sorted(itertools.chain(*seen)) == list(range(7))
  assert max(map(len, seen)) - min(map(len, seen)) <= 1
  assert all(indices == sorted(indices) for indices in seen)


def test_worker_processes_evaluate_each_example_once():
  dataset = Memory(1)  # One of the workers has nothing to do.
  with eval_examples(dataset) as ours, eval_examples(dataset, num_workers=2) as theirs:
    assert_equal((list(ours), list(theirs)))


def test_no_more_is_loaded_ahead_than_there_are_threads():
  train, test = Memory(200), Memory(50)
  with train_batches(train, CROP, batch_size=10, seed=0) as batches:
    next(batches)
    time.sleep(0.2)
    assert 10 <= train.reads <= 90
  with eval_examples(test) as examples:
    next(examples)
    time.sleep(0.2)
    assert 1 <= test.reads <= 9


def broken(dataset, what):
  example = dataset.examples[2]
  if what == 'image':
    example['image'] = example['image'][:-30]
  elif what == 'id':
    example['label'] = png(np.full((18, 18), 5, np.uint8))
  else:
    example['label'] = png(np.full((18, 20), 7, np.uint8))
  return dataset


@pytest.mark.parametrize(
  'what, message',
  [
    ('image', 'broken image'),
    ('id', 'label id 5'),
    ('size', re.escape('the image is 18x18 pixels but its label 18x20; give them one size')),
  ],
)
def test_a_broken_file_is_named(what, message):
  dataset = broken(Memory(6), what)
  with pytest.raises(ValueError, match=f'^town/2.png: .*{message}'):
    take(train_batches(dataset, CROP, batch_size=6, seed=0), 1)
  with eval_examples(dataset) as stream:
    assert [next(stream)['index'] for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match=f'^town/2.png: .*{message}'):
      next(stream)


def test_a_closed_stream_says_so():
  stream = train_batches(Memory(3), CROP, batch_size=2, seed=0)
  next(stream)
  stream.close()
  stream.close()
  with pytest.raises(ValueError, match='this stream is closed'):
    next(stream)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'batch_size': 4, 'process_count': 3}, r'batch_size is 4 over 3 process.*multiple'),
    ({'seed': -1}, 'seed is -1'),
    ({'seed': 2**32}, 'seed is 4294967296'),
    ({'start_step': -1}, 'start_step is -1'),
    ({'num_workers': -1}, 'num_workers is -1'),
    ({'process_index': 2, 'process_count': 2}, 'process_index is 2 with process_count 2'),
    ({'process_index': -1}, 'process_index is -1'),
    ({'process_count': 0}, 'process_index is 0 with process_count 0'),
    ({'class_uniform': 1.1}, 'class_uniform is 1.1; give'),
    ({'class_uniform': float('nan')}, 'class_uniform is nan; give'),
    ({'class_uniform': 0.5}, 'class_uniform is 0.5 without centroids'),
    (
      {'class_uniform': 0.5, 'centroids': [np.zeros((0, 3), int)] * 3},
      'class_uniform is 0.5 without centroids of any class',
    ),
    ({'dataset': Memory(0)}, r'Memory\(0\) has no examples'),
  ],
)
def test_arguments_out_of_range_are_refused_at_once(change, message):
  arguments = {'dataset': Memory(4), 'augmentation': CROP, 'batch_size': 4, 'seed': 0}
  with pytest.raises(ValueError, match=message):
    train_batches(**arguments | change)


def test_a_script_that_workers_cannot_import_is_told(monkeypatch):
  monkeypatch.setattr(multiprocessing.current_process(), '_inheriting', True, raising=False)
  with pytest.raises(ValueError, match='worker processes import the script'):
    eval_examples(Memory(1), num_workers=1)


def test_an_empty_data_set_cannot_be_evaluated():
  with pytest.raises(ValueError, match=r'Memory\(0\) has no examples'):
    eval_examples(Memory(0))


def test_a_program_that_ends_without_closing_ends_quietly(tmp_path):
  # Worker processes, no absl flags parsed, an error on the way, a stream still running at the end:
  # what a notebook does. grain alone raises, or complains of leaked shared memory.
  script = tmp_path / 'script.py'
  script.write_text(
    textwrap.dedent("""
      from test_pipeline import CROP, Memory, broken, train_batches

      if __name__ == '__main__':
        dataset = broken(Memory(30), 'image')
        running = train_batches(dataset, CROP, batch_size=2, seed=0, num_workers=2)
        kept, errors = [], []
        while not errors or len(kept) < 5:
          try:
            kept.append(next(running))
          except ValueError as error:
            errors.append(error)
        print(errors[0])
    """)
  )
  tests = os.path.dirname(__file__)
  path = os.pathsep.join([tests, os.path.dirname(tests), os.environ.get('PYTHONPATH', '')])
  done = subprocess.run(
    [sys.executable, script],
    env=os.environ | {'PYTHONPATH': path},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('town/2.png: broken image')
  assert done.stderr == ''
