"""`whence training`, as people run it."""

import asyncio
import base64
import hashlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from emergence_programs import ANSWERS
from lineage_records import RecordBuilder, merkle_root, run_id
from training_server import TrainingServer, training_server
from whence_command import run_whence

from whence.cli.plots import BLOCKS
from whence.v1 import training_pb2 as pb

TEXTS = [b"one", b"two two", b"three\x1b[2J\xff", b"the cat sat on the mat\n"]


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    raw: bytes
    error: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def builder(tmp_path: Path) -> Any:
    with RecordBuilder(tmp_path / "runs" / "first") as made:
        made.documents(tmp_path / "corpus.txt", TEXTS)
        made.examples([[(0, 0, 3)], [(1, 0, 7)], [(2, 0, 5)], [(1, 2, 7), (3, 0, 23), (3, 3, 9)]])
        made.attempt().steps(range(1, 8)).evaluation(5).checkpoint(5).checkpoint(7)
        made.attempt(resumed_step=5).steps(range(6, 41)).checkpoint(40, ".").finish(40)
        yield made


@pytest.fixture
async def server(builder: RecordBuilder, tmp_path: Path) -> AsyncIterator[TrainingServer]:
    command = (sys.executable, "-c", ANSWERS)
    async with training_server(tmp_path / "runs", emergence=command) as started:
        yield started


@pytest.fixture
def training(server: TrainingServer) -> Callable[..., Any]:
    """Run `whence training` with these arguments."""

    async def run(*arguments: str, **environment: str) -> Done:
        whole = ("training", *arguments, "--target", server.target)
        if "PYTHONPATH" not in environment:
            done = await asyncio.to_thread(run_whence, *whole, **{"COLUMNS": "80"} | environment)
            return Done(done.returncode, done.stdout, done.raw, done.stderr)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "whence.cli", *whole),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "80"} | environment,
        )
        out, error = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, out.decode("utf-8", "replace"), out, error.decode())

    return run


async def test_list_shows_every_run(training: Callable[..., Any], tmp_path: Path) -> None:
    with RecordBuilder(tmp_path / "runs" / "second", 2):
        pass
    listed = await training("list")
    assert [line[:8] for line in listed.lines] == ["00000002", "00000001"]
    assert "completed    step 40/40" in listed.lines[1]
    assert all(len(line) <= 80 for line in listed.lines)
    (newest,) = (await training("list", "--limit", "1", "--json")).objects
    fields = {field.name for field in pb.TrainingRunSummary.DESCRIPTOR.fields}
    # Complete: zero is there; only a loss that there is not is left out.
    assert set(newest) == fields - {"loss"}
    assert (newest["training_run_id"], newest["step"]) == (run_id(2), "0")


async def test_show_tells_it_all_within_80_columns(
    training: Callable[..., Any], builder: RecordBuilder, server: TrainingServer
) -> None:
    shown = await training("show", "00000001")
    assert shown.status == 0, shown.error
    # A path is as long as it is.
    assert all(len(line) <= 80 for line in shown.lines if not line.startswith("record"))
    assert "\x1b" not in shown.out
    root = merkle_root([hashlib.sha256(text).digest() for text in TEXTS]).hex()
    for part in (
        builder.id,
        root,
        builder.head,
        hashlib.sha256(b"weights 40").hexdigest(),
        hashlib.sha256(b"model 40").hexdigest(),
        "superseded      2 steps",
        "1  2027-01-15 08:00:01Z  from step 0  was killed",
        "from step 5  completed at step 40",
        "yes         checkpoint-5\n",
        "superseded  checkpoint-7\n",
        "yes         .\n",
        "eval_loss 2.5000",
        "loss, in nats a token (40 steps; a column is a mean)",
        "learning rate",
        "relative updates: norm of a step's change over the norm of the weights, by group",
    ):
        assert part in shown.out, part
    groups = [line for line in shown.lines if line.startswith(builder.groups)]
    assert [line.split()[0] for line in groups] == list(builder.groups)
    # Each group moves half as far as the one above, and every step less far than the one before.
    levels = [[BLOCKS.index(cell) for cell in line.split()[1]] for line in groups]
    assert (levels[0][0], levels[-1][-1]) == (8, 1)
    assert all(
        above >= below for rows in pairwise(levels) for above, below in zip(*rows, strict=True)
    )
    assert all(before >= after for row in levels for before, after in pairwise(row))
    (whole,) = (await training("show", builder.id, "--json")).objects
    assert set(whole) == {field.name for field in pb.GetTrainingRunResponse.DESCRIPTOR.fields}
    colored = await training("show", "0", "--color", "always")
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored.out) == shown.out
    assert colored.out != shown.out


