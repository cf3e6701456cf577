"""CamVid with 11 classes, in the folders of SegNet's authors: train and trainannot, and so on."""

from pathlib import Path

from if_jax.data.pairs import (
  IMAGE_ENDINGS,
  Found,
  find_files,
  find_unread,
  match_files,
  require_files,
)


def find_pairs(root: Path, split: str) -> Found:
  """Finds the images of a split and their label files.

  Args:
    root: the folder that holds `<split>` and `<split>annot`.
    split: 'train', 'val' or 'test'.

  Returns:
    The pairs, and what is wrong with the other files.

  Raises:
    FileNotFoundError: if there is no image or no label.
  """
  image_folder, label_folder = root / split, root / f'{split}annot'
  images = find_files(image_folder, IMAGE_ENDINGS)
  require_files(images, 'image', image_folder)
  labels = find_files(label_folder, IMAGE_ENDINGS)
  require_files(labels, 'label', label_folder)
  found = match_files(images, labels, f'{split}/{{}}.png', f'{split}annot/{{}}.png')
  for files in (image_folder, label_folder):
    found.unread.extend(find_unread(files, IMAGE_ENDINGS))
  return found
