// The sample browser: choose a step, sort and filter its samples, look at one: every token with its numbers.
const QUANTITIES = [
  { key: "logprobs", label: "log-prob", tone: ["orange", "teal"], note: "darker: less likely when sampled" },
  { key: "token_kl", label: "KL", tone: ["purple", "teal"], note: "darker: further from the reference" },
  { key: "advantages", label: "advantage", tone: ["blue", "orange"], note: "blue: pushed up, orange: pushed down" },
  { key: "values", label: "value", tone: ["green", "pink"], note: "what the critic expected" },
];
const ORDERS = {
  given: ["as sampled", () => 0],
  high: ["score, high first", (a, b) => byNumber(b.score, a.score)],
  low: ["score, low first", (a, b) => byNumber(a.score, b.score)],
  kl: ["KL, high first", (a, b) => byNumber(b.kl, a.kl)],
  long: ["length, long first", (a, b) => b.tokens.length - a.tokens.length],
};
const KINDS = {
  all: ["all", () => true],
  scored: ["with a score", (row) => row.score !== null],
  unscored: ["without a score", (row) => row.score === null],
  cut: ["cut off at the limit", (row) => row.finish === "length"],
};
const MAX_TOKENS_DRAWN = 4000, MAX_LISTED = 500;

// Rows without the number are put last before this is asked.
const byNumber = (a, b) => (a ?? 0) - (b ?? 0);

const state = { step: "", order: "given", kind: "all", low: "", high: "", text: "", quantity: "logprobs", chosen: 0 };
let shown = [];

function selectedRows() {
  const { steps, prompts } = DATA.samples;
  const rows = steps.filter(({ step }) => state.step === "" || String(step) === state.step).flatMap(({ step, rows }) => rows.map((row) => ({ ...row, step, prompt: prompts[row.prompt] })));
  const needle = state.text.toLowerCase();
  const inside = (row) => (state.low === "" || (row.score !== null && row.score >= Number(state.low))) && (state.high === "" || (row.score !== null && row.score <= Number(state.high)));
  const kept = rows.filter((row) => KINDS[state.kind][1](row) && inside(row) && (!needle || (row.prompt + "\n" + row.response).toLowerCase().includes(needle)));
  const order = ORDERS[state.order][1];
  const missing = { high: "score", low: "score", kl: "kl" }[state.order];
  const last = (row) => (missing && row[missing] === null ? 1 : 0);
  return { rows: kept.sort((a, b) => last(a) - last(b) || order(a, b)), of: rows.length };
}

function control(label, ...elements) {
  return h("label", null, label, elements.length === 1 ? elements[0] : h("span", { class: "pair" }, elements));
}

function choice(key, options) {
  return h("select", { onchange: (event) => change({ [key]: event.target.value }), "data-key": key }, options.map(([value, label]) => h("option", { value, selected: state[key] === value }, label)));
}

function typed(key, type, placeholder) {
  return h("input", { type, placeholder, step: "any", "aria-label": `${placeholder} ${key}`, oninput: (event) => change({ [key]: event.target.value }) });
}

function walk(by) {
  const values = DATA.samples.steps.map(({ step }) => String(step));
  const at = state.step === "" ? (by > 0 ? -1 : values.length) : values.indexOf(state.step);
  const next = values[Math.min(values.length - 1, Math.max(0, at + by))];
  document.querySelector('[data-key="step"]').value = next;
  change({ step: next });
}

