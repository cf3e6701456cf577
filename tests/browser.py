"""A headless Chromium that speaks the DevTools protocol over two pipes: needs no package."""

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
  """A page of the browser.

  Attributes:
    problems: errors and warnings of the console since it was opened, and exceptions of scripts.
    requests: addresses it has asked for, but for those that hold the data themselves.
  """

  def __init__(self, to_browser: int, from_browser: int):
    self._to, self._from = to_browser, from_browser
    self._unread, self._number, self._session = b'', 0, {}
    self.problems, self.requests = [], []
    target = self.ask('Target.createTarget', url='about:blank')['targetId']
    session = self.ask('Target.attachToTarget', targetId=target, flatten=True)
    self._session = {'sessionId': session['sessionId']}
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.ask(f'{domain}.enable')

  def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    """Loads a file and waits until that is done."""
    size = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 600}
    self.ask('Emulation.setDeviceMetricsOverride', **size)
    scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
    self.ask('Emulation.setEmulatedMedia', features=[scheme])
    self.problems.clear()
    self.requests.clear()
    self.ask('Page.navigate', url=path.resolve().as_uri())
    deadline = time.monotonic() + 60
    while self.run('document.readyState') != 'complete':
      assert time.monotonic() < deadline, f'{path} is not loaded after 60 s'
      time.sleep(0.05)

  def run(self, script: str) -> Any:
    """The value of an expression of JavaScript, if JSON can hold it."""
    answer = self.ask('Runtime.evaluate', expression=script, returnByValue=True)
    assert 'exceptionDetails' not in answer, answer
    return answer['result'].get('value')

  def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
    """Sends a command and gives its result."""
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': parameters, **self._session}
    os.write(self._to, json.dumps(message).encode() + b'\0')
    while (answer := self._receive()).get('id') != self._number:
      self._take_down(answer['method'], answer['params'])
    assert 'error' not in answer, (method, answer)
    return answer['result']

  def _receive(self) -> dict[str, Any]:
    while b'\0' not in self._unread:
      assert select.select([self._from], [], [], 60)[0], 'no answer of Chromium within 60 s'
      data = os.read(self._from, 1 << 20)
      assert data, 'Chromium has ended'
      self._unread += data
    message, _, self._unread = self._unread.partition(b'\0')
    return json.loads(message)

  def _take_down(self, event: str, facts: dict[str, Any]) -> None:
    if event == 'Network.requestWillBeSent':
      url = facts['request']['url']
      if not url.startswith('data:'):
        self.requests.append(url)
    elif (
      event == 'Runtime.exceptionThrown'
      or (event == 'Runtime.consoleAPICalled' and facts['type'] in ('error', 'warning', 'assert'))
      or (event == 'Log.entryAdded' and facts['entry']['level'] in ('error', 'warning'))
    ):
      self.problems.append(facts)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Page]:
  """Starts Chromium with its files in an empty folder, and ends it."""
  their_input, our_output = os.pipe()
  our_input, their_output = os.pipe()
  # It reads from descriptor 3 and writes to 4, where a shell can put the pipes.
  wire = f'exec "$@" 3<&{their_input} 4>&{their_output}'
  process = subprocess.Popen(
    ['bash', '-c', wire, 'bash', CHROMIUM, *_FLAGS, f'--user-data-dir={profile}'],
    pass_fds=(their_input, their_output),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    env={**os.environ, 'HOME': str(profile)},
  )
  try:
    os.close(their_input)
    os.close(their_output)
    yield Page(our_output, our_input)
  finally:
    # Without its pipes it ends by itself.
    os.close(our_output)
    os.close(our_input)
    try:
      process.wait(10)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
