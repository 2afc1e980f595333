// Two generations side by side: where they part, and what each thought of the other's token.

import { button, field, inputOf, link, make, timeOf, visible } from "./elements.js";
import { loadGeneration } from "./generation.js";
import { percent, probability, worded } from "./parts.js";
import { generationRow } from "./rows.js";
import { read } from "./requests.js";
import { likelihoodElsewhere, ownLikelihood } from "./scoring.js";
import { state } from "./server.js";
import { ownText } from "./text.js";
import { GenerationView } from "./view.js";

export const title = "Compare";

export async function show(place) {
  const { main, query } = place;
  const [left, right] = [query.get("left"), query.get("right")];
  if (!left || !right) return chooseOther(place, left ?? right);
  const said = make("p", "");
  said.setAttribute("role", "status");
  const likely = make("p", "likely");
  likely.setAttribute("role", "status");
  const sides = make("div", "sides");
  const row = swapped(place, left, right);
  if (state().offers.has("generate"))
    row.append(button("How likely was each for the other's model?", () => sayLikelihoods(likely, shown, place)));
  main.className = "whole";
  main.replaceChildren(make("header", "head", make("h1", "", title), said, row, likely), sides);
  const shown = [];
  const views = [];
  const changed = () => {
    views.forEach((view) => view.refresh());
    if (views.length === 2) sayDifference(said, shown, views);
  };
  const load = (id) => loadGeneration(id, place.signal, { changed, failed: place.fail });
  shown.push(...(await Promise.all([load(left), load(right)])));
  const settings = findDifferences(...shown.map(({ record }) => record.generation.decoding));
  shown.forEach(({ id, record }, i) => {
    const body = make("div", "view narrow");
    const name = i ? "r-" : "l-";
    const facts = factsOf(id, record, settings[i]);
    sides.append(make("section", "side", make("h2", "", i ? "Right" : "Left"), facts, body));
    views.push(new GenerationView(body, record, { name }));
  });
  place.signal.addEventListener("abort", () => views.forEach((view) => view.close()));
  changed();
}

function swapped({ navigate }, left, right) {
  const address = `/compare?left=${encodeURIComponent(right)}&right=${encodeURIComponent(left)}`;
  return make("p", "actions", button("Swap", () => navigate(address)));
}

/** For each of two groups of settings, those that the other one does not have, in words. */
function findDifferences(...decodings) {
  const flat = decodings.map((each) => flatten(each));
  return flat.map((own, i) => {
    const differing = Object.entries(own).filter(([name, value]) => flat[1 - i][name] !== value);
    const words = differing.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`);
    return words.join(", ") || "the same settings as the other";
  });
}

function flatten(settings) {
  const isGroup = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  return Object.fromEntries(
    Object.entries(settings).flatMap(([name, value]) => {
      if (!isGroup(value)) return [[name, JSON.stringify(value)]];
      return [["strategy", name], ...Object.entries(flatten(value))];
    }),
  );
}

function factsOf(id, { generation }, settings) {
  return make(
    "p",
    "facts",
    link(`/generations/${encodeURIComponent(id)}`, visible(generation.model)),
    " · ",
    timeOf(generation.start_time),
    make("br", ""),
    make("span", "soft", visible(settings)),
  );
}

/** Says where the two outputs part, and marks it in both. */
function sayDifference(said, shown, views) {
  const records = shown.map(({ record }) => record);
  const steps = records.map((record) => record.sequences[0]?.steps ?? []);
  const place = findParting(...steps);
  const differs = records[0].prompt.text !== records[1].prompt.text ? "The prompts differ. " : "";
  if (place < 0) {
    said.textContent = `${differs}The outputs are the same, token for token.`;
    return;
  }
  for (const view of views)
    for (const span of view.options) {
      const isParting = span.dataset.key === `0.${place}`;
      if (isParting && !span.classList.contains("parts")) span.scrollIntoView({ block: "center" });
      span.classList.toggle("parts", isParting);
    }
  const sides = ["left", "right"].map((name, i) => sayToken(name, records[i], steps[i][place], steps[1 - i][place], records[1 - i]));
  said.replaceChildren(`${differs}They part at token ${place}: ${sides.join("; ")}.`);
}

/** Has each output read by the model of the other one. */
async function sayLikelihoods(said, shown, { signal }) {
  const [left, right] = shown.map(({ record }) => record);
  said.textContent = "Reading each with the other's model …";
  try {
    const [leftThere, rightThere] = [
      await likelihoodElsewhere(left, right, signal),
      await likelihoodElsewhere(right, left, signal),
    ];
    said.textContent =
      `The left's output has ${sayBits(ownLikelihood(left))} by its own model, and ` +
      `${sayBits(leftThere)} by the right's model after the right's prompt. The right's has ` +
      `${sayBits(ownLikelihood(right))} by its own, and ${sayBits(rightThere)} by the left's. ` +
      "Fewer bits: likelier.";
  } catch (error) {
    if (!signal.aborted) said.textContent = `Not computed: ${visible(error.message)}.`;
  }
}

function sayBits({ bits }) {
  return Number.isFinite(bits) ? `${bits.toFixed(2)} bits a token` : "no number";
}

function findParting(left, right) {
  const length = Math.max(left.length, right.length);
  for (let i = 0; i < length; i += 1) {
    const [a, b] = [left[i], right[i]];
    const isSame = a && b && (a.token_id === undefined ? a.text === b.text : a.token_id === b.token_id);
    if (!isSame) return i;
  }
  return -1;
}

function sayToken(name, record, own, other, otherRecord) {
  if (!own) return `the ${name} has ended`;
  const words = `the ${name} has “${worded(ownText(record, own))}”`;
  const likely = own.logprob === undefined ? "" : ` with ${percent(probability(own.logprob))}`;
  if (!other) return words + likely;
  const text = ownText(otherRecord, other);
  const at = (own.candidates?.token_ids ?? []).findIndex((id) => record.vocabulary[id] === text);
  if (at < 0) return words + likely;
  return `${words}${likely}, and gave the other's token ${percent(probability(own.candidates.logprobs[at]))}`;
}

async function chooseOther(place, one) {
  const { main, signal, navigate } = place;
  const { generations = [] } = await read("/generations", { page_size: 100 }, signal);
  const own = generations.find(({ generationId }) => generationId === one);
  const others = generations.filter(({ generationId }) => generationId !== one);
  // Those with the same prompt come first.
  const isAlike = ({ promptPreview }) => own && promptPreview === own.promptPreview;
  others.sort((a, b) => isAlike(b) - isAlike(a));
  const list = make("ol", "rows");
  for (const each of others.slice(0, 30)) {
    const row = generationRow(each, { said: isAlike(each) ? "the same prompt" : "" });
    const left = encodeURIComponent(one ?? each.generationId);
    const right = one ? `&right=${encodeURIComponent(each.generationId)}` : "";
    row.querySelector("a").href = `/compare?left=${left}${right}`;
    list.append(row);
  }
  const form = make(
    "form",
    "filters",
    field("Or its id", inputOf("id", { required: true })),
    make("button", "primary", "Compare"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const id = encodeURIComponent(new FormData(form).get("id").trim());
    navigate(one ? `/compare?left=${encodeURIComponent(one)}&right=${id}` : `/compare?left=${id}`);
  });
  const words = one ? "Choose the generation to compare it with." : "Choose the first of two generations.";
  main.replaceChildren(make("div", "sheet", make("h1", "", title), make("p", "", words), list, form));
}
