// Server-sent events over fetch: EventSource can neither send a header nor a body.

const MARK = { "X-Llamastream-Dashboard": "1" };

// In this tab only; where storage is switched off, as long as the page is open.
const NAME = "llamastream-key";
let key = "";
try { key = sessionStorage.getItem(NAME) ?? ""; } catch { /* then it is kept here */ }

export const hasKey = () => key !== "";

export function setKey(text) {
  key = text;
  try {
    if (text) sessionStorage.setItem(NAME, text);
    else sessionStorage.removeItem(NAME);
  } catch { /* as above */ }
}

export function ask(path, options = {}) {
  const headers = { ...MARK, ...(key ? { Authorization: `Bearer ${key}` } : {}), ...options.headers };
  return fetch(path, { cache: "no-store", credentials: "omit", redirect: "error", ...options, headers });
}

export function post(path, body, signal) {
  return ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
}

// Why something was refused, in the server's words.
export async function reason(response) {
  const text = await response.text();
  try { return JSON.parse(text).error.message ?? `status ${response.status}`; } catch { return `status ${response.status}`; }
}

// The events of a response: [name, data as text]. `heard` is called whenever something arrives.
export async function* events(response, heard = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      rest += value;
      for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {   // an event may be cut anywhere
        let name = "message", data = "";
        for (const line of rest.slice(0, end).split("\n")) {
          if (line.startsWith("event: ")) name = line.slice(7);
          else if (line.startsWith("data: ")) data += line.slice(6);
        }
        if (data) yield [name, data];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
