"""What the documentation shows runs, parses, and is there."""

import functools
import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest
import reference
from PIL import Image

from convert import from_torch
from if_jax.configs import default, inversenet
from if_jax.data.labels import CITYSCAPES, label_set_from_json
from if_jax.models import MODELS, create_model
from if_jax.onnx_translation import to_onnx
from if_jax.weights import make_card, save_weights

ROOT = pages.ROOT
TEXTS = {page: (ROOT / page).read_text() for page in pages.PAGES}


@pytest.fixture(scope='module', autouse=True)
def _compile_in_haste():
  """Runs slower and compiles in a third of the time, which is what counts here."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where the files are that the pages speak of."""
  path = tmp_path_factory.mktemp('docs')
  places = {'hrnet18': ['weights/hrnet18'], 'hrnet16_slim': ['runs/mine/best', 'runs/streets/best']}
  for name in places:
    variables = from_torch(reference.state_dict(name), name)
    card = make_card(name, create_model(name), CITYSCAPES)
    for place in places[name]:
      save_weights(path / place, variables, card)
  for name in ('photo.jpg', 'street.jpg'):
    Image.fromarray(np.full((32, 64, 3), 128, np.uint8)).save(path / name)

  for i in range(5):
    for name in ('images', 'labels'):
      file = path / 'data/mine' / name / f'train/{i}.png'
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.new('L', (8, 8)).save(file)

  def network(images):
    brightness = jnp.max(images.astype(jnp.float32), -1, keepdims=True) / 255
    return {'label': jnp.argmax(images, -1).astype(jnp.uint8), 'edge_probability': 1 - brightness}

  exported = jax.export.export(jax.jit(network))(jax.ShapeDtypeStruct((1, 4, 8, 3), jnp.uint8))
  (path / 'model.stablehlo').write_bytes(exported.serialize())
  spec = jax.ShapeDtypeStruct((1, 4, 8, 3), jnp.uint8)
  model = to_onnx(lambda _, images: network(images), {}, spec)
  (path / 'model.onnx').write_bytes(model.SerializeToString())
  return path


def names_for_blocks():
  """What the reader of a block has already."""
  labels = jnp.zeros((1, 32, 64), jnp.int32).at[:, 10:20, 20:40].set(1)
  return {
    'labels': labels,
    'edge_logits': jnp.zeros((1, 32, 64, 1)),
    'image': jnp.full((1, 32, 64, 3), 128, jnp.uint8).at[:, 10:20, 20:40].set(255),
    'images': np.full((1, 4, 8, 3), 200, np.uint8),
  }


BLOCKS = [
  pytest.param(block, id=f'{page}-{number}')
  for page in pages.PAGES
  if page != 'docs/loss.md'  # They build on one another: below.
  for number, block in enumerate(pages.python_blocks(page))
]


@pytest.mark.parametrize('block', BLOCKS)
def test_blocks_run(block, folder, monkeypatch):
  if 'huggingface_hub' in block:
    pytest.skip('speaks to the hub')
  monkeypatch.chdir(folder)
  names = names_for_blocks()
  exec(block, names)
  if 'loss' in names:
    assert 0 < names['count'] <= 18
    assert 0 < names['loss'] < 1
  if 'logits' in names.get('outputs', {}):
    num_classes = len(names['card']['label_set']['classes'])
    assert names['outputs']['logits'].shape == (1, 32, 64, num_classes)
  elif 'outputs' in names:
    assert names['outputs']['label'].dtype == np.uint8
  if 'root' in names:
    moved = [[x.name for x in names['root'].glob(f'{kind}/val/*')] for kind in ('images', 'labels')]
    assert len(moved[0]) == 1 and moved[0] == moved[1]
  if 'again' in names:
    jax.tree.map(np.testing.assert_array_equal, names['again'], names['variables'])


@pytest.mark.parametrize('number', [1, 2, 3], ids=['linen', 'nnx', 'equinox'])
def test_a_model_of_each_framework_learns(number):
  if number == 3:
    pytest.importorskip('equinox')
  names, losses = names_for_blocks(), []
  names['image'] = names['image'] / 255
  names['print'] = lambda step, loss: losses.append(float(loss))
  blocks = pages.python_blocks('docs/loss.md')
  assert len(blocks) == 5
  exec(blocks[0], names)
  # Two tiles instead of 18.
  names['inverseform'] = functools.partial(names['inverseform'], tile_rows=1)
  exec(blocks[number], names)
  assert len(losses) == 10
  assert losses[-1] < 0.97 * losses[0]


def test_class_scores_learn_without_an_edge_head():
  names, blocks = names_for_blocks(), pages.python_blocks('docs/loss.md')
  exec(blocks[0], names)
  exec(blocks[4], names)
  names['inverseform_of_probability'] = functools.partial(
    names['inverseform_of_probability'], tile_rows=1
  )
  logits = np.random.RandomState(0).normal(size=(*names['labels'].shape, 19)).astype(np.float32)
  loss, gradient = jax.value_and_grad(names['class_boundary_loss'])(logits, names['labels'])
  assert 0 < loss < 1 and np.linalg.norm(gradient) > 1e-4


