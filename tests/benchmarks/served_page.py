"""Time in which a browser shows a long generation, and the cost of many open pages to a server."""

import asyncio
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median

from processes import answering, find_free_port, server
from workloads import S, Workload, find_directory

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import httpx
from browser import browser, find_missing_browser
from selenium.webdriver.remote.webdriver import WebDriver

from whence import Client

NUM_TOKENS = 4_096
NUM_PAGES = 50
NUM_STREAMS = 16
NUM_NEW_TOKENS = 512
NUM_RUNS = 5
DEEP = Workload("D", 24, 64, 4, 4_096)
"""A model with the layers of a real one, and little to compute."""
# Milliseconds since the navigation began, of the first token on the screen and of the last.
_SEEN = """
const [count, done] = arguments;
let first = 0;
const look = () => {
  const shown = document.querySelectorAll("#text [role=option]").length;
  if (shown && !first) first = performance.now();
  if (shown >= count) done([first, performance.now()]);
  else requestAnimationFrame(look);
};
look();
"""
_SCROLL = """
const [done] = arguments;
const reading = document.querySelector("#reading");
const times = [];
let last = performance.now();
const step = (now) => {
  times.push(now - last);
  last = now;
  reading.scrollTop += 60;
  if (times.length < 120) requestAnimationFrame(step);
  else done(times.slice(1));
};
requestAnimationFrame(step);
"""


def measure_opening(driver: WebDriver, url: str) -> tuple[float, float]:
    driver.get("about:blank")
    driver.get(url)
    first, last = driver.execute_async_script(_SEEN, NUM_TOKENS)
    return first, last


def show_long_generation() -> None:
    missing = find_missing_browser()
    if missing is not None:
        print(f"the served page is left out: {missing}")
        return
    address = f"127.0.0.1:{find_free_port()}"
    with (
        tempfile.TemporaryDirectory() as profile,
        server(find_directory(DEEP), "--http-listen", address) as (_, target),
        Client(target) as client,
        browser(Path(profile)) as driver,
    ):
        driver.set_script_timeout(120)
        generation = client.generate(
            list(range(1, 33)),
            temperature=1.0,
            seed=1,
            max_new_tokens=NUM_TOKENS,
            ignore_eos=True,
            detail="internals",
        )
        for _ in generation:
            pass
        url = f"http://{address}/generations/{generation.id}"
        opened = [measure_opening(driver, url) for _ in range(NUM_RUNS)]
        frames = sorted(driver.execute_async_script(_SCROLL))
    first, last = (median(times) for times in zip(*opened, strict=True))
    print(
        f"a generation of {NUM_TOKENS:,} tokens with internals of {DEEP.num_layers} layers: first "
        f"tokens on the screen after {first:.0f} ms, the last after {last:.0f} ms; while it "
        f"scrolls, a frame takes {median(frames):.0f} ms, of 100 one more than {frames[-2]:.0f} ms"
    )


async def _watch(url: str, opened: asyncio.Semaphore, closing: asyncio.Event) -> None:
    async with httpx.AsyncClient(timeout=None) as client, client.stream("GET", url) as answer:
        opened.release()
        async for _ in answer.aiter_raw():
            if closing.is_set():
                return


class OpenPages(threading.Thread):
    """Readers of what the page of running generations reads, in a thread."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.are_open = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()

    def run(self) -> None:
        self._loop.run_until_complete(self._run())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)

    async def _run(self) -> None:
        opened = asyncio.Semaphore(0)
        watches = [
            asyncio.create_task(_watch(self._url, opened, self._closing)) for _ in range(NUM_PAGES)
        ]
        for _ in watches:
            await opened.acquire()
        self.are_open.set()
        await self._closing.wait()
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


def compare_pages() -> None:
    address = f"127.0.0.1:{find_free_port()}"
    flags = ("--http-listen", address, "--max-batch-size", str(NUM_STREAMS))
    command = {"num_streams": NUM_STREAMS, "num_new_tokens": NUM_NEW_TOKENS}
    speeds: dict[bool, list[float]] = {False: [], True: []}
    with (
        server(find_directory(S), *flags) as (_, target),
        answering("load.py", target, str(S.vocabulary_size)) as load,
    ):
        load.ask(**command)
        for number in range(2 * NUM_RUNS):
            is_watched = number % 2 == 1
            pages = OpenPages(f"http://{address}/api/v1/pulse")
            if is_watched:
                pages.start()
                pages.are_open.wait()
            made = load.ask(**command)["together"]
            speeds[is_watched].append(made["tokens"] / made["seconds"])
            if is_watched:
                pages.close()
                pages.join()
    alone, watched = median(speeds[False]), median(speeds[True])
    print(
        f"{NUM_STREAMS} streams, {S}: {alone:.0f} tokens/s, with {NUM_PAGES} open pages "
        f"{watched:.0f} tokens/s ({watched / alone:.2f})"
    )


def run() -> None:
    show_long_generation()
    compare_pages()
