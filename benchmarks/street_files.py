"""Drawn streets in the files and folders of Cityscapes, for whoever has not got the data set."""

from pathlib import Path

from if_jax.data.streets import Streets


def write_streets(
  root: str | Path, split: str, num_images: int, size: tuple[int, int]
) -> list[tuple[Path, Path]]:
  """Writes images below `root/leftImg8bit` and labels below `root/gtFine`.

  They have the grain of photographs: a PNG of 1024x2048 takes 4.2 MB, one of Cityscapes 2.3 MB.

  Args:
    root: made if it is not there.
    split: 'train' or 'val'.
    num_images: how many.
    size: (height, width), pixels.
  Returns:
    The files of each image and its label.
  """
  streets = Streets(num_images, size)
  return [
    (
      _write(root, f'leftImg8bit/{split}/{example["name"]}_leftImg8bit.png', example['image']),
      _write(root, f'gtFine/{split}/{example["name"]}_gtFine_labelIds.png', example['label']),
    )
    for example in (streets[i] for i in range(num_images))
  ]


def _write(root, name, data):
  path = Path(root, name)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return path
