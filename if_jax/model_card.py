"""The README.md of a weight folder, as people and the Hugging Face hub read it."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from if_jax.ops.normalize import MEAN, STD

_USE = """\
```python
from if_jax.models import from_pretrained
from if_jax.ops.normalize import normalize

model, variables, card = from_pretrained('FOLDER')  # which holds this file
outputs = model.apply(variables, normalize(image), train=False)  # image: uint8 [B, H, W, 3], RGB
labels = outputs['logits'].argmax(-1)  # [B, H, W]
```

Or from the command line: `if-jax --mode=predict --config.init_from=FOLDER --input=IMAGE`.
"""


def model_card(card: Mapping[str, Any], num_parameters: int) -> str:
  """Says what weights are, in Markdown behind a header of YAML.

  Args:
    card: of `make_card`. 'license', 'miou' (a share), 'step', 'init_from' and 'notice' (sentences)
      are said if it has them.
    num_parameters: of the network.
  Returns:
    The text. The header has the keys that the hub knows.
  """
  name, classes = card['model'], _class_names(card)
  header: dict[str, Any] = {'library_name': 'if_jax', 'tags': ['jax', 'flax', name]}
  if 'license' in card:
    header['license'] = card['license']
  if classes:
    header |= {'pipeline_tag': 'image-segmentation', 'datasets': [card['label_set']['name']]}
  if classes and 'miou' in card:
    header |= {'metrics': ['mean_iou'], 'model-index': [_result(card)]}
  # JSON is YAML, too.
  lines = [f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in header.items()]
  parts = ['\n'.join(['---', *lines, '---']), f'# {name}']
  parts.append(
    'Weights of if_jax, boundary-aware semantic segmentation in JAX (after '
    '[InverseForm](https://arxiv.org/abs/2104.02745)): '
    f'{card.get("part", "network")} `{name}`, {num_parameters:,} parameters.'
  )
  if classes:
    parts.append(_USE.rstrip())
    facts = {
      'classes': f'{len(classes)} of {card["label_set"]["name"]}: {", ".join(classes)}',
      'images': f'RGB in [0, 1], mean {_numbers(MEAN)}, standard deviation {_numbers(STD)}',
    }
    if 'miou' in card:
      facts['mean IoU'] = f'{card["miou"]:.1%} in the evaluations of the training'
    if 'step' in card:
      facts['trained for'] = f'{card["step"]} steps'
    if 'init_from' in card:
      facts['started from'] = f'{card["init_from"]}, whose terms may bind these weights, too'
    parts.append('\n'.join(f'- {key}: {value}' for key, value in facts.items()))
  if 'notice' in card:
    parts.append(card['notice'])
  return '\n\n'.join(parts) + '\n'


def _class_names(card: Mapping[str, Any]) -> list[str]:
  return [entry['name'] for entry in card.get('label_set', {}).get('classes', ())]


def _result(card: Mapping[str, Any]) -> dict[str, Any]:
  dataset = card['label_set']['name']
  return {
    'name': card['model'],
    'results': [
      {
        'task': {'type': 'image-segmentation'},
        'dataset': {'name': dataset, 'type': dataset},
        'metrics': [{'type': 'mean_iou', 'value': card['miou']}],
      }
    ],
  }


def _numbers(values: Iterable[float]) -> str:
  return ', '.join(f'{x:.3f}' for x in values)
