// Where a step's time went: the driver's phases, and each role's own, as stacked bars. Long runs are averaged into bars.
const PHASE_TONES = {
  rollout: "blue", generate: "blue", score: "green", reward: "green", reference: "teal", logprobs: "teal", values: "purple",
  update: "orange", backward: "orange", forward: "yellow", publish: "pink", sync: "pink", load: "yellow", evaluate: "purple", checkpoint: "yellow",
  other: "grey", waiting: "wait",
};
const MAX_BARS = 100;

function toneOf(phase, order) {
  return PHASE_TONES[phase] || CYCLE[order % CYCLE.length];
}

// Rows of steps that have times, averaged in groups so that at most MAX_BARS bars are drawn.
function timeBins() {
  const rows = SERIES.steps.map((_, i) => i).filter((i) => (SERIES.columns["time/step_s"] || [])[i] != null);
  const size = Math.ceil(rows.length / MAX_BARS) || 1;
  const bins = [];
  for (let i = 0; i < rows.length; i += size) bins.push(rows.slice(i, i + size));
  return bins;
}

const binMean = (bins, name) => bins.map((rows) => mean(rows.map((i) => (SERIES.columns[name] || [])[i] ?? 0)));

// [{phase, values per bin}], what is left of a step as a last phase named `rest`.
function phasesOf(bins, named, rest) {
  const phases = named.map(([phase, name]) => ({ phase, values: binMean(bins, name) })).filter(({ values }) => values.some((v) => v > 0));
  const whole = binMean(bins, "time/step_s");
  const left = whole.map((value, i) => Math.max(0, value - sum(phases.map(({ values }) => values[i]))));
  return left.some((value, i) => value > 0.005 * whole[i]) ? [...phases, { phase: rest, values: left }] : phases;
}

function roles() {
  const found = new Map();
  for (const name of Object.keys(SERIES.columns)) {
    const match = /^role\/(.+)\/([^/]+)_s$/.exec(name);
    if (!match) continue;
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push([match[2], name]);
  }
  return found;
}

function stackedBars(area, bins, phases) {
  const x = bins.map((rows) => SERIES.steps[rows[Math.floor(rows.length / 2)]]);
  plot(area, () => ({
    traces: phases.map(({ phase, values }, i) => ({
      type: "bar", x, y: values, name: phase, marker: { color: color(toneOf(phase, i)), line: { width: 0 } }, hovertemplate: "%{y:.2f} s",
    })),
    layout: { barmode: "stack", bargap: bins.length > 30 ? 0 : 0.18, ...legend(), yaxis: axis({ nticks: 5, ticksuffix: " s" }) },
  }));
}

function roleTrack(name, phases, whole) {
  const parts = phases.map(({ phase, values }, i) => ({ phase, tone: toneOf(phase, i), spent: mean(values) }));
  const busy = sum(parts.filter(({ phase }) => phase !== "waiting").map(({ spent }) => spent));
  const scale = Math.max(whole, busy);
  return h("div", { class: "role" }, h("span", { class: "name" }, name),
    h("span", { class: "track" }, parts.map(({ phase, tone, spent }) => h("span", { style: `width:${(100 * spent) / scale}%;background:var(--${tone})`, title: `${phase} ${seconds(spent)}` }))),
    h("span", { class: "sum" }, `${Math.round((100 * busy) / scale)} % busy`));
}

function drawTimes() {
  const bins = timeBins();
  if (!bins.length) return;
  const stack = show("times").querySelector(".stack");
  const whole = mean(binMean(bins, "time/step_s"));
  const own = Object.keys(SERIES.columns).filter((name) => /^time\/.+_s$/.test(name) && name !== "time/step_s");
  const driver = phasesOf(bins, [...own.map((name) => [name.slice(5, -2), name]), ["publish", "sync/seconds"]], "other");
  const averaged = bins[0].length > 1 ? `; each bar is the mean of ${bins[0].length} steps` : "";
  const shares = driver.map(({ phase, values }) => `${phase} ${Math.round((100 * mean(values)) / whole)} %`).join(", ");
  const first = frame("A step, as the driver sees it", shares + averaged, `mean ${seconds(whole)}`);
  first.area.classList.add("tall");
  stack.append(first.card);
  stackedBars(first.area, bins, driver);
  const byRole = [...roles()].map(([role, named]) => ({ role, phases: phasesOf(bins, named, "waiting") }));
  if (byRole.length) {
    const seen = new Map(byRole.flatMap(({ phases }) => phases.map(({ phase }, i) => [phase, toneOf(phase, i)])));
    stack.append(h("div", { class: "card" }, h("h3", null, "Roles in a mean step"), h("p", { class: "note", style: "margin-bottom:12px" }, "roles that take turns wait for each other; the length of a track is the whole step"),
      h("div", { class: "roles" }, byRole.map(({ role, phases }) => roleTrack(role, phases, whole))),
      h("div", { class: "keys" }, [...seen].map(([phase, tone]) => h("span", null, h("i", { style: `background:var(--${tone})` }), phase)))));
  }
  const cards = byRole.map(({ role, phases }) => ({ ...frame(role, "seconds a step" + averaged, seconds(sum(phases.filter(({ phase }) => phase !== "waiting").map(({ values }) => mean(values))))), phases }));
  const grid = h("div", { class: "grid" }, cards.map(({ card }) => card));
  stack.append(grid);
  cards.forEach(({ area, phases }) => stackedBars(area, bins, phases));
  if (has("time/idle_fraction")) {
    const idle = curveCard({ title: "Idle", note: "share of a step in which the machine's workers waited" }, ["time/idle_fraction"]);
    grid.append(idle.card);
    idle.draw();
  }
}
