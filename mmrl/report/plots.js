"use strict";
// Charts of few points, before and after: what a model reaches at several settings, or over its own decoding steps.
// Drawn as wide as their card is, so that letters keep their size; labels that would cover others are left out.
//
// A plot: {id, height, x: name, y: name, lines: () => [...], ticksX?: [numbers], log?: bool, labels?: bool}
// A line: {run, name, side, color, points: [{x, y, label, tell: [texts], low?, high?}]}

const PLOT = { left: 50, right: 26, bottom: 44, reach: 60 }, TIP = 90; // of the tip's height, about
const plots = [];
const topOf = plot => plot.y ? 30 : 12; // room for the name of the axis

function sided(own, sides, points) { // lines of the runs shown, [{run, ...}]; runs that begin alike share their start
  const shown = own.filter(one => view.shown.has(one.run)), many = DATA.runs.length > 1;
  return sides.flatMap(side => {
    const lines = shown.map(one => ({ run: one.run, name: many ? DATA.runs[one.run].label : "", side, color: color(one.run), points: points(one, side) })).filter(line => line.points.length);
    const begin = side.startsWith("before") || side === "base";
    const shared = begin && lines.length > 1 && new Set(lines.map(line => JSON.stringify(line.points))).size === 1;
    return shared ? [{ ...lines[0], name: "all runs", color: "var(--soft)" }] : lines;
  });
}

function labelled(lines) { // which points get their label written: [[line, number]], the telling ones first
  const ends = [], between = [];
  for (const line of [...lines].reverse()) line.points.forEach((_, i) => (i === 0 || i === line.points.length - 1 ? ends : between).push([line, i]));
  return lines.length > 4 ? ends.filter(([line]) => line.side === "after") : [...ends, ...between];
}

function writeLabels(svg, lines, width, height) { // above their points where that is free, else below or beside them
  const spots = lines.flatMap(line => line.spots), taken = [];
  for (const [line, i] of labelled(lines)) {
    const [x, y] = line.spots[i], text = line.points[i].label, half = 3 * text.length + 1;
    const free = [[0, -9], [0, 17], [half + 8, 4], [-half - 8, 4]].map(([dx, dy]) => [x + dx, y + dy]).find(([cx, cy]) => {
      if (cx - half < PLOT.left || cx + half > width || cy < 12 || cy > height - PLOT.bottom) return false;
      if (spots.some(([px, py]) => Math.abs(px - cx) < half + 4 && Math.abs(py - cy + 4) < 9)) return false;
      return taken.every(([tx, ty, th]) => Math.abs(tx - cx) >= half + th + 2 || Math.abs(ty - cy) >= 11);
    });
    if (!free) continue;
    taken.push([...free, half]);
    make("svg:text", { class: "threshold", x: free[0].toFixed(1), y: free[1].toFixed(1), "text-anchor": "middle" }, svg, text);
  }
}

function scales(plot, all, width) { // where things lie: {xs, ys, across, down}
  const { left, right, bottom } = PLOT, { height } = plot, top = topOf(plot), span = values => [Math.min(...values), Math.max(...values)];
  const xs = plot.ticksX || ticks(...span(all.map(p => p.x)), { count: width < 500 ? 4 : 8 });
  const ys = ticks(...span(all.flatMap(p => [p.y, p.low ?? p.y, p.high ?? p.y])), { count: height < 250 ? 3 : 5 });
  const scale = x => plot.log ? Math.log(x) : x, [yLow, yHigh] = span(ys);
  let [xLow, xHigh] = span(xs).map(scale);
  if (xLow === xHigh) [xLow, xHigh] = [xLow - 1, xHigh + 1];
  const across = x => left + (width - left - right) * (scale(x) - xLow) / (xHigh - xLow);
  const down = y => height - bottom - (height - top - bottom) * (y - yLow) / (yHigh - yLow);
  return { xs, ys, across, down };
}

