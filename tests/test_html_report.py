"""Reports: the numbers they show, the images they choose, what a browser makes of them."""

import concurrent.futures
import html.parser
import io
import json
import math
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, chromium
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from if_jax.boundary_metrics import BoundaryMetrics
from if_jax.configs import default
from if_jax.data.datasets import Dataset
from if_jax.data.labels import LabelSet
from if_jax.evaluate import as_json
from if_jax.html_report import (
  Gallery,
  Panel,
  is_reported,
  picture_grid,
  write_evaluation_report,
  write_training_report,
)
from if_jax.html_report.elements import element, to_html, write_page
from if_jax.html_report.evaluation import _confusion_section
from if_jax.html_report.samples import extremes
from if_jax.metrics import count_confusion, iou_from_confusion

# What would be markup, an attribute, a script or the end of one, if it were not text.
HOSTILE = '</script></style><script>document.title=1</script>"\'><img src=x onerror=alert(1)>&lt;'
NAMES = ('road', HOSTILE, 'sky', 'never')
COLORS = np.uint8([[128, 64, 128], [244, 35, 232], [70, 130, 180], [0, 0, 142]])
LABELS = LabelSet('three', NAMES, COLORS, np.arange(4, dtype=np.uint8), ignored_ids=(255,))
SIZE = (24, 48)


