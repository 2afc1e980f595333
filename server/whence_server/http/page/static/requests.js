// Requests to the server: JSON, and streams of events that resume by themselves.

const API = "/api/v1";
const FIRST_DELAY_MS = 250;
const LONGEST_DELAY_MS = 8000;

/** An answer that is an error, in the server's words. */
export class ServerError extends Error {
  constructor(status, { code = "", message = "", reason = "" } = {}) {
    super(message || `the server answered ${status}`);
    this.status = code === "UNAUTHENTICATED" ? 401 : status;
    this.code = code;
    this.reason = reason;
  }

  /** True if the same request may succeed later. */
  get isPassing() {
    if (this.code) return ["UNAVAILABLE", "RESOURCE_EXHAUSTED"].includes(this.code);
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The address of a resource; parameters without a value are left out, lists are repeated. */
export function addressOf(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters))
    for (const each of Array.isArray(value) ? value : [value])
      if (each !== undefined && each !== null && each !== "") query.append(name, each);
  const encoded = query.toString();
  return `${API}${path}${encoded ? `?${encoded}` : ""}`;
}

/** The JSON of a resource. */
export async function read(path, parameters, signal) {
  const answer = await ask(addressOf(path, parameters), { signal });
  return answer.json();
}

/** Sends JSON that changes or starts something; returns the answer. */
export function send(method, path, body, signal) {
  // A page of another site cannot send this header.
  const headers = { "X-Whence-Request": "1" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  return ask(`${API}${path}`, { method, headers, body: JSON.stringify(body), signal });
}

export async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, { message: "the server does not answer" });
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new ServerError(answer.status, body.error);
}

/**
 * The events of a resource, each {id, data}, until the server ends them.
 *
 * A broken connection is opened again after the last id. `changed` is told "open" and "broken".
 * An error that the same request would meet again is thrown.
 */
export async function* follow(path, parameters, { signal, after = "", changed = () => {} }) {
  let last = after;
  let delay = FIRST_DELAY_MS;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream" };
      if (last) headers["Last-Event-ID"] = last;
      const answer = await ask(addressOf(path, parameters), { headers, signal });
      changed("open");
      for await (const event of readEvents(answer)) {
        delay = FIRST_DELAY_MS;
        if (event.name === "end") return;
        if (event.name === "failure") throw new ServerError(0, event.data.error);
        if (event.id) last = event.id;
        yield event;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ServerError && !error.isPassing) throw error;
    }
    changed("broken");
    await sleep(delay * (0.5 + Math.random()), signal);
    delay = Math.min(delay * 2, LONGEST_DELAY_MS);
  }
}

/** The server-sent events of an answer (WHATWG HTML, "Server-sent events"). */
export async function* readEvents(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = {};
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (event.data) yield { ...event, data: JSON.parse(event.data) };
          event = {};
        } else addField(event, line);
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function addField(event, line) {
  const [, field, value] = /^([^:]*):? ?(.*?)\r?$/.exec(line);
  if (field === "data") event.data = event.data ? `${event.data}\n${value}` : value;
  else if (field === "id") event.id = value;
  else if (field === "event") event.name = value;
}

export function sleep(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}

/** The messages of a request that computes: started by POST, and not repeated. */
export async function* compute(path, body, signal) {
  const answer = await send("POST", path, body, signal);
  for await (const event of readEvents(answer)) {
    if (event.name === "end") return;
    if (event.name === "failure") throw new ServerError(0, event.data.error);
    yield event.data;
  }
  throw new ServerError(0, { message: "the connection broke before the end" });
}
