"""An OTLP collector in its own process, which counts spans and answers at once.

Spans that were sent twice count once in `num_spans`, and in `num_duplicates`. With the argument
"discard" it stores no spans, and only counts the received ones.
"""

import asyncio
import json
import sys
from contextlib import suppress

from whence_server.demo.receiver import Receiver

GIVEN_UP_AFTER_S = 120.0


def count_unique(receiver: Receiver) -> int:
    return len({(span.trace_id, span.span_id) for span in receiver.spans})


async def main() -> None:
    receiver = Receiver(keep="discard" not in sys.argv[1:])
    await receiver.start()
    print(json.dumps({"endpoint": receiver.endpoint}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if "wait_for" in command:
            with suppress(TimeoutError):
                async with asyncio.timeout(GIVEN_UP_AFTER_S):
                    while count_unique(receiver) < command["wait_for"]:
                        await receiver.wait_for(receiver.num_spans + 1)
        if command.get("stop"):
            await receiver.stop()
        if command.get("start"):
            await receiver.start()
        unique = count_unique(receiver)
        answer = {"num_spans": unique, "num_duplicates": receiver.num_spans - unique}
        print(json.dumps(answer), flush=True)
    await receiver.close()


if __name__ == "__main__":
    asyncio.run(main())