def example(index, *, num_wrong=0, name=None):
  """An image of three classes, and outputs that are wrong in so many of its 48 columns."""
  label = np.repeat(np.arange(3, dtype=np.uint8), SIZE[1] // 3)[None].repeat(SIZE[0], 0)
  predicted = label.copy()
  predicted[:, :num_wrong] = 2
  image = np.full((*SIZE, 3), index % 256, np.uint8)
  edges = np.zeros((*SIZE, 1), np.float32)
  return (
    {'index': index, 'name': name or f'image {index}', 'image': image, 'label': label},
    {'label': predicted, 'edge_probability': edges},
  )


class Reader(html.parser.HTMLParser):
  """Reads a page: its tags and attributes, all text, and the text of each cell of each table."""

  def __init__(self, page):
    super().__init__(convert_charrefs=True)
    self.tags, self.attributes, self.words, self.tables = [], [], [], []
    self._in_cell = False
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag == 'table':
      self.tables.append([])
    elif tag == 'tr':
      self.tables[-1].append([])
    elif tag in ('td', 'th'):
      self.tables[-1][-1].append('')
      self._in_cell = True

  def handle_endtag(self, tag):
    if tag in ('td', 'th'):
      self._in_cell = False

  def handle_data(self, data):
    self.words.append(data)
    if self._in_cell:
      self.tables[-1][-1][-1] += data


def write_evaluation(folder, *, num_images=9):
  """A report with the `evaluation.json` that it shows: (path, numbers)."""
  gallery = Gallery(LABELS, num_extremes=2, shown=(0, 8))
  confusion, boundary = np.zeros((4, 4), np.int64), BoundaryMetrics(4, (1.0, 2.0, 5.0))
  for i in range(num_images):
    one, outputs = example(i, num_wrong=3 * i, name=f'{HOSTILE}{i}\udcff')
    gallery.add(one, outputs)
    confusion += count_confusion(one['label'], outputs['label'], 4)
    boundary.update(one['label'], outputs['label'])
  result = iou_from_confusion(confusion) | boundary.compute()
  result |= {'confusion': confusion, 'images': num_images}
  numbers = as_json(result, Dataset(HOSTILE, 'val', LABELS, range(num_images)), Path('best'))
  config = default.get_config()
  config.data.root = HOSTILE
  path = folder / 'report.html'
  write_evaluation_report(
    path,
    numbers,
    LABELS,
    gallery.gathered(),
    title=HOSTILE,
    num_extremes=2,
    shown=np.array([8, 0, 8]),
    config=config,
    defaults=default.get_config(),
    started=time.monotonic(),
  )
  return path, numbers


def write_training(folder, *, num_steps=30):
  """A report of a run of that many steps, evaluated every ten: (path, its lines)."""
  lines = []
  for step in range(1, num_steps + 1):
    terms = {'loss': 9 / step, 'boundary': 1 / step, 'my_own_term': 2.0, 'skipped_steps': 0}
    lines.append({'step': step} | {f'train/{name}': x for name, x in terms.items()})
    if step % 10 == 0:
      scores = {'miou': 0.5 - abs(step - 20) / 100, 'boundary_f@2px': 0.25, 'images': 9}
      scores |= {'iou/road': step / 100, f'iou/{HOSTILE}': 0.5, 'iou/sky': 0.9, 'iou/never': None}
      lines.append({'step': step} | {f'val/{name}': x for name, x in scores.items()})
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  Path(folder, 'metrics.jsonl').write_text(text)
  gallery = Gallery(LABELS, num_extremes=0, shown=(1,))
  for i in range(3):
    gallery.add(*example(i))
  config = default.get_config()
  config.train.num_steps = num_steps
  write_training_report(
    folder,
    title=HOSTILE,
    config=config,
    defaults=default.get_config(),
    started=time.monotonic(),
    label_set=LABELS,
    samples=gallery.gathered(),
  )
  return folder / 'report.html', lines


@pytest.fixture(scope='module')
def reports(tmp_path_factory):
  """{kind: (path, what it shows)}."""
  return {
    'evaluation': write_evaluation(tmp_path_factory.mktemp('evaluation')),
    'training': write_training(tmp_path_factory.mktemp('training')),
  }


@given(st.text(st.characters(exclude_characters='\r\0', exclude_categories=['Cs'])))
def test_text_stays_text(text):
  page = Reader(to_html(element('p', text, title=text)))
  assert page.tags == ['p']
  assert ''.join(page.words) == text
  assert page.attributes == [('title', text)]


@pytest.mark.parametrize('kind', ['evaluation', 'training'])
def test_what_people_write_becomes_no_markup(reports, kind):
  text = reports[kind][0].read_text()
  page = Reader(text)
  assert page.tags.count('script') == page.tags.count('style') == page.tags.count('title') == 1
  assert HOSTILE in ''.join(page.words)
  names = {name for name, _ in page.attributes}
  assert not any(name.startswith('on') for name in names)
  loaded = [value for name, value in page.attributes if name in ('src', 'href')]
  assert len(loaded) > 5
  assert all(value.startswith(('data:', '#')) for value in loaded)


def test_the_numbers_are_those_of_evaluation_json(reports):
  path, numbers = reports['evaluation']
  page = Reader(path.read_text())
  (head, *rows, mean), matrix = page.tables[0], page.tables[1]
  assert head[1:] == ['IoU', 'precision', 'recall', 'F@1px', 'F@2px', 'F@5px', 'boundary IoU',
                      'share of pixels']  # fmt: skip
  assert [row[0] for row in rows] == list(NAMES)
  for row, scores in zip(rows, numbers['classes'].values(), strict=True):
    shown = ['-' if score is None else f'{100 * score:.2f}' for score in scores.values()]
    assert row[1:-1] == shown
  assert {row[-1] for row in rows} == {'33.33', '0.00'}
  assert mean[1] == f'{100 * numbers["miou"]:.2f}'
  assert mean[5] == f'{100 * numbers["boundary_f@2px"]:.2f}'
  tips = [value for name, value in page.attributes if name == 'data-tip']
  counts = [int(re.search(r': ([\d,]+) pixels', tip)[1].replace(',', '')) for tip in tips]
  np.testing.assert_array_equal(np.reshape(counts, (4, 4)), numbers['confusion'])
  total = sum(numbers['confusion'][0])
  assert [cell or '0' for cell in matrix[1][1:]] == [
    f'{100 * count / total:.0f}' for count in numbers['confusion'][0]
  ]


def test_the_images_are_the_worst_the_best_and_those_asked_for(reports):
  """Each further image has more columns wrong."""
  text = reports['evaluation'][0].read_text()
  captions = re.findall(r'alt="image of .*?(\d)\\udcff"', text)
  assert captions == ['8', '7', '0', '1', '0', '8']


def test_a_training_shows_its_best_its_classes_and_every_value(reports):
  path, _ = reports['training']
  text = path.read_text()
  page = Reader(text)
  assert '<dt>best mIoU</dt><dd>50.00<small> %</small></dd><small>step 20</small>' in text
  assert '<dt>last mIoU</dt><dd>40.00<small> %</small></dd><small>step 30</small>' in text
  _, *rows, mean = page.tables[0]
  assert [row[:4] for row in rows] == [
    ['road', '30.00', '+10.00', '30.00'],
    [HOSTILE, '50.00', '+0.00', '50.00'],
    ['sky', '90.00', '+0.00', '90.00'],
    ['never', '-', '-', '-'],
  ]
  assert mean[2] == '-10.00'
  charts = [value for name, value in page.attributes if name == 'aria-label']
  assert charts[3:] == ['mIoU', 'Boundary F', 'Loss', 'Boundary', 'train/my_own_term']
  (changed, settings) = page.tables[1:]
  assert changed[1:] == [['train.num_steps', '30', '1000']]
  assert ['optimizer.momentum', '0.9', ''] in settings


def test_a_run_without_classes_has_a_report_too(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 2.0, "train/shift": 3.0}\n')
  write_training_report(
    tmp_path,
    title='x',
    config=default.get_config(),
    defaults=default.get_config(),
    started=0,
    panels=[Panel('All', ('train/*',))],
  )
  page = Reader((tmp_path / 'report.html').read_text())
  assert [value for name, value in page.attributes if name == 'aria-label'] == ['All']


def test_a_page_that_cannot_be_written_leaves_nothing_beside_it(tmp_path):
  (tmp_path / 'report.html').mkdir()
  with pytest.raises(OSError):
    write_page(tmp_path / 'report.html', 'x', element('header'), [])
  assert [path.name for path in tmp_path.iterdir()] == ['report.html']


def test_a_report_is_up_to_date_until_more_is_written_down(tmp_path):
  path, _ = write_training(tmp_path)
  assert is_reported(tmp_path)
  since = path.stat().st_mtime_ns
  os.utime(tmp_path / 'metrics.jsonl', ns=(since, since + 1))
  assert not is_reported(tmp_path)
  os.utime(tmp_path / 'metrics.jsonl', ns=(since, since))
  assert is_reported(tmp_path)
  path.unlink()
  assert not is_reported(tmp_path)


def test_of_many_classes_only_what_is_shown_is_explained():
  names, colors = [f'class {i}' for i in range(65)], np.zeros((65, 3), np.uint8)
  confusion = np.eye(65, dtype=int)
  assert _confusion_section({'confusion': confusion.tolist()}, names, colors) is None
  confusion[3, 4] = 1
  text = to_html(_confusion_section({'confusion': confusion.tolist()}, names, colors))
  assert 'Most confused' in text and '50.00' in text
  assert 'rows' not in text and '<table' not in text


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, math.nan])), st.integers(0, 4))
def test_extremes_are_the_first_and_the_last_of_the_sorted(scores, count):
  worst, best = extremes(dict(enumerate(scores)), count)
  known = [score for score in scores if not math.isnan(score)]
  assert not set(worst) & set(best)
  assert len(worst) + len(best) == min(2 * count, len(known))
  assert [scores[i] for i in worst] == sorted(known)[: len(worst)]
  assert [scores[i] for i in best] == sorted(known, reverse=True)[: len(best)]


