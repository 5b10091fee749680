// Tiles and alerts.

import { byId, make, setText } from "./dom.js";
import { age, bytes, compact, inWords, number, seconds } from "./format.js";

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
  made.box.hidden = false;
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
  showResponseCache(state.response_cache);
  const recoveries = Object.values(totals.recoveries).reduce((sum, count) => sum + count, 0);
  tile("Recoveries", number(recoveries), recoveries === 1 ? "stream" : "streams", mended || "no stream broke");
  tile("Uptime", age(state.time - state.uptime, state.time), "", state.connections === null ? "" : `${number(state.connections)} ${state.connections === 1 ? "connection" : "connections"}`);
}

// Without a cache there is no tile; its place stays, for a gateway that comes back with one.
function showResponseCache(cache) {
  const asked = cache ? cache.hits + cache.shared + cache.misses : 0;
  const saved = asked ? 100 * (cache.hits + cache.shared) / asked : null;
  const size = cache && [
    cache.memory_bytes ? `${bytes(cache.memory_bytes)} in memory` : "",
    cache.disk_bytes ? `${bytes(cache.disk_bytes)} on disk` : "",
  ].filter(Boolean).join(", ");
  tile("Response cache", saved === null ? "–" : number(saved, saved > 0 && saved < 10 ? 1 : 0), saved === null ? "" : "% answered",
    cache ? [
      `${count(cache.hits, "hit", "hits")}${cache.shared ? `, ${compact(cache.shared)} shared` : ""}, ${count(cache.misses, "miss", "misses")}`,
      `${count(cache.tokens_saved, "token", "tokens")} saved`, size || "empty",
    ].join(" · ") : "");
  tiles.get("Response cache").box.hidden = !cache;
  byId("tiles").classList.toggle("nine", Boolean(cache));
}

const count = (value, one, many) => `${compact(value)} ${value === 1 ? one : many}`;

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