async def test_the_page_stands_alone_and_is_written_whole(
    training: Callable[..., Any], builder: RecordBuilder, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    shown = await training("show", "0", "--html", str(page))
    assert shown.status == 0, shown.error
    text = page.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".page")] == []
    # Nothing is fetched: no script and no style comes from elsewhere.
    assert not re.findall(r"<(?:script|link|img)[^>]*\s(?:src|href)=", text)
    drawn = re.search(r'Plotly\.newPlot\(\s*"[^"]+",\s*(\[.*?\]),\s*\{"', text, re.DOTALL)
    assert drawn is not None
    traces = json.loads(drawn[1])
    by_kind = {trace["type"]: trace for trace in traces if trace["type"] == "heatmap"}
    assert by_kind["heatmap"]["y"] == list(builder.groups)
    assert len(by_kind["heatmap"]["z"][0]) == 40
    assert [trace["name"] for trace in traces if trace["type"] == "scatter"] == [
        "loss",
        "learning rate",
        "eval_loss",
    ]
    refused = await training("show", "0", "--html", str(tmp_path / "nowhere" / "page.html"))
    assert (refused.status, "cannot be written" in refused.error) == (2, True)


async def test_a_page_without_plotly_says_what_to_install(
    training: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "plotly.py").write_text("raise ImportError('not here')")
    page = tmp_path / "page.html"
    refused = await training("show", "0", "--html", str(page), PYTHONPATH=str(tmp_path))
    assert refused.status == 2
    assert "pip install 'whence[plots]'" in refused.error
    assert not page.exists()
    assert (await training("show", "0", PYTHONPATH=str(tmp_path))).status == 0


async def test_watch_ends_with_the_run(
    training: Callable[..., Any], builder: RecordBuilder
) -> None:
    watched = await training("watch", "0", "--after", "0")
    assert len(watched.lines) == builder.position
    assert watched.lines[0].split() == [
        "started",
        "run",
        "1,",
        "GPT2LMHeadModel,",
        "run",
        builder.id,
    ]
    assert watched.lines[-1].split(maxsplit=1)[1] == "2, completed at step 40"
    assert "the run is completed, step 40/40" in watched.error
    told = await training("watch", "0", "--after", "0", "--json")
    assert sum(len(response["events"]) for response in told.objects) == builder.position


async def test_steps_prints_the_steps_of_a_range(training: Callable[..., Any]) -> None:
    def numbers(done: Done) -> list[list[str]]:
        return [line.split()[:2] for line in done.lines[1:]]

    listed = await training("steps", "0", "--first", "5", "--last", "7", "--superseded")
    assert numbers(listed) == [["5", "1"], ["6", "1"], ["6", "2"], ["7", "1"], ["7", "2"]]
    assert numbers(await training("steps", "0", "--stride", "20")) == [
        ["1", "1"],
        ["21", "2"],
        ["40", "2"],
    ]
    (step,) = (await training("steps", "0", "--last", "1", "--json")).objects
    assert set(step) == {field.name for field in pb.TrainingStep.DESCRIPTOR.fields}
    assert (step["skipped"], step["ranks"][0]["example_ids"]) == (False, ["1", "4"])


async def test_document_prints_location_and_text(
    training: Callable[..., Any], tmp_path: Path
) -> None:
    shown = await training("document", "0", "2")
    assert shown.lines[-1] == "three\\x1b[2J\N{REPLACEMENT CHARACTER}"
    assert str(tmp_path / "corpus.txt") in shown.out
    digest = hashlib.sha256(TEXTS[2]).hexdigest()
    raw = await training("document", "0", digest.upper(), "--raw")
    assert raw.raw == TEXTS[2]
    (found,) = (await training("document", "0", "3", "--json")).objects
    assert base64.b64decode(found["text"]) == TEXTS[3]
    assert set(found) == {field.name for field in pb.GetDocumentResponse.DESCRIPTOR.fields}
    example = await training("document", "0", "1", "--example", "--no-text")
    assert example.lines[-1] == "example   bytes 0 to 7 of the document"
    two = await training("document", "0", "3", "--example", "--no-text")
    assert two.lines[-1] == "also of   documents 3"
    (tmp_path / "corpus.txt").write_bytes(b"".join(TEXTS).upper())
    changed = await training("document", "0", "1")
    assert changed.status == 1
    assert "no longer has the text" in changed.error
    assert "DOCUMENT_CHANGED" in changed.error


