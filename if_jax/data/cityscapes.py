"""Cityscapes: in the folders of its authors, and as TFDS prepares it."""

from pathlib import Path

import tensorflow_datasets as tfds

from if_jax.data.builder import Records, open_prepared
from if_jax.data.pairs import Found, find_files, find_unread, match_files, require_files


def find_pairs(root: Path, split: str, annotation: str) -> Found:
  """Finds the left images of a split and their labelIds files.

  Args:
    root: the folder that holds leftImg8bit and gtFine or gtCoarse.
    split: a folder in both: 'train', 'val', 'test' (whose labels are dummies) or, coarse only,
      'train_extra'.
    annotation: 'gtFine' or 'gtCoarse'.

  Returns:
    The pairs, and what is wrong with the other files.

  Raises:
    FileNotFoundError: if there is no image or no label.
  """
  image_folder, label_folder = root / 'leftImg8bit' / split, root / annotation / split
  image_ending, label_ending = '_leftImg8bit.png', f'_{annotation}_labelIds.png'
  images = find_files(image_folder, [image_ending])
  require_files(images, f'*{image_ending}', image_folder)
  labels = find_files(label_folder, [label_ending])
  require_files(labels, f'*{label_ending}', label_folder)
  found = match_files(
    images,
    labels,
    f'leftImg8bit/{split}/{{}}{image_ending}',
    f'{annotation}/{split}/{{}}{label_ending}',
    '{}_leftImg8bit',
  )
  # Beside the labelIds there are colours, instances and polygons.
  found.unread.extend(find_unread(image_folder, [image_ending]))
  return found


def open_tfds(data_dir: Path, split: str) -> Records:
  """Opens the `cityscapes/semantic_segmentation` that TFDS itself has prepared.

  Its label files are the raw labelIds. Both of TFDS's formats, array_record and tfrecord, are
  read without TensorFlow.

  Args:
    data_dir: the folder that was TFDS's `data_dir`.
    split: 'train', 'val' (TFDS says 'validation') or 'test'.

  Returns:
    The records of the newest version.

  Raises:
    FileNotFoundError: if it has not been prepared there.
    ValueError: if there is no such split, or the format is another.
  """
  folder = data_dir / 'cityscapes' / 'semantic_segmentation'
  versions = [path for path in folder.glob('*.*.*') if tfds.core.Version.is_valid(path.name)]
  if not versions:
    raise FileNotFoundError(
      f'no prepared data set in {folder}; prepare it where TensorFlow is installed, with '
      f'`tfds build cityscapes/semantic_segmentation --data_dir={data_dir}`, or read the '
      'extracted folders, which needs no TensorFlow, with the data set cityscapes'
    )
  directory = max(versions, key=lambda path: tfds.core.Version(path.name))
  info = open_prepared(directory).info
  name = 'validation' if split == 'val' else split
  if name not in info.splits:
    raise ValueError(f'{directory} has no split {split!r}; it has {", ".join(info.splits)}')
  if info.file_format.value not in ('array_record', 'tfrecord'):
    raise ValueError(
      f'{directory} is in the format {info.file_format.value}; prepare it with '
      '--file_format=array_record'
    )
  return Records(str(directory), name, info.full_name, _sample_of_tfds)


def _sample_of_tfds(example: dict) -> dict:
  image_id = example['image_id'].decode()
  city = image_id.split('_')[0]
  return {
    'image': example['image_left'],
    'label': example['segmentation_label'],
    'name': f'{city}/{image_id}_leftImg8bit',
  }
