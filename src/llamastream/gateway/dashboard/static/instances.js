// A card for each instance, with its buttons.

import { byId, make, setText, toast } from "./dom.js";
import { age, bytes, compact, number } from "./format.js";
import { post, reason } from "./stream.js";

const LOOK = {
  ready: "good", busy: "good", loading: "info", starting: "info", draining: "warning", restarting: "warning",
  wedged: "error", failed: "error", stopped: "",
};
const WARN = {
  drain: ["Drain", "It gets no new requests; those that run go on to their end. The other instances take what comes."],
  restart: ["Restart", "It is drained, replaced by a fresh process, and takes requests again when its model is loaded."],
};

const cards = new Map();
let allowed = false;

export function mayAct(actions, why) {
  allowed = actions;
  const note = byId("no-actions");
  note.hidden = actions;
  setText(note, why ?? "");
  cards.clear();
  byId("instances").replaceChildren();
}

export function showInstances(state) {
  const list = byId("instances");
  for (const [id, card] of cards)
    if (!state.instances.some((each) => each.id === id)) { card.box.remove(); cards.delete(id); }
  for (const instance of state.instances) {
    let card = cards.get(instance.id);
    if (!card) {
      card = build(instance);
      cards.set(instance.id, card);
      list.append(card.box);
    }
    update(card, instance, state.time);
  }
  const ready = state.instances.filter((each) => each.state === "ready" || each.state === "busy").length;
  const summary = byId("summary");
  summary.hidden = false;
  summary.className = `pill ${ready === state.instances.length && ready ? "good" : ready ? "warning" : "error"}`;
  setText(summary, `${ready} of ${state.instances.length} ready`);
}

function build(instance) {
  const card = {
    state: make("span", { className: "pill" }), why: make("p", { className: "why" }), model: make("span"), facts: {},
    slots: make("div", { className: "slots", role: "img" }),
  };
  const facts = make("dl", { className: "facts" });
  const shown = [["slots", "Slots"], ["tokens_per_second", "Tokens/s"], ["rss_bytes", "Memory"], ["restarts", "Restarts"]];
  for (const [name, label] of shown)
    if (name in instance || name === "slots") {
      card.facts[name] = make("dd");
      facts.append(make("div", {}, make("dt", {}, label), card.facts[name]));
    }
  card.box = make("li", { className: "instance", "data-instance": instance.id },
    make("div", { className: "instance-head" }, make("h3", {}, instance.id), card.state), card.why, card.slots, facts);
  if (allowed) {
    card.drain = make("button", { type: "button", className: "small", "data-action": "drain" }, "Drain");
    card.restart = make("button", { type: "button", className: "small", "data-action": "restart" }, "Restart");
    card.drain.addEventListener("click", () => act(card.drain.dataset.action, instance.id));
    card.restart.addEventListener("click", () => act("restart", instance.id));
    card.restart.setAttribute("aria-label", `Restart ${instance.id}`);
    card.box.append(make("div", { className: "instance-buttons" }, card.drain, card.restart));
  }
  return card;
}

function update(card, instance, now) {
  card.state.className = `pill ${LOOK[instance.state] ?? ""}`;
  setText(card.state, instance.state);
  const model = instance.model ? `${instance.model} · ` : "";
  const why = instance.reason && instance.reason !== instance.state ? ` · ${instance.reason}` : "";
  setText(card.why, `${model}for ${age(instance.since, now)}${why}`);
  const slots = Math.max(0, instance.slots), busy = Math.min(instance.in_flight, slots);
  const shown = Math.min(slots, 64);   // of more, the share
  if (card.slots.childElementCount !== shown) card.slots.replaceChildren(...Array.from({ length: shown }, () => make("i")));
  const filled = slots > 64 ? Math.round(busy / slots * 64) : busy;
  [...card.slots.children].forEach((slot, at) => slot.classList.toggle("busy", at < filled));
  card.slots.setAttribute("aria-label", `${busy} of ${slots} slots busy`);
  const values = {
    slots: slots ? `${busy} / ${slots}` : String(instance.in_flight), tokens_per_second: compact(instance.tokens_per_second ?? null),
    rss_bytes: bytes(instance.rss_bytes), restarts: number(instance.restarts),
  };
  for (const [name, element] of Object.entries(card.facts)) setText(element, values[name]);
  if (card.drain) {
    const drained = instance.state === "draining";
    card.drain.dataset.action = drained ? "undrain" : "drain";
    setText(card.drain, drained ? "Undrain" : "Drain");
    card.drain.setAttribute("aria-label", `${drained ? "Undrain" : "Drain"} ${instance.id}`);
  }
}

async function act(action, instance) {
  if (action in WARN && !await confirmed(`${WARN[action][0]} ${instance}?`, WARN[action][1], WARN[action][0])) return;
  try {
    const response = await post("dashboard/actions", { action, instance });
    if (!response.ok) throw new Error(await reason(response));
    toast((await response.json()).message);
  } catch (error) {
    toast(`${action} ${instance}: ${error.message}`, true);
  }
}

function confirmed(title, text, yes) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  return new Promise((resolve) => {
    dialog.returnValue = "";
    byId("confirm-yes").onclick = () => dialog.close("yes");
    byId("confirm-no").onclick = () => dialog.close();
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
    byId("confirm-no").focus();
  });
}
