"""Parents of branches: those whose record lacks what a branch needs are refused."""

import asyncio
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from whence.v1.generation_pb2 import ForkGenerationRequest, GenerationStarted
from whence.v1.step_pb2 import Step
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import ForkRefusedError
from whence_server.generation.parents import (
    Parent,
    read_parent,
    require_known_draws,
    require_same_model,
)
from whence_server.rpc import serving
from whence_server.rpc.serving import Serving


class Served:
    """The parts of a model's description that a branch is compared with."""

    tokenizer_digest = "t1"
    weights_digest = "w1"
    model_digest = "m1"
    adapters = ()


def make_started(**fields: object) -> GenerationStarted:
    started = GenerationStarted(
        generation_id="g",
        tokenizer_digest="t1",
        model_digest="m1",
        **fields,  # type: ignore[arg-type]
    )
    started.environment.weights_digest = "w1"
    return started


def check(started: GenerationStarted) -> None:
    require_same_model(started, Served())  # type: ignore[arg-type]


def test_parent_of_the_served_weights_can_be_forked() -> None:
    check(make_started())
    early = make_started()
    early.environment.ClearField("weights_digest")
    check(early)


def test_parent_of_another_model_is_refused_with_both_digests() -> None:
    other = make_started()
    other.environment.weights_digest = "w2"
    with pytest.raises(ForkRefusedError, match="weights w2, and this server serves w1"):
        check(other)
    early = make_started()
    early.environment.ClearField("weights_digest")
    early.model_digest = "m2"
    with pytest.raises(ForkRefusedError, match="weights m2, and this server serves m1"):
        check(early)
    other = make_started()
    other.tokenizer_digest = "t2"
    with pytest.raises(ForkRefusedError, match="tokenizer t2"):
        check(other)


def test_parent_of_an_upstream_is_refused() -> None:
    other = make_started()
    other.upstream.kind = "vllm"
    with pytest.raises(ForkRefusedError, match="of an upstream"):
        check(other)


def test_unknown_digests_are_not_those_of_the_same_model() -> None:
    class Unknown(Served):
        tokenizer_digest = weights_digest = model_digest = ""

    for kept in ("tokenizer_digest", ""):
        started = GenerationStarted(generation_id="g", tokenizer_digest="t1" if kept else "")
        model = Unknown()
        model.tokenizer_digest = started.tokenizer_digest
        with pytest.raises(ForkRefusedError, match="with an unknown digest"):
            require_same_model(started, model)  # type: ignore[arg-type]


def test_draws_of_another_program_are_not_repeated() -> None:
    require_known_draws(make_started(), gives_seed=False)
    other = make_started()
    other.recorded.library = "transformers 5.0"
    with pytest.raises(ForkRefusedError, match=r"drawn by transformers 5.0, .*: give a seed"):
        require_known_draws(other, gives_seed=False)
    require_known_draws(other, gives_seed=True)


class LongJournal:
    """A journal with one generation of two sequences, whose steps have many candidates."""

    def __init__(self, num_steps: int) -> None:
        self.limits: list[int] = []
        self._entries = [(EntryKind.STARTED, make_started().SerializeToString())]
        for index in range(num_steps):
            for sequence in (0, 1):
                step = Step(sequence_index=sequence, index=index, token_id=index * 2 + sequence)
                step.candidates.token_ids.extend(range(index, index + 128))
                self._entries.append((EntryKind.STEP, step.SerializeToString()))

    async def get(self, _id: str) -> Any:
        return SimpleNamespace(finish=1)

    async def read(
        self,
        _id: str,
        after_offset: int = 0,
        limit: int = 1,
        kinds: Collection[EntryKind] = (),
        max_bytes: int = 0,
    ) -> list[Entry]:
        self.limits.append(max_bytes)
        found: list[Any] = []
        for offset, (kind, payload) in enumerate(self._entries[after_offset:], after_offset + 1):
            if kind in kinds:
                found.append(SimpleNamespace(offset=offset, kind=kind, payload=payload))
            if len(found) == limit:
                break
        return found


async def test_only_the_candidates_of_the_branch_step_are_held() -> None:
    journal = LongJournal(1_500)
    parent = await read_parent(journal, "g", 1, 1_200)  # type: ignore[arg-type]
    assert parent.token_ids == [index * 2 + 1 for index in range(1_201)]
    assert parent.candidate_ids == tuple(range(1_200, 1_328))
    # After the start, every page is bounded.
    assert all(0 < limit <= 1 << 20 for limit in journal.limits[1:])
    behind = await read_parent(journal, "g", 0, 5_000)  # type: ignore[arg-type]
    assert (len(behind.token_ids), behind.candidate_ids) == (1_500, ())


async def test_few_parents_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, most = 0, 0

    async def read_slowly(*_: object) -> Parent:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        for _ in range(10):
            await asyncio.sleep(0)
        reading -= 1
        return Parent(make_started())

    async def allow(*_: object) -> None:
        return None

    monkeypatch.setattr(serving, "read_parent", read_slowly)
    server = Serving("m", None)  # type: ignore[arg-type]
    server.model, server.tokenizer = SimpleNamespace(upstream=None), object()  # type: ignore[assignment]
    monkeypatch.setattr(server, "require_access", allow)
    request = ForkGenerationRequest(parent_generation_id="6a0c7c0e-6cf5-4f0c-9b8b-1a8a3c1f0f5e")
    await asyncio.gather(*(server.read_parent(request, None) for _ in range(20)))  # type: ignore[arg-type]
    assert most == 2


def test_redacted_tokens_cannot_be_repeated_but_those_before_them_can() -> None:
    parent = Parent(make_started(), [5, None])
    assert parent.get_token_ids(0, 1) == (5,)
    with pytest.raises(ForkRefusedError, match="token 1 is not on record: a part of the text was"):
        parent.get_token_ids(0, 2)
    with pytest.raises(ForkRefusedError, match="its prompt is not on record"):
        parent.get_prompt_token_ids()
