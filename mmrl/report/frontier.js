"use strict";
// Which charts of few points the page has: accuracy against tokens per forward, quality against decoding steps, schedules.

const SAID = { before: "before", after: "after", base: "hand-made schedule", "before-base": "before, hand-made schedule", "after-base": "after, hand-made schedule" };

function addFrontier() {
  const points = (own, side) => own[side].map(p => ({
    x: p.tpf, y: p.accuracy, label: p.threshold,
    tell: [`threshold ${p.threshold}`, `accuracy ${format(p.accuracy)}`, `${format(p.tpf)} tokens per forward`],
  }));
  addPlot({ id: "frontier-chart", height: 320, x: "tokens per forward", y: "accuracy", labels: true, lines: () => sided(DATA.frontier, ["before", "after"], points) });
}

function addDecoding() { // a chart each for judge and diversity over the number of decoding steps
  const counts = [...new Set(DATA.decoding.flatMap(own => Object.values(own.lines).flatMap(Object.values).flat()).map(p => p.steps))].sort((a, b) => a - b);
  for (const what of ["judge", "diversity"]) {
    const points = (own, side) => own.lines[what][side].map(p => ({ x: p.steps, y: p.value, label: String(p.steps), tell: [`${p.steps} decoding steps`, `${what} ${format(p.value)}`] }));
    const lines = () => sided(DATA.decoding, ["before-base", "before", "after-base", "after"], points);
    addPlot({ id: `decoding-${what}`, height: 250, x: "decoding steps", y: "", log: true, ticksX: counts, lines });
  }
}

function addProfiles() { // what a policy drew of itself over its decoding steps
  DATA.profiles.forEach((panel, number) => {
    const points = (own, side) => {
      const line = panel.lines.find(l => l.run === own.run && l.side === side);
      if (!line) return [];
      return line.x.map((x, i) => {
        const spread = line.spread[i], y = line.y[i], band = spread === undefined ? {} : { low: y - spread, high: y + spread };
        return { x, y, ...band, label: String(i + 1), tell: [`step ${i + 1} of ${line.x.length}`, format(y) + (spread ? ` ± ${format(spread)}` : "")] };
      });
    };
    const runs = [...new Set(panel.lines.map(line => line.run))].map(run => ({ run }));
    addPlot({ id: `profile-${number}`, height: 200, x: "share of the decoding steps", y: "", ticksX: [0, 0.25, 0.5, 0.75, 1], lines: () => sided(runs, ["base", "before", "after"], points) });
  });
}

function beginPlots() {
  addFrontier();
  addDecoding();
  addProfiles();
  addEventListener("resize", drawPlots);
}
