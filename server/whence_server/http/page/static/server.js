// The server: what it offers, its models, the vocabularies of its records.

import { read } from "./requests.js";
import { Vocabulary } from "./vocabulary.js";

let known = { offers: new Set(), traceUrl: "", models: [] };
let asking;
const vocabularies = new Map();

/** The server's state as it was last read: what it offers, for one. */
export function state() {
  return known;
}

/** Reads the server's state. */
export async function readState(signal) {
  const found = await read("/server", {}, signal);
  known = { traceUrl: "", models: [], ...found, offers: new Set(found.offers ?? []) };
  return known;
}

/** Reads the server's state once. */
export function findState() {
  asking ??= readState().catch((error) => {
    asking = undefined;
    throw error;
  });
  return asking;
}

/** Forgets what was read, as another caller may see other things. */
export function forgetState() {
  asking = undefined;
  vocabularies.clear();
}

/** The vocabulary of a generation's tokens; null if the server has it not. */
export function findVocabulary({ model, tokenizerDigest }) {
  const key = tokenizerDigest || model;
  if (!vocabularies.has(key)) {
    const parameters = { model, tokenizer_digest: tokenizerDigest };
    const found = read("/vocabulary", parameters).then(
      ({ tokens = [] }) => (tokens.length ? new Vocabulary(tokens) : null),
      (error) => {
        vocabularies.delete(key);
        // Without it tokens have their numbers.
        if (error.status !== 401) return null;
        throw error;
      },
    );
    vocabularies.set(key, found);
  }
  return vocabularies.get(key);
}
