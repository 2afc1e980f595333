// Elements that several views have.

import { make, visible } from "./parts.js";

export { make, visible };

export function link(address, words) {
  const made = make("a", "", words);
  made.href = address;
  return made;
}

export function button(words, act, className = "") {
  const made = make("button", className, words);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

/** A time of the contract, in the reader's own zone; the exact one on hover. */
export function timeOf(stamp) {
  if (!stamp) return make("span", "soft", "—");
  const made = make("time", "", sayTime(new Date(stamp)));
  made.dateTime = stamp;
  made.title = stamp;
  return made;
}

function sayTime(date) {
  const clock = date.toLocaleTimeString("en-GB");
  if (date.toDateString() === new Date().toDateString()) return `today ${clock}`;
  return `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" })} ${clock}`;
}

/** "1 token", "2,000 tokens". */
export function countOf(number, noun) {
  return `${Number(number).toLocaleString("en")} ${noun}${Number(number) === 1 ? "" : "s"}`;
}

/** Text of a prompt or an output on one line, or a word for none. */
export function preview(text, none) {
  const shown = visible(lastTurn(text ?? "")).replace(/\s+/g, " ");
  const made = shown ? make("span", "preview", shown) : make("span", "preview soft", none);
  made.dir = "auto";
  return made;
}

/** The question in a prompt that a chat template has made; any other text as it is. */
function lastTurn(text) {
  const turns = text.split(/<\|[^|<>]{1,40}\|>/);
  const asked = turns.map((turn) => /^user\s+([^]+)/.exec(turn.trim())?.[1]).filter(Boolean);
  return (asked.at(-1) ?? text).trim();
}

/** A field of a form with its label; `input` is an element with a name. */
export function field(words, input, hint = "") {
  const label = make("label", "field", make("span", "", words), input);
  if (hint) label.append(make("small", "", hint));
  return label;
}

export function inputOf(name, { type = "text", value = "", ...others } = {}) {
  const made = make(type === "area" ? "textarea" : "input", "");
  if (type !== "area") made.type = type;
  made.name = name;
  made.value = value;
  for (const [key, each] of Object.entries(others)) made[key] = each;
  return made;
}

export function choiceOf(name, choices, value = "") {
  const made = make("select", "");
  made.name = name;
  for (const [key, words] of choices) {
    const option = make("option", "", words);
    option.value = key;
    made.append(option);
  }
  made.value = value;
  return made;
}