function drawPlot(plot) {
  const card = document.getElementById(plot.id);
  if (!card) return;
  const svg = card.querySelector("svg"), { height } = plot, { left, right, bottom } = PLOT, top = topOf(plot);
  svg.style.height = `${height}px`;
  const width = Math.max(200, Math.round(svg.clientWidth || 860)), lines = plot.lines(), all = lines.flatMap(line => line.points);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  card.lines = lines;
  card.querySelector(".tip").hidden = true;
  if (!all.length) {
    make("svg:text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "not measured in the runs shown");
    return;
  }
  const { xs, ys, across, down } = scales(plot, all, width);
  for (const y of ys) {
    make("svg:line", { class: "gridline", x1: left, x2: width - right, y1: down(y), y2: down(y) }, svg);
    make("svg:text", { x: left - 7, y: down(y) + 3.5, "text-anchor": "end" }, svg, format(y));
  }
  for (const x of xs) {
    make("svg:line", { class: "gridline", x1: across(x), x2: across(x), y1: top, y2: height - bottom }, svg);
    make("svg:text", { x: across(x), y: height - bottom + 15, "text-anchor": "middle" }, svg, format(x));
  }
  make("svg:text", { class: "axis", x: 2, y: 12 }, svg, plot.y);
  make("svg:text", { class: "axis", x: width - right, y: height - 6, "text-anchor": "end" }, svg, plot.x);
  const spot = ([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`;
  for (const line of lines) {
    line.spots = line.points.map(p => [across(p.x), down(p.y)]);
    const edge = key => line.points.map(p => spot([across(p.x), down(p[key])]));
    if (line.points.every(p => p.low !== undefined)) make("svg:polygon", { class: "band", fill: line.color, points: [...edge("high"), ...edge("low").reverse()].join(" ") }, svg);
    make("svg:polyline", { class: `path ${line.side}`, stroke: line.color, points: line.spots.map(spot).join(" "), "data-run": line.run }, svg);
  }
  const radius = plot.labels ? 4 : 3, filled = line => line.side.startsWith("after");
  for (const line of lines) if (line.points.length <= 32) line.spots.forEach(([x, y], i) =>
    make("svg:circle", { class: `point ${line.side}`, cx: x.toFixed(1), cy: y.toFixed(1), r: line.side === "after" ? radius : radius - 0.5, stroke: line.color, fill: filled(line) ? line.color : "var(--card)", "data-label": line.points[i].label }, svg));
  if (plot.labels) writeLabels(svg, lines, width, height);
  make("svg:circle", { class: "ring", r: 8 }, svg);
}

function readPlot(plot, card, event) { // the point nearest to the pointer
  const svg = card.querySelector("svg"), tip = card.querySelector(".tip"), ring = svg.querySelector(".ring");
  if (!ring) return;
  const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
  const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
  let best = null;
  for (const line of card.lines) line.spots.forEach((spot, i) => {
    const far = Math.hypot(spot[0] - x, spot[1] - y);
    if (!best || far <= best.far) best = { far, line, spot, point: line.points[i] }; // what lies on top wins
  });
  if (best.far > PLOT.reach) {
    hidePlot(card);
    return;
  }
  ring.setAttribute("cx", best.spot[0]);
  ring.setAttribute("cy", best.spot[1]);
  ring.style.visibility = "visible";
  tip.replaceChildren();
  const head = make("div", {}, tip);
  make("span", { class: "key", style: `color: ${best.line.color}` }, head);
  head.append(`${best.line.name ? best.line.name + ", " : ""}${SAID[best.line.side]}`);
  for (const text of best.point.tell) make("div", {}, tip, text);
  tip.hidden = false;
  const card_box = card.getBoundingClientRect(), at = box.left - card_box.left + best.spot[0] / scale, beyond = at > card_box.width / 2;
  tip.style.left = beyond ? "auto" : `${at + 16}px`;
  tip.style.right = beyond ? `${card_box.width - at + 16}px` : "auto";
  const below = best.spot[1] + 14 + TIP < plot.height; // curves fall to the right: below is free
  tip.style.top = `${box.top - card_box.top + (best.spot[1] + (below ? 14 : -TIP)) / scale}px`;
}

function hidePlot(card) {
  const ring = card.querySelector(".ring");
  card.querySelector(".tip").hidden = true;
  if (ring) ring.style.visibility = "hidden";
}

function drawPlots() {
  for (const plot of plots) drawPlot(plot);
}

function addPlot(plot) {
  const card = document.getElementById(plot.id);
  if (!card) return;
  plots.push(plot);
  const svg = card.querySelector("svg");
  svg.addEventListener("pointermove", event => readPlot(plot, card, event));
  svg.addEventListener("pointerdown", event => readPlot(plot, card, event));
  svg.addEventListener("pointerleave", () => hidePlot(card));
}
