"use strict";
// Samples of the report: one card a record, the answers of the runs shown at the step of the slider.

const CARDS = 24; // at first, and more with each press of the button
const STEPS = [...new Set(DATA.samples.flatMap(s => Object.values(s.answers).flatMap(list => list.map(a => a.step))))].sort((a, b) => a - b);
const samples = { step: STEPS[STEPS.length - 1] ?? 0, beside: false, only: "all", task: "", sort: "", find: "", limit: CARDS, open: new Set() };

function answerAt(sample, run, step) { // the newest answer not after `step`
  let found = null;
  for (const answer of sample.answers[run] || []) if (answer.step <= step) found = answer;
  return found;
}

function nowOf(sample) { // what is on show: [{run, first, now}]
  const out = [];
  for (const run of Object.keys(sample.answers).map(Number)) {
    const now = view.shown.has(run) ? answerAt(sample, run, samples.step) : null;
    if (now) out.push({ run, first: sample.answers[run][0], now });
  }
  return out;
}

const changed = ({ first, now }) => now.output !== first.output || String(now.pictures ?? "") !== String(first.pictures ?? "");
const mean = values => values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
const known = values => values.filter(value => value !== null);

function wanted() { // samples that pass the filters, sorted: [{sample, now}]
  const text = samples.find.trim().toLowerCase();
  const keep = ({ sample, now }) => {
    if (!now.length || samples.task && sample.task !== samples.task) return false;
    if (samples.only === "wrong" && !now.some(n => n.now.right === false)) return false;
    if (samples.only === "right" && !now.every(n => n.now.right === true)) return false;
    if (samples.only === "changed" && !now.some(changed)) return false;
    if (samples.only === "better" && !now.some(n => rise(n.now.total, n.first.total) > 0)) return false;
    if (samples.only === "worse" && !now.some(n => rise(n.now.total, n.first.total) < 0)) return false;
    return !text || [sample.prompt, sample.id, ...now.map(n => n.now.output)].some(t => t.toLowerCase().includes(text));
  };
  const rows = DATA.samples.map(sample => ({ sample, now: nowOf(sample) })).filter(keep);
  const reward = row => mean(known(row.now.map(n => n.now.total)));
  const gain = row => mean(row.now.filter(n => n.now.total !== null && n.first.total !== null).map(n => n.now.total - n.first.total));
  const orders = { low: [reward, 1], high: [reward, -1], gain: [gain, -1], loss: [gain, 1] };
  if (!(samples.sort in orders)) return rows;
  const [value, sign] = orders[samples.sort];
  const keyed = rows.map(row => [value(row), row]);
  return [...keyed.filter(k => k[0] !== null).sort((a, b) => sign * (a[0] - b[0])), ...keyed.filter(k => k[0] === null)].map(k => k[1]);
}

function boxes(svg, list, kind) {
  for (const layer of ["under", kind]) for (const [x, y, width, height] of list)
    make("svg:rect", { class: layer, x, y, width, height }, svg);
}

function figure(parent, sample, answer, caption, run, same, bare) { // bare: without its picture, which stands above
  const element = make("figure", same ? { class: "same" } : {}, parent);
  const head = make("figcaption", {}, element);
  const who = make("span", { class: "who" }, head);
  if (run !== null && DATA.runs.length > 1) make("span", { class: "key", style: `color: ${color(run)}` }, who);
  who.append(caption);
  if (answer.right !== null) make("span", { class: `tag ${answer.right ? "right" : "wrong"}` }, head, answer.right ? "right" : "wrong");
  if (answer.picture !== null && !bare) {
    const picture = DATA.pictures[answer.picture], [width, height] = picture.size;
    const label = `${caption}: ${answer.boxes.length} predicted boxes, ${sample.gold.length} true boxes`;
    const svg = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, class: width < 200 ? "pixel" : "", role: "img", "aria-label": label }, element);
    make("svg:image", { href: picture.uri, width, height }, svg);
    boxes(svg, sample.gold, "gold");
    boxes(svg, answer.boxes, "guess");
  }
  if (answer.tokens) tokensOf(element, sample, answer);
  else make("pre", {}, element, answer.output);
  scoresOf(element, answer);
  if (answer.trajectory) folded(element, sample, "filled", "how it was unmasked", answer.trajectory);
}

function folded(element, sample, kind, title, lines) { // those of a record open together and stay so on other steps
  const details = make("details", { class: `unmasked ${kind}` }, element), key = `${kind} ${sample.id}`;
  make("summary", {}, details, title);
  make("pre", {}, details, lines.join("\n"));
  details.open = samples.open.has(key);
  details.addEventListener("toggle", () => {
    samples.open[details.open ? "add" : "delete"](key);
    const sides = details.closest(".sides");
    if (sides) for (const other of sides.querySelectorAll(`.unmasked.${kind}`)) other.open = details.open;
  });
}

function scoresOf(element, answer) {
  if (!answer.reward.length) return;
  const scores = make("p", { class: "scores" }, element);
  const parts = answer.reward.length > 1 && answer.total !== null ? [["reward", answer.total], ...answer.reward] : answer.reward;
  for (const [name, value] of parts) make("b", {}, make("span", {}, scores, name + " "), value === null ? "–" : value.toFixed(3));
}

function addSample(parent, { sample, now }) {
  if (sample.drawn) {
    addDrawn(parent, { sample, now });
    return;
  }
  const card = make("article", { class: "card sample", "data-id": sample.id }, parent);
  const head = make("div", { class: "head" }, card);
  make("span", {}, head, sample.id);
  make("span", {}, head, sample.task);
  const strip = stripOf(sample, now);
  if (strip !== null) showStrip(card, sample, strip);
  make("p", { class: "prompt" }, card, sample.prompt);
  if (sample.truth) make("b", {}, make("p", { class: "truth" }, card, "true answer "), sample.truth);
  const sides = make("div", { class: "sides" }, card), many = now.length > 1;
  for (const { run, first, now: answer } of now) {
    const name = DATA.runs.length > 1 ? `${DATA.runs[run].label}, ` : "";
    if (samples.beside) figure(sides, sample, first, `${name}step ${first.step}`, run, true, strip !== null);
    const same = answer.output === first.output;
    const note = answer.step === first.step ? "" : same ? ", same" : many ? "" : ", changed";
    figure(sides, sample, answer, `${name}step ${answer.step}${note}`, run, same && samples.beside && answer.step !== first.step, strip !== null);
  }
}

function showSamples() {
  const cards = document.getElementById("cards");
  if (!cards) return;
  const rows = wanted(), columns = Math.max(0, ...rows.map(row => row.now.length)) * (samples.beside ? 2 : 1);
  const drawn = rows.filter(row => row.sample.drawn), texts = columns > 4 ? "100%" : columns > 1 ? "440px" : "260px";
  cards.replaceChildren();
  cards.style.setProperty("--wide", rows.length && drawn.length === rows.length ? `${drawnWidth(drawn)}px` : texts);
  for (const row of rows.slice(0, samples.limit)) addSample(cards, row);
  if (!rows.length) make("p", { class: "empty" }, cards, "No sample passes these filters.");
  const shown = Math.min(samples.limit, rows.length), total = DATA.samples.length;
  document.getElementById("count").textContent = rows.length === total && shown === total ? `${total} records` : `${shown} of ${rows.length} that pass, ${total} records`;
  document.getElementById("more-samples").hidden = shown === rows.length;
  document.getElementById("step-value").textContent = String(samples.step);
  showZoom(false);
}
