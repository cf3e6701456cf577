"""The frame of every report: its header, what ran where, and the settings."""

import datetime
import importlib.metadata
import json
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import if_jax
from if_jax import parallel
from if_jax.html_report.elements import Child, element, section
from if_jax.html_report.tables import percent

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')


def as_percent(score: float | None) -> list:
  """A score in [0, 1] as a figure of `page_header`."""
  return [percent(score), element('small', ' %')]


def page_header(kind: str, title: str, subtitle: str, figures: Mapping[str, tuple]) -> Element:
  """The head of a report, with what to see first.

  Args:
    kind: of the report.
    title: of what.
    subtitle: a line beneath it.
    figures: numbers by their names; with each, a note or None.
  """
  numbers = [
    element('div', element('dt', name), element('dd', number), note and element('small', note))
    for name, (number, note) in figures.items()
  ]
  return element(
    'header',
    element('p', 'if_jax · ', kind, class_='kind'),
    element('h1', title),
    element('p', subtitle, class_='faint'),
    element('dl', numbers, class_='figures'),
  )


def run_section(started: float) -> Element:
  """Tells how, where and when this process runs, which began at `started` of `time.monotonic`."""
  kinds = sorted({device.device_kind for device in jax.devices()})
  count, processes = parallel.num_devices(), jax.process_count()
  devices = f'{count} x {", ".join(kinds)} ({jax.default_backend()})'
  if processes > 1:
    devices += f', {processes} processes'
  versions = {'if_jax': if_jax.__version__, 'Python': platform.python_version()}
  versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
  now = datetime.datetime.now().astimezone()
  since = datetime.timedelta(seconds=round(time.monotonic() - started))
  facts: dict[str, Child] = {
    'Command': element('code', shlex.join(sys.orig_argv)),
    'Devices': devices,
    'Versions': [
      element('span', f'{name} ', element('b', version), class_='version')
      for name, version in versions.items()
    ],
    'System': f'{platform.system()} {platform.machine()}, host {platform.node()}',
    'Written': now.strftime('%Y-%m-%d %H:%M:%S %Z'),
    'Since the start of the command': str(since),
  }
  rows = [element('div', element('dt', name), element('dd', x)) for name, x in facts.items()]
  return section('Run', element('dl', rows, class_='card facts'))


def as_dict(config: ConfigDict) -> dict[str, Any]:
  """What a configuration looks like as JSON."""
  return json.loads(config.to_json_best_effort())


def configuration_section(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Element:
  """Lists those settings of a run that differ from the default, and folded up all of them.

  Args:
    config: of the run, as JSON.
    defaults: the configuration that comes with the package, as JSON.
  """
  values, usual = (flatten_dict(dict(x), sep='.') for x in (config, defaults))
  # A key that the default does not have differs from it.
  changed = [key for key, value in values.items() if usual.get(key, ...) != value]

  def table(keys):
    names = [element('th', name, scope='col') for name in ('setting', 'value', 'default')]
    rows = [_setting(key, values[key], usual.get(key), key in changed) for key in keys]
    head = element('thead', element('tr', names))
    return element('div', element('table', head, element('tbody', rows)), class_='scroll settings')

  return section(
    'Configuration',
    table(changed) if changed else None,
    element('details', element('summary', f'All {len(values)} settings'), table(values)),
    note=f'{len(changed)} of {len(values)} settings differ from the default.',
  )


def _setting(key: str, value: Any, usual: Any, changed: bool) -> Element:
  folder, dot, name = key.rpartition('.')
  code = [element('code', json.dumps(x, ensure_ascii=False)) for x in (value, usual)]
  return element(
    'tr',
    element('th', element('span', folder + dot, class_='faint'), name, scope='row'),
    element('td', code[0]),
    element('td', code[1] if changed else None, class_='faint'),
    class_='changed' if changed else None,
  )
