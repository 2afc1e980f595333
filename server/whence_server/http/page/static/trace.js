// The generation of a trace, or the list of them.

import { read } from "./requests.js";

export const title = "Trace";

export async function show({ parameters, signal }) {
  const [trace] = parameters;
  const { generations = [] } = await read("/generations", { trace_id: trace, page_size: 2 }, signal);
  const address = generations.length === 1
    ? `/generations/${encodeURIComponent(generations[0].generationId)}`
    : `/generations?trace=${trace}`;
  location.replace(address);
}
