"use strict";
// Accuracy against tokens per forward: before dashed and hollow, after solid and filled, one colour a run.
// Drawn as wide as its card is, so that its letters keep their size; labels that would cover others are left out.

const PLOT = { height: 320, left: 50, right: 26, top: 30, bottom: 44, reach: 60 }, TIP = 90; // of the tip's height, about

function frontierLines() { // what to draw now: [{name, side, color, points}]; runs that begin alike share their start
  const shown = DATA.frontier.filter(own => view.shown.has(own.run));
  const starts = shown.filter(own => own.before.length), many = DATA.runs.length > 1;
  const shared = starts.length > 1 && new Set(starts.map(own => JSON.stringify(own.before))).size === 1;
  const line = (own, side) => ({ run: own.run, name: many ? DATA.runs[own.run].label : "", side, color: color(own.run), points: own[side] });
  const before = shared ? [{ ...line(starts[0], "before"), name: "all runs", color: "var(--soft)" }] : starts.map(own => line(own, "before"));
  return [...before, ...shown.filter(own => own.after.length).map(own => line(own, "after"))];
}

function labelled(lines) { // which points get their threshold written: [[line, number]], the telling ones first
  const ends = [], between = [];
  for (const line of [...lines].reverse()) line.points.forEach((_, i) => (i === 0 || i === line.points.length - 1 ? ends : between).push([line, i]));
  return lines.length > 4 ? ends.filter(([line]) => line.side === "after") : [...ends, ...between];
}

function writeLabels(svg, lines, width) { // above their points where that is free, else below or beside them
  const spots = lines.flatMap(line => line.spots), taken = [];
  for (const [line, i] of labelled(lines)) {
    const [x, y] = line.spots[i], text = line.points[i].threshold, half = 3 * text.length + 1;
    const free = [[0, -9], [0, 17], [half + 8, 4], [-half - 8, 4]].map(([dx, dy]) => [x + dx, y + dy]).find(([cx, cy]) => {
      if (cx - half < PLOT.left || cx + half > width || cy < 12 || cy > PLOT.height - PLOT.bottom) return false;
      if (spots.some(([px, py]) => Math.abs(px - cx) < half + 4 && Math.abs(py - cy + 4) < 9)) return false;
      return taken.every(([tx, ty, th]) => Math.abs(tx - cx) >= half + th + 2 || Math.abs(ty - cy) >= 11);
    });
    if (!free) continue;
    taken.push([...free, half]);
    make("svg:text", { class: "threshold", x: free[0].toFixed(1), y: free[1].toFixed(1), "text-anchor": "middle" }, svg, text);
  }
}

function drawFrontier() {
  const card = document.getElementById("frontier-chart");
  if (!card) return;
  const svg = card.querySelector("svg"), width = Math.max(280, Math.round(svg.clientWidth || 860)), { height, left, right, top, bottom } = PLOT;
  const lines = frontierLines(), all = lines.flatMap(line => line.points);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  card.lines = lines;
  card.querySelector(".tip").hidden = true;
  if (!all.length) {
    make("svg:text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "not measured in the runs shown");
    return;
  }
  const span = values => [Math.min(...values), Math.max(...values)];
  const xs = ticks(...span(all.map(p => p.tpf)), { count: width < 500 ? 4 : 8 }), ys = ticks(...span(all.map(p => p.accuracy)), { count: 5 });
  const [xLow, xHigh, yLow, yHigh] = [...span(xs), ...span(ys)];
  const across = x => left + (width - left - right) * (x - xLow) / (xHigh - xLow), down = y => height - bottom - (height - top - bottom) * (y - yLow) / (yHigh - yLow);
  for (const y of ys) {
    make("svg:line", { class: "gridline", x1: left, x2: width - right, y1: down(y), y2: down(y) }, svg);
    make("svg:text", { x: left - 7, y: down(y) + 3.5, "text-anchor": "end" }, svg, format(y));
  }
  for (const x of xs) {
    make("svg:line", { class: "gridline", x1: across(x), x2: across(x), y1: top, y2: height - bottom }, svg);
    make("svg:text", { x: across(x), y: height - bottom + 15, "text-anchor": "middle" }, svg, format(x));
  }
  make("svg:text", { class: "axis", x: 2, y: 12 }, svg, "accuracy");
  make("svg:text", { class: "axis", x: width - right, y: height - 6, "text-anchor": "end" }, svg, "tokens per forward");
  for (const line of lines) {
    line.spots = line.points.map(p => [across(p.tpf), down(p.accuracy)]);
    make("svg:polyline", { class: `path ${line.side}`, stroke: line.color, points: line.spots.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" "), "data-run": line.run }, svg);
  }
  for (const line of lines) line.spots.forEach(([x, y], i) =>
    make("svg:circle", { class: `point ${line.side}`, cx: x.toFixed(1), cy: y.toFixed(1), r: line.side === "after" ? 4 : 3.5, stroke: line.color, fill: line.side === "after" ? line.color : "var(--card)", "data-threshold": line.points[i].threshold }, svg));
  writeLabels(svg, lines, width);
  make("svg:circle", { class: "ring", r: 8 }, svg);
}

function readFrontier(card, event) { // the point nearest to the pointer
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
    hideFrontier(card);
    return;
  }
  ring.setAttribute("cx", best.spot[0]);
  ring.setAttribute("cy", best.spot[1]);
  ring.style.visibility = "visible";
  tip.replaceChildren();
  const head = make("div", {}, tip);
  make("span", { class: "key", style: `color: ${best.line.color}` }, head);
  head.append(`${best.line.name ? best.line.name + ", " : ""}${best.line.side}`);
  make("div", {}, tip, `threshold ${best.point.threshold}`);
  make("div", {}, tip, `accuracy ${format(best.point.accuracy)}`);
  make("div", {}, tip, `${format(best.point.tpf)} tokens per forward`);
  tip.hidden = false;
  const card_box = card.getBoundingClientRect(), at = box.left - card_box.left + best.spot[0] / scale, beyond = at > card_box.width / 2;
  tip.style.left = beyond ? "auto" : `${at + 16}px`;
  tip.style.right = beyond ? `${card_box.width - at + 16}px` : "auto";
  const below = best.spot[1] + 14 + TIP < PLOT.height; // curves fall to the right: below is free
  tip.style.top = `${box.top - card_box.top + (best.spot[1] + (below ? 14 : -TIP)) / scale}px`;
}

function hideFrontier(card) {
  const ring = card.querySelector(".ring");
  card.querySelector(".tip").hidden = true;
  if (ring) ring.style.visibility = "hidden";
}

function beginFrontier() {
  const card = document.getElementById("frontier-chart");
  if (!card) return;
  const svg = card.querySelector("svg");
  svg.addEventListener("pointermove", event => readFrontier(card, event));
  svg.addEventListener("pointerdown", event => readFrontier(card, event));
  svg.addEventListener("pointerleave", () => hideFrontier(card));
  addEventListener("resize", drawFrontier);
}
