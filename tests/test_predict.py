import contextlib
import io
import re
import types

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from PIL import Image

from configs import default
from if_jax import predict as predict_module
from if_jax import weights
from if_jax.data.labels import CAMVID
from if_jax.inference import predict
from if_jax.models import create_model
from if_jax.outputs import draw_output
from if_jax.predict import Predictor, find_inputs, predict_paths
from if_jax.video import VideoReader, VideoWriter
from if_jax.weights import make_card, model_shapes, save_weights

RNG = np.random.default_rng(0)
# Smooth, so that the random network finds regions and not noise; odd, which no stride divides.
IMAGE, OTHER = (
  np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize((97, 65)))
  for _ in range(2)
)
NUM_FRAMES = 5
KINDS = ('color', 'overlay', 'label_ids', 'edges')


def make_weights(folder, *, edge_head=True):
  """Weights of a network that nobody trained, drawn so that several classes win."""
  model = create_model('hrnet16_slim', CAMVID.num_classes, edge_head=edge_head)
  variables = {}
  rng = np.random.default_rng(2)
  for path, shape in model_shapes(model).items():
    variables[path] = np.full(shape, path.endswith(('/scale', '/var')), np.float32)
    if path.endswith('/kernel'):
      kernel = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
      # Blind to the mean: otherwise the class that likes positive activations wins everywhere.
      variables[path] = (kernel - kernel.mean(axis=(0, 1, 2))).astype(np.float32)
  variables = unflatten_dict(variables, sep='/')
  save_weights(folder, variables, make_card('hrnet16_slim', model, CAMVID))
  return model, variables


def save(path, pixels, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **options)


def read(path):
  return np.asarray(Image.open(path))


def files_below(folder):
  return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


