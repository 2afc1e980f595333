"""The page as a file: what is in it, what cannot get out of its data, how it is written."""

import html
import json
import math
import os
import re
import stat
import zipfile
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from client_fake_server import VOCABULARY
from hatchling.builders.wheel import WheelBuilder
from hypothesis import given
from hypothesis import strategies as st
from internals_steps import internals_journal

from whence.page import check_writable, make_page, write_page
from whence.v1.generation_pb2 import GenerationStarted
from whence.v1.step_pb2 import Step
from whence.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
HOSTILE = (
    "</script><script>document.title='broken out'</script>",
    "<!--<script>",
    "]]>\"'`&lt;&#60;\x00\x1b[31m\u2028\u202e\r\n\t",
    "{{record}}{{program}}",
    "\U0001f600 caf\u00e9 \u4e2d",
)


class Elements(HTMLParser):
    """The page as a browser would take it apart: its elements, and the text in each kind."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.texts: dict[str, str] = {}
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        self.texts[inside] = self.texts.get(inside, "") + data


def made(**options) -> str:
    events = internals_journal(**options)
    steps = [event.steps.steps[0] for event in events[1:-1]]
    vocabulary = Vocabulary(options.get("vocabulary", VOCABULARY))
    return make_page(events[0].started, events[-1].finished, steps, vocabulary=vocabulary)


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def data_of(content: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="record">(.*?)</script>', content)
    return json.loads(found)


ORDINARY = Elements(made())


@given(st.lists(st.text() | st.sampled_from(HOSTILE), min_size=1, max_size=4))
def test_text_is_data_whatever_it_is(texts):
    vocabulary = tuple(text.encode("utf-8", "surrogatepass") for text in texts)
    content = made(
        token_ids=tuple(range(len(texts))),
        prompt_ids=(0,),
        vocabulary=vocabulary,
        texts=tuple(v.decode("utf-8", "replace") for v in vocabulary),
    )
    assert Elements(content).tags == ORDINARY.tags
    assert Elements(content).attributes == ORDINARY.attributes
    shown = [step["text"] for step in data_of(content)["sequences"][0]["steps"]]
    assert shown == [v.decode("utf-8", "replace") for v in vocabulary]
    content.encode("utf-8")  # nothing in it that a file could not hold


def test_hostile_names_are_data_too():
    started = GenerationStarted(
        model=HOSTILE[0],
        prompt=HOSTILE[1] + HOSTILE[2],
        processor_names=[HOSTILE[0]],
        labels={HOSTILE[0]: HOSTILE[2]},
        unavailable={"sources": HOSTILE[0]},
    )
    content = make_page(started, None, [Step(text=text) for text in HOSTILE])
    assert Elements(content).tags == ORDINARY.tags
    assert data_of(content)["generation"]["labels"] == {HOSTILE[0]: HOSTILE[2]}


def test_nothing_else_is_needed_and_nothing_else_may_run():
    content = made()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', content)[1]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag, source in (("script", r"<script>(.*?)</script>"), ("style", r"<style>(.*?)</style>")):
        (inline,) = re.findall(source, content, re.DOTALL)
        digest = b64encode(sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.findall(r"(?:src|href|action)=|url\(|@import|https?:", content)
    assert not [name for _, given in ORDINARY.attributes for name in given if name[:2] == "on"]
    assert not [given for _, given in ORDINARY.attributes if "style" in given]


def test_the_policy_comes_before_anything_that_it_is_to_hold():
    content = made()
    assert content.index("Content-Security-Policy") < content.index("<style>")
    assert content.index('charset="utf-8"') < content.index("Content-Security-Policy")


def test_the_page_holds_the_whole_record():
    content = data_of(made())
    (sequence,) = content["sequences"]
    assert sequence["finish_reason"] == "length"
    assert sequence["text"] == "Hello world! caf\u00e9 \u4e2d" == content["text"]
    assert sequence["steps"][2] == {
        "index": 2,
        "text": "!",
        "token_id": 3,
        "rank": 0,
        "logprob": -0.69315,
        "sampling_logprob": -0.28768,
        "entropy": 1.25,
        "candidates": {
            "token_ids": [3, 5],
            "logprobs": [-0.69315, -1.3863],
            "sampling_logprobs": [-0.28768, None],
        },
        "processors": {"num_kept": [4], "removed_mass": [0.25], "token_logprobs": [-0.5]},
        "draw": {"noise": 0.125, "margin": 2.0},
        "timing": {
            "elapsed_ns": 1,
            "forward_ns": 2,
            "select_ns": 3,
            "batch_size": 4,
            "context_length": 5,
        },
        "sources": {"positions": [1, 0], "shares": [0.5, 0.125], "self_share": 0.25},
        "layers": {"shares": [0.25, 0.5, 0.75], "leaders": [5, 3, 3]},
    }
    assert content["prompt"]["texts"] == ["<s>", "Hello", " world"]
    assert content["vocabulary"]["5"] == "<0xC3>"
    assert content["generation"]["decoding"]["sample"]["seed"] == "7"


def test_the_share_of_a_sink_is_beside_the_sources():
    events = internals_journal()
    internals = events[1].steps.steps[0].internals
    internals.sink_share = 0.1875
    steps = [event.steps.steps[0] for event in events[1:-1]]
    content = make_page(
        events[0].started, events[-1].finished, steps, vocabulary=Vocabulary(VOCABULARY)
    )
    first, second, *_ = data_of(content)["sequences"][0]["steps"]
    assert first["sources"]["sink_share"] == 0.1875
    assert "sink_share" not in second["sources"]


def test_a_character_of_several_tokens_belongs_to_the_last():
    content = made(
        vocabulary=(b"\xf0\x9f", b"\x98\x80", b"!"), prompt_ids=(0, 1, 2, 0), token_ids=(2,)
    )
    assert data_of(content)["prompt"]["texts"] == ["", "\U0001f600", "!", ""]


def test_requested_tokens_have_their_ids_and_texts():
    started = GenerationStarted(model="m")
    started.effective_trace.logprob_token_ids.extend([2, 0])
    recorded = Step(token_id=1)
    recorded.requested_logprobs.logprobs.extend([-0.5, -math.inf])
    recorded.requested_logprobs.sampling_logprobs.extend([-math.inf, -0.25])
    vocabulary = Vocabulary((b"a", b"b", b"c"))
    content = data_of(make_page(started, None, [recorded], vocabulary=vocabulary))
    assert content["sequences"][0]["steps"][0]["requested"] == {
        "logprobs": [-0.5, None],
        "sampling_logprobs": [None, -0.25],
    }
    assert content["generation"]["trace"]["logprob_token_ids"] == [2, 0]
    assert content["vocabulary"] == {"0": "a", "1": "b", "2": "c"}


def test_the_page_names_the_adapter():
    started = GenerationStarted(model="m")
    started.adapter.name, started.adapter.peft_type = "tone", "LORA"
    started.adapter.digest, started.adapter.weights_digest = "aa", "bb"
    generation = data_of(make_page(started, None, []))["generation"]
    assert generation["adapter"]["name"] == "tone"
    assert generation["digests"]["adapter"] == "aa"
    assert generation["digests"]["adapter's weights"] == "bb"


def test_absent_stays_absent():
    bare = data_of(make_page(GenerationStarted(), None, [Step(text="x")]))
    assert bare["sequences"][0]["steps"] == [{"index": 0, "text": "x"}]
    assert "finish_reason" not in bare["generation"]
    assert "adapter" not in bare["generation"]
    assert data_of(make_page(GenerationStarted(), None, []))["sequences"] == []


def test_the_text_can_be_read_without_a_program():
    content = Elements(made(texts=("a<b", "&", "\x00\x1b", "\n", "e\u0301")))
    assert content.texts["pre"] == "<s>Hello world" + "a<b&\ufffd\ufffd\ne\u0301"


def test_a_title_says_what_it_is():
    content = made(token_ids=(1, 2), texts=("<i>\n", "more"))
    assert Elements(content).texts["title"] == "fake: <i>\u2026"
    assert html.escape("<i>") in content


def test_a_file_is_written_whole_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")
    os.umask(umask := os.umask(0))
    write_page(path, "\u4e2d")
    assert path.read_text(encoding="utf-8") == "\u4e2d"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert names_in(tmp_path) == ["page.html"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_page(path, "after")
    assert path.read_text() == "before"
    assert names_in(tmp_path) == ["page.html"]


def test_only_a_file_in_a_directory_can_be_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, error in (
        (tmp_path, IsADirectoryError),
        (tmp_path / "pipe", OSError),
        (tmp_path / "nowhere" / "page.html", NotADirectoryError),
    ):
        with pytest.raises(
            error, match=re.escape(str(path.parent if error is NotADirectoryError else path))
        ):
            write_page(path, "x")
    check_writable(tmp_path / "new.html")
    assert names_in(tmp_path) == ["pipe"], "to check writes nothing"


def test_the_wheel_has_the_parts_of_the_page(tmp_path):
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    parts = {part.name for part in files("whence.page").iterdir() if "." in part.name}
    assert {"page.html", "page.css", "page.js", "details.js", "text.js", "parts.js"} <= parts
    assert {f"whence/page/{part}" for part in parts if part != "__pycache__"} <= names
