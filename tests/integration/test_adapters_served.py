"""A server with adapters: requests choose one, and the record, the command and the page name it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from adapter_models import generate_by_peft, lora, save_adapter
from lineage_records import RecordBuilder
from server_process import ServerProcess

from whence import Client
from whence.cli.main import main
from whence.errors import InvalidRequestError
from whence.v1 import model_pb2
from whence_server.engines.transformers.digests import digest_files, digest_model_files

PROMPT = [5, 17, 99, 3, 42]
FILES = ["adapter_config.json", "adapter_model.safetensors"]


class Served(NamedTuple):
    """A running server, and what it was started with."""

    process: ServerProcess
    client: Client
    base: Path
    places: dict[str, Path]
    run_id: str


@pytest.fixture(scope="module")
def served(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    base = tiny_model("gpt2-long")
    directory = tmp_path_factory.mktemp("served")
    places = {
        "tone": save_adapter(base, directory / "tone", lora(target_modules=["c_attn"])),
        "style": save_adapter(base, directory / "style", lora(target_modules=["c_fc"])),
    }
    with RecordBuilder(places["tone"], base_files=_describe(base, ["model.safetensors"])) as run:
        run.attempt().checkpoint(8, ".", files=_describe(places["tone"], FILES))
    flags = ["--adapter", f"style={places['style']}", "--adapter", f"tone={places['tone']}"]
    with (
        ServerProcess(base, directory / "data", "--model-name", "tiny", *flags) as process,
        Client(process.target) as client,
    ):
        yield Served(process, client, base, places, run.id)


def _describe(directory: Path, names: list[str]) -> list[model_pb2.FileDigest]:
    return [
        model_pb2.FileDigest(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
        for file in digest_files(directory, names)
    ]


def test_the_model_lists_its_adapters(served: Served) -> None:
    model = served.client.model()
    assert not model.HasField("adapter")
    assert [adapter.name for adapter in model.adapters] == ["style", "tone"]
    for adapter in model.adapters:
        files = digest_files(served.places[adapter.name], FILES)
        assert list(adapter.files) == _describe(served.places[adapter.name], FILES)
        assert adapter.adapter == model_pb2.Adapter(
            peft_type="LORA",
            digest=digest_model_files(files),
            base=str(served.base),
            base_model_digest=model.model_digest,
        )
    style, tone = model.adapters
    assert (tone.training_run_id, tone.training_step) == (served.run_id, 8)
    assert not style.training_run_id
    assert not style.HasField("training_step")
    assert not model.training_run_id


def test_requests_choose_adapters_side_by_side(served: Served) -> None:
    model = served.client.model()
    listed = {adapter.name: adapter for adapter in model.adapters}
    names = ["", "tone", "style", "tone"]
    options = {"greedy": True, "max_new_tokens": 24, "ignore_eos": True}
    generations = [served.client.generate(PROMPT, adapter=name, **options) for name in names]
    for name, generation in zip(names, generations, strict=True):
        with generation:
            ids = [token.token_id for token in generation]
        assert [ids] == generate_by_peft(served.base, served.places.get(name), PROMPT, 24), name
        started = generation.started
        assert (started.model, started.model_digest) == ("tiny", model.model_digest)
        assert started.environment.weights_digest == model.weights_digest
        assert started.HasField("adapter") == bool(name)
        assert started.training_run.training_run_id == (served.run_id if name == "tone" else "")
        if name:
            assert started.adapter.name == name
            assert started.adapter.digest == listed[name].adapter.digest
            assert started.adapter.weights_digest == listed[name].weights_digest
            assert started.adapter.base_model_digest == model.model_digest


def test_a_branch_has_the_adapter_of_its_parent(served: Served) -> None:
    options = {"greedy": True, "max_new_tokens": 12, "ignore_eos": True}
    parent = served.client.generate(PROMPT, adapter="tone", **options).result()
    branch = served.client.fork(parent.id, step=5).result()
    assert branch.started.adapter == parent.started.adapter
    assert branch.sequences[0].token_ids == parent.sequences[0].token_ids


def test_an_unknown_adapter_is_refused_with_the_known_names(served: Served) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        list(served.client.generate(PROMPT, adapter="tune"))
    assert "the adapters of this server are: style, tone" in str(caught.value)
    # A long text is prepared in another process.
    with pytest.raises(InvalidRequestError, match="style, tone"):
        list(served.client.generate("word " * 1_500, adapter="tune"))


def test_the_command_names_the_adapter(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, target = tmp_path / "page.html", ["--target", served.process.target]
    command = ["generate", "Hello", "--adapter", "tone", "--greedy", "--max-new-tokens", "3"]
    assert main([*command, "--json", "--html", str(page), *target]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    started = next(event for event in events if event["event"] == "started")
    digest = digest_model_files(digest_files(served.places["tone"], FILES))
    assert (started["adapter"]["name"], started["adapter"]["digest"]) == ("tone", digest)
    assert f'"name":"tone","peft_type":"LORA","digest":"{digest}"' in page.read_text().replace(
        ", ", ","
    ).replace(": ", ":")
    assert main(["generations", "show", started["generation_id"], *target]) == 0
    assert f"tone ({digest})" in capsys.readouterr().out
    assert main(["model", *target]) == 0
    assert f"LORA, digest {digest}, training run {served.run_id}" in capsys.readouterr().out


def test_a_generation_continues_with_its_adapter_after_the_engine_is_killed(
    served: Served,
) -> None:
    options = {"seed": 9, "max_new_tokens": 700, "ignore_eos": True, "adapter": "tone"}
    with served.client.generate(PROMPT, **options) as undisturbed:
        expected = [token.token_id for token in undisturbed]
    engine = served.process.engine_pid
    ids: list[int] = []
    with served.client.generate(PROMPT, **options) as generation:
        for token in generation:
            ids.append(token.token_id)
            if len(ids) == 60:
                psutil.Process(engine).kill()
            if len(ids) > 60 and ids[-1] != expected[len(ids) - 1]:
                assert token.draw is not None
                assert token.draw.margin is not None
                assert token.draw.margin < 1e-4
                break
        else:
            assert len(ids) == 700
    assert served.process.engine_pid != engine
    assert len(ids) > 100
