"use strict";
// What samples of video runs have: a strip of frames over the question, and a weight for each token of the answer.

const STRIP = 2; // times as wide as high: frames side by side, or two clips below one another

function stripOf(sample, now) { // the number of the one wide picture that all answers on show have; null otherwise
  const answers = now.flatMap(n => samples.beside ? [n.first, n.now] : [n.now]), number = answers[0]?.picture ?? null;
  if (number === null || sample.gold.length || answers.some(a => a.picture !== number || a.boxes.length)) return null;
  const [width, height] = DATA.pictures[number].size;
  return width >= STRIP * height ? number : null;
}

function showStrip(card, sample, number) { // as large as the card, small frames pixel by pixel
  const { uri, size: [width, height] } = DATA.pictures[number], small = width * height <= PIXEL_ART ** 2;
  const scale = small ? Math.max(1, Math.round(800 / width)) : 1;
  make("img", { class: small ? "strip pixel" : "strip", src: uri, style: `width: ${width * scale}px`, alt: `frames of ${sample.id}, in order of time` }, card);
}

function heat(weight) { // 0 to 100, the same scale on the whole page
  const [low, high] = DATA.weights;
  return high > low ? Math.round(100 * (weight - low) / (high - low)) : 0;
}

const seen = text => text.trim() ? text.trim() : text ? JSON.stringify(text) : "part of the next character";
const short = text => text.length > 24 ? `${text.slice(0, 23)}…` : text;

function tokensOf(element, sample, answer) { // the answer with a line under each token; the numbers again, as text
  const answerText = make("pre", { class: "weighed" }, element);
  for (const [text, weight] of answer.tokens)
    make("span", { style: `--heat: ${heat(weight)}%`, title: `weight ${weight.toFixed(2)}` }, answerText, text);
  const weights = answer.tokens.map(token => token[1]), most = weights.indexOf(Math.max(...weights));
  const average = weights.reduce((a, b) => a + b, 0) / weights.length;
  const summary = `token weights: mean ${average.toFixed(2)}, most ${weights[most].toFixed(2)} at ${short(seen(answer.tokens[most][0]))}`;
  const lines = answer.tokens.map(([text, weight], at) => `${String(at + 1).padStart(3)}  ${weight.toFixed(2)}  ${seen(text)}`);
  folded(element, sample, "weights", summary, lines);
}
