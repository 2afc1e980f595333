// Reads generations by the loop of docs/clients.md, before which this is appended; prints what it
// receives as JSON, one object on each line, with the number of the reader.
// node FILE REQUEST TARGET...

async function read(reader, client, request) {
  const print = (object) => console.log(JSON.stringify({ reader, ...object }));
  try {
    for await (const { event, numUnrecordedOffsets } of generate(client, request)) {
      for (const { index, tokenId } of event.steps?.steps ?? []) print({ index, tokenId });
      if (event.finished) print({ finishReason: event.finished.finishReason, numUnrecordedOffsets });
    }
  } catch (error) {
    print({ error: error.message });
  }
}

async function readAll(request, targets) {
  const clients = Object.fromEntries(targets.map((target) => [target, connect(target)]));
  await Promise.all(targets.map((target, reader) => read(reader, clients[target], request)));
  for (const client of Object.values(clients)) client.close();
}

const [request, ...targets] = process.argv.slice(2);
readAll(JSON.parse(request), targets);