def same(first, second):
  return np.array_equal(read(first), read(second))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A folder of all that may come, predicted once: compiling takes seconds."""
  root = tmp_path_factory.mktemp('run')
  photos = root / 'photos'
  to_turn = Image.Exif()
  to_turn[0x0112] = 6  # By 90 degrees clockwise.
  save(photos / 'plain.png', IMAGE)
  save(photos / 'turned.png', np.ascontiguousarray(np.rot90(IMAGE)), exif=to_turn)
  save(photos / 'clear.png', np.dstack([IMAGE, OTHER[..., :1]]))
  save(photos / 'grey.png', IMAGE[..., 0])
  save(photos / 'sub' / 'deeper' / 'grey.png', np.repeat(IMAGE[..., :1], 3, axis=-1))
  save(photos / 'twice.png', OTHER)
  save(photos / 'twice.bmp', IMAGE)
  (photos / 'cut.png').write_bytes((photos / 'plain.png').read_bytes()[:-2000])
  (photos / 'gone.png').symlink_to('nowhere.png')
  save(photos / 'dot.png', IMAGE[:1, :1])
  (photos / 'notes.txt').write_text('no image')
  model, variables = make_weights(root / 'workdir' / 'best')
  with contextlib.redirect_stdout(io.StringIO()) as text:
    failures = predict_paths(default.get_config(), str(root / 'workdir'), str(photos))
  return types.SimpleNamespace(
    photos=photos,
    weights=root / 'workdir' / 'best',
    output=root / 'workdir' / 'predictions',
    failures=failures,
    text=text.getvalue(),
    predict=jax.jit(lambda images: predict(model, variables, images)),
  )


def test_outputs_are_those_of_the_network(run):
  for name, file in (('plain', 'plain.png'), ('twice.png', 'twice.png')):
    image = read(run.photos / file)
    outputs = {key: np.asarray(x[0]) for key, x in run.predict(image[None]).items()}
    # Not the trivial answer, of which anything would be true.
    assert len(np.unique(outputs['label'])) > 3
    for kind in KINDS:
      written = read(run.output / kind / f'{name}.png')
      expected = draw_output(kind, image, outputs, CAMVID)
      assert written.shape == expected.shape and written.shape[:2] == (65, 97)
      assert np.mean(written == expected) > 0.99


def test_every_readable_image_has_its_outputs(run):
  names = ['clear', 'grey', 'plain', 'sub/deeper/grey', 'turned', 'twice.bmp', 'twice.png']
  for kind in KINDS:
    folder = run.output / kind
    assert files_below(folder) == [f'{name}.png' for name in names]


@pytest.mark.parametrize('kind', KINDS)
def test_what_looks_the_same_is_predicted_the_same(run, kind):
  folder = run.output / kind
  for other in ('turned', 'clear', 'twice.bmp'):
    assert same(folder / 'plain.png', folder / f'{other}.png')
  assert same(folder / 'grey.png', folder / 'sub' / 'deeper' / 'grey.png')
  assert not same(folder / 'plain.png', folder / 'grey.png')


def test_broken_files_are_named_and_the_others_done(run):
  reasons = {
    'cut.png': 'broken image',
    'gone.png': 'No such file',
    'dot.png': '1x1 pixels, 16 a side are needed',
  }
  assert len(run.failures) == len(reasons)
  for name, reason in reasons.items():
    (failure,) = [line for line in run.failures if line.startswith(f'{run.photos / name}: ')]
    assert reason in failure
    assert f'failed: {failure}\n' in run.text


def test_the_end_tells_what_was_done_and_what_is_seen(run):
  lines = run.text.splitlines()
  assert lines[:2] == ['7 of 10 inputs done', f'color, overlay, label_ids, edges in {run.output}']
  ids = [read(path).ravel() for path in (run.output / 'label_ids').rglob('*.png')]
  pixels = np.bincount(np.concatenate(ids), minlength=11)
  most = int(np.argmax(pixels))
  share = f'{100 * pixels[most] / pixels.sum():.1f}%'
  assert lines[2].startswith(f'pixels: {CAMVID.class_names[most]} {share}, ')
  shares = [float(part.split()[-1].rstrip('%')) for part in lines[2].split(', ')]
  assert len(shares) <= 6 and abs(sum(shares) - 100) < 0.5
  assert len(lines) == 3 + len(run.failures)


def by_color(images):
  return {'label': images[..., 0] // 25, 'edge_probability': images[..., 1:2] / 255}


@pytest.fixture
def instant(run, monkeypatch):
  """The predictor of `run`, but it answers in no time: the colours decide.

  Gives the shapes of the batches that were compiled for.
  """
  compiled = []

  def answer(model, variables, images, looks):
    compiled.append(images.shape)
    outputs = by_color(images)
    return outputs if model.edge_head else {'label': outputs['label']}

  monkeypatch.setattr(predict_module, 'predict', answer)
  config = default.get_config()
  config.init_from = str(run.weights)
  return types.SimpleNamespace(config=config, compiled=compiled)


def test_one_image_by_weights_without_an_edge_head(instant, tmp_path, capsys):
  make_weights(tmp_path / 'weights', edge_head=False)
  save(tmp_path / 'a.b.png', IMAGE)
  instant.config.init_from = str(tmp_path / 'weights')
  out = tmp_path / 'new' / 'out'
  arguments = str(tmp_path / 'unused'), str(tmp_path / 'a.b.png'), str(out)
  assert predict_paths(instant.config, *arguments) == []
  assert files_below(out) == ['color/a.b.png', 'label_ids/a.b.png', 'overlay/a.b.png']
  np.testing.assert_array_equal(read(out / 'label_ids' / 'a.b.png'), IMAGE[..., 0] // 25)
  assert not (tmp_path / 'unused').exists()
  assert capsys.readouterr().out.startswith('1 of 1 input done\ncolor, overlay, label_ids in ')
  instant.config.eval.save = ('edges',)
  with pytest.raises(ValueError, match="cannot save 'edges': these weights have no edge head"):
    predict_paths(instant.config, *arguments)


def test_weights_of_the_package_predict_if_none_are_named(instant, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(weights, 'PACKAGED', tmp_path / 'package')
  make_weights(tmp_path / 'package' / weights.DEFAULT_WEIGHTS)
  save(tmp_path / 'a.png', IMAGE)
  monkeypatch.chdir(tmp_path)
  instant.config.init_from = ''
  assert predict_paths(instant.config, '', 'a.png') == []
  np.testing.assert_array_equal(read('predictions/label_ids/a.png'), IMAGE[..., 0] // 25)
  line, *_ = capsys.readouterr().out.splitlines()
  assert line.startswith(f'by the weights {weights.DEFAULT_WEIGHTS} of the package')
  # A run that is named has weights of its own, or none.
  with pytest.raises(ValueError, match='no weights in run/best'):
    predict_paths(instant.config, 'run', 'a.png')


def make_video(path, rate):
  writer = VideoWriter(path, rate)
  for i in range(NUM_FRAMES):
    writer.write(np.roll(IMAGE[:64, :96], 8 * i, axis=1))
  writer.close()


def test_a_video_keeps_its_frames_size_and_rate(instant, tmp_path):
  make_video(tmp_path / 'clip.mp4', 12.5)
  out = tmp_path / 'out'
  assert predict_paths(instant.config, '', str(tmp_path / 'clip.mp4'), str(out)) == []
  ids = [f'label_ids/clip/{i:06d}.png' for i in range(NUM_FRAMES)]
  assert files_below(out) == ['color/clip.mp4', 'edges/clip.mp4', *ids, 'overlay/clip.mp4']
  videos = {kind: VideoReader(out / kind / 'clip.mp4') for kind in KINDS if kind != 'label_ids'}
  assert {(video.rate, video.num_frames) for video in videos.values()} == {(12.5, NUM_FRAMES)}
  frames = list(VideoReader(tmp_path / 'clip.mp4'))
  for i, frame in enumerate(frames):
    np.testing.assert_array_equal(read(out / ids[i]), frame[..., 0] // 25)
  for kind, video in videos.items():
    pictures = np.array(list(video), int)
    assert pictures.shape == (NUM_FRAMES, 64, 96, 3)
    expected = [draw_output(kind, frame, by_color(frame), CAMVID) for frame in frames]
    expected = np.reshape(expected, (NUM_FRAMES, 64, 96, -1)).astype(int)
    distances = np.abs(pictures[:, None] - expected).mean(axis=(2, 3, 4))
    # Compressed, with half the resolution in colour, but the frame that it should be.
    assert np.diag(distances).max() < 15
    np.testing.assert_array_equal(distances.argmin(axis=1), np.arange(NUM_FRAMES))


def test_broken_videos_are_named_and_the_others_done(instant, tmp_path):
  videos = tmp_path / 'videos'
  videos.mkdir()
  make_video(videos / 'whole.mkv', 1.0)
  data = (videos / 'whole.mkv').read_bytes()
  (videos / 'part.mkv').write_bytes(data[: 3 * len(data) // 4])
  (videos / 'bad.mp4').write_bytes(b'no video ' * 100)
  bad, part = predict_paths(instant.config, '', str(videos), str(tmp_path / 'out'))
  assert bad == f'{videos / "bad.mp4"}: no video that can be read; replace the file'
  assert re.fullmatch(r'.*/part\.mkv: only [123] of 5 frames can be read; replace the file', part)
  names = files_below(tmp_path / 'out' / 'color')
  assert names == ['part.mp4', 'whole.mp4']


def test_a_stream_gives_every_example_its_own_outputs(instant):
  instant.config.eval.batch_size = 2
  predictor = Predictor(instant.config.init_from, instant.config)
  sizes = [(4, 6)] * 5 + [(5, 6)] * 2 + [(4, 6)] * 2 + [(6, 6)]
  examples = [
    {'image': np.full((*size, 3), 25 * i, np.uint8), 'place': i} for i, size in enumerate(sizes)
  ]
  order = []
  for example, outputs in predictor.stream(iter(examples)):
    order.append(example['place'])
    assert outputs['label'].shape == example['image'].shape[:2]
    assert (outputs['label'] == order[-1]).all()
  assert sorted(order) == list(range(10))
  for size in set(sizes):
    places = [i for i in order if sizes[i] == size]
    assert places == sorted(places)
  # Batches are filled up, so that each size is compiled once.
  assert sorted(instant.compiled) == [(2, *size, 3) for size in sorted(set(sizes))]


def test_a_stream_holds_few_images_at_a_time(instant):
  predictor = Predictor(instant.config.init_from)
  taken = 0

  def endless():
    nonlocal taken
    while True:
      taken += 1
      yield {'image': np.zeros((4, 6, 3), np.uint8)}

  stream = predictor.stream(endless())
  for _ in range(100):
    next(stream)
  assert taken < 100 + 10


@pytest.mark.parametrize('num_sizes', [3, 5])
def test_only_many_sizes_are_told_and_only_once(instant, caplog, num_sizes):
  predictor = Predictor(instant.config.init_from)
  for height in [*range(4, 4 + num_sizes)] * 2:
    predictor(np.zeros((height, 6, 3), np.uint8))
  messages = [message for message in caplog.messages if 'sizes' in message]
  assert len(messages) == (num_sizes > 3)
  assert all('more than 3 sizes' in message and 'Resize' in message for message in messages)


def test_a_predictor_takes_an_image_and_gives_arrays_of_ones_own(instant):
  predictor = Predictor(instant.config.init_from)
  assert predictor.label_set.class_names == CAMVID.class_names
  outputs = predictor(IMAGE)
  np.testing.assert_array_equal(outputs['label'], IMAGE[..., 0] // 25)
  np.testing.assert_allclose(outputs['edge_probability'], IMAGE[..., 1:2] / 255, rtol=1e-6)
  assert (outputs['label'].dtype, outputs['edge_probability'].dtype) == (np.uint8, np.float32)
  outputs['label'][0] = 0
  for other in (IMAGE / 255, IMAGE[..., 0], IMAGE[None], IMAGE[..., :2], IMAGE[:0]):
    with pytest.raises(ValueError, match=r'^an image is uint8 \[H, W, 3\], RGB; got '):
      predictor(other)


def test_a_predictor_computes_as_the_default_configuration_says():
  config = default.get_config()
  for part, values in predict_module._DEFAULTS.items():
    for key, value in values.items():
      assert config[part][key] == value


def touch(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def names_of(root, output='elsewhere'):
  found = find_inputs(root, root / output)
  return {name: path.relative_to(root).as_posix() for name, path in found.items()}


def test_inputs_are_called_by_their_path_without_ending(tmp_path):
  touch(tmp_path, 'b.JPG', 'a.png', 'c/d/e.f.mov', 'c/d/g.webp', '.hidden.png', 'a.txt', 'h')
  assert names_of(tmp_path) == {
    'a': 'a.png', 'b': 'b.JPG', 'c/d/e.f': 'c/d/e.f.mov', 'c/d/g': 'c/d/g.webp'
  }  # fmt: skip
  assert list(names_of(tmp_path)) == sorted(names_of(tmp_path))


def test_inputs_that_would_share_outputs_keep_their_ending(tmp_path):
  touch(tmp_path, 'a.png', 'a.jpg', 'a.jpg.png', 'b.png', 'b/c.png', 'd.mp4', 'd/000000.png')
  assert names_of(tmp_path) == {
    'a.jpg': 'a.jpg',
    'a.jpg.png': 'a.jpg.png',
    'a.png': 'a.png',
    'b': 'b.png',
    'b/c': 'b/c.png',
    'd.mp4': 'd.mp4',
    'd/000000': 'd/000000.png',
  }


def test_what_was_written_before_is_no_input(tmp_path):
  touch(tmp_path, 'a.png', 'out/color/a.png', 'out/overlay/sub/b.png', 'out/mine.png')
  assert names_of(tmp_path, 'out') == {'a': 'a.png', 'out/mine': 'out/mine.png'}
  for source in ('out/color', 'out/color/a.png', 'out/overlay/sub'):
    with pytest.raises(ValueError, match='lies where predictions go; choose another --output'):
      find_inputs(tmp_path / source, tmp_path / 'out')


def test_nothing_to_predict_is_told(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'photo: no such file or folder.* check --input'):
    find_inputs(tmp_path / 'photo', tmp_path)
  touch(tmp_path, 'photos/a.heic')
  with pytest.raises(ValueError, match=r'no image or video in .*photos; .*\.png.*\.mp4'):
    find_inputs(tmp_path / 'photos', tmp_path)


@pytest.mark.parametrize(
  ('kinds', 'message'),
  [
    (('colour',), "cannot save 'colour'; there are label_ids, color"),
    (('errors',), "cannot save 'errors': that needs labels"),
  ],
)
def test_kinds_that_there_are_not_are_told_at_once(run, tmp_path, kinds, message):
  config = default.get_config()
  config.init_from = str(run.weights)
  config.eval.save = kinds
  with pytest.raises(ValueError, match=message):
    predict_paths(config, '', str(run.photos), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_an_output_that_is_a_file_is_told(run, tmp_path):
  touch(tmp_path, 'out')
  config = default.get_config()
  config.init_from = str(run.weights)
  with pytest.raises(ValueError, match=r'--output=.*out cannot be made a folder: File exists'):
    predict_paths(config, '', str(run.photos), str(tmp_path / 'out'))


def test_missing_weights_are_told(tmp_path):
  save(tmp_path / 'a.png', IMAGE)
  with pytest.raises(ValueError, match=r'no weights in .*best'):
    predict_paths(default.get_config(), str(tmp_path / 'workdir'), str(tmp_path / 'a.png'))
