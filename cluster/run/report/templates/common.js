// What the other scripts share: the data, colours of the scheme in use, number text, element building.
// Text always goes in as text nodes, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
let SERIES = DATA.series; // a page of several runs draws one after another

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

// Four significant digits, as the console writes them.
function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return value.toLocaleString("en-US");
  if (size < 1e-3 || size >= 1e9) return value.toExponential(1);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(4)));
}

function seconds(value) {
  if (value === null) return "–";
  return value < 100 ? number(Number(value.toPrecision(3))) + " s" : Math.round(value / 6) / 10 + " min";
}

// The steps at which a metric has a value, with the values.
function points(name) {
  const x = [], y = [];
  (SERIES.columns[name] || []).forEach((value, i) => {
    if (value !== null) { x.push(SERIES.steps[i]); y.push(value); }
  });
  return { x, y };
}

const has = (name) => points(name).x.length > 0;
const sum = (values) => values.reduce((total, value) => total + value, 0);
const mean = (values) => (values.length ? sum(values) / values.length : 0);

// Every drawn chart, to draw again when the colour scheme changes.
const DRAWN = [];

function plot(element, figure) {
  const draw = () => {
    const { traces, layout } = figure();
    Plotly.react(element, traces, { ...baseLayout(), ...layout }, { displayModeBar: false, responsive: true });
  };
  DRAWN.push(draw);
  draw();
}

function axis(extra) {
  return {
    gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line"), tickcolor: color("line"),
    tickfont: { size: 11.5, color: color("soft") }, automargin: true, ...extra,
  };
}

function stepRange() {
  const first = SERIES.steps[0], last = SERIES.steps[SERIES.steps.length - 1];
  const pad = Math.max((last - first) * 0.02, 0.5);
  return [first - pad, last + pad];
}

function baseLayout() {
  return {
    margin: { l: 44, r: 8, t: 8, b: 26 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("ink") },
    hovermode: "x unified", showlegend: false, dragmode: "zoom",
    hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { size: 12.5, color: color("ink") } },
    xaxis: axis({ range: stepRange(), ...(SERIES.steps.at(-1) - SERIES.steps[0] <= 7 ? { dtick: 1, tick0: SERIES.steps[0] } : { nticks: 7 }), tickformat: ",d", hoverformat: ",d", showgrid: false }),
    yaxis: axis({ nticks: 5, exponentformat: "e" }),
  };
}

// A colour with an alpha, for fills.
function faded(name, alpha) {
  const hex = color(name).slice(1);
  const part = (i) => parseInt(hex.slice(i, i + 2), 16);
  return `rgba(${part(0)},${part(2)},${part(4)},${alpha})`;
}

function show(id) {
  const section = document.getElementById(id);
  section.hidden = false;
  return section;
}