def test_threads_keep_the_same_few_images_of_many():
  rng = np.random.RandomState(0)
  wrong = rng.permutation(32)
  gallery = Gallery(LABELS, num_extremes=3, shown=(7, 11))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda i: gallery.add(*example(i, num_wrong=wrong[i])), range(32)))
  worst, best = np.argsort(wrong)[:-4:-1], np.argsort(wrong)[:3]
  samples = gallery.gathered()
  assert set(samples) == {7, 11, *worst, *best}
  label, predicted = example(0, num_wrong=wrong[7])[0]['label'], example(0, num_wrong=wrong[7])[1]
  scores = iou_from_confusion(count_confusion(label, predicted['label'], 4))
  assert samples[7].miou == scores['miou']
  assert samples[7].pixel_accuracy == scores['pixel_accuracy']
  assert picture_grid(samples[7]).shape == (3 * SIZE[0], 2 * SIZE[1], 3)


@pytest.mark.parametrize('num_images', [1, 100])
def test_many_large_images_are_shown_smaller(num_images):
  """However many and large, all pictures together have no more pixels than 100 of 640 x 320."""
  gallery = Gallery(LABELS, num_extremes=0, shown=range(num_images))
  one, outputs = example(0)
  one |= {name: one[name].repeat(40, 0).repeat(40, 1) for name in ('image', 'label')}
  gallery.add(one, {name: x.repeat(40, 0).repeat(40, 1) for name, x in outputs.items()})
  pictures = gallery.gathered()[0].pictures
  assert len(pictures) == 5
  for data in pictures:
    width, height = Image.open(io.BytesIO(data)).size
    assert width == min(640, round(640 * math.sqrt(20 / num_images)))
    assert height == round(width / 2)


def test_the_colours_of_classes_are_exact():
  gallery = Gallery(LABELS, num_extremes=0, shown=(0,))
  gallery.add(*example(0))
  truth = Image.open(io.BytesIO(gallery.gathered()[0].pictures[1])).convert('RGB')
  assert {color for _, color in truth.getcolors()} == {tuple(c) for c in COLORS[:3].tolist()}


def test_a_long_training_has_a_small_report(tmp_path):
  path, _ = write_training(tmp_path, num_steps=20_000)
  assert (tmp_path / 'metrics.jsonl').stat().st_size > 2_000_000
  assert path.stat().st_size < 300_000


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  """A page of a browser that runs for all tests of this file."""
  if CHROMIUM is None:
    pytest.skip('needs Chromium: apt-get install chromium')
  with chromium(tmp_path_factory.mktemp('chromium')) as page:
    yield page


