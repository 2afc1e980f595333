"""Findings of a model's trials, kept from one start to the next under all their conditions."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_harness import engine_options
from safetensors.torch import load_file, save_file

from whence_server.domain.model import InternalsInfo, StepKernels
from whence_server.engines.transformers import conditions, loading, step_capture, trials
from whence_server.engines.transformers.code_cache import prepare_code_cache
from whence_server.engines.transformers.findings_cache import (
    MAX_REMEMBERED,
    Findings,
    FindingsCache,
)
from whence_server.engines.transformers.loading import LoadedModel
from whence_server.engines.transformers.step_graph import StepGraph
from whence_server.engines.transformers.style import ForwardStyle

FINDINGS = Findings(
    ForwardStyle(num_layers=2, windows=(("full_attention", None), ("sliding_attention", 8))),
    "a reason",
    InternalsInfo("a method", {"layers": "why"}),
    captured=True,
    captured_probed=False,
    packed=True,
    reuses_prefixes=True,
    pass_dependence="its layer x rounds activations",
)


@pytest.fixture(autouse=True)
def no_step_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence_server.engines.transformers.step_capture.LONG_STEP_S", float("inf"))


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., LoadedModel]:
    def load(directory: Path, **changes: object) -> LoadedModel:
        file = str(tmp_path / "findings.json")
        return loading.load(engine_options(directory, findings_cache=file, **changes))

    return load


def refuse(*_arguments: object, **_others: object) -> Any:
    raise AssertionError("the model was tried again")


def read_steps(loaded: LoadedModel) -> list[Any]:
    """Return logits and readouts of some steps of two rows, one of them probed."""
    runner = loaded.make_runner()
    for tokens, probed in (([5, 6, 7], True), ([9, 8], False)):
        prompt = runner.start(tokens, probed=probed)
        runner.prefill(prompt, len(tokens), all_logits=False)
        runner.join(prompt)
    found: list[Any] = []
    for token_ids in ([3, 4], [5, 6]):
        logits = runner.decode(token_ids)
        readout = runner.read_probe()
        assert readout is not None
        assert readout.hidden is not None
        found += [logits.tolist(), readout.rows, readout.sources, readout.hidden.tolist()]
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba"])
def test_a_second_start_gives_the_same_without_trials(
    tiny_model: Callable[..., Path],
    start: Callable[..., LoadedModel],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
) -> None:
    first = start(tiny_model(architecture))
    monkeypatch.setattr(trials, "try_out", refuse)
    monkeypatch.setattr(step_capture, "capture_step", refuse)
    second = start(tiny_model(architecture))
    assert second.info == first.info
    assert second.style == first.style
    assert (second.graph is None) == (first.graph is None)
    if second.graph is not None and first.graph is not None:
        assert second.graph.has_probe == first.graph.has_probe
        assert read_steps(second) == read_steps(first)
        for work in second.deferred:
            work()  # a second time it does nothing
        assert read_steps(second) == read_steps(first)


def test_a_graph_that_differs_makes_all_findings_void(
    tiny_model: Callable[..., Path],
    start: Callable[..., LoadedModel],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = start(tiny_model("llama"))
    right = StepGraph.run

    def wrong(self: StepGraph, inputs: Any) -> torch.Tensor:
        return right(self, inputs).nextafter(torch.tensor(9.0))

    monkeypatch.setattr(StepGraph, "run", wrong)
    second = start(tiny_model("llama"))
    assert "the model is tried again" in caplog.text
    assert second.graph is None, "the trials have found the same"
    assert second.info == first.info
    caplog.clear()
    third = start(tiny_model("llama"))
    assert third.graph is None
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_every_condition_counts(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded = loading.load(engine_options(tiny_model("llama")))
    model = loaded.model

    def digest(files: str = "f", weights: str = "w", settings: str = "") -> str:
        return conditions.digest_conditions(model, files, weights, [settings])

    plain = digest()
    assert digest() == plain
    others = [digest("g"), digest(weights="x"), digest(settings="theta")]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    others.append(digest())
    torch.set_num_threads(threads)
    with monkeypatch.context() as changed:
        changed.setattr("torch.__version__", "0.0.1")
        others.append(digest())
    with monkeypatch.context() as changed:
        changed.setattr(conditions, "transformers", SimpleNamespace(__version__="0.0.1"))
        others.append(digest())
    code = tmp_path / "code.py"
    code.write_text("1")
    known = conditions._list_code
    with monkeypatch.context() as changed:
        changed.setattr(conditions, "_list_code", lambda model: {*known(model), code})
        others.append(digest())
        code.write_text("2")
        others.append(digest())
    model.set_attn_implementation("eager")
    others.append(digest())
    model.set_attn_implementation("whence_sdpa")
    assert len({plain, *others}) == len(others) + 1
    assert digest() == plain


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel_variables": (("MKL_CBWR", "COMPATIBLE"),)},
        {"step_kernels": StepKernels.PACKED},
        {"num_threads": 2},
        {"dtype": "bfloat16"},
    ],
)
def test_other_settings_are_tried_anew(
    tiny_model: Callable[..., Path],
    start: Callable[..., LoadedModel],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
) -> None:
    start(tiny_model("gpt2"))
    monkeypatch.setattr(trials, "try_out", refuse)
    with pytest.raises(AssertionError, match="tried again"):
        start(tiny_model("gpt2"), **changes)


def test_the_code_that_counts_is_that_of_the_engine_and_the_model(
    tiny_model: Callable[..., Path],
) -> None:
    model = loading.load(engine_options(tiny_model("llama"))).model
    names = {path.name for path in conditions._list_code(model)}
    assert {"step_graph.py", "trials.py", "lens.py", "modeling_llama.py", "linear.py"} <= names
    assert {"sdpa_attention.py", "masking_utils.py", "cache_utils.py"} <= names


def test_other_weights_are_tried_anew(
    tiny_model: Callable[..., Path],
    start: Callable[..., LoadedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    for file in tiny_model("llama").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    start(directory)
    tensors = load_file(directory / "model.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: -tensors[name]}, directory / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(trials, "try_out", refuse)
    with pytest.raises(AssertionError, match="tried again"):
        start(directory)


def test_findings_come_back_as_they_were_kept(tmp_path: Path) -> None:
    cache = FindingsCache(str(tmp_path / "data" / "findings.json"))
    assert cache.recall("a") is None
    alone = FINDINGS._replace(style=None, attention_obstacle=None, captured=False)
    cache.keep("a", FINDINGS)
    cache.keep("b", alone)
    assert cache.recall("a") == FINDINGS
    assert cache.recall("b") == alone
    cache.forget("a")
    assert cache.recall("a") is None
    assert cache.recall("b") == alone


def test_the_oldest_findings_are_dropped(tmp_path: Path) -> None:
    cache = FindingsCache(str(tmp_path / "findings.json"))
    for number in range(MAX_REMEMBERED + 1):
        cache.keep(str(number), FINDINGS)
    assert cache.recall("0") is None
    assert cache.recall("1") == FINDINGS


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"version": 1}',
        '{"version": 1, "findings": []}',
        '{"version": 2, "findings": {"a": {}}}',
        '{"version": 1, "findings": {"a": 1}}',
        '{"version": 1, "findings": {"a": {"style": null}}}',
    ],
)
def test_a_damaged_cache_is_ignored(tmp_path: Path, content: str) -> None:
    file = tmp_path / "findings.json"
    file.write_text(content)
    cache = FindingsCache(str(file))
    assert cache.recall("a") is None
    cache.keep("a", FINDINGS)
    assert cache.recall("a") == FINDINGS


def test_a_flag_that_is_no_flag_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "findings.json"
    cache = FindingsCache(str(file))
    cache.keep("a", FINDINGS)
    stored = json.loads(file.read_text())
    stored["findings"]["a"]["captured"] = "yes"
    file.write_text(json.dumps(stored))
    assert cache.recall("a") is None


def test_compiled_code_is_kept_where_only_the_owner_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "own"
    assert prepare_code_cache(own / "compiled") == str(own / "compiled")
    assert own.stat().st_mode & 0o777 == 0o700
    assert (own / "compiled").stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o770)
    assert not prepare_code_cache(shared / "compiled")
    assert not (shared / "compiled").exists()
    assert "others can write" in caplog.text
    (tmp_path / "file").write_text("")
    assert not prepare_code_cache(tmp_path / "file" / "compiled")
    assert "cannot be kept" in caplog.text
