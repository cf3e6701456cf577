"""HTML as a tree: what people and files say stands in it as text, and never becomes markup."""

import base64
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

Child = Element | str | int | None | Iterable['Child']

_STYLE, _SCRIPT = (
  Path(__file__).with_name(name).read_text(encoding='utf-8') for name in ('style.css', 'script.js')
)
# Nothing is loaded from anywhere, and no script runs but ours, whatever else should go wrong.
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = (
  f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'"
)


def element(tag: str, *children: Child, **attributes: str | float | None) -> Element:
  """Makes an element.

  Args:
    tag: its name.
    *children: elements, text, or several of them in an iterable; None stands for nothing.
    **attributes: of HTML or SVG, with _ for - and a further _ behind a word of Python (`class_`);
      one that is None is left out.

  Example:
    >>> to_html(element('p', 'a < b, ', element('b', 'c'), class_='note', data_n=2))
    '<p class="note" data-n="2">a &lt; b, <b>c</b></p>'
  """
  named = {
    name.rstrip('_').replace('_', '-'): str(value)
    for name, value in attributes.items()
    if value is not None
  }
  node = Element(tag, named)
  _append(node, children)
  return node


def _append(node: Element, child: Child) -> None:
  if child is None:
    return
  if isinstance(child, Element):
    node.append(child)
  elif isinstance(child, str | int):
    if len(node):
      node[-1].tail = (node[-1].tail or '') + str(child)
    else:
      node.text = (node.text or '') + str(child)
  else:
    for part in child:
      _append(node, part)


def to_html(node: Element) -> str:
  """Writes an element as HTML."""
  return ElementTree.tostring(node, encoding='unicode', method='html')


def section(title: str, *children: Child, note: str | None = None) -> Element:
  """A part of a page, which its navigation names.

  Args:
    title: of the part, also where links lead to.
    *children: what is in it.
    note: a sentence or two on how to read it.
  """
  head = element('h2', title)
  note = note and element('p', note, class_='note')
  return element('section', head, note, *children, id=title.lower().replace(' ', '-'))


def write_page(path: Path, title: str, header: Element, sections: Iterable[Element | None]) -> None:
  """Writes a page with everything it needs; the file is the old one or the new one, never half."""
  parts = [part for part in sections if part is not None]
  links = [element('a', part[0].text, href=f'#{part.get("id")}') for part in parts]
  head = element(
    'head',
    element('meta', charset='utf-8'),
    element('meta', http_equiv='Content-Security-Policy', content=_POLICY),
    element('meta', name='viewport', content='width=device-width, initial-scale=1'),
    element('meta', name='color-scheme', content='light dark'),
    element('title', title),
    # A browser asks for a picture of the page otherwise.
    element('link', rel='icon', href='data:,'),
    element('style', _STYLE),
  )
  body = element(
    'body',
    element('main', header, element('nav', links), sections),
    element('div', id='tip', hidden=''),
    element(
      'dialog',
      element('img', alt=''),
      element('p', element('span'), ' ', element('small', '← → the others · Esc closes')),
    ),
    element('script', _SCRIPT),
  )
  text = '<!doctype html>\n' + to_html(element('html', head, body, lang='en')) + '\n'
  part = path.with_name(f'.{path.name}.part')
  try:
    # The name of a file may hold bytes that are no text.
    part.write_text(text, encoding='utf-8', errors='backslashreplace')
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)
