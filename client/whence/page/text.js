// The text: one span for each token, coloured by its surprise, or by what another drew on it.

import { make, percent, probability, visible, worded } from "./parts.js";

export const NUM_SURPRISES = 9; // bits; what is rarer looks the same
export const NUM_SHARES = 8;
export const SPREAD = 0.7;

/** A token's own text by its id; its number where the vocabulary is not known. */
export function textOf(record, tokenId) {
  if (tokenId === undefined || tokenId === null) return "?";
  return record.vocabulary[tokenId] || `#${tokenId}`;
}

/** The text of a step's token by itself. */
export function ownText(record, step) {
  return step.token_id === undefined ? step.text : textOf(record, step.token_id);
}

/** How surprised the model was, in bits; undefined where nothing says so. */
export function surprise(step) {
  if (step.logprob === undefined) return undefined;
  return step.logprob === null ? Infinity : -step.logprob / Math.LN2;
}

export function surpriseClass(step) {
  const bits = surprise(step);
  return bits === undefined || bits < 0.5 ? "s0" : `s${Math.min(Math.round(bits), NUM_SURPRISES)}`;
}

/** What stands in the text for a token: what it added, or a mark where that was nothing. */
export function tokenParts(text, own) {
  if (text === "") return [make("span", "mark", own && own.trim() ? "◦" : "·")];
  const parts = [];
  for (const piece of visible(text).split(/(\n)/)) {
    if (piece === "\n") parts.push(make("span", "mark", "↵"), "\n");
    else if (piece) parts.push(piece);
  }
  return parts;
}

export function promptSpans(record, name) {
  const { text, texts, token_ids: ids, steps } = record.prompt;
  if (!texts.length) return text ? [make("span", "token prompt", visible(text))] : [];
  return texts.map((added, index) => {
    const span = make("span", "token prompt", ...tokenParts(added, textOf(record, ids[index])));
    span.dataset.position = index;
    if (steps[index]) makeOption(span, `prompt.${index}`, steps[index], added, name);
    return span;
  });
}

export function outputSpans(record, sequence, name, from = 0) {
  return sequence.steps.slice(from).map((step) => {
    const own = textOf(record, step.token_id);
    const span = make("span", "token", ...tokenParts(step.text, own));
    span.dataset.position = record.prompt.num_tokens + step.index;
    makeOption(span, `${sequence.index}.${step.index}`, step, step.text || own, name);
    return span;
  });
}

function makeOption(span, key, step, text, name) {
  span.id = `${name}t${key}`;
  span.dataset.key = key;
  span.classList.add(surpriseClass(step));
  span.setAttribute("role", "option");
  span.setAttribute("aria-selected", "false");
  const said = step.logprob === undefined ? "" : `, ${percent(probability(step.logprob))}`;
  span.setAttribute("aria-label", worded(text) + said);
}

/** Colours the positions that a step drew on; the strongest is the darkest. */
export function paintSources(text, spans, step, newest) {
  for (const span of text.querySelectorAll("[data-share]")) {
    span.classList.remove(`w${span.dataset.share}`);
    delete span.dataset.share;
    span.removeAttribute("title");
  }
  if (!step || !step.sources) return 0;
  const shares = sharesByPosition(step, newest);
  const most = Math.max(...shares.values());
  for (const [position, share] of shares) {
    const span = spans.get(position);
    if (!span || share <= 0) continue;
    span.dataset.share = shareClass(share, most);
    span.classList.add(`w${span.dataset.share}`);
    span.title = `${percent(share)} of what it drew from its context`;
  }
  return most;
}

/** Which of the shades a share has; small ones are spread out, so that they can be told apart. */
function shareClass(share, most) {
  return Math.max(1, Math.ceil((share / most) ** SPREAD * NUM_SHARES));
}

/** Shares by position, the newest among them. */
export function sharesByPosition(step, newest) {
  const { positions, shares, self_share: own } = step.sources;
  const found = new Map(positions.map((position, i) => [position, shares[i]]));
  if (own !== undefined && newest >= 0) found.set(newest, own);
  return found;
}

/** Bars of surprise along the output, and where the chosen token is. */
export function drawStrip(canvas, steps, chosen) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const step = width / Math.max(steps.length, 24);
  steps.forEach((each, index) => {
    const bits = surprise(each);
    if (bits === undefined) return;
    const tall = Math.max(1.5, (Math.min(bits, 12) / 12) * (height - 3));
    const chosenOne = index === chosen;
    pen.fillStyle = style.getPropertyValue(
      chosenOne
        ? "--accent"
        : bits < 0.5
          ? "--line"
          : `--s${Math.min(Math.max(Math.round(bits), 3), NUM_SURPRISES)}`,
    );
    pen.fillRect(index * step, height - tall, Math.max(step - (step > 3 ? 1 : 0), 0.6), tall);
  });
}
