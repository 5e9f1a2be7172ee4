// Draws a pipeline: each stage's main curves by the same code as its own page, which is opened in a frame of its own.
const MAIN = ["reward/mean", "loss", "preference/accuracy", "kl/ref"];

// Draw with one stage's series, now and when the colour scheme changes.
function within(series, draw) {
  const known = DRAWN.length;
  SERIES = series;
  draw();
  for (let i = known; i < DRAWN.length; i++) {
    const again = DRAWN[i];
    DRAWN[i] = () => { SERIES = series; again(); };
  }
}

// One reward in training and on held-out prompts, on one axis.
function partCard(part) {
  const training = "reward/" + part.name, heldout = "eval/" + part.name, columns = SERIES.columns;
  const role = part.weight === 0 ? part.kind + ", weight 0: watched, not optimised" : `${part.kind}, weight ${number(part.weight)}`;
  const { card, area } = frame(part.name, role, number(points(has(heldout) ? heldout : training).y.at(-1)));
  const low = columns[heldout + "_low"], high = columns[heldout + "_high"];
  const kept = SERIES.steps.map((_, i) => i).filter((i) => has(heldout) && columns[heldout][i] !== null);
  const y = kept.map((i) => columns[heldout][i]);
  const bars = low && high ? { type: "data", symmetric: false, array: kept.map((i, j) => Math.max(0, high[i] - y[j])), arrayminus: kept.map((i, j) => Math.max(0, y[j] - low[i])), color: faded("orange", 0.55), thickness: 1.6, width: 4 } : undefined;
  return { card, draw: () => plot(area, () => ({
    traces: [
      ...curve(training, "blue", "training"),
      { x: kept.map((i) => SERIES.steps[i]), y, name: "held-out", mode: "lines+markers", line: { color: color("orange"), width: 2 }, marker: { size: 7, color: color("orange") }, error_y: bars, hovertemplate: "%{y:.4~g}" },
    ],
    layout: legend(),
  })) };
}

function fill(box, cards) {
  box.hidden = !cards.length;
  box.append(...cards.map(({ card }) => card));
  cards.forEach(({ draw }) => draw());
}

function drawStage(section, stage) {
  const parts = stage.parts.filter((part) => has("reward/" + part.name) || has("eval/" + part.name));
  const shown = parts.length > 1 ? parts.map((part) => "eval/" + part.name) : [];
  fill(section.querySelector(".pair"), parts.length > 1 ? parts.map(partCard) : []);
  const specs = LEARNING.filter((spec) => spec.names && MAIN.includes(spec.names[0]) && has(spec.names[0]));
  fill(section.querySelector(".grid"), [
    ...stage.evals.filter((name) => has(name) && !shown.includes(name)).map(evalCard).map((made) => { made.card.classList.remove("wide"); return made; }),
    ...specs.map((spec) => curveCard({ ...spec, wide: false, note: spec.names[0] === "loss" ? "training" : spec.note }, spec.names)),
  ]);
}

// The page rides along without plotly, which stands in this page once and is put back here.
function openPage(details, stage) {
  const whole = stage.page.replace(DATA.plotly, () => document.getElementById("plotly").textContent);
  details.append(h("iframe", { title: "report of " + stage.name, srcdoc: whole }));
}

document.querySelectorAll("section.stage").forEach((section) => {
  const stage = DATA.stages[Number(section.dataset.stage)];
  if (stage.series.steps.length) within(stage.series, () => drawStage(section, stage));
  const full = section.querySelector(".full");
  if (full) full.addEventListener("toggle", () => openPage(full, stage), { once: true });
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => DRAWN.forEach((draw) => draw()));
document.documentElement.dataset.ready = "true";
