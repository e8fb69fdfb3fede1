// The player: pictures, what was known at the moment, and the line of events.

const VIEWS = [['scene', 'scene', 'scene'], ['color', 'small', 'camera, colour'],
  ['depth', 'small', 'camera, depth ' + data.depth_caption]];

function view(kind, style, caption) {
  const pictures = data.pictures[kind];
  if (!pictures || !pictures.frames.length) return null;
  const image = element('img', { alt: caption });
  let shown = -1;
  listeners.push(() => {
    const index = Math.max(before(pictures.times, clock.time), 0);
    if (index !== shown) {
      image.src = 'data:image/jpeg;base64,' + pictures.frames[index];
      shown = index;
    }
  });
  return element('figure', { class: style }, image, element('figcaption', {}, caption));
}

function readout() {
  const box = element('div', { id: 'state' });
  const sources = data.readout.map(entry => ({ ...entry, x: numbers(entry.x), y: numbers(entry.y) }));
  listeners.push(() => {
    box.replaceChildren(...sources.map(entry => {
      const index = before(entry.x, clock.time);
      const value = index < 0 ? NaN : entry.y[index];
      const text = entry.words ? entry.words[value] || '–' : short(value);
      const made = element('div', {}, element('span', {}, entry.name),
        element('b', {}, text, element('small', {}, ' ' + entry.unit)));
      if (entry.words) made.dataset.word = text;
      return made;
    }));
  });
  return box;
}

function timeline() {
  const canvas = element('canvas', { id: 'timeline', title: 'picks, misses, interventions' });
  const paint = () => {
    const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    canvas.width = box.width * ratio;
    canvas.height = box.height * ratio;
    const pen = canvas.getContext('2d');
    pen.scale(ratio, ratio);
    const x = time => time / data.duration * box.width;
    pen.fillStyle = '#edf0f3';
    pen.fillRect(0, 11, box.width, 8);
    for (const bands of Object.values(data.bands)) {
      pen.fillStyle = bands.solid;
      for (const [from, to] of bands.spans) {
        pen.fillRect(x(from), 11, Math.max(x(to) - x(from), 1), 8);
      }
    }
    for (const event of data.events) {
      pen.fillStyle = event.color;
      pen.beginPath();
      pen.arc(x(event.time), 15, 5.5, 0, 7);
      pen.fill();
      pen.fillStyle = '#fff';
      pen.font = 'bold 9px system-ui, "DejaVu Sans", sans-serif';
      pen.textAlign = 'center';
      pen.textBaseline = 'middle';
      pen.fillText(event.sign, x(event.time), 15.5);
    }
    pen.fillStyle = ink.cursor;
    pen.fillRect(x(clock.time) - 1, 2, 2, 26);
  };
  const jump = event => setTime(event.offsetX / canvas.clientWidth * data.duration);
  canvas.addEventListener('pointerdown', jump);
  canvas.addEventListener('pointermove', event => event.buttons && jump(event));
  listeners.push(paint);
  return canvas;
}

function buildPlayer() {
  const section = document.getElementById('player');
  const [scene, color, depth] = VIEWS.map(entry => view(...entry));
  const card = element('div', { class: 'card' });
  section.append(card);
  const pictures = element('div', { class: 'player' });
  const views = element('div', { class: 'views' });
  for (const figure of [color, depth]) if (figure) views.append(figure);
  if (scene) pictures.append(scene); else pictures.classList.add('flat');
  if (views.children.length) pictures.append(views);
  if (!pictures.children.length) pictures.append(
    element('p', { class: 'note' }, 'No pictures were recorded.'));
  pictures.append(readout());
  card.append(pictures);
  const button = element('button', { type: 'button' }, 'Play');
  const slider = element('input', { type: 'range', min: 0, max: data.duration, step: 0.01,
    'aria-label': 'time' });
  const speed = element('select', { 'aria-label': 'speed' });
  for (const factor of [0.25, 0.5, 1, 2, 4]) {
    speed.append(element('option', factor === 1 ? { value: 1, selected: '' } : { value: factor },
      '×' + factor));
  }
  const output = element('output');
  let last = null;
  const frame = now => {
    if (!clock.playing) return;
    if (last !== null) {
      const next = clock.time + (now - last) / 1000 * clock.speed;
      if (next >= data.duration) play(false);
      setTime(next);
    }
    last = now;
    if (clock.playing) requestAnimationFrame(frame);
  };
  const play = on => {
    if (on && clock.time >= data.duration - 0.01) setTime(0);
    clock.playing = on;
    last = null;
    button.textContent = on ? 'Pause' : 'Play';
    if (on) requestAnimationFrame(frame);
  };
  button.addEventListener('click', () => play(!clock.playing));
  slider.addEventListener('input', () => { play(false); setTime(parseFloat(slider.value)); });
  speed.addEventListener('change', () => { clock.speed = parseFloat(speed.value); });
  document.addEventListener('keydown', event => {
    if (['INPUT', 'SELECT', 'BUTTON'].includes(event.target.tagName)) return;
    if (event.key === ' ') { event.preventDefault(); play(!clock.playing); }
    if (event.key === 'ArrowRight') setTime(clock.time + 0.1);
    if (event.key === 'ArrowLeft') setTime(clock.time - 0.1);
  });
  listeners.push(() => {
    slider.value = clock.time;
    output.textContent = clock.time.toFixed(2) + ' / ' + data.duration.toFixed(1) + ' s';
  });
  card.append(element('div', { class: 'controls' }, button, speed, slider, output),
    timeline());
}

buildPlayer();
