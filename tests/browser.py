"""A headless Chromium, spoken to in the DevTools protocol over two pipes: needs no package."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
_FLAGS = (
  '--headless',
  '--no-sandbox',  # It does not start as root otherwise.
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--remote-debugging-pipe',
)


class Page:
  """A page of the browser, with what it has complained of and asked for.

  Attributes:
    problems: errors and warnings of the console, and exceptions of scripts.
    requests: addresses that it asked for, but for those that hold their data themselves.
  """

  def __init__(self, to_browser: int, from_browser: int):
    self._to, self._from = to_browser, from_browser
    self._data, self._number, self._session = b'', 0, None
    self.problems, self.requests = [], []

  def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    """Loads a file and waits until that is done."""
    if self._session is None:
      target = self.ask('Target.createTarget', url='about:blank')['targetId']
      answer = self.ask('Target.attachToTarget', targetId=target, flatten=True)
      self._session = answer['sessionId']
      for domain in ('Page', 'Runtime', 'Log', 'Network'):
        self.ask(f'{domain}.enable')
    self.ask(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
    self.ask('Emulation.setEmulatedMedia', features=[scheme])
    self.problems.clear()
    self.requests.clear()
    self.ask('Page.navigate', url=path.resolve().as_uri())
    deadline = time.monotonic() + 30
    while self.run('document.readyState') != 'complete':
      assert time.monotonic() < deadline, 'the page is not loaded after 30 s'
      time.sleep(0.05)

  def run(self, script: str) -> Any:
    """The value of an expression of JavaScript, as JSON can hold it."""
    answer = self.ask('Runtime.evaluate', expression=script, returnByValue=True)
    assert 'exceptionDetails' not in answer, answer
    return answer['result'].get('value')

  def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
    """Sends a command and gives its result."""
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': parameters}
    if self._session is not None:
      message['sessionId'] = self._session
    os.write(self._to, json.dumps(message).encode() + b'\0')
    while True:
      answer = self._receive()
      if answer.get('id') == self._number:
        assert 'error' not in answer, (method, answer)
        return answer['result']
      self._take_down(answer)

  def _receive(self) -> dict[str, Any]:
    while b'\0' not in self._data:
      assert select.select([self._from], [], [], 60)[0], 'no answer from Chromium within 60 s'
      data = os.read(self._from, 1 << 20)
      assert data, 'Chromium has ended'
      self._data += data
    message, _, self._data = self._data.partition(b'\0')
    return json.loads(message)

  def _take_down(self, event: dict[str, Any]) -> None:
    method, facts = event.get('method'), event.get('params', {})
    if method == 'Runtime.exceptionThrown':
      self.problems.append(facts['exceptionDetails'])
    elif method == 'Runtime.consoleAPICalled' and facts['type'] in ('error', 'warning', 'assert'):
      self.problems.append(facts['args'])
    elif method == 'Log.entryAdded' and facts['entry']['level'] in ('error', 'warning'):
      self.problems.append(facts['entry'])
    elif method == 'Network.requestWillBeSent':
      url = facts['request']['url']
      if not url.startswith('data:'):
        self.requests.append(url)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Page]:
  """Starts Chromium with an empty profile, in an empty folder, and ends it."""
  (to_browser, ours_to), (ours_from, from_browser) = _swap(os.pipe()), os.pipe()
  # Chromium reads from descriptor 3 and writes to 4, which a shell can arrange.
  command = [CHROMIUM, *_FLAGS, f'--user-data-dir={profile}']
  script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
  process = subprocess.Popen(
    ['bash', '-c', script, 'chromium', *command],
    pass_fds=(to_browser, from_browser),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    env={**os.environ, 'HOME': str(profile)},
  )
  os.close(to_browser)
  os.close(from_browser)
  try:
    yield Page(ours_to, ours_from)
  finally:
    os.close(ours_to)
    os.close(ours_from)
    try:
      process.wait(10)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def _swap(pair):
  return pair