def commands_of(program):
  return [(page, x) for page in pages.PAGES for x in pages.commands(page) if x.program == program]


@pytest.mark.parametrize(('program', 'at_least'), [('main', 20), ('convert', 3)])
def test_commands_are_understood(program, at_least):
  found = commands_of(program)
  assert len(found) >= at_least
  # A sentence need not name everything.
  lines = [x.arguments if x.in_block else ['...', *x.arguments] for _, x in found]
  done = subprocess.run(
    [sys.executable, 'tests/parse_flags.py', program],
    input=json.dumps(lines),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  told = zip(found, json.loads(done.stdout), strict=True)
  assert [(page, x.line, error) for (page, x), error in told if error] == []


def test_wrong_commands_are_told():
  lines = [
    ['--mode=predict', '--workdir=x'],
    ['--workdir=x', '--config.train.batch_siz=2'],
    ['--workdir=x', '--config=configs/camvit.py'],
    ['...', '--inputs=x'],
    ['--workdir=x', '--mode=train'],
  ]
  done = subprocess.run(
    [sys.executable, 'tests/parse_flags.py', 'main'],
    input=json.dumps(lines),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  *errors, nothing = json.loads(done.stdout)
  for error, part in zip(errors, ('--input', 'batch_size', 'camvit', 'inputs'), strict=True):
    assert error.startswith('error: ') and part in error
  assert nothing == ''


def test_benchmarks_take_these_arguments(monkeypatch):
  found = commands_of('benchmark')
  assert len(found) >= 5
  for page, command in found:
    module = importlib.import_module(f'benchmarks.{command.name}')
    monkeypatch.setattr(module, 'run', lambda _, parser, argv: parser.parse_args(argv))
    try:
      module.main(command.arguments)
    except SystemExit:
      pytest.fail(f'{page}: {command.line}')


def _has(config, key):
  for part in key.split('.'):
    if part not in config:
      return False
    config = config[part]
  return True


@pytest.mark.parametrize('page', pages.PAGES)
def test_keys_of_configurations_are_there(page):
  configs = default.get_config(), inversenet.get_config()
  # What ends in json is a file.
  for key in re.findall(r'config\.((?!json)[a-z_]+(?:\.[a-z_]+)*)', TEXTS[page]):
    assert any(_has(config, key) for config in configs), key


@pytest.mark.parametrize('page', pages.PAGES)
def test_files_are_there(page):
  text = TEXTS[page]
  for link in re.findall(r'\]\(([^)\s]+)\)', text):
    path, _, heading = link.partition('#')
    if not re.match(r'https?://', path):
      target = (ROOT / page).parent / path if path else ROOT / page
      assert target.exists(), link
      headings = re.findall(r'^#+ (.*)', target.read_text(), re.MULTILINE) if heading else []
      names = [re.sub(r'[^\w\- ]', '', x.lower()).replace(' ', '-') for x in headings]
      assert not heading or heading in names, link
  folders = '|'.join(('benchmarks', 'configs', 'convert', 'docs', 'if_jax', 'tests'))
  for path in re.findall(rf'(?<![\w/.-])((?:{folders})/[\w/-]+\.(?:py|md|png|jpg))\b', text):
    assert (ROOT / path).is_file(), path


@pytest.mark.parametrize('page', pages.PAGES)
def test_tests_that_are_named_are_there(page):
  file = None
  for name, test in re.findall(r'(\btest_\w+\.py)?(?:::(test_\w+))?', TEXTS[page]):
    file = name or file
    if file:
      text = (ROOT / 'tests' / file).read_text()
      assert not test or f'def {test}(' in text, f'{file}::{test}'


def test_the_index_names_every_page():
  linked = set(re.findall(r'\]\((\w+\.md)\)', TEXTS['docs/README.md']))
  assert linked == {Path(page).name for page in pages.PAGES[1:]} - {'README.md'}


@pytest.mark.parametrize('name', MODELS)
def test_the_table_of_models_has_the_parameters_of_the_released_files(name):
  (row,) = re.findall(rf'^\| `{name}` \| ([\d.]+) M \(([\d.]+) M\)', TEXTS['README.md'], re.M)
  counts = {
    entry: math.prod(shape)
    for entry, shape, _ in reference.entries(name)
    if entry.endswith(('weight', 'bias'))
  }
  without_edges = sum(count for entry, count in counts.items() if not entry.startswith('edge'))
  assert row == (f'{without_edges / 1e6:.2f}', f'{sum(counts.values()) / 1e6:.2f}')


def test_the_class_file_that_is_shown_is_one():
  (text,) = re.findall(r'```json\n(.*?)```', TEXTS['docs/your_own_data.md'], re.DOTALL)
  label_set = label_set_from_json('mine', json.loads(text))
  assert label_set.num_classes == 3 and label_set.ignored_ids == (255,)
