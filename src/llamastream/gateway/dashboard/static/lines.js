// Logs and recent errors.

import { byId, make, setText } from "./dom.js";
import { clock } from "./format.js";

const KEPT = 3000, SHOWN = 500, ERRORS = 100;
const LEVELS = ["debug", "info", "warning", "error"];

let logs = [], errors = [], instances = new Set(), planned = false;

export function beginLines(hello) {
  byId("logs-card").hidden = !hello.logs_here;
  logs = hello.logs;
  errors = hello.troubles;
  instances = new Set();
  const choice = byId("logs-instance"), before = choice.value;
  choice.replaceChildren(make("option", { value: "*" }, "all"));
  logs.forEach(learn);
  choice.value = [...choice.options].some((each) => each.value === before) ? before : "*";
  drawLogs();
  drawErrors();
}

export function addLogs({ lines, missing }) {
  if (missing) logs.push({ time: lines[0].time, level: "warning", instance: "", message: `${missing} lines are missing here: they came too quickly` });
  for (const line of lines) { learn(line); logs.push(line); }
  if (logs.length > KEPT) logs = logs.slice(-KEPT);
  drawSoon();
}

export function addErrors({ lines }) {
  errors = [...errors, ...lines].slice(-ERRORS);
  drawErrors();
}

function learn(line) {
  if (instances.has(line.instance)) return;
  instances.add(line.instance);
  const choice = byId("logs-instance"), known = [...choice.options].slice(1);
  const next = known.find((each) => each.value.localeCompare(line.instance, "en", { numeric: true }) > 0);
  choice.insertBefore(make("option", { value: line.instance }, line.instance || "the whole"), next ?? null);
}

function drawSoon() {
  if (planned || !byId("logs-follow").checked) return;
  planned = true;
  requestAnimationFrame(() => { planned = false; drawLogs(); });
}

function row(line) {
  const said = make("span", { className: "said" }, line.message);
  const parts = [make("time", {}, clock(line.time)), make("span", { className: "level" }, line.level)];
  if (line.instance) parts.push(make("span", { className: "who" }, line.instance));
  return make("li", { className: line.level }, ...parts, said);
}

function drawLogs() {
  const list = byId("logs"), instance = byId("logs-instance").value, text = byId("logs-text").value.toLowerCase();
  const least = Number(byId("logs-level").value);
  const wanted = logs.filter((line) => (instance === "*" || line.instance === instance)
    && LEVELS.indexOf(line.level) >= least && (!text || line.message.toLowerCase().includes(text))).slice(-SHOWN);
  list.replaceChildren(...(wanted.length ? wanted.map(row) : [make("li", { className: "empty" }, "nothing here yet")]));
  if (byId("logs-follow").checked) list.scrollTop = list.scrollHeight;
}

function drawErrors() {
  setText(byId("errors-count"), String(errors.length));
  byId("errors-count").classList.toggle("some", errors.length > 0);
  byId("errors").replaceChildren(...(errors.length ? errors.toReversed().map(row) : [make("li", { className: "empty" }, "No errors. All is well.")]));
}

for (const id of ["logs-instance", "logs-level", "logs-text", "logs-follow"]) byId(id).addEventListener("input", drawLogs);

// Who scrolls up wants to read, and not to be pulled away.
byId("logs").addEventListener("wheel", (event) => { if (event.deltaY < 0) byId("logs-follow").checked = false; }, { passive: true });
byId("logs").addEventListener("keydown", (event) => {
  if (["ArrowUp", "PageUp", "Home"].includes(event.key)) byId("logs-follow").checked = false;
});
