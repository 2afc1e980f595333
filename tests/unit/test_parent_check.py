"""Words of a branch about its parent, compared with the parent's record."""

from collections.abc import Callable

import pytest

from whence.v1.generation_pb2 import GenerationStarted
from whence.v1.step_pb2 import Step
from whence.v1.verification_pb2 import GenerationRecord
from whence_server.domain.errors import GenerationNotFoundError
from whence_server.domain.identity import ANYONE
from whence_server.generation.parents import Parent
from whence_server.rpc import parent_check
from whence_server.rpc.parent_check import find_parent, list_differences


def make_parent() -> Parent:
    started = GenerationStarted(generation_id="p", prompt_token_ids=[1, 2])
    started.fork.first_draw_sequence = 3
    started.effective_decoding.sample.seed = 7
    return Parent(started, [10, 11, 12])


def make_branch() -> GenerationRecord:
    started = GenerationStarted(prompt_token_ids=[1, 2])
    started.effective_decoding.sample.seed = 8
    fork = started.fork
    fork.parent_generation_id, fork.step, fork.num_forced_steps = "p", 2, 3
    fork.sequence_index, fork.first_draw_sequence = 1, 4
    fork.changed_settings.extend(["decoding.sample.seed", "model_digest"])
    steps = [Step(index=index, token_id=token) for index, token in enumerate((10, 11, 99, 5))]
    return GenerationRecord(started=started, steps=steps)


def test_honest_branch_has_no_differences() -> None:
    assert list(list_differences(make_branch(), make_parent())) == []


def change_prompt(branch: GenerationRecord) -> None:
    branch.started.prompt_token_ids[0] = 9


def change_token(branch: GenerationRecord) -> None:
    branch.steps[1].token_id = 50


def change_draws(branch: GenerationRecord) -> None:
    branch.started.fork.first_draw_sequence = 12_345


def change_seed(branch: GenerationRecord) -> None:
    del branch.started.fork.changed_settings[:]


def repeat_more(branch: GenerationRecord) -> None:
    branch.started.fork.step = 2**32 - 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_prompt, "its prompt is not its parent's"),
        (change_token, "token 0.1 is not its parent's"),
        (
            change_draws,
            "draws are those of sequence 12345, and its parent's are those of sequence 4",
        ),
        (change_seed, "not those on record: decoding.sample.seed"),
        (repeat_more, "and its parent has 3"),
    ],
)
def test_each_untrue_word_about_the_parent_is_found(
    change: Callable[[GenerationRecord], None], words: str
) -> None:
    branch = make_branch()
    change(branch)
    assert words in "; ".join(list_differences(branch, make_parent()))


def test_what_the_parent_lacks_is_not_compared() -> None:
    parent, branch = make_parent(), make_branch()
    parent.token_ids[1] = None
    change_token(branch)
    parent.started.prompt_token_ids.clear()
    assert list(list_differences(branch, parent)) == []


async def test_parent_that_is_not_at_hand_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> Parent:
        raise GenerationNotFoundError("p")

    monkeypatch.setattr(parent_check, "read_parent", fail)
    started = make_branch().started
    assert await find_parent(None, started, ANYONE) is None  # type: ignore[arg-type]
    started.ClearField("fork")
    assert await find_parent(None, started, ANYONE) is None  # type: ignore[arg-type]
