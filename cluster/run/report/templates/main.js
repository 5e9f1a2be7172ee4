// Puts the page together, and draws the charts again when the colour scheme changes.
function drawEvents() {
  const events = DATA.events;
  if (!events.length) return;
  const box = document.querySelector("#events .table");
  const body = h("tbody");
  const kinds = [...new Set(events.map(({ kind }) => kind))].sort();
  const bad = (kind) => /fail|died|dead|error|lost|stuck|problem/.test(kind);
  const time = (unix) => new Date(unix * 1000).toLocaleString("sv-SE");
  const fill = (kind) => body.replaceChildren(...events.filter((event) => !kind || event.kind === kind).reverse().map((event) => h("tr", null,
    h("td", { class: "nowrap" }, time(event.time)), h("td", { class: "num" }, event.step === null ? "" : String(event.step)),
    h("td", null, h("span", { class: "kind" + (bad(event.kind) ? " bad" : "") }, event.kind)), h("td", null, event.text, event.more ? h("small", null, " " + event.more) : null))));
  const select = h("select", { "aria-label": "kind of event", onchange: (event) => fill(event.target.value) }, h("option", { value: "" }, `all kinds (${events.length})`), kinds.map((kind) => h("option", { value: kind }, kind)));
  box.append(h("div", { class: "tools" }, select, h("small", null, "newest first")), h("div", { class: "scroll" }, h("table", { class: "rows" }, h("thead", null, h("tr", null, ["time", "step", "kind", "what"].map((label, i) => h("th", { class: i === 1 ? "num" : null }, label)))), body)));
  fill("");
}

if (SERIES.steps.length) {
  drawCurves();
  drawTimes();
}
drawTimeline();
buildBrowser();
drawEvents();
if (SERIES.every > 1) document.querySelector("#learning h2").append(" ", h("small", null, `every ${SERIES.every}th step is drawn; all are in metrics.jsonl`));
document.getElementById("jump").append(...[...document.querySelectorAll("main > section[data-title]:not([hidden])")].map((section) => h("a", { href: "#" + section.id }, section.dataset.title)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => DRAWN.forEach((draw) => draw()));
document.documentElement.dataset.ready = "true";
