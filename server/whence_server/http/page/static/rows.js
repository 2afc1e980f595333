// A generation as a row of a list.

import { countOf, link, make, preview, timeOf, visible } from "./elements.js";

const REASONS = {
  end_of_sequence: "complete",
  stop: "stopped at a stop string",
  length: "cut at the limit of tokens",
  cancelled: "cancelled",
  timeout: "out of time",
  interrupted: "interrupted",
  failed: "failed",
};

/** A row that leads to a generation; `begin` is a key of one of its tokens. */
export function generationRow(summary, { begin = "", said = "", found, chosen } = {}) {
  const id = encodeURIComponent(summary.generationId);
  const reason = (summary.finishReason ?? "").replace("FINISH_REASON_", "").toLowerCase();
  const facts = [
    timeOf(summary.startTime),
    visible(summary.model ?? ""),
    countOf(summary.numGeneratedTokens ?? 0, "token"),
    reason ? (REASONS[reason] ?? visible(reason)) : "running",
    ...Object.entries(summary.labels ?? {}).map(([key, value]) => visible(`${key}=${value}`)),
  ];
  if (summary.damage) facts.push(`damaged: ${visible(summary.damage)}`);
  const line = make("span", "facts");
  facts.forEach((each, i) => line.append(i ? " · " : "", each));
  const open = link(`/generations/${id}${begin ? `#${begin}` : ""}`, preview(summary.promptPreview, "prompt not on record"));
  const text = found ? excerpt(found) : preview(summary.textPreview, reason ? "no text on record" : "…");
  const row = make("li", "row", make("h3", "", open), text, line);
  if (said) row.append(make("span", "said", said));
  if (chosen) {
    const box = make("input", "");
    box.type = "checkbox";
    box.setAttribute("aria-label", "Choose for comparing");
    box.addEventListener("change", () => chosen(summary.generationId, box.checked));
    row.prepend(box);
  }
  return row;
}

/** The place where a text was found. */
function excerpt({ before = "", match = "", after = "" }) {
  const made = make("span", "preview", visible(before), make("mark", "", visible(match)), visible(after));
  made.dir = "auto";
  return made;
}
