// Line charts of the history, drawn as SVG once a second, and only while they are to be seen.

import { byId, make, setText, svg } from "./dom.js";
import { bytes, clock, compact, inWords } from "./format.js";

const WIDTH = 600, HEIGHT = 130, LEFT = 58, RIGHT = 6, TOP = 8, BOTTOM = 20;
const POINTS = { fine: 600, coarse: 2160 }, STEP = { fine: 1, coarse: 10 };
const SPANS = { fine: [60, 120, 300, 600], coarse: [1800, 3600, 10800, 21600] };   // seconds: the least that shows all there is

const CHARTS = [
  { title: "Tokens per second", lines: [["tokens_per_second", "all servers"]], show: compact },
  { title: "Time to first token", lines: [["ttft_p50", "p50"], ["ttft_p95", "p95"]], show: inWords },
  { title: "Requests per second", lines: [["requests", "all"], ["failed", "failed"]], show: compact },
  { title: "Slots", lines: [["busy", "busy"], ["waiting", "waiting"]], show: compact, floor: "slots" },
  { title: "Prompt cache", lines: [["cached", "saved"]], show: (value) => (value === null ? "–" : `${Math.round(value)} %`), most: 100 },
  { title: "Memory", lines: [["memory", "all servers"]], show: bytes, binary: true },
];

let history = { fine: null, coarse: null };
let span = "fine";
let drawn = [];

export function begin(given) {
  history = given;
  byId("charts").replaceChildren();
  drawn = CHARTS.filter((chart) => chart.lines.some(([name]) => name !== "memory") || known("memory")).map(build);
  draw();
}

const known = (name) => history.fine[name].some((value) => value !== null);

export function add(which, point) {
  const ring = history[which];
  if (!ring) return;
  for (const name of Object.keys(ring)) {
    ring[name].push(point[name] ?? null);
    if (ring[name].length > POINTS[which]) ring[name].shift();
  }
  if (which === "fine" && drawn.length < CHARTS.length && point.memory) begin(history);
}

export function choose(which) {
  span = which;
  for (const button of document.querySelectorAll("[data-span]"))
    button.setAttribute("aria-pressed", String(button.dataset.span === which));
  draw();
}

function build(chart) {
  const legend = make("div", { className: "legend" });
  const values = chart.lines.map(([, label], index) => {
    const value = make("span", { className: index ? "two" : "" }, label);
    legend.append(value);
    return value;
  });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": chart.title });
  byId("charts").append(make("div", { className: "chart" },
    make("div", { className: "chart-head" }, make("h3", {}, chart.title), legend), picture));
  const made = { chart, values, picture, hover: null, box: null };
  picture.addEventListener("pointermove", (event) => { made.hover = event.offsetX; drawOne(made); });
  picture.addEventListener("pointerleave", () => { made.hover = null; drawOne(made); });
  return made;
}

export function draw() {
  if (!document.hidden && history.fine) drawn.forEach(drawOne);
}

window.addEventListener("resize", draw);
document.addEventListener("visibilitychange", draw);

// A round number not below the largest value.
function ceiling(most, binary) {
  if (!(most > 0)) return 1;
  const base = binary ? 2 ** (10 * Math.floor(Math.log2(most) / 10)) : 1;
  const scaled = most / base, power = 10 ** Math.floor(Math.log10(scaled));
  return base * power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= scaled * 0.9999);
}

function drawOne({ chart, values, picture, hover }) {
  const width = picture.clientWidth || WIDTH;
  picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const ring = history[span], count = ring.time.length;
  const end = count ? ring.time[count - 1] : 0, there = count ? end - ring.time[0] : 0;
  const length = SPANS[span].find((each) => each >= there) ?? SPANS[span].at(-1);
  let most = 0;
  for (const name of [...chart.lines.map(([name]) => name), ...(chart.floor ? [chart.floor] : [])])
    for (const value of ring[name]) if (value > most) most = value;
  const top = chart.most ?? ceiling(most, chart.binary);
  const x = (time) => LEFT + (width - LEFT - RIGHT) * (1 - (end - time) / length);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const at = y(top * share);
    parts.push(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
    parts.push(svg("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, share ? chart.show(top * share) : "0"));
  }
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    const past = length * (1 - share);
    const label = past === 0 ? "now" : past >= 3600 ? `−${past / 3600} h` : past >= 60 ? `−${past / 60} min` : `−${past} s`;
    parts.push(svg("text", { x: LEFT + (width - LEFT - RIGHT) * share, y: HEIGHT - 4, "text-anchor": anchor }, label));
  }
  chart.lines.forEach(([name], index) => {
    let path = "", area = "", open = false, last = LEFT, before = null;
    for (let at = 0; at < count; at++) {
      const value = ring[name][at], time = ring.time[at];
      if (before !== null && time - before > 3 * STEP[span] && open) { area += `L${last} ${y(0)}Z`; open = false; }   // a gap
      before = time;
      if (value === null) {
        if (open) area += `L${last} ${y(0)}Z`;
        open = false;
        continue;
      }
      last = Math.round(x(time) * 10) / 10;
      const point = `${last} ${Math.round(y(value) * 10) / 10}`;
      area += open ? `L${point}` : `M${last} ${y(0)}L${point}`;
      path += (open ? "L" : "M") + point;
      open = true;
    }
    if (open) area += `L${last} ${y(0)}Z`;
    if (!index && area) parts.push(svg("path", { class: "area", d: area }));
    if (path) parts.push(svg("path", { class: index ? "line two" : "line", d: path }));
  });
  let shown = count - 1;
  if (hover !== null && count) {
    const time = end - length * (1 - (hover - LEFT) / (width - LEFT - RIGHT));
    shown = ring.time.findIndex((each) => each >= time);
    if (shown < 0) shown = count - 1;
    const at = x(ring.time[shown]);
    parts.push(svg("line", { class: "cursor", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }));
    parts.push(svg("text", { x: Math.min(Math.max(at, LEFT + 28), width - 30), y: TOP + 4, "text-anchor": "middle" }, clock(ring.time[shown])));
  }
  picture.replaceChildren(...parts);
  const said = chart.lines.map(([name, label], index) => {
    const text = `${label} ${shown < 0 ? "–" : chart.show(ring[name][shown])}`;
    setText(values[index], text);
    return text;
  });
  picture.setAttribute("aria-label", `${chart.title}, ${said.join(", ")}`);
}
