"""One's own data: a folder of images, one of labels, and a class file."""

from pathlib import Path

from if_jax.data.pairs import (
  IMAGE_ENDINGS,
  Found,
  find_files,
  find_unread,
  match_files,
  require_files,
)

CLASS_FILE = 'classes.json'
# The split that stands for everything below images/, for data without a folder for each split.
ALL = 'all'


def find_pairs(root: Path, split: str) -> Found:
  """Finds the images below `images/<split>` and the labels of the same names.

  Args:
    root: the folder that holds `images` and `labels` (or `masks`), with or without a folder for
      each split, and below them any folders.
    split: the name of the folder of the split; 'all' for everything below `images`.

  Returns:
    The pairs, and what is wrong with the other files.

  Raises:
    FileNotFoundError: if there is no image or no label.
  """
  within = '' if split == ALL else f'{split}/'
  labels_name = 'labels' if (root / 'labels').is_dir() else 'masks'
  image_folder, label_folder = root / 'images' / within, root / labels_name / within
  images = find_files(image_folder, IMAGE_ENDINGS)
  require_files(images, f'image (without folders for splits, ask for {ALL!r})', image_folder)
  labels = find_files(label_folder, IMAGE_ENDINGS)
  require_files(labels, 'label', label_folder)
  found = match_files(images, labels, f'images/{within}{{}}.png', f'{labels_name}/{within}{{}}.png')
  for files in (image_folder, label_folder):
    found.unread.extend(find_unread(files, IMAGE_ENDINGS))
  return found
