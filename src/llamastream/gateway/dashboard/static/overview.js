// Tiles and alerts.

import { byId, make, setText } from "./dom.js";
import { age, compact, inWords, number, seconds } from "./format.js";

const tiles = new Map();

function tile(name, figure, unit, detail, attention = false) {
  let made = tiles.get(name);
  if (!made) {
    made = { figure: make("span"), unit: make("span", { className: "unit" }), detail: make("div", { className: "detail" }) };
    made.box = make("div", { className: "tile", "data-tile": name },
      make("h2", {}, name), make("div", { className: "figure" }, made.figure, made.unit), made.detail);
    byId("tiles").append(made.box);
    tiles.set(name, made);
  }
  made.box.classList.toggle("attention", attention);
  setText(made.figure, figure);
  setText(made.unit, unit);
  setText(made.detail, detail);
}

export function showOverview(state) {
  const { now, recent, totals } = state;
  tile("Tokens per second", compact(now.tokens_per_second), "tok/s", `${compact(totals.completion_tokens)} generated since the start`);
  tile("Time to first token", ...seconds(recent.ttft_p50), `p95 ${inWords(recent.ttft_p95)}, last minute`);
  const all = Object.values(recent.statuses).reduce((sum, count) => sum + count, 0);
  const statuses = Object.entries(recent.statuses).map(([status, count]) => `${status}: ${number(count)}`).join(" · ");
  tile("Requests", number(all), "per min", statuses ? `${statuses}${recent.failed ? ` · ${recent.failed} failed` : ""}` : "none in the last minute", recent.failed > 0);
  tile("Queue", number(state.waiting), "waiting", `wait p95 ${inWords(recent.wait_p95)}${state.refused ? ` · ${number(state.refused)} refused` : ""}`);
  tile("Slots", `${number(now.busy)} / ${number(now.slots)}`, "busy", `${state.instances.length} ${state.instances.length === 1 ? "instance" : "instances"}`);
  const share = totals.prompt_tokens ? 100 * totals.cached_tokens / totals.prompt_tokens : null;
  const mended = Object.entries(totals.recoveries).map(([kind, count]) => `${kind} ${count}`).join(", ");
  tile("Prompt cache", share === null ? "–" : number(share, share < 10 ? 1 : 0), share === null ? "" : "% saved",
    `${compact(totals.cached_tokens)} of ${compact(totals.prompt_tokens)} prompt tokens`);
  const recoveries = Object.values(totals.recoveries).reduce((sum, count) => sum + count, 0);
  tile("Recoveries", number(recoveries), recoveries === 1 ? "stream" : "streams", mended || "no stream broke");
  tile("Uptime", age(state.time - state.uptime, state.time), "", state.connections === null ? "" : `${number(state.connections)} connections`);
}

const RANK = { critical: "error", error: "error", page: "error", warning: "warning", info: "info" };

export function showAlerts(alerts) {
  const box = byId("alerts");
  const said = alerts.map((alert) => {
    const about = [alert.rule, alert.instance ?? alert.subject].filter(Boolean).join(", ");
    return [RANK[alert.severity] ?? "warning", about, String(alert.message ?? [alert.what, alert.shown].filter(Boolean).join(": "))];
  });
  const mark = JSON.stringify(said);
  if (box.dataset.mark === mark) return;
  box.dataset.mark = mark;
  box.hidden = !said.length;
  box.replaceChildren(...said.map(([rank, about, text]) =>
    make("div", { className: `banner ${rank}` }, make("b", {}, about || "Alert"), text)));
}