async def test_proof_prints_a_verifiable_inclusion_proof(training: Callable[..., Any]) -> None:
    root = merkle_root([hashlib.sha256(text).digest() for text in TEXTS]).hex()
    proven = await training("proof", "0", "2")
    assert proven.status == 0
    assert f"root      {root} (on record)" in proven.out
    assert proven.lines[-1].startswith("verified: ")
    assert (await training("proof", "0", "2", "--root", root.upper())).status == 0
    other = await training("proof", "0", "2", "--root", "00" * 32)
    assert (other.status, other.lines[-1].startswith("NOT verified")) == (1, True)
    (told,) = (await training("proof", "0", "0", "--json")).objects
    assert (told["verified"], told["verified_root"], told["leaf_index"]) == (True, root, "0")


async def test_explain_prints_the_curve_and_the_largest_change(
    training: Callable[..., Any], tmp_path: Path
) -> None:
    explained = await training("explain", "0", "the cat", " sat on")
    assert explained.status == 0, explained.error
    for part in (
        'log p(" sat on" | "the cat"), in nats',
        "largest change: +5.000 nats from step 0 to step 5",
        "embedding                   +5.000  ██████████████████████████████",
        "gap                         +0.250",
        "examples trained on in between: 1",
        f"  document 3  {tmp_path / 'corpus.txt'} bytes 20 to 43\n",
        "    examples 3; 3 with the text\n",
    ):
        assert part in explained.out, part
    curve = [line for line in explained.lines if re.match(r" +\d+ +-\d", line)]
    assert [line.split()[:2] for line in curve] == [
        ["0", "-20.000"],
        ["5", "-15.000"],
        ["10", "-10.000"],
    ]
    later = await training("explain", "0", "the cat", " sat on", "--step", "6")
    assert "\nchange: +5.000 nats from step 5 to step 10\n" in later.out
    beyond = await training("explain", "0", "the cat", " sat on", "--step", "11")
    assert (beyond.status, "no checkpoints before and after step 11" in beyond.error) == (2, True)
    told = await training("explain", "0", "the cat", " sat on", "--no-groups", "--json")
    assert [next(iter(answer)) for answer in told.objects] == [
        "started", "point", "interval", "point", "interval", "point",
    ]  # fmt: skip
    assert told.objects[0]["started"]["continuation_texts"][-1] == "True"


async def test_runs_are_found_by_prefix_and_by_served_model(
    training: Callable[..., Any], server: TrainingServer, builder: RecordBuilder, tmp_path: Path
) -> None:
    with RecordBuilder(tmp_path / "runs" / "second", 0x10):
        pass
    for arguments, message in (
        (("show", "0000"), "2 training runs' ids begin with '0000'"),
        (("show", "f"), "no training run's id begins with 'f'"),
        (("document", "0", "x"), "neither a document's index nor a SHA-256"),
        (("document", "0000000", "0", "--raw", "--json"), "--raw prints the text alone"),
    ):
        refused = await training(*arguments)
        assert (refused.status, message in refused.error) == (2, True), refused.error
    await server.load(tmp_path, model_digest=hashlib.sha256(b"model 40").hexdigest())
    assert builder.id in (await training("show")).out
    assert (await training("document", "1", "--raw")).raw == TEXTS[1]
    assert (await training("proof", "3")).status == 0
    assert "the cat" in (await training("explain", "the cat", "sat")).out


async def test_the_example_in_the_documentation_runs(
    server: TrainingServer, builder: RecordBuilder, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training-runs.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert '"127.0.0.1:50051"' in example
    code = example.replace('"127.0.0.1:50051"', repr(server.target)).replace("=17)", "=3)")
    await server.load(tmp_path, model_digest=hashlib.sha256(b"model 40").hexdigest())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert [line.split()[0] for line in out.decode().splitlines()] == ["1", "40"]
