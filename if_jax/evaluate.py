"""Evaluation: every image of a data set counted once, on all devices."""

import collections
import concurrent.futures
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from if_jax import parallel, processes
from if_jax.configs.default import get_config as get_defaults
from if_jax.data.datasets import Dataset
from if_jax.data.pipeline import eval_examples
from if_jax.html_report import Gallery, write_evaluation_report
from if_jax.inference import can_be_kept, for_many_images, predict
from if_jax.metrics import BoundaryMetrics, confusion_matrix, iou_from_confusion
from if_jax.outputs import SHEET_TITLES, check_kinds, save_outputs, sheet_row
from if_jax.report import Progress, contact_sheet, introduce, print_table
from if_jax.settings import load_split, looks_from_config, model_from_card, weights_folder
from if_jax.stopping import Watchdog
from if_jax.weights import check_fits, count_parameters, label_set_of, load_weights

# Batches that the devices may still be working on while the host scores earlier ones.
_BATCHES_UNDER_WAY = 2


class Evaluator:
  """Scores variables of a model on a data set; compiled once per image size.

  Args:
    model: of `create_model`.
    dataset: with labels.
    config: its `eval` part is used.
  """

  def __init__(self, model: nn.Module, dataset: Dataset, config: ConfigDict):
    self._dataset = dataset
    self._config = config.eval
    self._num_workers = config.data.num_workers
    if config.eval.batch_size < 1:
      raise ValueError(f'config.eval.batch_size={config.eval.batch_size}; give at least 1')
    for key in ('sheet_images', 'report_images'):
      if config.eval[key] < 0:
        raise ValueError(f'config.eval.{key}={config.eval[key]}; give 0 (none) or more')
    self._batch_size = config.eval.batch_size * parallel.num_local_devices()
    num_classes = dataset.label_set.num_classes
    looks = looks_from_config(config)
    self._new_boundary_metrics()  # A wrong tolerance is told now.
    model = for_many_images(model, len(dataset))

    def step(variables, batch):
      outputs = predict(model, variables, batch['image'], looks)
      confusion = confusion_matrix(
        batch['label'], outputs['label'], num_classes=num_classes, valid=batch['valid']
      )
      outputs['label'] = outputs['label'].astype(np.uint8)
      return jax.lax.psum(confusion, parallel.AXIS), outputs

    self._p_step = parallel.pmap_per_device(step, keep=can_be_kept(model))

  def __call__(
    self,
    variables: Any,
    *,
    on_image: Callable[[dict, dict], None] | None = None,
    on_batch: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
  ) -> dict[str, Any]:
    """Evaluates; of several processes, each does its share, and all get the scores of the whole.

    Args:
      variables: {'params': ..., 'batch_stats': ...}, replicated (`parallel.replicate`).
      on_image: called in threads with each example of `eval_examples` that is this process's, and
        its outputs of `predict`.
      on_batch: called when a batch is done.
      progress: shown image by image.
    Returns:
      The scores of `iou_from_confusion` and `BoundaryMetrics.compute`, 'confusion' int64 [K, K]
      and 'images', their number.
    """
    num_classes = self._dataset.label_set.num_classes
    total = np.zeros((num_classes, num_classes), np.int64)
    boundary = self._new_boundary_metrics()
    done = 0
    under_way = collections.deque()
    with (
      concurrent.futures.ThreadPoolExecutor() as pool,
      eval_examples(
        self._dataset,
        num_workers=self._num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      ) as examples,
    ):

      def finish(group, confusion, outputs):
        nonlocal done, total
        total += np.asarray(confusion)
        outputs = {name: parallel.unshard(x) for name, x in outputs.items()}
        jobs = [
          (example, {name: x[i] for name, x in outputs.items()}) for i, example in enumerate(group)
        ]
        for part in pool.map(lambda job: self._score(*job, on_image), jobs):
          if part is not None:
            boundary.merge(part)
        done += len(group)
        on_batch()
        if progress:
          progress.update(done)

      for group in by_size(examples, self._batch_size):
        under_way.append((group, *self._p_step(variables, _batch(group, self._batch_size))))
        if len(under_way) > _BATCHES_UNDER_WAY:
          finish(*under_way.popleft())
      while under_way:
        finish(*under_way.popleft())
    (total, boundary, done), *others = processes.gather((total, boundary, done))
    for confusion, part, count in others:
      total += confusion
      boundary.merge(part)
      done += count
    if done != len(self._dataset):
      raise RuntimeError(f'{done} of {len(self._dataset)} images were evaluated')
    result = iou_from_confusion(total)
    if self._config.boundary_tolerances:
      result |= boundary.compute()
    return result | {'confusion': total, 'images': done}

  def _score(self, example, outputs, on_image):
    if on_image:
      on_image(example, outputs)
    if not self._config.boundary_tolerances:
      return None
    part = self._new_boundary_metrics()
    part.update(example['label'], outputs['label'])
    return part

  def _new_boundary_metrics(self):
    tolerances = tuple(self._config.boundary_tolerances)
    # Without any asked for, an accumulator that is never used.
    return BoundaryMetrics(self._dataset.label_set.num_classes, tolerances or (1.0,))


def evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
  """Evaluates the weights of `config.init_from`, or of `workdir/best`, on a data set.

  Prints a table and writes `workdir/evaluation.json`, and below `workdir/evaluation/` the pictures
  that `config.eval.save` asks for, a sheet of some and a report to look at.

  Args:
    config: see configs/default.py.
    workdir: made if it is not there.
  Returns:
    As `Evaluator.__call__`.
  Raises:
    ValueError: weights or data that cannot be used.
  """
  started = time.monotonic()
  folder = weights_folder(config, workdir)
  variables, card = load_weights(folder)
  dataset = load_split(config, config.data.eval_split)
  processes.check_agreement({'the number of images': len(dataset), 'the step': card.get('step')})
  known, wanted = label_set_of(card).class_names, dataset.label_set.class_names
  if known != wanted:
    raise ValueError(
      f'the weights in {folder} know the classes {", ".join(known)}; the data set '
      f'{config.data.name} has {", ".join(wanted)}; choose the one that they were trained on'
    )
  model = model_from_card(config, card)
  check_fits(model, variables, folder)
  check_kinds(config.eval.save, edge_head=model.edge_head, labelled=True)
  evaluator = Evaluator(model, dataset, config)
  pictures = Path(workdir, 'evaluation')
  pictures.mkdir(parents=True, exist_ok=True)
  # Spread over the data set: neighbours are often alike.
  shown = np.linspace(0, len(dataset) - 1, config.eval.sheet_images).round().astype(int)
  gallery = Gallery(dataset.label_set, num_extremes=config.eval.report_images, shown=shown)
  rows = {}

  def draw(example, outputs):
    image, labels = example['image'], example['label']
    save_outputs(
      pictures, example['name'], image, outputs, dataset.label_set, config.eval.save, labels
    )
    if example['index'] in shown:
      rows[example['index']] = example['name'], sheet_row(image, labels, outputs, dataset.label_set)
    gallery.add(example, outputs)

  console = processes.console()
  introduce(
    console,
    data=f'{dataset.name} {dataset.split}: {len(dataset)} images',
    model=f'{card["model"]}: {count_parameters(variables["params"])}, from {folder}',
    device=parallel.describe_devices(),
  )
  share = len(range(jax.process_index(), len(dataset), jax.process_count()))
  with (
    Progress('evaluate', share, note='compiling the network', console=console) as progress,
    Watchdog(config.train.step_timeout) as watchdog,
  ):
    result = evaluator(
      parallel.replicate(variables), on_image=draw, on_batch=watchdog.beat, progress=progress
    )
  rows = {index: row for part in processes.gather(rows) for index, row in part.items()}
  samples = gallery.gathered()
  if not processes.is_first():
    return result
  if rows:
    names, colors = dataset.label_set.class_names, dataset.label_set.colors
    titles = SHEET_TITLES if model.edge_head else SHEET_TITLES[:-1]
    sheet = contact_sheet(
      [rows[i] for i in sorted(rows)], titles=titles, class_names=names, colors=colors
    )
    Image.fromarray(sheet).save(pictures / 'sheet.png')
  print_table(result, dataset.label_set.class_names)
  path = Path(workdir, 'evaluation.json')
  evaluation = as_json(result, dataset, folder)
  path.write_text(json.dumps(evaluation, indent=2) + '\n')
  report = pictures / 'report.html'
  is_reported = True
  try:
    write_evaluation_report(
      report,
      evaluation,
      dataset.label_set,
      samples,
      title=f'{card["model"]} on {dataset.name} {dataset.split}',
      num_extremes=config.eval.report_images,
      shown=shown,
      config=config,
      defaults=get_defaults(),
      started=started,
    )
  except OSError as error:  # The numbers are written.
    is_reported = False
    logging.warning('The report is not written: %s', error)
  print(f'weights   {folder}, on {result["images"]} images of {dataset.name} {dataset.split}')
  print(f'numbers   {path}')
  if is_reported:
    print(f'report    {report}')
  print(f'pictures  {pictures}')
  return result


def by_size(examples: Iterable[dict], batch_size: int) -> Iterator[list[dict]]:
  """Groups examples of equal image size into batches; the rest of each size comes at the end."""
  groups = collections.defaultdict(list)
  for example in examples:
    size = example['image'].shape
    groups[size].append(example)
    if len(groups[size]) == batch_size:
      yield groups.pop(size)
    elif sum(map(len, groups.values())) >= 4 * batch_size:
      # So many sizes that batches do not fill: memory is bounded all the same.
      yield groups.pop(max(groups, key=lambda size: len(groups[size])))
  yield from groups.values()


def _batch(group: list[dict], batch_size: int) -> dict[str, jax.Array]:
  """Fills up to the batch size with images that are not valid and count for nothing."""
  missing = batch_size - len(group)

  def stack(name):
    arrays = [example[name] for example in group]
    return np.stack(arrays + [np.zeros_like(arrays[0])] * missing)

  batch = {'image': stack('image'), 'label': stack('label').astype(np.int32)}
  return parallel.shard(batch | {'valid': np.arange(batch_size) < len(group)})


def as_json(result: dict[str, Any], dataset: Dataset, folder: Path) -> dict[str, Any]:
  """What `evaluation.json` holds of a result of an `Evaluator`, of the weights in `folder`."""
  per_class = {
    name: {
      key.removesuffix('_per_class'): _number(values[i])
      for key, values in result.items()
      if np.ndim(values) == 1
    }
    for i, name in enumerate(dataset.label_set.class_names)
  }
  scalars = {key: _number(value) for key, value in result.items() if np.ndim(value) == 0}
  return {
    'weights': str(folder),
    'dataset': dataset.name,
    'split': dataset.split,
    **scalars,
    'classes': per_class,
    'confusion': result['confusion'].tolist(),
  }


def _number(value):
  value = value.item() if hasattr(value, 'item') else value
  return None if isinstance(value, float) and not np.isfinite(value) else value
