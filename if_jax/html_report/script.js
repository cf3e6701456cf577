// Without it, everything can be read; with it, charts tell their numbers, tables sort, pictures grow.
'use strict';
const tip = document.getElementById('tip');

function showTip(event, rows) {
  tip.replaceChildren(...rows);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + (event.clientX + width + 24 > innerWidth ? -width - 14 : 14);
  const top = Math.min(event.clientY + 14, innerHeight - height - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}

function node(tag, text = '') {
  return Object.assign(document.createElement(tag), { textContent: text });
}

function tipRow({ name, color }, value) {
  const swatch = Object.assign(node('i'), { className: 'swatch' });
  swatch.style.background = color;
  const row = node('div');
  row.append(swatch, node('span', name), node('b', value));
  return row;
}

// Charts: where the pointer is, the nearest step and what each curve has there.
for (const chart of document.querySelectorAll('svg.chart')) {
  const curves = JSON.parse(chart.dataset.curves);
  const places = [...new Set(curves.flatMap(({ points }) => points.map(([x]) => x)))];
  const rule = chart.querySelector('.rule');
  const nearest = (list, x) => list.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
  const leave = () => {
    tip.hidden = true;
    rule.style.visibility = '';
  };
  const move = event => {
    const box = chart.getBoundingClientRect();
    const scale = chart.viewBox.baseVal.width / box.width;
    const at = nearest(places, (event.clientX - box.left) * scale);
    rule.setAttribute('x1', at);
    rule.setAttribute('x2', at);
    rule.style.visibility = 'visible';
    const met = curves.flatMap(curve => {
      const point = curve.points.find(([x]) => x === at);
      return point ? [[curve, point]] : [];
    });
    const head = node('b', `${chart.dataset.x} ${met[0][1][2]}`);
    showTip(event, [head, ...met.map(([curve, point]) => tipRow(curve, point[3]))]);
  };
  chart.addEventListener('pointermove', move);
  chart.addEventListener('pointerdown', move);
  chart.addEventListener('pointerleave', leave);
  chart.addEventListener('pointercancel', leave);
}

// Cells of the confusion matrix.
for (const matrix of document.querySelectorAll('.matrix')) {
  const move = event => {
    const text = event.target.dataset.tip;
    if (text) showTip(event, [node('span', text)]);
    else tip.hidden = true;
  };
  matrix.addEventListener('pointermove', move);
  matrix.addEventListener('pointerdown', move);
  matrix.addEventListener('pointerleave', () => { tip.hidden = true; });
}

// Tables of classes: a title sorts, first with the best on top; what has no value stays below.
for (const table of document.querySelectorAll('table.sortable')) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    const button = node('button', title.textContent);
    title.replaceChildren(button);
    button.addEventListener('click', () => {
      const first = column ? 'descending' : 'ascending';
      const other = column ? 'ascending' : 'descending';
      const order = title.getAttribute('aria-sort') === first ? other : first;
      titles.forEach(one => one.removeAttribute('aria-sort'));
      title.setAttribute('aria-sort', order);
      const sign = order === 'ascending' ? 1 : -1;
      const value = row => row.cells[column].dataset.value;
      const compare = (a, b) =>
        (value(a) === '') - (value(b) === '') || sign * (value(a) - value(b));
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}

// Pictures: a click or Enter enlarges; the arrows and further clicks go on to the others of the image.
const dialog = document.querySelector('dialog');
let shown = [];
let place = 0;

function enlarge(step) {
  place = (place + step + shown.length) % shown.length;
  dialog.querySelector('img').src = shown[place].src;
  dialog.querySelector('img').alt = shown[place].alt;
  dialog.querySelector('span').textContent = shown[place].alt;
}

for (const row of document.querySelectorAll('.row')) {
  const pictures = [...row.querySelectorAll('img')];
  pictures.forEach((picture, i) => {
    const open = () => {
      [shown, place] = [pictures, i];
      enlarge(0);
      dialog.showModal();
    };
    picture.tabIndex = 0;
    picture.addEventListener('click', open);
    picture.addEventListener('keydown', event => {
      if (event.key === 'Enter') open();
    });
  });
}
dialog.addEventListener('click', event => {
  if (event.target === dialog) dialog.close();
  else enlarge(1);
});
dialog.addEventListener('keydown', event => {
  if (event.key === 'ArrowLeft') enlarge(-1);
  if (event.key === 'ArrowRight') enlarge(1);
});
document.documentElement.dataset.ready = 'true';
