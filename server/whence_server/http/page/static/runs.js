// All training runs that the server has records of.

import { link, make, timeOf, visible } from "./elements.js";
import { read } from "./requests.js";
import { short } from "./charts.js";

export const title = "Training";

export async function show({ main, signal }) {
  const list = make("ol", "rows");
  let token = "";
  do {
    const page = await read("/training/runs", { page_token: token }, signal);
    list.append(...(page.trainingRuns ?? []).map(runRow));
    token = page.nextPageToken;
  } while (token);
  const none = "No training is on record here. One line in a Trainer's program records it: record(trainer).";
  main.replaceChildren(
    make("div", "sheet", make("h1", "", title), list.childElementCount ? list : make("p", "soft", none)),
  );
}

export function sayRunState(state) {
  return (state ?? "").replace("TRAINING_STATE_", "").toLowerCase();
}

function runRow(run) {
  const id = run.trainingRunId;
  const facts = make("span", "facts", timeOf(run.startTime), ` · ${sayRunState(run.state)}`);
  const steps = Number(run.step ?? 0).toLocaleString("en");
  const planned = Number(run.numPlannedSteps ?? 0).toLocaleString("en");
  facts.append(` · step ${steps}${run.numPlannedSteps ? ` of ${planned}` : ""}`);
  if (run.loss !== undefined) facts.append(` · loss ${short(Number(run.loss))}`);
  facts.append(` · ${Number(run.numParameters ?? 0).toLocaleString("en")} parameters`);
  const open = link(`/training/${encodeURIComponent(id)}`, visible(run.name || id));
  const row = make("li", "row", make("h3", "", open), facts);
  if (run.servedModels?.length)
    row.append(make("span", "said", `served here as ${visible(run.servedModels.join(", "))}`));
  return row;
}
