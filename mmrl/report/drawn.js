"use strict";
// Samples that a model drew: pictures of one prompt at the first step and at the step of the slider.

const PIXEL_ART = 200; // pictures up to this size are enlarged pixel by pixel
const SIDE = { one: 136, some: 72, large: 240 }; // wanted side of a tile, in pixels
const zoomed = { sample: null, run: 0, at: 0 };

function tile(number, count) { // [width, height] on the page
  const [width, height] = DATA.pictures[number].size;
  const wanted = Math.max(width, height) > PIXEL_ART ? SIDE.large / (count > 1 ? 2 : 1) : count > 1 ? SIDE.some : SIDE.one;
  let scale = wanted / Math.sqrt(width * height);
  if (Math.max(width, height) <= PIXEL_ART) scale = Math.max(1, Math.round(scale)); // whole pixels stay square
  return [Math.round(width * scale), Math.round(height * scale)];
}

const columnsOf = count => count > 1 ? Math.ceil(Math.sqrt(count)) : 1;

function blockWidth(answer) { // of one figure
  if (!answer.pictures.length) return SIDE.one;
  return columnsOf(answer.pictures.length) * (tile(answer.pictures[0], answer.pictures.length)[0] + 4);
}

function picture(parent, number, size, label) {
  const { uri, size: [width, height] } = DATA.pictures[number];
  const pixel = Math.max(width, height) <= PIXEL_ART;
  return make("img", { src: uri, width: size[0], height: size[1], alt: label, class: pixel ? "pixel" : "" }, parent);
}

const signed = value => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
const rise = (now, first) => now === null || first === null ? null : now - first;
const toneOf = change => change > 0.0005 ? "up" : change < -0.0005 ? "down" : "soft";

function rewardOf(parent, answer, first) { // the mean and what it rose by, then its components
  const line = make("p", { class: "scores" }, parent), change = first === answer ? null : rise(answer.total, first.total);
  const total = make("span", { class: "total" }, line);
  make("b", {}, total, answer.total === null ? "no reward" : answer.total.toFixed(3));
  if (change !== null) make("span", { class: `delta ${toneOf(change)}` }, total, signed(change));
  if (answer.reward.length < 2) return;
  for (const [name, value] of answer.reward) make("b", {}, make("span", {}, line, name + " "), value === null ? "–" : value.toFixed(3));
}

function drawnFigure(parent, sample, run, answer, first, name) { // `name`: of the run, where there are several
  const element = make("figure", { style: `width: ${blockWidth(answer)}px` }, parent), caption = `step ${answer.step}`;
  const head = make("figcaption", {}, element);
  if (name) {
    const who = make("span", { class: "who", title: name }, head);
    if (run !== null) make("span", { class: "key", style: `color: ${color(run)}` }, who);
    who.append(name);
  }
  make("span", { class: "at" }, head, caption);
  const count = answer.pictures.length, tiles = make("div", { class: "tiles-of", style: `--columns: ${columnsOf(count)}` }, element);
  answer.pictures.forEach((number, at) => {
    const total = answer.totals[at] ?? null, label = `${sample.prompt}, ${name && name + ", "}${caption}${total === null ? "" : `, reward ${total.toFixed(3)}`}`;
    const button = make("button", { type: "button", class: "tile-of", title: total === null ? "" : `reward ${total.toFixed(3)}` }, tiles);
    picture(button, number, tile(number, count), label);
    button.addEventListener("click", () => { Object.assign(zoomed, { sample, run: run ?? Number(Object.keys(sample.answers)[0]), at }); showZoom(true); });
  });
  if (!count) make("p", { class: "empty" }, tiles, "no picture");
  rewardOf(element, answer, first);
}

const alike = now => now.length > 1 && new Set(now.map(n => `${n.first.step}: ${n.first.pictures.join()}`)).size === 1;

