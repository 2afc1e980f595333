"""The page that a server shows, in a real browser: its views, live, with keys, and unharmed.

The server asks for a token, so that every view is one of a login.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import training_records
from awaiting import await_that
from browser import browser, set_view
from paced_model import PacedModel, save_paced_model
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.remote.webdriver import WebDriver
from served_page import Screen
from server_process import ServerProcess

from whence import Client

HOSTILE = (
    "<script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"
    "\x1b[31mred\u202eright to left\u2066 \x07 \U000e0041\u3164 \U0001f600 "
    "e\u0301 \u05e9\u05dc\u05d5\u05dd</main>"
)
TOKEN = "token-of-the-page"
SCOPES = ("generate", "read:content", "read:all", "admin", "explain")
READY = "return document.querySelector('main h1') && !document.querySelector('main > .note')"
SETTLED = "return document.querySelector('.row') || document.querySelector('.none')?.innerText"
VIEWS = ("/", "/generations", "/compare", "/ask", "/training", f"/training/{training_records.RUN}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PacedModel:
    return save_paced_model(tmp_path_factory.mktemp("paced") / "model", step_s=0.002)


@pytest.fixture(scope="module")
def start(
    model: PacedModel, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., ServerProcess]:
    """Gives a function that starts the server with its page at an address."""
    runs, data = (tmp_path_factory.mktemp(name) for name in ("runs", "data"))
    (runs / "tiny").mkdir()
    training_records.write(runs / "tiny", training_records.whole_run())
    callers = runs / "callers"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    callers.write_text(json.dumps({"id": "ann", "sha256": digest, "scopes": SCOPES}))
    callers.chmod(0o600)
    flags = ("--trust-remote-code", "--training-runs", str(runs), "--model-name", "paced")

    def start(address: str, *, open_to_all: bool = False) -> ServerProcess:
        access = () if open_to_all else ("--auth-tokens", str(callers))
        own = (*flags, *access, "--http-listen", address)
        return ServerProcess(model.directory, data, *own)

    return start


@pytest.fixture(scope="module")
def server(start: Callable[..., ServerProcess]) -> Iterator[ServerProcess]:
    with start("127.0.0.1:0") as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.target, token=TOKEN) as opened:
        yield opened


@pytest.fixture(scope="module")
def recorded(client: Client) -> str:
    """Id of a generation with internals on record."""
    return generate(client, "The quick brown fox", detail="internals", seed=1, max_new_tokens=12)


@pytest.fixture(scope="module")
def driver(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """The browser, in which a person has logged in."""
    with browser(tmp_path_factory.mktemp("profile")) as running:
        running.set_script_timeout(120)
        log_in(Screen(running, server.http_url))
        yield running


@pytest.fixture
def screen(driver: WebDriver, server: ServerProcess) -> Iterator[Screen]:
    """The page; at the end nothing may be amiss."""
    set_view(driver, 1280, 900)
    shown = Screen(driver, server.http_url)
    shown.read_complaints()
    yield shown
    complaints = shown.read_complaints()
    assert complaints == []
    assert driver.execute_script("return window.broken") is None


def log_in(screen: Screen) -> None:
    screen.open("/")
    for token, then in (("another-token", "not known here"), (TOKEN, "Last generated")):
        screen.wait_until("return document.querySelector('input[type=password]')")
        fill = "document.querySelector('input[type=password]').value = arguments[0]"
        screen.driver.execute_script(fill, token)
        screen.click("form button")
        screen.wait_for(then)
    assert screen.driver.execute_script("return document.cookie") == "", "no script can read it"


def generate(client: Client, prompt: str, **options: Any) -> str:
    options.setdefault("temperature", 1.0)
    with client.generate(prompt, **options) as generation:
        for _ in generation:
            pass
        return generation.id


def test_the_newest_generation_leads_to_a_token_and_its_reasons_by_keys_alone(
    driver: WebDriver, screen: Screen, recorded: str
) -> None:
    screen.open("/")
    screen.wait_for("The quick brown fox", ".rows")
    press = ActionChains(driver)

    def focus_on(selector: str) -> None:
        for _ in range(60):
            script = "return document.activeElement.matches(arguments[0])"
            if driver.execute_script(script, selector):
                return
            press.send_keys(Keys.TAB).perform()
        raise AssertionError(f"the tabulator does not reach {selector}")

    focus_on(f"a[href^='/generations/{recorded}']")
    press.send_keys(Keys.ENTER).perform()
    screen.wait_for("12 tokens", ".head")
    screen.wait_for("least likely", "#details")
    focus_on("#text")
    press.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
    screen.wait_for("step 1 ·", "#details")
    for heading in ("What was likely", "How it was chosen", "What it drew on", "What it cost"):
        assert heading in screen.read("#details")
    assert screen.path == f"/generations/{recorded}#0.1"
    press.send_keys(Keys.ESCAPE).perform()
    screen.wait_for("least likely", "#details")


def test_a_generation_says_where_it_came_from(
    screen: Screen, client: Client, recorded: str
) -> None:
    screen.open(f"/generations/{recorded}")
    digest = client.model().weights_digest
    screen.wait_for(digest[:16], ".origin")
    screen.click("[data-part=provenance] summary")
    screen.wait_for(digest, "[data-part=provenance]")
    screen.click("[data-part=timing] summary")
    screen.wait_for("read the prompt", "[data-part=timing]")


def test_the_address_of_a_token_opens_it(screen: Screen, recorded: str) -> None:
    screen.open(f"/generations/{recorded}#0.5")
    screen.wait_for("step 5 ·", "#details")


def test_a_running_generation_is_shown_as_its_tokens_come(
    screen: Screen, client: Client, model: PacedModel
) -> None:
    screen.open("/")
    screen.wait_for("Nothing is running", "main")
    with client.generate(
        "A long story", temperature=1.0, seed=2, max_new_tokens=8000, ignore_eos=True
    ) as generation:
        with model.held():
            screen.wait_for("A long story", ".card")
        tokens = "return document.querySelectorAll('.card .token').length > arguments[0]"
        screen.wait_until(tokens, 3)
        with model.held():
            screen.click(".card h3 a")
            screen.wait_for("running", ".head")
            screen.wait_until("return document.querySelectorAll('#text [role=option]').length > 3")
            before = screen.count("#text [role=option]")
        grown = "return document.querySelectorAll('#text [role=option]').length > arguments[0]"
        screen.wait_until(grown, before)
        client.cancel(generation.id)
    screen.wait_for("finished:", ".head")
    shown = screen.count("#text [role=option]")
    assert f"{shown:,} tokens" in screen.read(".head")
    assert client.generations.get(generation.id).finished.num_generated_tokens == shown


def test_another_token_in_its_place_starts_a_branch(
    screen: Screen, client: Client, recorded: str
) -> None:
    screen.open(f"/generations/{recorded}#0.5")
    screen.wait_for("What if another token were here?", "#details")
    screen.click("#details p.choices button")
    await_that(lambda: recorded not in screen.path, "the branch is shown")
    screen.wait_for("finished:", ".head")
    branch = screen.path.removeprefix("/generations/")
    fork = client.generations.get(branch).started.fork
    assert (fork.parent_generation_id, fork.step) == (recorded, 5)


def test_hostile_text_is_shown_and_nothing_more(screen: Screen, client: Client) -> None:
    hostile = generate(
        client, HOSTILE, temperature=None, forced=HOSTILE, labels={"<b>": HOSTILE[:40]}
    )
    for path in (
        "/",
        "/generations",
        f"/generations/{hostile}",
        f"/compare?left={hostile}&right={hostile}",
    ):
        screen.open(path)
        screen.wait_for("<script>window.broken", "main")
        assert screen.count("script") == 1
        assert screen.count("img") == 0
        shown = screen.driver.execute_script("return document.body.textContent")
        for hidden in ("\x1b", "\u202e", "\u2066", "\x07", "\U000e0041", "\u3164"):
            assert hidden not in shown
            assert hidden not in screen.driver.title


def test_a_list_goes_on_and_its_filter_is_in_the_address(
    screen: Screen, client: Client, recorded: str
) -> None:
    for number in range(60):
        generate(client, f"Number {number}", seed=number, max_new_tokens=1, labels={"lot": "many"})
    screen.open("/generations?label=lot%3Dmany")
    screen.wait_for("Number 59", ".rows")
    screen.driver.execute_script("window.scrollTo(0, 1e6)")
    screen.wait_for("Number 0\n", ".rows")
    assert screen.count(".row") == 60
    assert "quick brown fox" not in screen.read(".rows")
    screen.open("/generations?label=lot%3Dnone")
    screen.wait_for("No generation on record matches", "main")


def test_a_pasted_sentence_leads_to_the_token_where_it_begins(
    screen: Screen, client: Client
) -> None:
    text = "Nobody else has ever written this very sentence."
    made = generate(client, "Tell me", temperature=None, forced=f"Well. {text} So there.")
    screen.open("/generations")
    screen.wait_until("return document.querySelector('textarea[name=text]')")
    ask = """
    const form = document.querySelector('form');
    form.elements.text.value = arguments[0];
    form.requestSubmit();
    """

    def is_found() -> bool:
        # A generation is found a moment after its end.
        screen.driver.execute_script(ask, text)
        screen.wait_until(SETTLED)
        return "contains it, from token" in screen.read(".rows")

    await_that(is_found, "the sentence is found", 60)
    screen.click(".row h3 a")
    screen.wait_for("step ", "#details")
    assert screen.path.startswith(f"/generations/{made}#0.")


def test_two_generations_part_at_a_token(screen: Screen, client: Client) -> None:
    one, other = (
        generate(client, "Once upon a time", seed=seed, max_new_tokens=8, num_candidates=4)
        for seed in (3, 4)
    )
    texts = [[step.token_id for step in client.generations.steps(each)] for each in (one, other)]
    parting = next(i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b)
    screen.open(f"/compare?left={one}&right={other}")
    screen.wait_for(f"They part at token {parting}:", ".head")
    assert screen.count(".token.parts") == 2
    screen.click(f"#l-t0\\.{parting}")
    screen.wait_for(f"step {parting} ·", "#l-details")
    screen.open(f"/compare?left={one}")
    screen.wait_for("the same prompt", ".rows")


def test_a_training_run_has_charts_with_their_numbers(screen: Screen) -> None:
    screen.open("/training")
    screen.click(f"a[href='/training/{training_records.RUN}']")
    screen.wait_for("Update norms", ".charts")
    assert screen.count(".chart svg[role=img]") == 5
    screen.click(".chart details summary")
    screen.wait_for("1.333", ".chart details")  # 4 / 3, the loss of step 3
    screen.click("a[href^='/training/steps/']")
    screen.wait_for("Step 8", "h1")
    # The record of this run has no documents.
    screen.wait_for("Example 16", ".card")
    assert all("/document?" in complaint for complaint in screen.read_complaints())


def test_the_form_generates_and_shows_the_answer(screen: Screen) -> None:
    screen.open("/ask")
    screen.wait_until("return document.querySelector('textarea[name=text]')")
    fill = """
    const form = document.querySelector('form');
    for (const [name, value] of Object.entries(arguments[0])) form.elements[name].value = value;
    form.requestSubmit();
    """
    asked = {"text": "Say something", "maxNewTokens": "5", "temperature": "0.5", "seed": "9"}
    screen.driver.execute_script(fill, asked)
    screen.wait_for("5 tokens", ".head")
    screen.wait_for("finished:", ".head")
    assert "Say something" in screen.read("#text")


def list_views(recorded: str) -> tuple[str, ...]:
    generation = f"/generations/{recorded}"
    return (*VIEWS, generation, f"{generation}#0.5", f"/compare?left={recorded}&right={recorded}")


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_serious_fault_in_any_view(
    driver: WebDriver, screen: Screen, recorded: str, dark: bool
) -> None:
    set_view(driver, 1280, 900, dark=dark)
    for path in list_views(recorded):
        screen.open(path)
        screen.wait_until(READY)
        assert screen.find_faults() == [], path


def test_no_view_scrolls_sideways_on_a_telephone(
    driver: WebDriver, screen: Screen, recorded: str
) -> None:
    set_view(driver, 360, 740)
    for path in list_views(recorded):
        screen.open(path)
        screen.wait_until(READY)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 360, path


def test_an_unknown_address_leads_back(screen: Screen, server: ServerProcess) -> None:
    screen.open("/generations/6f1c2f0e-1d2b-4c57-9a41-0c3f5f7f9d10")
    screen.wait_for("This cannot be shown")
    (complaint,) = screen.read_complaints()
    assert "404" in complaint


def test_an_open_page_comes_back_by_itself_after_a_restart(
    screen: Screen, server: ServerProcess, start: Callable[..., ServerProcess]
) -> None:
    # The last test, as the others' server ends here.
    screen.open("/")
    screen.wait_for("Nothing is running")
    assert server.terminate() == 0
    screen.wait_for("Connection lost", "#status")
    address = urlsplit(server.http_url).netloc
    # Logins end with their server; this one asks nobody for a token.
    with start(address, open_to_all=True) as again, Client(again.target) as client:
        generate(client, "After the restart", seed=1, max_new_tokens=3)
        screen.wait_for("After the restart", ".rows")
        await_that(lambda: not screen.read("#status"), "the connection is back")
        screen.driver.get("about:blank")
        # The browser tells of each request that nobody answered.
        assert all("net::ERR_" in complaint for complaint in screen.read_complaints())
