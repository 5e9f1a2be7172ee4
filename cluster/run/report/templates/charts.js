// The curves: evaluations with their intervals, what was learned, how engines and learner agree.
const LEARNING = [
  { names: ["reward/mean"], title: "Reward", note: "mean of the batch; band: one standard deviation", band: "reward/std", wide: true },
  { names: ["loss"], title: "Loss", note: "preference loss" },
  { names: ["preference/accuracy"], title: "Preference accuracy", note: "share of pairs where the chosen response wins", line: 0.5 },
  { names: ["preference/margin"], title: "Preference margin", note: "implicit reward, chosen minus rejected", line: 0 },
  { parts: /^reward\/(?!mean$|std$)/, title: "Reward by part", note: "each reward's own mean, before its weight" },
  { names: ["kl/ref", "kl/ref_k1"], title: "KL to the reference", note: "mean per token, nats; ref is k3, which one token can move far, ref_k1 is what a bound reads" },
  { names: ["policy/entropy"], title: "Entropy", note: "mean per token, nats; near 0 the policy has stopped exploring" },
  { names: ["policy/clip_fraction"], title: "Clip fraction", note: "share of tokens whose ratio was clipped" },
  { names: ["policy/grad_norm"], title: "Gradient norm", note: "policy, before clipping" },
  { names: ["policy/loss"], title: "Policy loss", note: "its level means little; jumps do" },
  { names: ["value/loss"], title: "Value loss", note: "critic" },
  { names: ["value/explained_variance"], title: "Explained variance", note: "of the returns by the critic; 1 is perfect, below 0 is worse than their mean", line: 0 },
  { names: ["response/length_mean"], title: "Response length", note: "mean, tokens" },
  { names: ["response/truncated"], title: "Cut off at the limit", note: "share of responses without an end" },
];
const ENGINES = [
  { names: ["throughput/tokens_per_s", "throughput/engine_tokens_per_s"], title: "Decoding", note: "tokens per second: all workers', and by their engines' own steps alone" },
  { names: ["throughput/sync_bytes_per_s", "throughput/copy_bytes_per_s"], title: "Publishing", note: "bytes per second into all engines, before the proof, beside a plain copy in memory" },
  { names: ["rollout/workers"], title: "Rollout workers", note: "that served at the end of the step" },
  { parts: /^time\/learner_\w+_fraction$/, title: "The learner's time", note: "share of a step: computing, and what it waited for" },
  { parts: /^time\/rollout_\w+_fraction$/, title: "The rollout workers' time", note: "share of it all: generating, publishing, and what they waited for" },
  { names: ["sync/mismatch"], title: "Engine against learner", note: "mean |difference| of log-probs after a publish" },
  { names: ["sync/seconds"], title: "Publish time", note: "seconds until every engine has proved the new version" },
  { names: ["staleness/mean", "staleness/max"], title: "Staleness", note: "versions between sampling and training: mean and max", quiet: true },
];
const CYCLE = ["blue", "orange", "green", "pink", "purple", "teal", "yellow", "grey"];

// Centred moving mean over a window of n points.
function smooth(values, n) {
  const half = Math.floor(n / 2);
  return values.map((_, i) => mean(values.slice(Math.max(0, i - half), i + half + 1)));
}

function curve(name, tone, label) {
  const { x, y } = points(name);
  const few = x.length <= 40, long = x.length > 60;
  const raw = {
    x, y, name: long ? label + ", each step" : label, mode: few ? "lines+markers" : "lines", line: { color: long ? faded(tone, 0.32) : color(tone), width: long ? 1 : 2 },
    marker: { size: x.length === 1 ? 8 : 4, color: color(tone) }, hovertemplate: "%{y:.4~g}",
  };
  if (!long) return [raw];
  return [raw, { x, y: smooth(y, x.length / 20), name: label, mode: "lines", line: { color: color(tone), width: 2.2 }, hovertemplate: "%{y:.4~g}" }];
}

function band(name, spread, tone) {
  const columns = SERIES.columns, kept = SERIES.steps.map((_, i) => i).filter((i) => columns[name][i] !== null && columns[spread][i] !== null);
  const x = kept.map((i) => SERIES.steps[i]);
  const edge = (sign) => kept.map((i) => columns[name][i] + sign * columns[spread][i]);
  const quiet = { mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
  return [{ ...quiet, x, y: edge(-1) }, { ...quiet, x, y: edge(1), fill: "tonexty", fillcolor: faded(tone, 0.13) }];
}

// A constant gets a range in proportion to it, or its axis would show meaningless digits.
function flat(names) {
  const values = names.flatMap((name) => points(name).y), first = values[0];
  if (values.some((value) => value !== first)) return {};
  const reach = Math.abs(first) / 2 || 1;
  return { yaxis: axis({ nticks: 5, exponentformat: "e", range: [first - reach, first + reach] }) };
}

function level(y) {
  return { type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: color("grey"), width: 1, dash: "dot" } };
}