function buildBrowser() {
  const { steps, steps_on_disk: onDisk } = DATA.samples;
  if (!steps.length) return;
  state.step = String(steps.at(-1).step);
  const section = show("samples");
  const options = [...steps.map(({ step, rows, total }) => [String(step), `step ${step} (${rows.length}${total > rows.length ? " of " + total : ""})`]), ["", "all steps shown here"]];
  const pairs = (table) => Object.entries(table).map(([value, [label]]) => [value, label]);
  section.querySelector(".browser").append(
    h("div", { class: "bar-tools" },
      control("step", choice("step", options), h("button", { type: "button", "aria-label": "earlier step", onclick: () => walk(-1) }, "‹"), h("button", { type: "button", "aria-label": "later step", onclick: () => walk(1) }, "›")),
      control("order", choice("order", pairs(ORDERS))), control("show", choice("kind", pairs(KINDS))),
      control("score", typed("low", "number", "from"), typed("high", "number", "to")), control("text", typed("text", "search", "find")),
      h("span", { class: "count", "aria-live": "polite" })),
    h("div", { class: "panes" }, h("div", { class: "list" }), h("div", { class: "detail" })));
  if (onDisk > steps.length) section.querySelector("h2").append(" ", h("small", null, `${steps.length} of ${onDisk} steps are in this page; all are in samples/*.parquet`));
  section.querySelector(".list").addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    choose(Math.min(shown.length - 1, Math.max(0, state.chosen + by)), true);
  });
  change({});
}

function change(next) {
  Object.assign(state, next, { chosen: 0 });
  const { rows, of } = selectedRows();
  shown = rows.slice(0, MAX_LISTED);
  document.querySelector(".count").textContent = `${rows.length} of ${of} samples` + (rows.length > shown.length ? `, ${shown.length} listed` : "");
  const all = state.step === "";
  document.querySelector(".list").replaceChildren(...shown.map((row, i) => h("button", { type: "button", onclick: () => choose(i) },
    row.score === null ? h("span", { class: "none" }, "no score") : h("span", { class: "score" }, number(row.score)),
    h("span", { style: "min-width:0" }, h("span", { class: "head" }, row.response.trim().slice(0, 160) || "(empty)"), h("small", null, `${all ? `step ${row.step}, ` : ""}prompt ${row.prompt_id}, sample ${row.index}`)))));
  choose(0);
}

function choose(index, focus) {
  state.chosen = index;
  document.querySelectorAll(".list button").forEach((button, i) => {
    button.setAttribute("aria-current", String(i === index));
    if (i === index && focus) button.focus();
  });
  const detail = document.querySelector(".detail");
  detail.replaceChildren(...(shown.length ? sampleParts(shown[index]) : [h("p", { class: "note" }, "No sample matches the filter.")]));
  detail.scrollTop = 0;
}

function tag(label, value, bad) {
  return h("span", { class: "tag" + (bad ? " bad" : "") }, label + " ", h("b", null, value));
}

function sampleParts(row) {
  const ends = { stop: "ended by itself", length: "cut off at the limit", abort: "aborted" };
  const available = QUANTITIES.filter(({ key }) => row[key].length);
  const parts = Object.entries(row.parts);
  return [
    h("div", { class: "tags" }, row.score === null ? tag("no score", row.error || "", true) : tag("score", number(row.score)), parts.map(([name, score]) => tag(name, number(score)))),
    h("div", { class: "tags" }, tag("step", row.step), tag("tokens", number(row.tokens.length)), row.kl === null ? null : tag("KL a token", number(row.kl)), tag("policy version", row.version), tag("", ends[row.finish] || row.finish, row.finish !== "stop")),
    h("h3", null, "prompt"), h("div", { class: "prompt", tabindex: "0" }, row.prompt),
    ...(available.length && row.tokens.length ? tokenParts(row, available) : [h("h3", null, "response"), h("div", { class: "plain" }, row.response || "(empty)")]),
  ];
}

