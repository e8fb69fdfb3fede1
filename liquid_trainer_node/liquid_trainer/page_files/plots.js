'use strict';
// One clock drives everything on the page: the cursor in every plot over time, and pictures.

const data = JSON.parse(document.getElementById('data').textContent);
const clock = { time: 0, playing: false, speed: 1, from: 0, to: data.duration };
const listeners = [];
const ink = { axis: '#c6cfd8', grid: '#edf0f3', text: '#6b7a88', cursor: '#14202b' };

function numbers(text) {
  // base64 of little-endian float32
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === 'class') made.className = value; else made.setAttribute(key, value);
  }
  for (const child of children) made.append(child);
  return made;
}

function before(times, time) {
  // index of the last entry not later than time, -1 if there is none
  let low = 0, high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= time) low = middle + 1; else high = middle;
  }
  return low - 1;
}

function short(value) {
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e5)) return value.toExponential(1);
  return String(parseFloat(value.toPrecision(size >= 100 ? 4 : 3)));
}

function ticks(low, high, count) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(factor => factor * power >= rough) * power;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) {
    found.push(Math.abs(value) < step * 1e-6 ? 0 : value);
  }
  return found;
}

function setTime(time) {
  clock.time = Math.min(Math.max(time, 0), data.duration);
  for (const listener of listeners) listener();
}

function setRange(from, to) {
  clock.from = Math.max(0, from);
  clock.to = Math.min(data.duration, to);
  for (const plot of plots) plot.paint();
}

// ---------------------------------------------------------------- plots

const plots = [];

class Plot {
  constructor(spec) {
    this.spec = spec;
    this.series = spec.series.map(series => ({
      ...series, x: numbers(series.x || ''), y: numbers(series.y || ''),
      high: series.high ? numbers(series.high) : null,
    }));
    this.logarithmic = spec.kind === 'share';
    this.canvas = element('canvas', { role: 'img', 'aria-label': spec.title });
    this.canvas.style.height = (spec.height || 150) + 'px';
    this.cursor = element('div', { class: 'cursor' });
    this.chosen = element('div', { class: 'chosen' });
    this.legend = element('div', { class: 'legend' });
    const unit = element('small', {}, spec.unit ? ' [' + spec.unit + ']' : '');
    this.box = element('div', { class: 'card plot' }, element('h3', {}, spec.title, unit),
      element('div', { class: 'stage' }, this.canvas, this.cursor, this.chosen), this.legend);
    this.margin = { left: spec.left || 46, right: 10, top: 6, bottom: 18 };
    this.listen();
  }

  get timed() { return ['time', 'stack', 'lanes'].includes(this.spec.kind); }

  range() {
    if (this.timed) return [clock.from, clock.to];
    return this.spec.range;
  }

  heights(from, to) {
    if (this.spec.limits) return this.spec.limits;
    let low = Infinity, high = -Infinity;
    for (const series of this.series) {
      for (let i = 0; i < series.x.length; i++) {
        if (series.x[i] < from || series.x[i] > to) continue;
        const upper = series.high ? series.high[i] : series.y[i];
        if (series.y[i] < low) low = series.y[i];
        if (upper > high) high = upper;
      }
    }
    for (const level of this.spec.levels || []) {
      if (level.keep) { low = Math.min(low, level.y); high = Math.max(high, level.y); }
    }
    if (this.spec.floor !== undefined) low = Math.min(low, this.spec.floor);
    if (!(high >= low)) return [0, 1];
    const room = (high - low) * 0.06 || Math.max(Math.abs(high) * 0.05, 0.01);
    return [this.spec.floor !== undefined ? low : low - room, high + room];
  }