function frame(title, note, value, warning, wide) {
  const area = h("div", { class: "plot" });
  const card = h("div", { class: "card chart" + (wide ? " wide" : "") },
    h("header", null, h("h3", null, title), h("span", { class: "value" }, value)),
    h("p", { class: "note" }, note, warning ? h("span", { class: "warn" }, " · " + warning) : null), area);
  return { card, area };
}

function legend() {
  return { showlegend: true, legend: { orientation: "h", traceorder: "normal", y: -0.16, yanchor: "top", x: 0, font: { size: 11.5, color: color("soft") } } };
}

function curveCard(spec, names) {
  const last = points(names[0]).y.at(-1);
  const holes = sum(names.map((name) => SERIES.not_finite[name] || 0));
  const warning = holes ? `not finite at ${holes} step${holes > 1 ? "s" : ""}` : "";
  const { card, area } = frame(spec.title, spec.note, names.length === 1 ? number(last) : "", warning, spec.wide);
  const label = (name) => (names.length > 1 ? name.replace(/^[^/]*\//, "").replace(/^(?:learner|rollout)_(\w+)_fraction$/, "$1") : name);
  return { card, draw: () => plot(area, () => ({
    traces: [
      ...(spec.band && has(spec.band) && has(names[0]) ? band(names[0], spec.band, "blue").map((t) => ({ ...t, showlegend: false })) : []),
      ...names.flatMap((name, i) => curve(name, CYCLE[i % CYCLE.length], label(name)).map((t, j, both) => ({ ...t, showlegend: names.length > 1 && j === both.length - 1 }))),
    ],
    layout: { ...(names.length > 1 ? legend() : {}), ...flat(names), shapes: spec.line === undefined ? [] : [level(spec.line)] },
  })) };
}

function evalCard(name) {
  const columns = SERIES.columns, low = columns[name + "_low"], high = columns[name + "_high"];
  const kept = SERIES.steps.map((_, i) => i).filter((i) => columns[name][i] !== null);
  const at = (values) => kept.map((i) => values[i]);
  const sized = low && high;
  const { card, area } = frame(name.slice(5), "held-out prompts" + (sized ? "; bars: 95 % interval; dotted: before training" : ""), number(columns[name][kept.at(-1)]), "", true);
  const y = at(columns[name]);
  return { card, draw: () => plot(area, () => ({
    traces: [{
      x: at(SERIES.steps), y, name: name.slice(5), mode: "lines+markers", line: { color: color("blue"), width: 2 }, marker: { size: 8, color: color("blue") },
      customdata: sized ? kept.map((i) => [low[i], high[i]]) : undefined,
      hovertemplate: "%{y:.3f}" + (sized ? " [%{customdata[0]:.3f}, %{customdata[1]:.3f}]" : "") + "<extra></extra>",
      error_y: sized ? {
        type: "data", symmetric: false, array: kept.map((i, j) => Math.max(0, high[i] - y[j])), arrayminus: kept.map((i, j) => Math.max(0, y[j] - low[i])),
        color: faded("blue", 0.55), thickness: 1.6, width: 4,
      } : undefined,
    }],
    layout: { shapes: y.length > 1 ? [level(y[0])] : [] },
  })) };
}

function drawSection(id, cards) {
  if (!cards.length) return;
  show(id).querySelector(".grid").append(...cards.map(({ card }) => card));
  cards.forEach(({ draw }) => draw());
}

function drawCurves() {
  const all = Object.keys(SERIES.columns).filter(has);
  const used = new Set(["reward/std", ...all.filter((name) => /^(eval|role|time)\//.test(name))]);
  const cards = (specs) => specs.flatMap((spec) => {
    const names = spec.parts ? all.filter((name) => spec.parts.test(name)) : spec.names.filter(has);
    names.forEach((name) => used.add(name));
    const silent = spec.quiet && names.every((name) => points(name).y.every((value) => value === 0));
    return names.length && !silent ? [curveCard(spec, names)] : [];
  });
  drawSection("evaluation", DATA.evals.filter(has).map(evalCard));
  drawSection("learning", cards(LEARNING));
  drawSection("engines", cards(ENGINES));
  const rest = all.filter((name) => !used.has(name)).sort();
  if (!rest.length) return;
  const details = show("more").querySelector("details");
  details.querySelector("summary").textContent = `${rest.length} more metric${rest.length > 1 ? "s" : ""}`;
  details.addEventListener("toggle", () => drawSection("more", rest.map((name) => curveCard({ title: name, note: "" }, [name]))), { once: true });
}
