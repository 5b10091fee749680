// Small helpers. Whatever came from elsewhere becomes text and never HTML: there is no other way in here.

export const byId = (id) => document.getElementById(id);

// An element with properties, attributes (data-…, aria-…, role) and children; strings become text nodes.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}

// Only what differs is written: selections and screen readers are left in peace.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function toast(text, failed = false) {
  const element = make("div", { className: failed ? "toast error" : "toast" }, text);
  byId("toasts").append(element);
  setTimeout(() => element.remove(), 6000);
}
