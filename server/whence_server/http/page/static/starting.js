// Generations that this page starts: begun by POST, then shown as any other, live.

import { read, readEvents, send, ServerError, sleep } from "./requests.js";

// The view of a generation is no reader of its stream: without this the server would cancel it.
const GRACE = "3600s";
const MOST_TRIES = 50;

/** Starts a generation with a request of the contract, and goes to its view. */
export async function start(path, request, { signal, navigate }) {
  const generationId = makeId();
  const asked = { ...request, generationId, disconnectGrace: GRACE };
  const answer = await send("POST", path, asked, signal);
  for await (const { name, data } of readEvents(answer)) {
    if (name === "failure") throw new ServerError(0, data.error);
    if (data.event?.started) break;
  }
  const id = encodeURIComponent(generationId);
  for (let tries = 1; !(await isOnRecord(id, signal)); tries += 1) {
    if (tries > MOST_TRIES) throw new ServerError(0, { message: "it is not on record" });
    await sleep(100, signal);
  }
  if (!signal.aborted) navigate(`/generations/${id}`);
}

/** Whether a generation can be read: its start reaches the disk a moment after its caller. */
async function isOnRecord(id, signal) {
  try {
    await read(`/generations/${id}`, {}, signal);
    return true;
  } catch (error) {
    if (error.status === 404) return false;
    throw error;
  }
}

/** A random UUID; `crypto.randomUUID` is missing where the page came without TLS. */
function makeId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
