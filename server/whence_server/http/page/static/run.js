// One training run: its numbers as charts, its checkpoints, its documents, and how a text grew.

import { button, field, inputOf, link, make, timeOf, visible } from "./elements.js";
import { headRow, lineChart, short } from "./charts.js";
import { compute, read } from "./requests.js";
import { sayRunState } from "./runs.js";
import { state } from "./server.js";

export const title = "Training run";

// A chart has no more dots than this in a row.
const MOST_STEPS = 1000;

export async function show(place) {
  const { main, signal, parameters } = place;
  const [id] = parameters;
  const path = `/training/runs/${encodeURIComponent(id)}`;
  const run = await readRun(path, signal);
  const charts = make("div", "charts", make("p", "soft", "Reading the steps …"));
  const sheet = make("div", "sheet", make("h1", "", visible(run.summary.name || id)), ...facts(run));
  sheet.append(charts);
  if (state().offers.has("trace")) sheet.append(...emergence(path, place));
  sheet.append(...checkpoints(run), ...provenance(run));
  main.replaceChildren(sheet);
  document.title = `${visible(run.summary.name || id)} · whence`;
  const steps = await readSteps(path, Number(run.summary.step ?? 0), signal);
  charts.replaceChildren(...chartsOf(run, steps, id));
}

/** The run, whose lists may come in several pages. */
async function readRun(path, signal) {
  const run = await read(path, {}, signal);
  let token = run.nextPageToken;
  while (token) {
    const page = await read(path, { page_token: token }, signal);
    for (const name of ["attempts", "endings", "checkpoints", "evaluations", "gaps"])
      run[name] = [...(run[name] ?? []), ...(page[name] ?? [])];
    token = page.nextPageToken;
  }
  return run;
}

async function readSteps(path, last, signal) {
  const parameters = { stride: Math.max(1, Math.ceil(last / MOST_STEPS)), omit_examples: true };
  const steps = [];
  let token = "";
  do {
    const page = await read(`${path}/steps`, { ...parameters, page_token: token }, signal);
    steps.push(...(page.steps ?? []));
    token = page.nextPageToken;
  } while (token);
  return steps;
}

function facts({ summary, dataset }) {
  const count = (value) => Number(value ?? 0).toLocaleString("en");
  const grid = make("div", "tiles wide");
  const add = (value, name) => grid.append(make("div", "", make("b", "", value), name));
  add(sayRunState(summary.state), "state");
  add(count(summary.step), "steps");
  if (summary.loss !== undefined) add(short(Number(summary.loss)), "last loss");
  add(count(summary.numTokensSeen), "tokens seen");
  add(count(summary.numParameters), "parameters");
  if (dataset) add(count(dataset.numDocuments || dataset.numExamples), dataset.kind ?? "examples");
  const served = summary.servedModels ?? [];
  const line = make("p", "", "Begun ", timeOf(summary.startTime));
  served.forEach((name) =>
    line.append(" · ", link(`/generations?model=${encodeURIComponent(name)}`, `generations of ${visible(name)}`)),
  );
  return [line, grid];
}

function chartsOf({ started = {}, evaluations = [] }, steps, id) {
  const series = (name, valueOf) => ({
    name,
    points: steps.map((step) => [Number(step.step), valueOf(step)]).filter(([, y]) => y !== undefined),
  });
  const number = (value) => (value === undefined ? undefined : Number(value));
  const lossOf = [series("training", (step) => number(step.loss ?? 0))];
  const judged = evaluations.filter(({ metrics = {} }) => metrics.eval_loss !== undefined);
  if (judged.length)
    lossOf.push({
      name: "evaluation",
      points: judged.map(({ step, metrics }) => [Number(step), Number(metrics.eval_loss)]),
    });
  const groups = (started.groups ?? []).map(({ name }) => name);
  const byGroup = (key) => groups.map((name, i) => series(name, (step) => number(step[key]?.[i])));
  const charts = [
    lineChart({ title: "Loss", x: "step", y: "nats a token", series: lossOf }),
    lineChart({ title: "Learning rate", x: "step", y: "rate", series: [series("rate", (step) => number(step.learningRate ?? 0))] }),
    lineChart({ title: "Gradient norm", x: "step", y: "norm before clipping", series: [series("norm", (step) => number(step.gradNorm))] }),
    lineChart({ title: "Update norms", x: "step", y: "norm, logarithmic", log: true, series: byGroup("updateNorms") }),
    lineChart({ title: "Weight norms", x: "step", y: "norm", series: byGroup("weightNorms") }),
  ];
  const last = steps.at(-1);
  if (last)
    charts.push(make("p", "", link(`/training/steps/${encodeURIComponent(id)}/${last.step}`, `The examples of step ${last.step}`)));
  return charts;
}

function checkpoints({ checkpoints: saved = [] }) {
  if (!saved.length) return [];
  const table = make("table", "", headRow(["step", "path", "weights"]));
  for (const { step, path = "", weightsDigest = "" } of saved) {
    const digest = make("code", "", weightsDigest.slice(0, 16));
    digest.title = weightsDigest;
    table.append(
      make("tr", "", make("td", "", Number(step ?? 0).toLocaleString("en")), make("td", "", visible(path)), make("td", "", digest)),
    );
  }
  return [make("h2", "", "Checkpoints"), scrolling(table, "Checkpoints")];
}

function scrolling(table, name) {
  const made = make("div", "scrolling", table);
  made.tabIndex = 0;
  made.setAttribute("role", "region");
  made.setAttribute("aria-label", name);
  return made;
}

function provenance({ summary, started = {}, dataset, gaps = [] }) {
  const list = make("dl", "facts-list");
  const add = (name, value) => value && list.append(make("dt", "", name), make("dd", "", visible(String(value))));
  add("run", summary.trainingRunId);
  add("record", summary.recordPath);
  add("head of the record", summary.head);
  add("architecture", started.architecture);
  add("initial weights", started.initialWeightsDigest);
  add("model it started from", started.parent?.source);
  add("Merkle root of the documents", dataset?.merkleRoot);
  add("training set", dataset?.description);
  for (const gap of gaps) add(`gap after step ${gap.step ?? 0}`, `${gap.subject}: ${gap.reason}`);
  return [make("h2", "", "Provenance"), list];
}

/** The form that asks how likely a text was at each checkpoint. */
function emergence(path, place) {
  const result = make("div", "");
  result.setAttribute("role", "status");
  const form = make(
    "form",
    "filters",
    field("Text before it", inputOf("prompt", {})),
    field("Text", inputOf("continuation", { required: true })),
    make("button", "primary", "Trace over the training"),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const asked = Object.fromEntries(new FormData(form));
    const points = [];
    const stop = new AbortController();
    place.signal.addEventListener("abort", () => stop.abort());
    result.replaceChildren(make("p", "", "Computing … ", button("Stop", () => stop.abort())));
    try {
      for await (const { point } of compute(`${path}:trace`, { ...asked, omitGroups: true }, stop.signal)) {
        if (point) points.push([Number(point.step ?? 0), Number(point.logprob ?? 0)]);
      }
      const series = [{ name: "log p", points }];
      result.replaceChildren(lineChart({ title: "Log probability of the text", x: "step", y: "nats", series }));
    } catch (error) {
      const words = stop.signal.aborted ? "Stopped." : `Not computed: ${visible(error.message)}.`;
      result.replaceChildren(make("p", "", words));
    }
  });
  return [make("h2", "", "How a text grew"), form, result];
}
