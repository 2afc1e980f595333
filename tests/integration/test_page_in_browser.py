"""The page in a real browser: what a click and the keys bring up, and that nothing else happens."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import browser, read_console, read_requests, set_view
from internals_steps import internals_journal, internals_step
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from whence.page import make_page, write_page
from whence.v1 import generation_pb2 as pb
from whence.vocabulary import Vocabulary

HOSTILE = (
    b"</script><script>window.broken = 1</script>",
    b"<img src=x onerror='window.broken = 2'>",
    b"<!--<script>",
    b"\"'`&lt;\\u003c${window.broken = 3}",
    b"\n",
    b"\x00\x1b[31m\xe2\x80\xae",  # a right-to-left override among them
    b"\xed\xa0\x80",  # a lone surrogate
    b"\xf0\x9f",  # half of a character ...
    b"\x98\x80 caf\xc3\xa9",  # ... and its other half
    b"",
)
TEXTS = (
    *(token.decode("utf-8", "replace") for token in HOSTILE[:7]),
    "",
    "\U0001f600 caf\u00e9",
    "",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[WebDriver]:
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def opened(driver, tmp_path) -> Iterator[Path]:
    """The page of a generation whose every text is hostile; nothing may be amiss at the end."""
    events = internals_journal(
        tuple(range(len(HOSTILE))), prompt_ids=(0, 1, 4, 7, 8), vocabulary=HOSTILE, texts=TEXTS
    )
    started = events[0].started
    started.model = started.processor_names[0] = HOSTILE[0].decode()
    started.labels["<b>"] = HOSTILE[1].decode()
    started.adapter.name, started.adapter.digest = HOSTILE[1].decode(), "ad" * 32
    events[2].steps.steps[0].internals.layer_leaders[:] = [1, 0, 0]
    path = tmp_path / "page <&>.html"
    save(path, events, HOSTILE)
    set_view(driver, 1200, 900)
    show(driver, path)
    yield path
    assert read_console(driver) == []
    assert read_requests(driver) == []
    assert driver.execute_script("return window.broken") is None


def save(path: Path, events: list[pb.GenerationEvent], vocabulary: tuple[bytes, ...]) -> None:
    steps = [step for event in events[1:-1] for step in event.steps.steps]
    started, finished = events[0].started, events[-1].finished
    write_page(path, make_page(started, finished, steps, vocabulary=Vocabulary(vocabulary)))


def show(driver: WebDriver, path: Path, key: str = "") -> None:
    driver.get("about:blank")
    driver.get_log("performance")
    driver.get(f"{path.as_uri()}{'#' if key else ''}{key}")


def brightness(driver: WebDriver, name: str) -> int:
    found = driver.execute_script(f"return getComputedStyle(document.body).{name}")
    return sum(map(int, re.findall(r"\d+", found)[:3]))


def all_of(driver: WebDriver, selector: str) -> list[WebElement]:
    return driver.find_elements(By.CSS_SELECTOR, selector)


def panel(driver: WebDriver) -> str:
    return driver.find_element(By.ID, "details").text


def test_a_click_on_a_token_brings_up_all_that_is_on_record(driver, opened):
    assert "Most surprising" in panel(driver)
    assert len(all_of(driver, "#text [role=option]")) == len(HOSTILE)
    assert not all_of(driver, "#text .by-sources, #text.by-sources")
    driver.find_element(By.ID, "t0.2").click()
    said = panel(driver)
    for heading in ("What was likely", "How it was chosen", "How it formed through the layers"):
        assert heading in said
    for heading in ("What it drew on", "What it cost"):
        assert heading in said
    # Two candidates with two bars each; of the one that a processor removed, the second is empty.
    assert len(all_of(driver, "#details .bars i.drawn")) == 2
    assert "removed" in said
    # The newest and two sources, strongest first, in the panel and as colours of the context.
    rows = all_of(driver, "#details tr[data-position]")
    assert [row.get_attribute("data-position") for row in rows] == ["1", "6", "0"]
    for row, share in zip(rows, ("50.0%", "25.0%", "12.5%"), strict=True):
        assert share in row.text
    shaded = all_of(driver, "#text.by-sources [data-share]")
    assert [span.get_attribute("data-position") for span in shaded] == ["0", "1", "6"]
    colors = {span.value_of_css_property("background-color") for span in shaded}
    assert len(colors) == 3
    # Three layers, of which the chosen token leads in two.
    assert len(all_of(driver, "#details .bars i.layer")) == 3
    assert len(all_of(driver, "#details tr.chosen .bars i.layer")) == 2


def test_what_the_page_must_not_do_would_be_noticed(driver, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<script>fetch('http://127.0.0.1:9/x'); window.broken = 1; throw 'x'</script>")
    show(driver, path)
    assert read_requests(driver) == ["http://127.0.0.1:9/x"]
    assert any("Uncaught" in complaint for complaint in read_console(driver))
    assert driver.execute_script("return window.broken") == 1


def test_hostile_text_is_shown_and_nothing_more(driver, opened):
    shown = driver.find_element(By.ID, "text").get_attribute("textContent")
    for token in HOSTILE[:4]:
        assert token.decode() in shown
    assert "\\u001b[31m\\u202e" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\U0001f600 café" in shown
    for step in range(len(HOSTILE)):
        driver.find_element(By.ID, f"t0.{step}").click()
        assert f"step {step} ·" in panel(driver)
    assert len(all_of(driver, "script")) == 2
    assert all_of(driver, "img") == []
    facts = driver.find_element(By.ID, "facts").text
    assert f"{HOSTILE[0].decode()} with {HOSTILE[1].decode()}" in facts
    driver.find_element(By.CSS_SELECTOR, "#provenance summary").click()
    provenance = driver.find_element(By.ID, "provenance").text
    assert HOSTILE[1].decode() in provenance
    assert "ad" * 32 in provenance


def test_the_keys_do_what_the_mouse_does(driver, opened):
    text = driver.find_element(By.ID, "text")

    def chosen() -> list[str]:
        return [span.get_attribute("data-key") for span in all_of(driver, "[aria-selected=true]")]

    text.send_keys(Keys.ARROW_RIGHT)
    assert chosen() == ["0.0"]
    assert text.get_attribute("aria-activedescendant") == "t0.0"
    text.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert chosen() == ["0.1"]
    text.send_keys(Keys.END)
    assert chosen() == [f"0.{len(HOSTILE) - 1}"]
    text.send_keys(Keys.HOME, Keys.ARROW_LEFT)
    assert chosen() == ["0.0"]
    assert driver.current_url.endswith("#0.0")
    text.send_keys(Keys.ESCAPE)
    assert chosen() == []
    assert "Most surprising" in panel(driver)
    driver.find_element(By.ID, "t0.1").click()
    driver.find_element(By.CSS_SELECTOR, "#details .close").send_keys(Keys.ENTER)
    assert chosen() == []
    # Every control can be reached by the tabulator.
    assert all_of(driver, "[tabindex='-1']") == []


def test_the_colours_can_be_changed_back_to_surprise(driver, opened):
    show(driver, opened, "0.3")
    sources, surprise = (
        driver.find_element(By.CSS_SELECTOR, f"[data-shade={shade}]")
        for shade in ("sources", "surprise")
    )
    assert sources.get_attribute("aria-pressed") == "true"
    assert "drew on" in driver.find_element(By.ID, "legend").text
    surprise.click()
    assert "surprising" in driver.find_element(By.ID, "legend").text
    assert not all_of(driver, "#text.by-sources")
    sources.click()
    assert all_of(driver, "#text.by-sources")


@pytest.mark.parametrize("key", ["op", "ext", "9.9", "nothing"])
def test_an_address_that_names_no_token_shows_the_overview(driver, opened, key):
    # With a "t" before them, the first two are names of other parts of the page.
    show(driver, opened, key)
    assert "Most surprising" in panel(driver)
    assert not all_of(driver, ".here")
    driver.find_element(By.ID, "t0.2").click()
    assert "How it was chosen" in panel(driver)


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_readable_on_a_telephone_in_light_and_dark(driver, opened, dark):
    set_view(driver, 390, 800, dark=dark)
    show(driver, opened, "0.2")
    wide = driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 390, "nothing makes the page scroll sideways"
    details = driver.find_element(By.ID, "details")
    assert details.rect["y"] < 800, "what was chosen is on the screen"
    ink, paper = (brightness(driver, name) for name in ("color", "backgroundColor"))
    assert (ink > paper) == dark


def test_a_page_without_internals_says_what_is_missing_and_why(driver, opened, tmp_path):
    events = internals_journal()
    events[0].started.unavailable["layers"] = "its last stages cannot be told apart"
    for event in events[1:-1]:
        event.steps.steps[0].internals.ClearField("layer_shares")
        event.steps.steps[0].internals.ClearField("layer_leaders")
    save(tmp_path / "partly.html", events, HOSTILE)
    show(driver, tmp_path / "partly.html", "0.1")
    said = panel(driver)
    assert "What it drew on" in said
    assert "Not on record: its last stages cannot be told apart." in said


def test_a_sink_is_named_and_is_no_source(driver, opened, tmp_path):
    events = internals_journal()
    internals = events[3].steps.steps[0].internals
    internals.sink_share = 0.125
    del internals.source_positions[1], internals.source_shares[1]
    save(tmp_path / "sink.html", events, HOSTILE)
    show(driver, tmp_path / "sink.html", "0.2")
    said = panel(driver)
    assert "12.5% went to a sink" in said
    assert "The other 12.5% is spread over positions not listed." in said
    rows = all_of(driver, "#details tr[data-position]")
    assert "0" not in [row.get_attribute("data-position") for row in rows]
    shaded = all_of(driver, "#text.by-sources [data-share]")
    assert "0" not in [span.get_attribute("data-position") for span in shaded]
    show(driver, tmp_path / "sink.html", "0.1")
    assert "sink" not in panel(driver)


def test_of_many_candidates_the_chosen_is_among_those_that_are_shown(driver, opened, tmp_path):
    events = internals_journal()
    candidates = events[1].steps.steps[0].candidates
    candidates.token_ids[:] = [*range(100, 150), 1]
    candidates.logprobs[:] = candidates.sampling_logprobs[:] = [-5.0] * 51
    save(tmp_path / "many.html", events, HOSTILE)
    show(driver, tmp_path / "many.html", "0.0")
    (chosen,) = all_of(driver, "#details tr.chosen:has(.drawn)")
    assert chosen.is_displayed()
    assert "41 more" in panel(driver)


def test_layers_that_agree_share_a_row_where_there_are_many(driver, opened, tmp_path):
    events = internals_journal()
    internals = events[1].steps.steps[0].internals
    internals.layer_shares[:] = [layer / 100 for layer in range(32)]
    internals.layer_leaders[:] = [1] * 20 + [0] * 12
    save(tmp_path / "deep.html", events, HOSTILE)
    show(driver, tmp_path / "deep.html", "0.0")
    rows = [row.find_element(By.XPATH, "../../..").text for row in all_of(driver, ".bars i.layer")]
    assert [row.split()[:2] for row in rows] == [["0\u201319", "19.0%"], ["20\u201331", "31.0%"]]


def test_sequences_have_a_text_each(driver, opened, tmp_path):
    events = internals_journal()
    other = internals_step(0, 3, "!")
    other.sequence_index = 1
    events[1].steps.steps.append(other)
    save(tmp_path / "two.html", events, HOSTILE)
    show(driver, tmp_path / "two.html")
    first, second = all_of(driver, "#sequences button")
    assert len(all_of(driver, "#text [role=option]")) == 5
    second.click()
    assert len(all_of(driver, "#text [role=option]")) == 1
    driver.find_element(By.ID, "t1.0").click()
    assert "sequence 1" in panel(driver)
    first.click()
    assert len(all_of(driver, "#text [role=option]")) == 5
    show(driver, tmp_path / "two.html", "1.0")
    assert "sequence 1" in panel(driver)


def test_a_page_shows_thousands_of_tokens(driver, opened, tmp_path):
    events = internals_journal((1, 2, 3, 6) * 1000)
    save(tmp_path / "long.html", events, HOSTILE)
    show(driver, tmp_path / "long.html", "0.3999")
    assert len(all_of(driver, "#text [role=option]")) == 4000
    assert "position 4002" in panel(driver)


def test_tool_calls_are_listed_and_lead_to_their_first_token(driver, tmp_path):
    texts = ("Why? ", "See: ", HOSTILE[1].decode(), "", "end")
    events = internals_journal((0, 1, 2, 3, 4), vocabulary=HOSTILE, texts=texts)
    (result,) = events[-1].finished.sequences
    begin = len("Why? See: ")
    call = pb.ToolCall(id="a1b2c3d4e", name="f\u202e", arguments_json='{"a": "<b>\u202e</b>"}')
    result.tool_calls.add(call=call, text_begin_byte=begin, text_end_byte=begin + 5)
    result.tool_calls.add(call=call, text_begin_byte=10_000, text_end_byte=10_001)
    result.reasoning.CopyFrom(pb.ParsedReasoning(text="Why?", text_end_byte=5))
    path = tmp_path / "calls.html"
    save(path, events, HOSTILE)
    show(driver, path)
    said = panel(driver)
    assert "Tool calls" in said
    assert "1\nof reasoning" in said
    listed = [
        each for each in all_of(driver, "#details ol.list button") if "a1b2c3d4e" in each.text
    ]
    assert [each.is_enabled() for each in listed] == [True, False]
    assert "f\\u202e" in listed[0].text
    assert "<b>" in listed[0].text
    listed[0].click()
    assert driver.find_element(By.ID, "t0.2").get_attribute("aria-selected") == "true"
    assert driver.execute_script("return window.broken") is None
    assert read_console(driver) == []
