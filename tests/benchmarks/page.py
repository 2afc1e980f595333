"""Time of the metrics page while a hundred streams decode, and of the page for people."""

import threading
import time
import urllib.request
from statistics import median

import served_page
from processes import answering, find_free_port, server
from workloads import S, find_directory

NUM_STREAMS = 100
NUM_NEW_TOKENS = 400
NUM_SCRAPES = 50
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def scrape(url: str) -> tuple[float, int]:
    """Scrape the page as Prometheus does; return seconds and bytes."""
    asked = urllib.request.Request(url, headers={"Accept": OPENMETRICS})
    started = time.perf_counter()
    with urllib.request.urlopen(asked) as answer:
        body = answer.read()
    return time.perf_counter() - started, len(body)


def run() -> None:
    address = f"127.0.0.1:{find_free_port()}"
    url = f"http://{address}/metrics"
    with (
        answering("collector.py", "discard") as collector,
        server(
            find_directory(S),
            *("--metrics-listen", address, "--max-batch-size", str(NUM_STREAMS)),
            *("--otlp-endpoint", collector.ready["endpoint"]),
        ) as (_, target),
        answering("load.py", target, str(S.vocabulary_size)) as load,
    ):
        command = {"num_streams": NUM_STREAMS, "num_new_tokens": NUM_NEW_TOKENS}
        load.ask(**command)  # so that every metric has its series
        idle = [scrape(url) for _ in range(NUM_SCRAPES)]
        streams = threading.Thread(target=load.ask, kwargs=command)
        streams.start()
        busy = []
        while streams.is_alive():
            busy.append(scrape(url)[0])
            time.sleep(0.1)
        streams.join()
    seconds, sizes = zip(*idle, strict=True)
    print(
        f"metrics page, {sizes[0] / 1024:.0f} KiB, {S}: {median(seconds) * 1e3:.1f} ms with "
        f"nothing running; while {NUM_STREAMS} streams decode {median(busy) * 1e3:.1f} ms, at most "
        f"{max(busy) * 1e3:.1f} ms in {len(busy)} scrapes"
    )
    served_page.run()