function addDrawn(parent, { sample, now }) { // runs that begin alike share their first pictures
  const card = make("article", { class: "card sample", "data-id": sample.id }, parent), head = make("div", { class: "head" }, card);
  make("b", { class: "prompt" }, head, sample.prompt);
  make("span", {}, head, sample.id);
  const sides = make("div", { class: "drawn" }, card), shared = alike(now);
  if (samples.beside && shared) drawnFigure(sides, sample, null, now[0].first, now[0].first, "all runs");
  for (const { run, first, now: answer } of now) {
    const name = DATA.runs.length > 1 ? DATA.runs[run].label : "", pair = make("div", { class: "pair" }, sides);
    if (samples.beside && !shared) drawnFigure(pair, sample, run, first, first, name);
    drawnFigure(pair, sample, run, answer, first, name);
  }
  const named = now.map(n => [DATA.runs.length > 1 ? DATA.runs[n.run].label : "", n]);
  const starts = !samples.beside ? [] : shared ? [["all runs", now[0].first]] : named.map(([name, n]) => [name, n.first]);
  const ends = named.filter(([, n]) => !samples.beside || n.now !== n.first).map(([name, n]) => [name, n.now]);
  fillingOf(card, sample, [...starts, ...ends]);
}

function strip(parent, number, most, label) { // a canvas after several steps, as large as whole pixels allow
  const [width, height] = DATA.pictures[number].size;
  const scale = width <= PIXEL_ART ? Math.max(1, Math.floor(most / width)) : Math.min(1, most / width);
  return picture(parent, number, [Math.round(width * scale), Math.round(height * scale)], label);
}

function fillingOf(card, sample, shown) { // folded; it stays open on other steps. shown: [[name, answer]]
  const told = shown.filter(([, answer]) => answer.filling);
  if (!told.length) return;
  const details = make("details", { class: "unmasked" }, card);
  make("summary", {}, details, "how it was filled");
  for (const [name, answer] of told) {
    const side = make("figure", {}, details), caption = `${name && name + ", "}step ${answer.step}`;
    make("figcaption", {}, side, caption);
    for (const number of answer.filling) strip(side, number, 320, `${sample.prompt}, ${caption}: the canvas after several decoding steps`);
  }
  details.open = samples.open.has(sample.id);
  details.addEventListener("toggle", () => samples.open[details.open ? "add" : "delete"](sample.id));
}

function drawnWidth(rows) { // of a card, so that no figure is squeezed
  const widths = rows.map(({ now }) => {
    const starts = !samples.beside ? [] : alike(now) ? [now[0].first] : now.map(n => n.first);
    return [...starts, ...now.map(n => n.now)].reduce((sum, answer) => sum + blockWidth(answer) + 14, 0);
  });
  return Math.max(220, Math.min(1180, Math.max(0, ...widths) + 34));
}

function showZoom(open) { // first and now, large; follows the slider while it is open
  const dialog = document.getElementById("zoom"), { sample, run, at } = zoomed;
  if (!dialog || !sample || !(open || dialog.open)) return;
  dialog.replaceChildren();
  make("p", { class: "asked" }, dialog, sample.prompt);
  const sides = make("div", { class: "drawn" }, dialog), first = sample.answers[run][0], now = answerAt(sample, run, samples.step) ?? first;
  for (const answer of first === now ? [now] : [first, now]) {
    const number = answer.pictures[at], total = answer.totals[at] ?? null;
    if (number === undefined) continue;
    const figure = make("figure", {}, sides), [width, height] = DATA.pictures[number].size, side = Math.max(width, height);
    const scale = side > PIXEL_ART ? Math.min(1, 384 / side) : Math.max(1, Math.floor(384 / side));
    make("figcaption", {}, figure, `step ${answer.step}${total === null ? "" : `, reward ${total.toFixed(3)}`}`);
    picture(figure, number, [width * scale, height * scale], sample.prompt);
    if (answer.filling) strip(make("div", { class: "filling" }, figure), answer.filling[at], 384, `${sample.prompt}: the canvas after several decoding steps`);
  }
  const close = make("button", { type: "button" }, dialog, "Close");
  close.addEventListener("click", () => dialog.close());
  if (!dialog.open) dialog.showModal();
}
