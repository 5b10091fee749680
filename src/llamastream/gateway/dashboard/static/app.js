// Signs in, stays connected, and hands on what comes.

import { add, begin, choose, draw } from "./charts.js";
import { byId, setText } from "./dom.js";
import { clock } from "./format.js";
import { mayAct, showInstances } from "./instances.js";
import { addErrors, addLogs, beginLines } from "./lines.js";
import { showAlerts, showOverview } from "./overview.js";
import { showModels } from "./playground.js";
import { ask, events, hasKey, reason, setKey } from "./stream.js";

const SILENT = 5000;   // milliseconds without anything, where something comes each second
const SHORTEST = 500, LONGEST = 10000;   // milliseconds between two attempts

let attempts = 0, heardAt = 0, shownAt = null, current = null, again = null;

function connection(state, text) {
  document.body.dataset.connection = state;
  const pill = byId("connection");
  pill.className = `pill ${{ live: "good", lost: "error" }[state] ?? "info"}`;
  setText(pill, text);
  byId("stale").hidden = state !== "lost";
}

function showLogin(message) {
  shownAt = null;
  connection("out", "signed out");
  byId("main").hidden = true;
  byId("alerts").hidden = true;
  byId("alerts").dataset.mark = "";
  byId("summary").hidden = true;
  byId("leave").hidden = true;
  byId("login").hidden = false;
  setText(byId("login-error"), message);
  byId("key").focus();
}

function hello(data) {
  attempts = 0;
  byId("login").hidden = true;
  byId("main").hidden = false;
  byId("leave").hidden = !hasKey();
  mayAct(data.actions, data.no_actions);
  begin(data.history);
  beginLines(data);
  const who = data.key ? `, signed in with the key ${data.key}` : "";
  setText(byId("foot"), `llamastream ${data.version}${who}`);
  if (data.state.time) show(data.state);
}

function show(state) {
  shownAt = state.time;
  connection("live", "live");
  showOverview(state);
  showAlerts(state.alerts);
  showInstances(state);
  showModels(state.instances);
  if (state.point) add("fine", state.point);
  if (state.coarse) add("coarse", state.coarse);
  if (state.point) draw();
}

const HANDLERS = { hello, state: show, logs: addLogs, troubles: addErrors };

async function watch() {
  clearTimeout(again);
  const mine = current = new AbortController();
  heardAt = performance.now();
  let refused = null;
  try {
    const response = await ask("dashboard/events", { signal: mine.signal });
    if (response.status === 401 || (response.status === 403 && hasKey())) {
      refused = hasKey() ? await reason(response) : "";
    } else if (!response.ok) {
      throw new Error(await reason(response));
    } else {
      for await (const [name, data] of events(response, () => { heardAt = performance.now(); }))
        if (mine === current) HANDLERS[name]?.(JSON.parse(data));
      throw new Error("the gateway ended the connection");
    }
  } catch (error) {
    if (mine === current) lost(error);
    return;
  }
  if (mine === current && refused !== null) {
    current = null;
    setKey("");
    showLogin(refused);
  }
}

function lost(error) {
  current = null;
  const wait = Math.min(LONGEST, SHORTEST * 2 ** attempts++) * (0.75 + Math.random() / 2);
  const since = shownAt === null ? "" : ` What you see is of ${clock(shownAt)}.`;
  const why = error instanceof TypeError ? "the gateway cannot be reached" : error.message;
  connection("lost", "no connection");
  setText(byId("stale-text"), `No connection: ${why}.${since} Trying again…`);
  again = setTimeout(watch, wait);
}

setInterval(() => {
  if (current && performance.now() - heardAt > SILENT) {
    const silent = current;
    lost(new Error(`nothing was heard for ${SILENT / 1000} s`));
    silent.abort();
  }
}, 1000);

byId("retry").addEventListener("click", () => { current?.abort(); attempts = 0; watch(); });
window.addEventListener("online", () => { if (!current && byId("login").hidden) watch(); });

byId("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("key").value.trim();
  byId("key").value = "";
  setText(byId("login-error"), "");
  if (!/^[\x21-\x7e]+$/.test(text)) { showLogin("That is no API key: it has printable ASCII characters, and no blanks."); return; }
  setKey(text);
  watch();
});

byId("leave").addEventListener("click", () => {
  const mine = current;
  current = null;
  mine?.abort();
  clearTimeout(again);
  setKey("");
  location.reload();   // nothing that was shown is kept
});

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("llamastream-theme", root.dataset.theme); } catch { /* until the page is left */ }
});

for (const button of document.querySelectorAll("[data-span]")) button.addEventListener("click", () => choose(button.dataset.span));

watch();
