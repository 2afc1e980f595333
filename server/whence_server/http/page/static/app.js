// The shell: which view an address has, and what all views share.

import { make, visible } from "./parts.js";
import { askForToken, logOut } from "./login.js";
import { ServerError } from "./requests.js";
import { findState, forgetState } from "./server.js";

/** Views by address; each module has `show(place)`, and `title`. */
const VIEWS = [
  [/^\/$/, "now"],
  [/^\/generations\/?$/, "find"],
  [/^\/generations\/([^/]+)$/, "one"],
  [/^\/traces\/([0-9a-f]+)$/, "trace"],
  [/^\/training\/?$/, "runs"],
  [/^\/training\/steps\/([^/]+)\/(\d+)$/, "training_step"],
  [/^\/training\/([^/]+)$/, "run"],
  [/^\/compare$/, "compare"],
  [/^\/ask$/, "ask"],
];

const main = document.getElementById("main");
const status = document.getElementById("status");
const leave = document.getElementById("leave");
let leaving = new AbortController();
let shown = "";

/** Goes to an address of the page without loading it again. */
export function navigate(address) {
  history.pushState(null, "", address);
  open();
}

/** Says in one line how things are; screen readers read it out. */
export function say(words) {
  if (status.textContent !== words) status.textContent = words;
}

async function open() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const { pathname, search, hash } = location;
  shown = pathname + search;
  say("");
  main.className = "";
  main.replaceChildren(make("p", "note", "Loading …"));
  markLink(pathname);
  const [pattern, name] = VIEWS.find(([each]) => each.test(pathname)) ?? [];
  if (!name) return showMissing();
  const place = {
    main,
    signal,
    parameters: pattern.exec(pathname).slice(1).map(decodeURIComponent),
    query: new URLSearchParams(search),
    hash: hash.slice(1),
    navigate,
    say,
    fail: (error) => fail(error, signal),
  };
  try {
    const [view, state] = await Promise.all([import(`./${name}.js`), findState()]);
    if (signal.aborted) return undefined;
    showOffers(state);
    document.title = `${view.title} · whence`;
    await view.show(place);
  } catch (error) {
    fail(error, signal);
  }
  return undefined;
}

function fail(error, signal) {
  if (signal.aborted) return;
  if (error instanceof ServerError && error.status === 401) {
    askForToken(main, () => {
      forgetState();
      open();
    });
    return;
  }
  if (!(error instanceof ServerError)) console.error(error);
  const again = make("button", "", "Try again");
  again.type = "button";
  again.addEventListener("click", open);
  const heading = make("h1", "", "This cannot be shown");
  main.className = "";
  main.replaceChildren(make("div", "sheet", heading, make("p", "", `${visible(error.message)}.`), again));
}

function showMissing() {
  document.title = "Nothing here · whence";
  const link = make("a", "", "what runs now");
  link.href = "/";
  const words = make("p", "", "No page has this address. See ", link, ".");
  main.replaceChildren(make("div", "sheet", make("h1", "", "Nothing is here"), words));
}

function markLink(pathname) {
  for (const link of document.querySelectorAll("#pages a")) {
    const own = link.getAttribute("href");
    const within = own === "/" ? pathname === "/" : pathname.startsWith(own);
    if (within) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function showOffers({ offers, login }) {
  for (const link of document.querySelectorAll("#pages a[data-offer]"))
    link.hidden = !offers.has(link.dataset.offer);
  leave.hidden = !login;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.defaultPrevented || event.button || link.target || link.hasAttribute("download"))
    return;
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  const { origin, pathname, search, hash } = new URL(link.href);
  if (origin !== location.origin || !VIEWS.some(([pattern]) => pattern.test(pathname))) return;
  // An anchor of the same page.
  if (pathname + search === shown && hash) return;
  event.preventDefault();
  navigate(link.href);
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
leave.addEventListener("click", async () => {
  await logOut().catch(() => {});
  forgetState();
  open();
});
window.addEventListener("popstate", () => {
  if (location.pathname + location.search !== shown) open();
});

open();
