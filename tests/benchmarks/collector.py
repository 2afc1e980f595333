"""An OTLP collector in a process of its own: counts what comes, answers at once."""

import asyncio
import json
import sys

from whence_server.telemetry.receiver import Receiver


async def main() -> None:
    receiver = Receiver(keep=False)
    await receiver.start()
    print(json.dumps({"endpoint": receiver.endpoint}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if "wait_for" in command:
            await receiver.wait_for(command["wait_for"])
        if command.get("stop"):
            await receiver.stop()
        if command.get("start"):
            await receiver.start()
        print(json.dumps({"num_spans": receiver.num_spans}), flush=True)
    await receiver.close()


if __name__ == "__main__":
    asyncio.run(main())
