// A form that generates; the answer is then shown as any generation, live.

import { choiceOf, field, inputOf, make, visible } from "./elements.js";
import { read } from "./requests.js";
import { start } from "./starting.js";

export const title = "Ask";

export async function show(place) {
  const { main, signal, query } = place;
  const { models = [] } = await read("/models", {}, signal);
  const ready = models.filter(({ state }) => state === "MODEL_STATE_READY");
  const said = make("p", "wrong");
  said.setAttribute("role", "alert");
  const form = make("form", "filters", ...fieldsOf(ready, query));
  const submit = make("button", "primary", "Generate");
  form.append(submit);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    said.textContent = "";
    submit.disabled = true;
    try {
      await start("/generations", makeRequest(new FormData(form)), place);
    } catch (error) {
      if (!signal.aborted) said.textContent = `${visible(error.message)}.`;
    }
    submit.disabled = false;
  });
  const none = make("p", "", "No model is ready. Try again in a moment.");
  main.replaceChildren(make("div", "sheet", make("h1", "", title), ready.length ? form : none, said));
}

function fieldsOf(models, query) {
  const chats = models.some(({ chatTemplates = [] }) => chatTemplates.length);
  const number = (name, hint, others = {}) => inputOf(name, { type: "number", placeholder: hint, ...others });
  return [
    field("Text", inputOf("text", { type: "area", rows: 4, required: true, value: query.get("text") ?? "" })),
    make(
      "div",
      "fields",
      field("As", choiceOf("as", [...(chats ? [["chat", "a message of a chat"]] : []), ["prompt", "a text to continue"]], chats ? "chat" : "prompt")),
      field("Model", choiceOf("model", models.map(({ model }) => [model, model]), models[0]?.model)),
      field("Record", choiceOf("detail", [["TRACE_DETAIL_INTERNALS", "everything"], ["TRACE_DETAIL_DECISIONS", "decisions"], ["TRACE_DETAIL_TOKENS", "tokens alone"]], "TRACE_DETAIL_INTERNALS")),
      field("Most tokens", number("maxNewTokens", "128", { min: 1 })),
    ),
    make(
      "details",
      "",
      make("summary", "", "How tokens are chosen"),
      make(
        "div",
        "fields",
        field("Choice", choiceOf("strategy", [["", "the model's own"], ["greedy", "the likeliest"], ["sample", "drawn at random"], ["beamSearch", "beam search"]])),
        field("Temperature", number("temperature", "1", { min: 0, step: "any" })),
        field("Top p", number("topP", "1", { min: 0, max: 1, step: "any" })),
        field("Top k", number("topK", "50", { min: 0 })),
        field("Min p", number("minP", "0", { min: 0, max: 1, step: "any" })),
        field("Seed", number("seed", "any", { min: 0 })),
        field("Beams", number("numBeams", "4", { min: 2 })),
        field("Sequences", number("numReturnSequences", "1", { min: 1 })),
        field("Repetition penalty", number("repetitionPenalty", "1", { min: 0.01, step: "any" })),
        field("Candidates", number("numCandidates", "8", { min: 0 })),
        field("Stop before", inputOf("stop", {})),
      ),
    ),
  ];
}

/** The request of a form, in the contract's JSON. */
function makeRequest(form) {
  const textOf = (name) => (form.get(name) ?? "").trim();
  const pick = (...names) =>
    Object.fromEntries(names.filter((name) => textOf(name)).map((name) => [name, Number(textOf(name))]));
  const sample = pick("temperature", "topP", "topK", "minP");
  // A seed may have 64 bits, which are text in JSON.
  if (textOf("seed")) sample.seed = textOf("seed");
  const decoding = pick("maxNewTokens", "numReturnSequences", "repetitionPenalty");
  decoding.maxNewTokens ??= 128;
  if (textOf("stop")) decoding.stop = [form.get("stop")];
  const strategy = textOf("strategy") || (Object.keys(sample).length ? "sample" : "");
  if (strategy === "sample") decoding.sample = sample;
  if (strategy === "greedy") decoding.greedy = {};
  if (strategy === "beamSearch") decoding.beamSearch = pick("numBeams");
  const text = form.get("text");
  const input = form.get("as") === "chat" ? { chat: { messages: [{ role: "user", content: text }] } } : { prompt: text };
  return {
    ...input,
    model: form.get("model"),
    decoding,
    trace: { detail: form.get("detail"), ...pick("numCandidates") },
  };
}
