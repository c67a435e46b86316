"use strict";
// Curves of the report: scales, ticks, smoothing, seeds taken together, drawing and reading values off.
// Everything of a run comes from the JSON block and is put in place as text or as an attribute of a number.

const DATA = JSON.parse(document.getElementById("data").textContent);
const WIDTH = 360, HEIGHT = 196, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 28;
const SMOOTH_FROM = 30; // shorter curves are drawn as they are
const SVG = "http://www.w3.org/2000/svg";
const view = { shown: new Set(DATA.runs.map((_, i) => i)), smooth: 5, log: false, seeds: "each" };

const color = run => `var(--s${run % 10})`;

function make(name, attributes = {}, parent = null, text = null) {
  const element = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function format(value) { // four digits that matter
  if (value === 0) return "0";
  if (Math.abs(value) >= 100000 || Math.abs(value) < 0.001) return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

function ticks(low, high, { count = 4, inside = false } = {}) { // round numbers that span [low, high], or lie inside it
  if (low === 0 && high === 0) high = 1; // nothing happened: no half of the chart for negative numbers
  if (high - low <= 1e-12 * Math.max(1, Math.abs(low), Math.abs(high))) { // rounding noise is no curve
    const pad = Math.abs(low) * 0.1 || 1;
    low -= pad; high += pad;
  }
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const first = inside ? Math.ceil(low / step - 1e-9) : Math.floor(low / step + 1e-9);
  const last = inside ? Math.floor(high / step + 1e-9) : Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(low, high) { // powers of ten; 2 and 5 times them where there are few
  const out = [], from = Math.floor(Math.log10(low) + 1e-9), to = Math.ceil(Math.log10(high) - 1e-9);
  const parts = to - from <= 2 ? [1, 2, 5] : [1], skip = Math.max(1, Math.ceil((to - from) / 6));
  for (let power = from; power <= to; power += skip) for (const part of parts) out.push(Number((part * 10 ** power).toPrecision(3)));
  const above = out.findIndex(t => t >= high * 0.999), below = out.findLastIndex(t => t <= low * 1.001);
  return out.slice(Math.max(0, below), above < 0 ? out.length : above + 1);
}

function smoothed(values, percent) { // running mean over this share of the curve to each side; ends use what there is
  const reach = Math.round(values.length * percent / 100);
  if (!reach) return values.slice();
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, i) => {
    const from = Math.max(0, i - reach), to = Math.min(values.length, i + reach + 1);
    return (sums[to] - sums[from]) / (to - from);
  });
}

function together(lines, kind) { // runs of one group: mean with a band, over the steps that any of them has
  const at = new Map();
  for (const line of lines) line.xs.forEach((x, i) => { if (!at.has(x)) at.set(x, []); at.get(x).push(line.ys[i]); });
  const xs = [...at.keys()].sort((a, b) => a - b), low = [], high = [];
  const ys = xs.map(x => {
    const values = at.get(x), mean = values.reduce((a, b) => a + b) / values.length;
    const squares = values.reduce((sum, v) => sum + (v - mean) ** 2, 0);
    const deviation = values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : 0;
    low.push(kind === "range" ? Math.min(...values) : mean - deviation);
    high.push(kind === "range" ? Math.max(...values) : mean + deviation);
    return mean;
  });
  return { xs, ys, low, high };
}

function linesOf(chart) { // what to draw now: {run, name, phase, color, xs, ys, low?, high?}
  const own = run => chart.lines[run].map(([phase, steps, values]) => (
    { run, phase, name: DATA.runs[run].label, color: color(run), xs: DATA.steps[run][steps], ys: values }));
  const shown = Object.keys(chart.lines).map(Number).filter(run => view.shown.has(run));
  if (view.seeds === "each") return shown.flatMap(own);
  return DATA.groups.flatMap(group => {
    const members = group.runs.filter(run => shown.includes(run));
    if (members.length < 2) return members.flatMap(own);
    const name = `${group.label} (n ${members.length})`, lines = members.flatMap(own);
    return [...new Set(lines.map(line => line.phase))].map(phase => (
      { run: members[0], phase, name, color: color(members[0]), ...together(lines.filter(line => line.phase === phase), view.seeds) }));
  });
}

const DASHES = ["none", "6 4", "2 3"]; // of the phases, in their order
const dashOf = phase => DASHES[Math.max(0, DATA.phases.indexOf(phase)) % DASHES.length];

function phaseNote(lines) { // which phase is which, where a chart has several
  const phases = DATA.phases.filter(phase => lines.some(line => line.phase === phase));
  return phases.length < 2 ? "" : phases.map(phase => `${["solid", "dashed", "dotted"][DATA.phases.indexOf(phase) % DASHES.length]}: ${phase}`).join(", ");
}

function draw(card, chart) {
  const svg = card.querySelector("svg"), last = card.querySelector(".last");
  svg.replaceChildren();
  let lines = linesOf(chart);
  const positive = lines.every(line => line.ys.every(y => y > 0)) && lines.length > 0;
  const log = view.log && positive;
  lines = lines.map(line => {
    const long = line.ys.length >= SMOOTH_FROM && view.smooth > 0 && !chart.name.startsWith("eval/");
    const soft = values => values && (long ? smoothed(values, view.smooth) : values);
    return { ...line, long, soft: soft(line.ys), low: soft(line.low), high: soft(line.high) };
  });
  card.lines = lines;
  card.classList.toggle("crowded", lines.length > 4);
  const notes = [chart.note, phaseNote(lines)].filter(note => note).join("; ");
  card.querySelector("p").textContent = notes + (view.log && !log && lines.length ? " (linear: not all values are above 0)" : "");
  last.textContent = lines.length === 1 ? format(lines[0].ys[lines[0].ys.length - 1]) : "";
  if (!lines.length) {
    make("svg:text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, svg, "not measured in the runs shown");
    return;
  }
  const xs = lines.flatMap(line => line.xs);
  const ys = lines.flatMap(line => [...line.ys, ...(line.low || []), ...(line.high || [])]).filter(y => !log || y > 0);
  const least = (values, from) => values.reduce((a, b) => Math.min(a, b), from), most = (values, from) => values.reduce((a, b) => Math.max(a, b), from);
  const xLow = least(xs, xs[0]), xHigh = Math.max(most(xs, xs[0]), xLow + 1);
  const yTicks = log ? logTicks(least(ys, ys[0]), most(ys, ys[0])) : ticks(least(ys, ys[0]), most(ys, ys[0]));
  const scale = y => log ? Math.log10(Math.max(y, 1e-300)) : y;
  const yLow = scale(yTicks[0]), yHigh = scale(yTicks[yTicks.length - 1]), span = yHigh - yLow || 1;
  const across = x => LEFT + (WIDTH - LEFT - RIGHT) * (x - xLow) / (xHigh - xLow);
  const down = y => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(1, Math.max(0, (scale(y) - yLow) / span)));
  const spot = (x, y) => `${across(x).toFixed(1)},${down(y).toFixed(1)}`;
  card.across = across;
  for (const y of yTicks) {
    make("svg:line", { class: "gridline", x1: LEFT, x2: WIDTH - RIGHT, y1: down(y), y2: down(y) }, svg);
    make("svg:text", { x: LEFT - 6, y: down(y) + 3.5, "text-anchor": "end" }, svg, format(y));
  }
  for (const x of ticks(xLow, xHigh, { inside: true })) if (x === Math.round(x))
    make("svg:text", { x: Math.min(across(x), WIDTH - 3 * String(x).length), y: HEIGHT - 6, "text-anchor": "middle" }, svg, String(x));
  make("svg:line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM }, svg);
  for (const line of lines) {
    const points = values => line.xs.map((x, i) => spot(x, values[i]));
    if (line.low) make("svg:polygon", { class: "band", fill: line.color, points: [...points(line.high), ...points(line.low).reverse()].join(" ") }, svg);
    if (line.long && !line.low) make("svg:polyline", { class: "raw", stroke: line.color, points: points(line.ys).join(" ") }, svg);
    make("svg:polyline", { class: "smooth", stroke: line.color, points: points(line.soft).join(" "), "stroke-dasharray": dashOf(line.phase), "data-run": line.run }, svg);
    if (line.xs.length <= 12) line.xs.forEach((x, i) => make("svg:circle", { cx: across(x), cy: down(line.soft[i]), r: 3, fill: line.color }, svg));
  }
  for (const sign of DATA.signs) if (sign.metric === chart.name && view.shown.has(sign.run)) {
    const x = across(sign.step), y = HEIGHT - BOTTOM;
    const mark = make("svg:path", { class: "sign", d: `M${x - 5} ${y + 9}h10l-5 -9z` }, svg);
    make("svg:title", {}, mark, `step ${sign.step}${DATA.runs.length > 1 ? ", " + DATA.runs[sign.run].label : ""}: ${sign.what}`);
  }
}

function read(card, chart, event) { // the values nearest to the pointer
  const svg = card.querySelector("svg"), tip = card.querySelector(".tip"), cursor = svg.querySelector(".cursor");
  if (!card.lines || !card.lines.length) return;
  const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * WIDTH / box.width;
  let nearest = null;
  const found = card.lines.map(line => {
    let best = 0;
    line.xs.forEach((step, i) => { if (Math.abs(card.across(step) - x) < Math.abs(card.across(line.xs[best]) - x)) best = i; });
    if (nearest === null || Math.abs(card.across(line.xs[best]) - x) < Math.abs(card.across(nearest) - x)) nearest = line.xs[best];
    return { line, best };
  });
  cursor.setAttribute("x1", card.across(nearest));
  cursor.setAttribute("x2", card.across(nearest));
  cursor.style.visibility = "visible";
  tip.replaceChildren();
  make("div", { class: "soft" }, tip, `step ${Math.round(nearest)}`);
  for (const { line, best } of found) {
    const row = make("div", {}, tip), band = line.low ? ` (${format(line.low[best])} to ${format(line.high[best])})` : "";
    make("span", { class: "key", style: `color: ${line.color}` }, row);
    row.append(`${format(line.ys[best])}${band}${line.phase ? "  " + line.phase : ""}${DATA.runs.length > 1 ? "  " + line.name : ""}`);
    for (const sign of DATA.signs) if (sign.metric === chart.name && sign.run === line.run && Math.abs(card.across(sign.step) - card.across(nearest)) < 4)
      make("div", { class: "soft" }, tip, `▲ from step ${sign.step}: ${sign.what}`);
  }
  tip.hidden = false;
  const card_box = card.getBoundingClientRect(), right = event.clientX - card_box.left > card_box.width / 2;
  tip.style.left = right ? "auto" : `${event.clientX - card_box.left + 14}px`;
  tip.style.right = right ? `${card_box.right - event.clientX + 14}px` : "auto";
  tip.style.top = `${svg.getBoundingClientRect().top - card_box.top + 6}px`;
}

function addChart(chart, parent) {
  const card = make("section", { class: "card chart", "data-name": chart.name }, parent);
  const header = make("header", {}, card);
  make("h3", {}, header, chart.title);
  make("span", { class: "last" }, header);
  make("p", {}, card, chart.note);
  const svg = make("svg:svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${chart.title} over steps` }, card);
  const tip = make("div", { class: "tip" }, card);
  tip.hidden = true;
  svg.addEventListener("pointermove", event => read(card, chart, event));
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    const cursor = svg.querySelector(".cursor");
    if (cursor) cursor.style.visibility = "hidden";
  });
  draw(card, chart);
  return { card, chart };
}
