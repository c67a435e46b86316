"use strict";
// The controls of the report: which runs are shown, how curves look, which samples at which step.

const byId = id => document.getElementById(id);
const drawn = [];

function redraw() {
  for (const { card, chart } of drawn) draw(card, chart);
  drawPlots();
  if (byId("smooth-value")) byId("smooth-value").textContent = view.smooth ? `${view.smooth} %` : "off";
  const note = byId("group-note");
  if (note) note.textContent = view.seeds === "each" ? "" : DATA.groups.filter(g => g.runs.length > 1).map(g => `${g.label}: n ${g.runs.filter(r => view.shown.has(r)).length}`).join(" · ");
}

function showRuns() {
  for (const element of document.querySelectorAll("[data-run]:not(input):not(polyline)")) element.hidden = !view.shown.has(Number(element.dataset.run));
  redraw();
  showSamples();
}

function on(id, event, handle) {
  const element = byId(id);
  if (element) element.addEventListener(event, () => handle(element));
}

function begin() {
  const [main, more] = [byId("charts"), byId("more")];
  if (main) {
    for (const chart of DATA.charts.slice(0, DATA.main)) drawn.push(addChart(chart, main));
    const rest = DATA.charts.slice(DATA.main);
    more.hidden = !rest.length;
    more.querySelector("summary").textContent = `${rest.length} more curves`;
    more.addEventListener("toggle", () => { // drawn when they are asked for
      if (more.open && drawn.length < DATA.charts.length) for (const chart of rest) drawn.push(addChart(chart, byId("more-charts")));
    });
  }
  for (const box of document.querySelectorAll("#legend input")) box.addEventListener("change", () => {
    view.shown[box.checked ? "add" : "delete"](Number(box.dataset.run));
    showRuns();
  });
  on("smooth", "input", element => { view.smooth = Number(element.value); redraw(); });
  on("log", "change", element => { view.log = element.checked; redraw(); });
  on("seeds", "change", element => { view.seeds = element.value; redraw(); });

  beginPlots();
  const step = byId("step");
  if (step) {
    step.max = String(STEPS.length - 1);
    step.value = step.max;
    step.disabled = STEPS.length < 2;
    samples.beside = byId("beside").checked;
  }
  const filter = (key, value) => { samples[key] = value; samples.limit = CARDS; showSamples(); };
  on("step", "input", element => { samples.step = STEPS[Number(element.value)]; showSamples(); });
  on("beside", "change", element => { samples.beside = element.checked; showSamples(); });
  on("only", "change", element => filter("only", element.value));
  on("task", "change", element => filter("task", element.value));
  on("sort", "change", element => filter("sort", element.value));
  on("find", "input", element => filter("find", element.value));
  on("more-samples", "click", () => { samples.limit += CARDS; showSamples(); });
  document.addEventListener("keydown", event => { // the arrows move the step unless a control wants them
    const forward = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !forward || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea")) return;
    step.value = String(Number(step.value) + forward);
    step.dispatchEvent(new Event("input"));
  });
  const bar = byId("runs-bar"), below = () => document.documentElement.style.setProperty("--bar", `${bar && getComputedStyle(bar).position === "sticky" ? bar.offsetHeight : 0}px`);
  addEventListener("resize", below);
  below();
  redraw();
  showSamples();
}
begin();
