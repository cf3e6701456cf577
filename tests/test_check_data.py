"""One run over a data set tells everything that is wrong with it."""

import gzip
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, palette_image, png, with_orientation
from processes import ROOT, run_main, run_python

from configs import default, folder
from if_jax.check_data import check_data
from if_jax.data import checks
from if_jax.data.datasets import load_dataset
from if_jax.data.decode import decode_label

SIZE = (20, 30)
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 3, SIZE, np.uint8)
CLASSES = {
  'classes': [
    {'name': name, 'color': [i, i, i], 'id': i} for i, name in enumerate(('cat', 'dog', 'hen'))
  ],
  'ignore': [255],
}


def pixels(size=SIZE):
  return RNG.integers(0, 256, (*size, 3), np.uint8)


def flipped(data, byte):
  return data[:byte] + bytes([data[byte] ^ 1]) + data[byte + 1 :]


def bomb(side):
  """So many black pixels in a few kilobytes."""
  return png(side, side, 1, bytes((1 + side // 8) * side))


IMAGE, LABEL = encode(pixels()), encode(IDS)
STRANGE = np.where(IDS == 2, 200, IDS)
STRANGE[0] = 19
NO_IMAGE = 'no image of the formats PNG, JPEG, BMP, PPM, TIFF, WEBP; replace the file'
BROKEN = r'broken image \(.+\); replace the file'

# Image and label files, and what is told of them.
BAD_IMAGES = {
  'cut.png': (IMAGE[: len(IMAGE) // 2], BROKEN),
  'cut_in_header.png': (IMAGE[:20], f'{BROKEN}|{NO_IMAGE}'),
  'no_end.png': (IMAGE[:-12], BROKEN),
  'flipped_bit.png': (flipped(IMAGE, len(IMAGE) // 2), BROKEN),
  'cut_jpeg.jpg': (encode(pixels((200, 300)), 'JPEG')[:-500], BROKEN),
  'cut_tiff.tif': (encode(pixels(), 'TIFF')[:-500], BROKEN),
  'cut_webp.webp': (encode(pixels(), 'WEBP')[:-100], BROKEN),
  'empty.png': (b'', 'an empty file; replace it'),
  'page.jpg': (b'<html>404 Not Found</html>', NO_IMAGE),
  'gif.png': (encode(pixels(), 'GIF'), NO_IMAGE),
  'zipped.png': (gzip.compress(IMAGE), NO_IMAGE),
  'no_width.png': (png(20, 0, 8, b''), f'{BROKEN}|{NO_IMAGE}'),
  'bomb_100.png': (bomb(10_000), 'more than .* pixels; make it smaller'),
  'bomb_400.png': (bomb(20_000), 'more than .* pixels; make it smaller'),
  'claims_60000.png': (png(60_000, 60_000, 8, b''), 'more than .* pixels; make it smaller'),
  'turned_jpeg.jpg': (
    encode(pixels(), 'JPEG', exif=with_orientation(6)),
    'EXIF orientation 6: .*; save it upright',
  ),
  'turned.png': (
    encode(pixels(), exif=with_orientation(6)),
    'EXIF orientation 6: .*; save it upright',
  ),
}
BAD_LABELS = {
  'cut.png': (LABEL[:-30], BROKEN),
  'empty.png': (b'', 'an empty file; replace it'),
  'flipped_bit.png': (flipped(LABEL, len(LABEL) // 2), BROKEN),
  'jpeg.jpg': (encode(IDS, 'JPEG'), 'a JPEG, whose compression changes labels; save it as PNG'),
  'jpeg_named.png': (encode(IDS, 'JPEG'), 'a JPEG, .*; save it as PNG'),
  'ids.png': (
    encode(STRANGE),
    rf'label id 19 \(30 pixels\), 200 \({(STRANGE == 200).sum()} pixels\) not in the label set '
    '.*; give these pixels one of its ids 0-2, or 255 to ignore them',
  ),
  'minus_1.png': (encode(np.full(SIZE, 65535, np.uint16)), r'label id 65535 \(600 pixels\) not in'),
  'palette_ids.png': (encode(palette_image(IDS + 7)), r'label id 7 \(\d+ pixels\), 8 '),
  'colors.png': (encode(pixels()), r'colour \(\d+, \d+, \d+\) \(1 pixel\).* use the exact colours'),
  'alpha.png': (encode(np.dstack([IDS, IDS])), 'a label of mode LA, .*; save it as a grey'),
  'size.png': (encode(IDS[:-1]), 'the label is 19x30, its image 20x30'),
  'transposed.png': (encode(IDS.T.copy()), 'the label is 30x20, its image 20x30'),
  'bomb.png': (bomb(10_000), 'more than .* pixels; make it smaller'),
  'turned.png': (
    encode(IDS, exif=with_orientation(8)),
    'EXIF orientation 8: .*; save it upright',
  ),
}
# Unusual, and right.
GOOD_IMAGES = {
  'grey.png': encode(IDS),
  'alpha.png': encode(np.dstack([pixels(), IDS])),
  'palette.png': encode(palette_image(IDS)),
  'deep.png': encode(RNG.integers(0, 65536, SIZE, np.uint16)),
  'jpeg_named.png': encode(pixels(), 'JPEG'),
  'garbage_behind.png': encode(pixels()) + b'garbage',
  'Äpfel 苹果.png': encode(pixels()),
  'CAPITALS.PNG': encode(pixels()),
  'not_turned.jpg': encode(pixels(), 'JPEG', exif=with_orientation(1)),
}
GOOD_LABELS = {
  'palette.png': encode(palette_image(IDS)),
  'deep.png': encode(IDS.astype(np.uint16)),
  'one_bit.png': encode(IDS > 1),
  'few_bits.png': png(20, 30, 2, bytes(20 * 9)),
  'colors.png': encode(np.repeat(IDS[..., None], 3, -1)),
  'ignored.png': encode(np.where(IDS == 2, 255, IDS)),
  'lossless.bmp': encode(IDS, 'BMP'),
}


def write(root, split, *, image=None, label=None):
  """Writes a pair, or one of it; each is (name, bytes)."""
  for part, file in (('images', image), ('labels', label)):
    if file:
      path = root / part / split / file[0]
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(file[1])


def write_pairs(root, split, *, images=None, labels=None):
  """Gives each image a good label, below images/, and each label a good image, below labels/."""
  for name, data in (images or {}).items():
    stem = Path(name).stem
    write(root, f'{split}/images', image=(name, data), label=(f'{stem}.png', LABEL))
  for name, data in (labels or {}).items():
    stem = Path(name).stem
    write(root, f'{split}/labels', image=(f'{stem}.png', encode(pixels())), label=(name, data))


@pytest.fixture
def root(tmp_path):
  (tmp_path / 'classes.json').write_text(json.dumps(CLASSES))
  write(tmp_path, 'train', image=('a.png', IMAGE), label=('a.png', LABEL))
  write(tmp_path, 'val', image=('b.png', encode(pixels())), label=('b.png', LABEL))
  return tmp_path


def checked(folder_of_data, capsys, **data):
  """How many problems there are, and what is printed of them."""
  config = folder.get_config()
  config.data.update({'root': str(folder_of_data), **data})
  count = check_data(config)
  return count, capsys.readouterr().out.splitlines()


def test_every_kind_of_bad_file_is_named_with_its_reason_in_one_run(root):
  bad_images = {name: data for name, (data, _) in BAD_IMAGES.items()}
  bad_labels = {name: data for name, (data, _) in BAD_LABELS.items()}
  write_pairs(root, 'train', images=bad_images, labels=GOOD_LABELS)
  write_pairs(root, 'val', images=GOOD_IMAGES, labels=bad_labels)
  in_train = [(f'images/train/images/{name}', reason) for name, (_, reason) in BAD_IMAGES.items()]
  in_val = [(f'labels/val/labels/{name}', reason) for name, (_, reason) in BAD_LABELS.items()]
  write(root, 'train', image=('no_label.png', IMAGE[:50]))
  write(root, 'train', label=('no_image.png', LABEL[:50]))
  write(root, 'train', image=('a.jpg', IMAGE[:50]))
  os.symlink('nowhere', root / 'images/train/a.bmp')
  os.mkfifo(root / 'images/train/a.ppm')
  with open(root / 'images/train/a.tif', 'wb') as file:
    file.truncate(1 << 40)
  in_train += [
    ('images/train/no_label.png', r'has no label; add labels/train/no_label\.png'),
    ('labels/train/no_image.png', r'has no image; add images/train/no_image\.png'),
    ('images/train', 'a.bmp and a.jpg and a.png and a.ppm and a.tif differ only in their ending'),
    # The files without partner are read, too.
    ('images/train/no_label.png', BROKEN),
    ('labels/train/no_image.png', BROKEN),
    ('images/train/a.jpg', BROKEN),
    ('images/train/a.bmp', r'cannot be read \(No such file or directory\); mend or replace it'),
    ('images/train/a.ppm', 'a pipe or device and no file; take it away'),
    ('images/train/a.tif', '1048576 MiB, more than .*; replace the file'),
  ]

  run = run_main('--mode=check_data', '--config=configs/folder.py', f'--config.data.root={root}')
  assert run.returncode == 1
  *lines, end = run.stdout.splitlines()
  for file, reason in in_train + in_val:
    told = [x for x in lines if re.match(rf'{re.escape(str(root / file))}: ({reason})', x)]
    assert len(told) == 1, (file, reason)
    lines.remove(told[0])
  assert not lines
  assert end == f'{len(in_train)} problems in folder train, {len(in_val)} problems in folder val'
  # What the documentation says of them, but for the split without files.
  page = (ROOT / 'docs/check_data.md').read_text()
  rows = re.findall(r'^\| .* \| (`.*`) \|$', page, re.MULTILINE)
  assert len(rows) == 16
  for quoted in re.findall('`(.*?)`', ' '.join(rows[:-1])):
    pattern = re.escape(quoted).replace(re.escape('...'), '.*')
    assert re.search(f': (.* )?{pattern}', run.stdout), quoted
  # The libraries' own complaints are not ours, and not the user's to read.
  assert re.fullmatch(r'Checking folder train: .*\nChecking folder val: .*\n', run.stderr)


def test_a_clean_set_is_summed_up(root, capsys):
  labels = {'a.png': np.zeros(SIZE, np.uint8), 'b.png': np.full(SIZE, 255, np.uint8)}
  labels['a.png'][0] = 1
  write_pairs(root, 'val', labels={name: encode(label) for name, label in labels.items()})
  write_pairs(root, 'val', images=GOOD_IMAGES, labels=GOOD_LABELS)
  count, lines = checked(root, capsys, train_split='val')
  assert count == 0
  # The only split, and the class of an id in no label.
  samples = list(load_dataset('folder', 'val', root=root, cache_dir=root / 'cache'))
  ids = np.stack([decode_label(sample['label'], 'x') for sample in samples])
  assert lines[0] == (
    f'folder val: {len(ids)} images of 20x30 (height x width), '
    f'{(ids == 255).mean():.1%} of the pixels ignored'
  )
  rows = [re.findall(r'[^| ]+', line) for line in lines if line.startswith('| ')][1:]
  labelled = (ids < 255).sum()
  for i, name in enumerate(('cat', 'dog', 'hen')):
    count, images = (ids == i).sum(), (ids == i).any((1, 2)).sum()
    assert rows[i] == [name, str(i), f'{count:,}', f'{count / labelled:.2%}', str(images)]
  assert lines[-1] == 'no problems in folder val'


def test_a_class_that_is_nowhere_and_several_sizes_are_told(root, capsys):
  write(root, 'val', image=('c.png', encode(pixels((5, 7)))), label=('c.png', encode(IDS[:5, :7])))
  for split in ('train', 'val'):
    for path in (root / 'labels' / split).iterdir():
      ids = decode_label(path.read_bytes(), 'x')
      path.write_bytes(encode(np.where(ids == 1, 2, ids)))
  count, lines = checked(root, capsys)
  assert count == 0
  assert {'never in train: dog', 'never in val: dog'} <= set(lines)
  assert any(x.startswith('folder val: 2 images of 20x30 (1), 5x7 (1) (height') for x in lines)
  assert lines[-1] == 'no problems in folder train, no problems in folder val'


@pytest.mark.parametrize(('split', 'other'), [('train', 'val'), ('val', 'train')])
def test_a_split_without_files_does_not_hide_the_other(root, capsys, split, other):
  for path in (root / 'images' / split).iterdir():
    path.unlink()
  write(root, other, image=('c.png', IMAGE[:100]), label=('c.png', LABEL))
  count, lines = checked(root, capsys)
  assert count == 2
  assert any(
    re.match(rf'no image .*under {re.escape(str(root))}/images/{split};.* nothing$', x)
    for x in lines
  )
  assert any(x.startswith(f'{root}/images/{other}/c.png: broken image') for x in lines)


def test_an_image_of_both_splits_and_one_that_is_there_twice_are_warnings(root, capsys):
  write(root, 'val', image=('from_train.png', IMAGE), label=('from_train.png', LABEL))
  write(root, 'train', image=('z.png', IMAGE), label=('z.png', LABEL))
  count, lines = checked(root, capsys)
  assert count == 0
  assert [line for line in lines if line.startswith('warning')] == [
    f'warning: {root}/images/train/z.png: the same image as {root}/images/train/a.png; '
    'take one away, or it counts twice',
    f'warning: {root}/images/val/from_train.png: trained on as {root}/images/train/a.png, too; '
    'take it out of one of the splits',
  ]


def test_files_that_are_left_out_are_told(root, capsys):
  for name in ('a.gif', 'b.gif', '.hidden', 'notes'):
    write(root, 'train', image=(name, b''))
  _, lines = checked(root, capsys)
  assert [line for line in lines if line.startswith('warning')] == [
    f'warning: {root}/images/train/{name}: not read, since the name is not that of an image'
    for name in ('a.gif and 1 more', 'notes')
  ]


def test_a_problem_is_one_line_whatever_the_name_of_the_file(root, capsys):
  for name in (b'new\nline.png', b'red\x1b[31m.png', b'not_unicode\xff.png'):
    path = os.path.join(os.fsencode(root), b'images/train', name)
    with open(path, 'wb') as file:
      file.write(IMAGE)
  count, lines = checked(root, capsys)
  assert count == 3
  for name in (r'new\nline', r'red\x1b[31m', r'not_unicode\udcff'):
    assert (
      sum(line.startswith(f'{root}/images/train/{name}.png: has no label') for line in lines) == 1
    )


def test_all_that_is_wrong_with_a_pair_is_told(root, capsys):
  strange = np.zeros((7, 9, 3), np.uint8)
  strange[2] = 200
  data = encode(strange, exif=with_orientation(3))
  write(root, 'train', image=('a.png', encode(pixels(), exif=with_orientation(3))))
  write(root, 'train', label=('a.png', data))
  count, lines = checked(root, capsys)
  assert count == 4
  for file, reason in (
    ('images/train/a.png', 'EXIF orientation 3'),
    ('labels/train/a.png', 'EXIF orientation 3'),
    ('labels/train/a.png', 'the label is 7x9, its image 20x30'),
    ('labels/train/a.png', 'colour (200, 200, 200) (9 pixels) not in'),
  ):
    assert sum(line.startswith(f'{root}/{file}: {reason}') for line in lines) == 1


def test_a_long_list_is_not_cut(root, capsys):
  for i in range(30):
    write(root, 'train', image=(f'{i}.png', IMAGE))
  count, lines = checked(root, capsys)
  assert count == 30
  assert all(any(f'/{i}.png: has no label' in line for line in lines) for i in range(30))


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ({'root': '/no/such/folder'}, 'root /no/such/folder: no such folder'),
    ({'root': '{root}/data.zip'}, 'data.zip: a file, not a folder; if it is an archive, unpack it'),
    ({'root': ''}, 'folder needs root'),
    ({'name': 'pets'}, "no data set 'pets'"),
    ({'root': '{root}/images'}, 'no class file here'),
    ({'train_split': '../val'}, 'only letters, digits'),
    ({'name': 'streets', 'train_split': 'test'}, "streets has no split 'test'"),
  ],
)
def test_a_mistake_in_what_is_asked_is_no_problem_of_the_data(root, capsys, data, message):
  (root / 'data.zip').write_bytes(b'PK')
  data = {key: value.format(root=root) for key, value in data.items()}
  with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
    checked(root, capsys, **data)


def test_a_mistake_is_told_with_status_2_and_needs_no_workdir():
  run = run_main('--mode=check_data', '--config=configs/folder.py', '--config.data.root=nowhere')
  assert (run.returncode, run.stdout) == (2, '')
  assert 'root nowhere: no such folder' in run.stderr


def test_drawn_data_are_checked_too(capsys):
  config = default.get_config()
  config.data.streets.update({'num_train': 2, 'num_val': 1, 'size': (32, 64)})
  assert check_data(config) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith('streets train: 2 images of 32x64 (height x width), ')
  assert lines[-1] == 'no problems in streets train, no problems in streets val'


def test_files_are_checked_without_jax():
  """Which takes as long to import as a small data set takes to check."""
  run = run_python('-c', 'import sys, if_jax.check_data; print("jax" in sys.modules)')
  assert run.stdout == 'False\n', run.stderr


def test_an_interrupted_check_ends():
  called = []

  def examine_one(item):
    called.append(item)
    if item == 5:
      raise KeyboardInterrupt
    time.sleep(0.001)

  with pytest.raises(KeyboardInterrupt):
    checks.examine('pets', examine_one, range(10_000))
  assert len(called) < 1000