def test_the_browser_tells_of_problems_and_requests(page, tmp_path):
  """Or the tests below would prove nothing."""
  (tmp_path / 'bad.html').write_text(
    '<script src="gone.js"></script><script>console.error("a"); nothing.at.all;</script>'
  )
  page.open(tmp_path / 'bad.html')
  assert len(page.problems) >= 2
  assert [url.rpartition('/')[2] for url in page.requests] == ['bad.html', 'gone.js']


@pytest.mark.parametrize('kind', ['evaluation', 'training'])
@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [1280, 390])
def test_a_browser_shows_it_without_a_problem_or_a_request(page, reports, kind, width, dark):
  path = reports[kind][0]
  page.open(path, width=width, dark=dark)
  assert page.run('document.documentElement.dataset.ready') == 'true'
  heads = page.run('[...document.querySelectorAll("h2")].map(x => x.textContent)')
  shared = ['Configuration', 'Run']
  assert heads == {
    'evaluation': ['Classes', 'Boundary F by tolerance', 'Confusion', 'Worst images',
                   'Best images', 'Across the data set', *shared],
    'training': ['Classes', 'Curves', 'Images', *shared],
  }[kind]  # fmt: skip
  # Nothing is wider than the screen, and all pictures are there.
  assert page.run('document.documentElement.scrollWidth') <= width
  sizes = page.run('[...document.querySelectorAll(".row img")].map(x => x.naturalWidth)')
  assert sizes == [SIZE[1]] * (30 if kind == 'evaluation' else 5)
  paper = page.run('getComputedStyle(document.body).backgroundColor')
  assert (int(re.search(r'\d+', paper)[0]) < 60) == dark
  assert page.run('document.title').endswith(HOSTILE)
  assert page.problems == []
  assert page.requests == [path.resolve().as_uri()]


def test_a_title_sorts_and_what_has_no_value_stays_below(page, reports):
  page.open(reports['evaluation'][0])
  column = '[...document.querySelectorAll(".sortable tbody td:nth-child(2)")].map(x => x.innerText)'
  click = 'document.querySelectorAll(".sortable th button")[1].click()'
  orders = []
  for _ in range(2):
    page.run(click)
    orders.append(page.run(column))
  scores = [s['iou'] for s in reports['evaluation'][1]['classes'].values() if s['iou'] is not None]
  ordered = [f'{100 * score:.2f}' for score in sorted(scores)]
  assert orders == [[*ordered[::-1], '-'], [*ordered, '-']]
  state = 'document.querySelector("th[aria-sort]").getAttribute("aria-sort")'
  assert page.run(state) == 'ascending'
  page.run('document.querySelectorAll(".sortable th button")[0].click()')
  assert page.run(column) == [
    '-' if s['iou'] is None else f'{100 * s["iou"]:.2f}'
    for s in reports['evaluation'][1]['classes'].values()
  ]
  assert page.problems == []


HOVER = """
(selector => {
  const target = document.querySelector(selector);
  const {left, top, width, height} = target.getBoundingClientRect();
  const at = {clientX: left + width - 12, clientY: top + height / 2, bubbles: true};
  target.dispatchEvent(new PointerEvent('pointermove', at));
  return tip.hidden ? null : tip.innerText.split('\\n');
})
"""


def test_a_pointer_is_told_the_numbers(page, reports):
  page.open(reports['training'][0])
  loss = page.run(HOVER + "('svg[aria-label=Loss]')")
  assert loss == ['step 30', 'loss', '0.3']
  page.open(reports['evaluation'][0])
  cell = page.run(HOVER + "('.matrix tbody tr:first-child td:nth-child(4)')")
  count = reports['evaluation'][1]['confusion'][0][2]
  assert cell == [f'road, taken for sky: {count:,} pixels, {100 * count / (9 * 16 * 24):.2f} %']
  assert page.problems == []


def test_a_click_enlarges_a_picture_and_goes_on_to_the_next(page, reports):
  page.open(reports['evaluation'][0])
  page.run('document.querySelector(".row img").click()')
  assert page.run('document.querySelector("dialog").open')
  alt = 'document.querySelector("dialog img").alt.split(" ", 1)[0]'
  assert page.run(alt) == 'image'
  page.run('document.querySelector("dialog img").click()')
  assert page.run(alt) == 'truth'
  page.run('document.querySelector("dialog").click()')
  assert not page.run('document.querySelector("dialog").open')
  page.run('document.querySelectorAll(".row img")[2].focus()')
  page.run('document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter"}))')
  assert page.run('document.querySelector("dialog").open')
  assert page.run(alt) == 'prediction'
  assert page.problems == []
