// Numbers and times as people read them.

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

export function compact(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10 && value % 1) return number(value, 1);
  return value.toLocaleString("en", { notation: value >= 10000 ? "compact" : "standard", maximumFractionDigits: value >= 10000 ? 1 : 0 });
}

// Seconds, in the unit that fits: [number, unit].
export function seconds(value) {
  if (value === null || value === undefined) return ["–", ""];
  if (value < 0.00005) return ["0", "ms"];
  if (value < 1) return [number(value * 1000, value < 0.01 ? 1 : 0), "ms"];
  return [number(value, value < 10 ? 2 : 1), "s"];
}

export const inWords = (value) => seconds(value).join(" ").trim();

export function bytes(value) {
  if (!value) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at++; }
  return `${number(value, value < 10 && at ? 1 : 0)} ${units[at]}`;
}

export function age(from, now) {
  const past = Math.max(0, Math.round(now - from));
  if (past < 60) return `${past} s`;
  if (past < 3600) return `${Math.floor(past / 60)} min`;
  if (past < 86400) return `${Math.floor(past / 3600)} h ${Math.floor(past % 3600 / 60)} min`;
  return `${Math.floor(past / 86400)} d ${Math.floor(past % 86400 / 3600)} h`;
}

export const clock = (time) => new Date(time * 1000).toLocaleTimeString("en-GB");
