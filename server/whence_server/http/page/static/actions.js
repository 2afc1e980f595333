// What one can do with a generation: as links and buttons, each where the server offers it.

import { button, link, make, visible } from "./elements.js";
import { explainPart } from "./explain.js";
import { forkPart } from "./fork.js";
import { addressOf, compute, send } from "./requests.js";
import { state } from "./server.js";

/** The row of actions of a whole generation. */
export function actions(place, shown) {
  const { id, record, complete } = shown;
  const { offers, traceUrl } = state();
  const row = [];
  const path = `/generations/${encodeURIComponent(id)}`;
  if (!complete && offers.has("cancel")) row.push(button("Cancel", () => cancel(path, place)));
  row.push(link(`/compare?left=${encodeURIComponent(id)}`, "Compare with another"));
  if (complete && offers.has("verify"))
    row.push(button("Verify", () => verify(path, shown, place)));
  if (complete && offers.has("bundle")) {
    const made = link(addressOf(`${path}/bundle`), "Proof bundle");
    made.download = `${id}.json`;
    row.push(made);
  }
  const { trace_id: trace } = record.generation;
  if (traceUrl && trace) row.push(link(traceUrl.replace("{trace_id}", trace), "Trace"));
  const data = link(addressOf(path), "JSON");
  data.target = "_blank";
  row.push(data);
  return row;
}

/** Further elements of the panel of a token, or of the overview. */
export function panelActions(place, shown, step, key) {
  if (!step || key.startsWith("prompt.")) return [];
  return [...explainPart(place, shown, step, key), ...forkPart(place, shown, step, key)];
}

async function cancel(path, place) {
  try {
    await send("POST", `${path}:cancel`, {}, place.signal);
  } catch (error) {
    place.say(`It could not be cancelled: ${visible(error.message)}.`);
  }
}

async function verify(path, shown, place) {
  const said = findNote(place.main);
  said.replaceChildren(make("p", "", "Computing it again …"));
  try {
    for await (const message of compute(`${path}:verify`, {}, place.signal)) {
      const { check, result } = message;
      if (check) said.append(make("p", "soft", sayCheck(check)));
      if (result) said.prepend(make("p", "", make("b", "", sayVerdict(result))));
    }
  } catch (error) {
    if (!place.signal.aborted) said.replaceChildren(make("p", "", `Not verified: ${visible(error.message)}.`));
  }
}

function sayCheck({ subject = "", outcome = "", message = "" }) {
  const words = (name, prefix) => name.replace(prefix, "").toLowerCase().replaceAll("_", " ");
  const found = words(outcome, "VERIFICATION_OUTCOME_");
  return visible(`${words(subject, "VERIFICATION_SUBJECT_")}: ${found}${message ? `: ${message}` : ""}`);
}

function sayVerdict({ verdict = "" }) {
  return verdict.replace("VERDICT_", "").toLowerCase().replaceAll("_", " ");
}

/** A place for what an action says, below the head. */
function findNote(main) {
  const found = main.querySelector(".said-by-action");
  if (found) return found;
  const made = make("div", "said-by-action");
  made.setAttribute("role", "status");
  main.querySelector(".head").after(made);
  return made;
}
