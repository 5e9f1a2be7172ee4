// Who did what when: a strip for the driver and each worker, marks where workers came and went.
const WORKER_KINDS = { wait_prompts: "waits for prompts", wait_weights: "waits for weights", sync: "takes weights", generate: "generates" };

function drawTimeline() {
  const timeline = DATA.timeline;
  if (!timeline || !timeline.tracks.length) return;
  const percent = (columns) => `${(100 * columns) / timeline.columns}%`;
  const seen = new Map();
  const strip = ({ name, runs }) => h("div", { class: "role" }, h("span", { class: "name" }, name),
    h("span", { class: "track strip" }, runs.map(([kind, first, columns], i) => {
      const tone = kind.startsWith("wait") ? "wait" : toneOf(kind, i);
      seen.set(WORKER_KINDS[kind] || kind, tone);
      return h("span", { style: `left:${percent(first)};width:${percent(columns)};background:var(--${tone})`, title: `${WORKER_KINDS[kind] || kind}, ${seconds((columns * timeline.seconds) / timeline.columns)}` });
    }), timeline.marks.filter(([, text]) => text.startsWith(name + " ")).map(([column, text]) => h("b", { style: `left:${percent(column)}`, title: text }))),
    h("span", { class: "sum" }, ""));
  const tracks = timeline.tracks.map(strip);
  show("times").querySelector(".stack").append(h("div", { class: "card" }, h("h3", null, "Timeline"),
    h("p", { class: "note", style: "margin-bottom:12px" }, `${seconds(timeline.seconds)} from left to right; a mark where a worker came, rested or left`),
    h("div", { class: "roles" }, tracks), h("div", { class: "keys" }, [...seen].map(([kind, tone]) => h("span", null, h("i", { style: `background:var(--${tone})` }), kind)))));
}