function tokenParts(row, available) {
  const quantity = available.find(({ key }) => key === state.quantity) || available[0];
  const scale = scaleOf(row[quantity.key], quantity.tone);
  const redraw = (key) => { state.quantity = key; const detail = document.querySelector(".detail"), top = detail.scrollTop; choose(state.chosen); detail.scrollTop = top; };
  const drawn = row.tokens.slice(0, MAX_TOKENS_DRAWN);
  const flow = h("div", { class: "tokens" }, drawn.map((token, i) => h("span", { class: "tok", "data-token": i, style: `background:${scale.paint(row[quantity.key][i])}` }, ...visible(token))));
  watchTokens(flow, row);
  return [
    h("div", { class: "row" }, h("span", { class: "legend" }, "response, coloured by ", h("span", { class: "choice" }, available.map(({ key, label }) => h("button", { type: "button", "aria-pressed": String(key === quantity.key), onclick: () => redraw(key) }, label)))),
      h("span", { class: "legend", title: quantity.note }, number(scale.from), h("span", { class: "ramp", style: `background:${scale.ramp}` }), number(scale.to))),
    flow,
    h("p", { class: "note", style: "margin:6px 0 12px" }, quantity.note + (row.tokens.length > drawn.length ? `; the first ${drawn.length} of ${row.tokens.length} tokens` : "") + ". Point at a token for all its numbers."),
    tokenTable(row, available),
  ];
}

// How a column is coloured: from 0 in one tone, or from a middle 0 in two where both signs occur.
function scaleOf(values, [plus, minus]) {
  const known = values.filter((value) => value !== null);
  const low = Math.min(0, ...known), high = Math.max(0, ...known);
  const reach = Math.max(-low, high) || 1;
  const mix = (tone, share) => `color-mix(in srgb, var(--${tone}) ${Math.round(72 * Math.min(1, share))}%, transparent)`;
  const signed = low < 0 && high > 0;
  const tone = (value) => (signed && value < 0 ? minus : plus);
  const ramp = signed ? `linear-gradient(90deg, ${mix(minus, 1)}, transparent, ${mix(plus, 1)})` : low < 0 ? `linear-gradient(90deg, ${mix(plus, 1)}, transparent)` : `linear-gradient(90deg, transparent, ${mix(plus, 1)})`;
  return { paint: (value) => (value === null || value === undefined ? "transparent" : mix(tone(value), Math.abs(value) / reach)), ramp, from: signed ? -reach : low, to: signed ? reach : high };
}

// Line breaks get a sign, or nobody could point at them.
function visible(token) {
  return token.split(/(\n)/).filter((part) => part).map((part) => (part === "\n" ? h("span", null, h("span", { class: "mark" }, "↵"), "\n") : part)).concat(token === "" ? [h("span", { class: "mark" }, "∅")] : []);
}

function watchTokens(flow, row) {
  const tip = document.getElementById("tip");
  flow.addEventListener("pointermove", (event) => {
    const chip = event.target.closest("[data-token]");
    tip.hidden = !chip;
    if (!chip) return;
    const i = Number(chip.dataset.token);
    const lines = QUANTITIES.filter(({ key }) => row[key].length).map(({ key, label }) => [label, number(row[key][i])]);
    if (row.logprobs.length && row.logprobs[i] !== null) lines.splice(1, 0, ["probability", number(Math.exp(row.logprobs[i]))]);
    tip.replaceChildren(h("div", null, `token ${i + 1}: `, h("code", null, JSON.stringify(row.tokens[i]))), h("table", null, lines.map(([label, value]) => h("tr", null, h("td", null, label), h("td", null, value)))));
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = (event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18) + "px";
  });
  flow.addEventListener("pointerleave", () => { tip.hidden = true; });
}

function tokenTable(row, available) {
  const body = h("div", { class: "scroll" });
  const details = h("details", null, h("summary", null, "the tokens as a table"), body);
  details.addEventListener("toggle", () => body.replaceChildren(h("table", { class: "rows" },
    h("tr", null, h("th", null, "token"), available.map(({ label }) => h("th", { class: "num" }, label))),
    row.tokens.slice(0, MAX_TOKENS_DRAWN).map((token, i) => h("tr", null, h("td", null, h("code", null, JSON.stringify(token))), available.map(({ key }) => h("td", { class: "num" }, number(row[key][i]))))))), { once: true });
  return details;
}
