// A small chat, streamed through the gateway like any other client's.

import { byId, make, setText } from "./dom.js";
import { inWords, number } from "./format.js";
import { events, post, reason } from "./stream.js";

const log = byId("play-log"), text = byId("play-text"), send = byId("play-send");
const MOST = 40;   // messages that are sent along
let messages = [], running = null, names = "";

export function showModels(instances) {
  const found = [...new Set(instances.flatMap((each) => (each.model ? each.model.split(", ") : [])))];
  if (found.join("\n") === names) return;
  names = found.join("\n");
  const choice = byId("play-model"), before = choice.value;
  choice.replaceChildren(...found.map((name) => make("option", { value: name }, name)));
  if (found.includes(before)) choice.value = before;
}

function add(kind, content = "") {
  log.querySelector(".hint")?.remove();
  const element = make("div", { className: kind }, content);
  log.append(element);
  log.scrollTop = log.scrollHeight;
  return element;
}

function clear() {
  running?.abort();
  messages = [];
  log.replaceChildren(make("div", { className: "hint" }, "Ask the model something: the answer streams in here."));
  setText(byId("play-stats"), "");
}

async function answer() {
  const element = add("assistant waiting");
  const began = performance.now();
  let thought = null, said = "", first = null, last = 0, pieces = 0, usage = null, timings = null, finish = null;
  running = new AbortController();
  send.textContent = "Stop";
  const stats = (end) => {
    if (first === null) return;
    const span = (last - first) / 1000, tokens = usage?.completion_tokens ?? pieces;
    const speed = timings?.predicted_per_second ?? (span > 0 && pieces > 1 ? (pieces - 1) / span : null);
    const parts = [`first token ${inWords((first - began) / 1000)}`, `${number(tokens)} tokens`];
    if (speed) parts.push(`${number(speed)} tok/s`);
    if (end) parts.push(end);
    setText(byId("play-stats"), parts.join(" · "));
  };
  try {
    const response = await post("v1/chat/completions", {
      model: byId("play-model").value || undefined, messages: messages.slice(-MOST), stream: true,
      temperature: byId("play-temperature").valueAsNumber || 0, max_tokens: byId("play-tokens").valueAsNumber || 512,
      stream_options: { include_usage: true },
    }, running.signal);
    if (!response.ok) throw new Error(await reason(response));
    for await (const [, data] of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      timings = chunk.timings ?? timings;
      const choice = chunk.choices?.[0];
      finish = choice?.finish_reason ?? finish;
      const { content, reasoning_content: reasoning } = choice?.delta ?? {};
      if (!content && !reasoning) continue;
      last = performance.now();
      first ??= last;
      pieces++;
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      if (reasoning) {
        if (!thought) { thought = make("div", { className: "reasoning" }); element.before(thought); }
        thought.append(reasoning);
      }
      if (content) {
        element.classList.remove("waiting");
        element.append(said ? content : content.trimStart());
        said += content;
      }
      if (below) log.scrollTop = log.scrollHeight;
      stats();
    }
    if (!finish) throw new Error("the connection ended before the answer did");
    stats(finish === "stop" ? "" : finish);
  } catch (error) {
    if (error.name === "AbortError") stats("stopped");
    else add("problem", error.message);
  }
  element.classList.remove("waiting");
  if (said) messages.push({ role: "assistant", content: said });
  else { messages.pop(); element.remove(); }
  running = null;
  send.textContent = "Send";
}

byId("play").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) { running.abort(); return; }   // hanging up is all it takes: the gateway stops the model
  const asked = text.value.trim();
  if (!asked) return;
  text.value = "";
  messages.push({ role: "user", content: asked });
  add("user", asked);
  answer();
});
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) byId("play").requestSubmit();
  }
});
byId("play-clear").addEventListener("click", clear);
clear();
