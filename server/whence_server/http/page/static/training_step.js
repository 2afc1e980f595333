// One step of a training run: its numbers, and the examples that it learned from.

import { link, make, visible } from "./elements.js";
import { duration } from "./parts.js";
import { short } from "./charts.js";
import { read } from "./requests.js";
import { state } from "./server.js";

export const title = "Training step";

const MOST_EXAMPLES = 16;

export async function show({ main, signal, parameters }) {
  const [run, number] = parameters;
  const path = `/training/runs/${encodeURIComponent(run)}`;
  const asked = { first_step: number, last_step: number, include_superseded: false };
  const { steps = [] } = await read(`${path}/steps`, asked, signal);
  const [step] = steps;
  const back = link(`/training/${encodeURIComponent(run)}`, "The whole run");
  const sheet = make("div", "sheet", make("h1", "", `Step ${Number(number).toLocaleString("en")}`), make("p", "", back));
  main.replaceChildren(sheet);
  if (!step) {
    sheet.append(make("p", "", "This step is not on record."));
    return;
  }
  const grid = make("div", "tiles wide");
  const add = (value, name) => grid.append(make("div", "", make("b", "", value), name));
  add(short(Number(step.loss ?? 0)), "loss");
  add(short(Number(step.learningRate ?? 0)), "learning rate");
  if (step.gradNorm !== undefined) add(short(Number(step.gradNorm)), "gradient norm");
  add(Number(step.numTokens ?? 0).toLocaleString("en"), "tokens");
  add(duration(Number(step.durationNs ?? 0)), "time");
  sheet.append(grid, make("h2", "", "Examples"));
  const ids = (step.ranks ?? []).flatMap(({ exampleIds = [] }) => exampleIds);
  if (!ids.length) sheet.append(make("p", "soft", "Its examples are not on record."));
  if (!state().offers.has("documents")) {
    sheet.append(make("p", "", visible(ids.join(", "))));
    return;
  }
  for (const id of ids.slice(0, MOST_EXAMPLES)) {
    const { box, isMissing } = await exampleOf(path, id, signal);
    sheet.append(box);
    // The others are of the same training set.
    if (isMissing) return;
  }
  if (ids.length > MOST_EXAMPLES)
    sheet.append(make("p", "soft", `and ${ids.length - MOST_EXAMPLES} more`));
}

async function exampleOf(path, id, signal) {
  const box = make("article", "card", make("h3", "", `Example ${id}`));
  try {
    const found = await read(`${path}/document`, { example_id: id }, signal);
    const pieces = found.pieces ?? [];
    const bytes = Uint8Array.from(atob(found.text ?? ""), (one) => one.charCodeAt(0));
    const decoder = new TextDecoder();
    for (const { beginByte = 0, endByte = 0 } of pieces.length ? pieces : [{ endByte: bytes.length }]) {
      const text = decoder.decode(bytes.slice(Number(beginByte), Number(endByte)));
      const shown = make("p", "text", visible(text));
      shown.dir = "auto";
      box.append(shown);
    }
    const { source = "", sha256 = "" } = found.document ?? {};
    box.append(make("p", "soft", `document ${found.index ?? 0}, ${visible(source)}, SHA-256 ${sha256}`));
  } catch (error) {
    if (signal.aborted || error.status === 401) throw error;
    box.append(make("p", "soft", visible(error.message)));
    return { box, isMissing: error.status === 404 };
  }
  return { box, isMissing: false };
}
