"""The README's examples run as they stand."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import ServerProcess

from whence import Client

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def server(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = ("--http-listen", "127.0.0.1:0")
    with ServerProcess(real_model, tmp_path_factory.mktemp("readme"), *flags) as process:
        yield process


def run(example: str, replacements: dict[str, str]) -> str:
    """Run an example with other addresses; return what it prints."""
    assert len(example.strip().splitlines()) <= 10
    for written, meant in replacements.items():
        assert example.count(written) == 1
        example = example.replace(written, meant)
    result = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, check=True
    )
    return result.stdout


def test_a_client_reads_tokens_and_their_record(server: ServerProcess) -> None:
    lines = run(EXAMPLES[0], {"127.0.0.1:50051": server.target}).splitlines()
    assert sum("p=" in line and "among" in line for line in lines) >= 1
    assert any(reason in lines[-1] for reason in ("length", "end_of_sequence"))


def test_a_client_of_openai_changes_the_base_url(server: ServerProcess) -> None:
    # The example draws anew in each run: a draw without a word would leave no text to compare.
    drawn = {"prompt=": "seed=3, prompt="}
    printed = run(EXAMPLES[1], {"http://127.0.0.1:8000": server.http_url, **drawn})
    generation_id, text = printed.split(maxsplit=1)
    with Client(server.target) as client:
        assert client.generations.get(generation_id).finished.sequences[0].text.strip() == (
            text.strip()
        )


def test_a_process_records_what_it_generates_itself(
    server: ServerProcess, real_model: Path
) -> None:
    places = {
        "127.0.0.1:50051": server.target,
        "HuggingFaceTB/SmolLM2-135M-Instruct": str(real_model),
    }
    # A pipeline draws anew in each run, and may draw another word than the likeliest.
    greedy = {"max_new_tokens=8": "max_new_tokens=8, do_sample=False"}
    text = run(EXAMPLES[2], places | greedy)
    with Client(server.target) as client:
        newest = next(iter(client.generations.list()))
    assert "Paris" in text
    assert newest.text_preview
    assert text.strip().endswith(newest.text_preview.strip())