  place() {
    const box = this.canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(box.width * ratio)) {
      this.canvas.width = Math.round(box.width * ratio);
      this.canvas.height = Math.round(box.height * ratio);
    }
    const { left, right, top, bottom } = this.margin;
    const [from, to] = this.range(), [low, high] = this.heights(from, to);
    const width = box.width - left - right, height = box.height - top - bottom;
    const scale = value => this.logarithmic
      ? Math.log(value / from) / Math.log(to / from) : (value - from) / (to - from);
    this.at = {
      ratio, from, to, low, high, width, height, left, top,
      x: value => left + scale(value) * width,
      y: value => top + (1 - (value - low) / (high - low)) * height,
      back: pixel => this.logarithmic ? from * (to / from) ** ((pixel - left) / width)
        : from + (pixel - left) / width * (to - from),
    };
  }

  paint() {
    this.place();
    const at = this.at, pen = this.canvas.getContext('2d');
    pen.setTransform(at.ratio, 0, 0, at.ratio, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    pen.font = '11px system-ui, "DejaVu Sans", sans-serif';
    this.paintGrid(pen, at);
    pen.save();
    pen.beginPath();
    pen.rect(at.left, at.top, at.width, at.height);
    pen.clip();
    for (const name of this.spec.bands || []) this.paintBands(pen, at, data.bands[name]);
    for (const level of this.spec.levels || []) {
      if (level.y < at.low || level.y > at.high) continue;
      this.paintLine(pen, at.left, at.y(level.y), at.left + at.width, at.y(level.y),
        level.color || '#c4322b', [5, 4]);
    }
    for (const mark of this.spec.marks || []) {
      this.paintLine(pen, at.x(mark.x), at.top, at.x(mark.x), at.top + at.height,
        mark.color || '#c4322b', [3, 3]);
    }
    let below = null;
    for (const [row, series] of this.series.entries()) {
      if (this.spec.kind === 'lanes') this.paintLane(pen, at, series, row);
      else if (this.spec.kind === 'bars') this.paintBars(pen, at, series);
      else if (this.spec.kind === 'stack') below = this.paintStack(pen, at, series, below);
      else if (series.high) this.paintSpread(pen, at, series);
      else this.paintSeries(pen, at, series);
    }
    pen.restore();
    if (this.timed) this.placeCursor(); else this.writeLegend(null);
  }

  paintGrid(pen, at) {
    pen.lineWidth = 1;
    pen.fillStyle = ink.text;
    pen.textAlign = 'right';
    pen.textBaseline = 'middle';
    if (this.spec.kind === 'lanes') {
      this.series.forEach((series, row) => pen.fillText(series.name, at.left - 6,
        at.top + (row + 0.5) * at.height / this.series.length));
    } else {
      for (const value of ticks(at.low, at.high, at.height / 34)) {
        this.paintLine(pen, at.left, at.y(value), at.left + at.width, at.y(value), ink.grid);
        pen.fillText(short(value), at.left - 6, at.y(value));
      }
    }
    pen.textAlign = 'center';
    pen.textBaseline = 'top';
    const marks = this.logarithmic ? this.decades(at) : ticks(at.from, at.to,
      at.width / (this.timed ? 90 : 55));
    for (const value of marks) {
      this.paintLine(pen, at.x(value), at.top, at.x(value), at.top + at.height, ink.grid);
      pen.fillText(short(value) + (this.spec.axis ?? ' s'), at.x(value), at.top + at.height + 4);
    }
    pen.strokeStyle = ink.axis;
    pen.strokeRect(at.left + 0.5, at.top + 0.5, at.width - 1, at.height - 1);
  }

  decades(at) {
    const found = [];
    for (let power = -9; power < 9; power++) {
      for (const factor of [1, 2, 5]) {
        const value = factor * 10 ** power;
        if (value >= at.from * 0.999 && value <= at.to * 1.001) found.push(value);
      }
    }
    return found;
  }

  paintLine(pen, x0, y0, x1, y1, color, dash) {
    pen.save();
    pen.strokeStyle = color;
    pen.setLineDash(dash || []);
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(Math.round(x0) + 0.5, Math.round(y0) + 0.5);
    pen.lineTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5);
    pen.stroke();
    pen.restore();
  }

  paintBands(pen, at, bands) {
    pen.fillStyle = bands.color;
    let painted = -Infinity;    // half-transparent: no column may be painted twice
    for (const [from, to] of bands.spans) {
      if (to < at.from || from > at.to) continue;
      const begin = Math.max(at.x(from), painted), end = Math.max(at.x(to), at.x(from) + 0.7);
      if (end <= begin) continue;
      pen.fillRect(begin, at.top, end - begin, at.height);
      painted = end;
    }
  }

  visible(series, at) {
    if (this.spec.kind === 'scatter') return [0, series.x.length];     // in no order
    return [Math.max(before(series.x, at.from), 0),
      Math.min(before(series.x, at.to) + 2, series.x.length)];
  }

  paintSeries(pen, at, series) {
    const [begin, end] = this.visible(series, at);
    pen.strokeStyle = series.color;
    pen.fillStyle = series.color;
    pen.lineWidth = series.width || 1.4;
    pen.setLineDash(series.dash || []);
    pen.lineJoin = 'round';
    if (series.dots) {
      for (let i = begin; i < end; i++) {
        const size = series.size || 2;
        pen.fillRect(at.x(series.x[i]) - size / 2, at.y(series.y[i]) - size / 2, size, size);
      }
    } else {
      pen.beginPath();
      let down = false;
      for (let i = begin; i < end; i++) {
        const value = series.y[i];
        if (!Number.isFinite(value)) { down = false; continue; }
        const x = at.x(series.x[i]), y = at.y(value);
        if (!down) pen.moveTo(x, y);
        else {
          if (series.step) pen.lineTo(x, at.y(series.y[i - 1]));
          pen.lineTo(x, y);
        }
        down = true;
      }
      pen.stroke();
    }
    pen.setLineDash([]);
  }

  paintSpread(pen, at, series) {
    const [begin, end] = this.visible(series, at);
    pen.fillStyle = series.color;
    let start = begin;
    const close = stop => {
      if (stop - start < 2) return;
      pen.beginPath();
      for (let i = start; i < stop; i++) pen.lineTo(at.x(series.x[i]), at.y(series.high[i]));
      for (let i = stop - 1; i >= start; i--) pen.lineTo(at.x(series.x[i]), at.y(series.y[i]));
      pen.fill();
    };
    for (let i = begin; i < end; i++) {
      if (!Number.isFinite(series.y[i])) { close(i); start = i + 1; }
    }
    close(end);
  }

  paintStack(pen, at, series, below) {
    const top = new Float32Array(series.y.length);
    for (let i = 0; i < top.length; i++) top[i] = series.y[i] + (below ? below[i] : 0);
    const [begin, end] = this.visible(series, at);
    pen.fillStyle = series.color;
    pen.beginPath();
    for (let i = begin; i < end; i++) pen.lineTo(at.x(series.x[i]), at.y(top[i]));
    for (let i = end - 1; i >= begin; i--) {
      pen.lineTo(at.x(series.x[i]), at.y(below ? below[i] : 0));
    }
    pen.fill();
    return top;
  }

  paintLane(pen, at, series, row) {
    // one row: when something was there
    const step = at.height / this.series.length, room = Math.min(step * 0.18, 4);
    pen.fillStyle = series.color;
    for (const [from, to] of series.spans) {
      if (to < at.from || from > at.to) continue;
      pen.fillRect(at.x(from), at.top + row * step + room, Math.max(at.x(to) - at.x(from), 1),
        step - 2 * room);
    }
  }

  paintBars(pen, at, series) {
    // a bar from each x to the next; the last x only ends the bar before it
    pen.fillStyle = series.color;
    for (let i = 0; i + 1 < series.x.length; i++) {
      const left = at.x(series.x[i]), right = at.x(series.x[i + 1]);
      const top = at.y(series.y[i]);
      pen.fillRect(left, top, Math.max(right - left - 0.5, 0.5), at.y(0) - top);
    }
  }

  placeCursor() {
    const at = this.at;
    if (!at) return;
    const shown = clock.time >= at.from && clock.time <= at.to;
    this.cursor.style.display = shown ? 'block' : 'none';
    if (shown) {
      this.cursor.style.height = at.height + 'px';
      this.cursor.style.transform = `translate(${at.x(clock.time)}px, ${at.top}px)`;
    }
    const drag = this.drag && Math.abs(this.drag.x1 - this.drag.x0) > 4 ? this.drag : null;
    this.chosen.style.display = drag ? 'block' : 'none';
    if (drag) {
      this.chosen.style.left = Math.min(drag.x0, drag.x1) + 'px';
      this.chosen.style.width = Math.abs(drag.x1 - drag.x0) + 'px';
      this.chosen.style.top = at.top + 'px';
      this.chosen.style.height = at.height + 'px';
    }
    this.writeLegend(clock.time);
  }

  writeLegend(time) {
    const parts = [];
    for (const series of this.spec.kind === 'lanes' ? [] : this.series) {
      if (!series.name) continue;
      let text = series.name;
      if (time !== null && !series.high && series.x.length) {
        const index = before(series.x, time);
        const value = index >= 0 ? series.y[index] : NaN;
        if (time - series.x[Math.max(index, 0)] < 1 || series.step) text += ' ' + short(value);
      }
      const swatch = element('i', series.high ? { class: 'band' } : {});
      swatch.style.background = series.color;
      parts.push(element('span', {}, swatch, text));
    }
    for (const name of this.spec.bands || []) {
      if (!data.bands[name].spans.length) continue;
      const swatch = element('i', { class: 'band' });
      swatch.style.background = data.bands[name].color;
      parts.push(element('span', {}, swatch, name));
    }
    const limit = (this.spec.levels || []).find(level => level.name);
    if (limit) {
      const swatch = element('i', {});
      swatch.style.background = limit.color || '#c4322b';
      parts.push(element('span', {}, swatch, limit.name));
    }
    this.legend.replaceChildren(...parts);
  }

  listen() {
    if (!this.timed) return;
    const canvas = this.canvas;
    canvas.addEventListener('pointerdown', event => {
      canvas.setPointerCapture(event.pointerId);
      this.drag = { x0: event.offsetX, x1: event.offsetX };
    });
    canvas.addEventListener('pointermove', event => {
      if (this.drag) { this.drag.x1 = event.offsetX; this.placeCursor(); }
      else if (!clock.playing) setTime(this.at.back(event.offsetX));
    });
    canvas.addEventListener('pointerup', event => {
      const drag = this.drag;
      this.drag = null;
      this.placeCursor();
      if (!drag) return;
      if (Math.abs(drag.x1 - drag.x0) > 8) {
        const ends = [this.at.back(drag.x0), this.at.back(drag.x1)].sort((a, b) => a - b);
        setRange(ends[0], ends[1]);
      } else {
        setTime(this.at.back(event.offsetX));
      }
    });
    canvas.addEventListener('dblclick', () => setRange(0, data.duration));
    listeners.push(() => this.onScreen && this.placeCursor());
  }
}

function buildPlots() {
  const section = document.getElementById('plots');
  const watch = new IntersectionObserver(entries => {
    for (const entry of entries) {
      entry.target.plot.onScreen = entry.isIntersecting;
      if (entry.isIntersecting) entry.target.plot.paint();
    }
  }, { rootMargin: '400px' });
  for (const group of data.groups) {
    section.append(element('h2', {}, group.title),
      element('p', { class: 'note' }, group.note || ''));
    const grid = element('div', { class: 'grid ' + group.columns });
    section.append(grid);
    for (const spec of group.plots) {
      const plot = new Plot(spec);
      plots.push(plot);
      grid.append(plot.box);
      plot.canvas.plot = plot;
      watch.observe(plot.canvas);
    }
  }
  for (const plot of plots) plot.paint();
  window.addEventListener('resize', () => plots.forEach(plot => plot.paint()));
}

buildPlots();
