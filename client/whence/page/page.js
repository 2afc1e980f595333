// The self-contained page: its record is in the document.

import { factsLine, provenance } from "./facts.js";
import { GenerationView } from "./view.js";

const record = JSON.parse(document.getElementById("record").textContent);
const asked = location.hash.slice(1);

/** Keeps the choice in the address, so that it can be handed on. */
function remember(key) {
  try {
    history.replaceState(null, "", key === null ? location.pathname : `#${key}`);
  } catch {
    // Inside of another document, the page has no address of its own.
  }
}

document.getElementById("facts").append(...factsLine(record));
document.querySelector("#provenance dl").append(...provenance(record));
const view = new GenerationView(document.querySelector("main"), record, { whole: true, remember });
window.addEventListener("hashchange", () => view.open(location.hash.slice(1)));
view.open(asked);
