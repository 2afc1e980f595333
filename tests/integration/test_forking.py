"""Branches of recorded generations: repeated to the bit, changed at a step, and on record."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from draws import compute_noise
from server_process import ServerProcess
from whence_command import run_whence, run_whence_well

from whence import (
    AsyncClient,
    Client,
    FailedPreconditionError,
    Generation,
    InvalidRequestError,
    NotFoundError,
    PromptEdit,
    Token,
)
from whence.v1 import verification_pb2

PROMPT = "The quick brown fox"
SAMPLED: dict[str, Any] = {"seed": 11, "temperature": 0.9, "top_p": 0.95, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


def run(client: Client, prompt: Any = PROMPT, **options: Any) -> Generation:
    return client.generate(prompt, **{**SAMPLED, **options}).result()


def read(client: Client, generation: Generation, sequence: int = 0) -> list[Token]:
    tokens = client.generations.steps(generation.id)
    return [token for token in tokens if token.sequence_index == sequence]


def get_ids(tokens: list[Token]) -> list[int | None]:
    return [token.token_id for token in tokens]


@pytest.fixture(scope="module")
def parent(client: Client) -> Generation:
    return run(client)


@pytest.fixture(scope="module")
def greedy(client: Client) -> Generation:
    return client.generate(PROMPT, greedy=True, max_new_tokens=24, ignore_eos=True).result()


@pytest.mark.parametrize("step", [0, 7])
def test_branch_without_a_change_repeats_ids_and_draws(
    client: Client, parent: Generation, step: int
) -> None:
    branch = client.fork(parent.id, step=step).result()
    theirs, ours = read(client, parent), read(client, branch)
    assert get_ids(ours) == get_ids(theirs)
    assert branch.sequences[0].text == parent.sequences[0].text
    assert [token.draw for token in ours[:step]] == [None] * step
    noises = [[token.draw.noise for token in it[step:] if token.draw] for it in (theirs, ours)]
    assert len(noises[0]) == len(theirs) - step
    assert noises[0] == noises[1]
    assert all(token.sampling_logprob is None for token in ours[:step])
    # Other generations of the shared server may be in the batch, and change the last digits.
    logprobs = [token.logprob for token in theirs]
    assert [token.logprob for token in ours] == pytest.approx(logprobs, abs=1e-4)
    fork = branch.started.fork
    assert (fork.parent_generation_id, fork.step) == (parent.id, step)
    assert fork.num_forced_steps == step
    assert not fork.changes_prompt
    assert list(fork.changed_settings) == []
    assert fork.parent_decoding.ByteSize() == 0


def test_branches_beside_others_repeat_ids_and_the_noise_of_draws(
    client: Client, parent: Generation
) -> None:
    others = [client.generate(PROMPT, seed=n, max_new_tokens=60) for n in range(3)]
    branches = [client.fork(parent.id, step=step) for step in (0, 3, 12)]
    running = [*others, *branches]
    with ThreadPoolExecutor(len(running)) as threads:
        for result in [threads.submit(generation.result) for generation in running]:
            result.result(120)
    theirs = read(client, parent)
    for branch, step in zip(branches, (0, 3, 12), strict=True):
        ours = read(client, branch)
        assert get_ids(ours) == get_ids(theirs)
        noises = [token.draw.noise for token in ours[step:] if token.draw]
        assert noises == [token.draw.noise for token in theirs[step:] if token.draw]


def test_branch_of_one_of_several_sequences_and_its_own_branch_have_its_draws(
    client: Client,
) -> None:
    several = run(client, n=3, ignore_eos=True)
    theirs = read(client, several, 2)
    branch = client.fork(several.id, sequence=2, step=5).result()
    assert get_ids(read(client, branch)) == get_ids(theirs)
    assert branch.started.fork.first_draw_sequence == 2
    again = client.fork(branch.id, step=9).result()
    assert get_ids(read(client, again)) == get_ids(theirs)
    assert again.started.fork.first_draw_sequence == 2
    token = read(client, again)[12]
    place = token.step
    place.sequence_index = 2
    assert token.draw is not None
    assert token.draw.noise == pytest.approx(
        compute_noise(SAMPLED["seed"], place, place.token_id), rel=1e-6
    )
    two = client.fork(several.id, sequence=1, step=5, n=2).result()
    assert get_ids(read(client, two, 0)) == get_ids(read(client, several, 1))


def test_another_token_is_given_and_the_rest_is_drawn_with_the_same_seed(
    client: Client, parent: Generation
) -> None:
    theirs = read(client, parent)
    other = next(it for it in theirs[6].candidates if it.token_id != theirs[6].token_id)
    by_text = client.fork(parent.id, step=6, instead=other.text).result()
    by_id = client.fork(parent.id, step=6, instead=[other.token_id or 0]).result()
    ours = read(client, by_text)
    assert get_ids(ours)[:7] == [*get_ids(theirs)[:6], other.token_id]
    assert get_ids(read(client, by_id)) == get_ids(ours)
    assert ours[6].draw is None
    assert ours[6].logprob == pytest.approx(other.logprob, abs=1e-5)
    assert by_text.started.fork.replaced_token_id == theirs[6].token_id
    assert by_text.started.fork.num_forced_steps == 7
    for token in ours[7:]:
        assert token.draw is not None
        assert token.draw.noise == pytest.approx(
            compute_noise(SAMPLED["seed"], token.step, token.step.token_id), rel=1e-6
        )


def test_changed_settings_are_on_record_with_the_values_of_the_parent(
    client: Client, parent: Generation
) -> None:
    branch = client.fork(parent.id, step=4, temperature=0.5, stop=["zzz"]).result()
    fork = branch.started.fork
    assert list(fork.changed_settings) == ["decoding.sample.temperature", "decoding.stop"]
    assert fork.parent_decoding.sample.temperature == pytest.approx(0.9)
    assert not fork.parent_decoding.sample.HasField("top_p")
    effective = branch.started.effective_decoding
    assert effective.sample.seed == SAMPLED["seed"]
    assert effective.sample.top_p == pytest.approx(0.95)
    searched = client.fork(parent.id, greedy=True).result()
    assert list(searched.started.fork.changed_settings) == ["decoding.greedy", "decoding.sample"]
    assert searched.started.fork.parent_decoding.sample.seed == SAMPLED["seed"]
    reset = client.fork(branch.id, step=4, reset=["stop"]).result()
    assert list(reset.started.effective_decoding.stop) == []


@pytest.mark.parametrize(
    "options",
    [{"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.5}, {"bad_words": ["e", " the"]}],
)
def test_processors_see_repeated_tokens_as_generated_ones(
    client: Client, greedy: Generation, options: dict[str, Any]
) -> None:
    """A generation whose prompt ends with the repeated tokens continues them in the same way."""
    step = 10
    branch = client.fork(greedy.id, step=step, **options).result()
    started = greedy.started
    repeated = greedy.sequences[0].token_ids[:step]
    prompt = [*started.prompt_token_ids, *repeated]
    expected = client.generate(
        prompt, greedy=True, ignore_eos=True, max_new_tokens=24 - step, **options
    ).result()
    assert branch.sequences[0].token_ids[:step] == repeated
    assert branch.sequences[0].token_ids[step:] == expected.sequences[0].token_ids


def test_stop_string_may_begin_in_the_repeated_text(client: Client, parent: Generation) -> None:
    text = parent.sequences[0].text
    assert len(text) > 8
    begin, end = len(text) // 2, len(text) // 2 + 4
    stop = text[begin:end]
    last = text.index(stop) + len(stop)
    num_bytes = len(text[: last - 1].encode())
    # The first token whose bytes go into the last character of the stop string.
    step = next(it.index for it in read(client, parent) if it.step.text_end_byte > num_bytes)
    assert step > 0
    branch = client.fork(parent.id, step=step, stop=[stop]).result()
    sequence = branch.sequences[0]
    assert (sequence.finish_reason, sequence.stop) == ("stop", stop)
    assert sequence.text == text[: text.index(stop)]
    assert len(sequence.token_ids) == step + 1


def test_constraint_goes_on_after_the_repeated_tokens(client: Client) -> None:
    constrained = run(client, regex="[a-m ]{30,60}", max_new_tokens=40)
    same = client.fork(constrained.id, step=5).result()
    assert same.sequences[0].token_ids == constrained.sequences[0].token_ids
    other = client.fork(constrained.id, step=5, instead="k", seed=3).result()
    assert set(other.sequences[0].text) <= set("abcdefghijklm ")
    with pytest.raises(InvalidRequestError, match="does not allow") as refused:
        client.fork(constrained.id, step=5, instead="z").result()
    assert refused.value.violations[0].field.startswith("decoding.constraint")
    free = client.fork(constrained.id, step=5, instead="z", reset=["constraint"]).result()
    assert not free.started.effective_decoding.HasField("constraint")


def test_prompt_is_edited_shortened_and_masked(client: Client, parent: Generation) -> None:
    ids = list(parent.started.prompt_token_ids)
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"edits": [PromptEdit(begin=1, end=3)]}, [ids[0], *ids[3:]]),
        ({"edits": [PromptEdit(begin=1, end=3, mask_token_id=5)]}, [ids[0], 5, 5, *ids[3:]]),
        ({"edits": [PromptEdit(begin=0, end=1, token_ids=[7, 8])]}, [7, 8, *ids[1:]]),
        ({"prompt": [4, 5, 6]}, [4, 5, 6]),
    ]
    for options, expected in cases:
        branch = client.fork(parent.id, step=3, **options).result()
        assert list(branch.started.prompt_token_ids) == expected
        assert branch.started.fork.changes_prompt
        assert branch.sequences[0].token_ids[:3] == parent.sequences[0].token_ids[:3]
    text = client.fork(parent.id, prompt="The slow brown fox").result()
    assert text.started.prompt == "The slow brown fox"
    same = client.fork(parent.id, prompt=PROMPT).result()
    assert not same.started.fork.changes_prompt
    assert same.sequences[0].token_ids == parent.sequences[0].token_ids


def test_forced_text_is_traced_again_under_another_prompt(client: Client) -> None:
    traced = client.generate(PROMPT, forced=" jumps over the lazy dog").result()
    branch = client.fork(traced.id, prompt="A").result()
    assert branch.sequences[0].token_ids == traced.sequences[0].token_ids
    assert [token.logprob for token in read(client, branch)] != [
        token.logprob for token in read(client, traced)
    ]
    free = client.fork(traced.id, step=2, greedy=True, max_new_tokens=6).result()
    assert free.sequences[0].token_ids[:2] == traced.sequences[0].token_ids[:2]
    assert len(free.sequences[0].token_ids) == 6


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a step beyond the record": ({"step": 99}, "step"),
    "a sequence that is none": ({"sequence": 1}, "sequence_index"),
    "nothing left to choose": ({"step": 24}, "decoding.max_new_tokens"),
    "an unknown token": ({"instead": [10**6]}, "instead.tokens[0]"),
    "no text": ({"instead": ""}, "instead.text"),
    "beams after given tokens": ({"step": 2, "num_beams": 2}, "decoding.beam_search"),
    "an unknown field": ({"reset": ["forced"]}, "reset_decoding[0]"),
    "an empty range": ({"edits": [PromptEdit(begin=2, end=2)]}, "edits.edits[0]"),
    "a range beyond": ({"edits": [PromptEdit(begin=0, end=99)]}, "edits.edits[0]"),
    "no prompt left": ({"edits": [PromptEdit(begin=0, end=4)]}, "tokens.token_ids"),
    "ranges that overlap": (
        {"edits": [PromptEdit(begin=0, end=2), PromptEdit(begin=1, end=3)]},
        "edits.edits[1]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_branch_is_refused_with_its_field(
    client: Client, parent: Generation, name: str
) -> None:
    options, field = REFUSED[name]
    if name == "no prompt left":
        options = {"edits": [PromptEdit(begin=0, end=len(parent.started.prompt_token_ids))]}
    with pytest.raises(InvalidRequestError) as refused:
        client.fork(parent.id, **options).result()
    assert field in [violation.field for violation in refused.value.violations]


def test_parent_that_is_not_there_or_has_no_ids_is_refused(client: Client) -> None:
    with pytest.raises(NotFoundError):
        client.fork(uuid.uuid4()).result()
    with pytest.raises(InvalidRequestError, match="parent_generation_id"):
        client.fork("nonsense").result()
    gone = run(client, max_new_tokens=3)
    client.generations.delete(gone.id)
    with pytest.raises(NotFoundError):
        client.fork(gone.id).result()
    hidden = run(client, content="none", max_new_tokens=3)
    with pytest.raises(FailedPreconditionError, match="content: none") as refused:
        client.fork(hidden.id).result()
    assert refused.value.reason == "FORK_REFUSED"
    numbers = run(client, content="tokens", max_new_tokens=8)
    branch = client.fork(numbers.id, step=2).result()
    assert branch.sequences[0].token_ids == numbers.sequences[0].token_ids
    assert branch.started.content == numbers.started.content


def test_running_generation_is_forked_and_beams_only_once_they_ended(
    paced_server: ServerProcess,
) -> None:
    with Client(paced_server.target) as client:
        with client.generate([1, 2], num_beams=2, max_new_tokens=2000) as searched:
            next(searched.events())
            with pytest.raises(InvalidRequestError, match="beam search has no sequences before"):
                client.fork(searched.id, step=1).result()
        with client.generate([1, 2, 3], seed=4, max_new_tokens=2000) as running:
            first = [next(running) for _ in range(4)]
            branch = client.fork(running.id, step=3, max_new_tokens=5).result()
            later = [next(running) for _ in range(2)]
            assert branch.sequences[0].token_ids[:5] == tuple(get_ids([*first, *later]))[:5]


async def test_asyncio_client_forks(server: ServerProcess, parent: Generation) -> None:
    async with AsyncClient(server.target) as client:
        tokens = [token async for token in client.fork(parent.id, step=3)]
    assert tuple(get_ids(tokens)) == parent.sequences[0].token_ids


def test_equal_request_joins_the_branch(client: Client, parent: Generation) -> None:
    own_id = str(uuid.uuid4())
    branches = [client.fork(parent.id, step=2, generation_id=own_id).result() for _ in range(2)]
    assert branches[0].sequences == branches[1].sequences
    assert branches[0].started.trace_id == branches[1].started.trace_id


def test_branches_are_listed_by_their_parent_even_after_its_deletion(client: Client) -> None:
    root = run(client, max_new_tokens=6)
    branch = client.fork(root.id, step=2).result()
    twig = client.fork(branch.id, step=3).result()
    (listed,) = client.generations.list(parent=root.id)
    assert (listed.generation_id, listed.parent_generation_id) == (branch.id, root.id)
    assert [it.generation_id for it in client.generations.list(parent=branch.id)] == [twig.id]
    client.generations.delete(root.id)
    assert [it.generation_id for it in client.generations.list(parent=root.id)] == [branch.id]
    assert client.fork(branch.id, step=2).result().sequences == branch.sequences


def test_branch_goes_on_while_its_parent_is_deleted(client: Client) -> None:
    root = run(client, max_new_tokens=12, ignore_eos=True)
    with client.fork(root.id, step=8, max_new_tokens=40, ignore_eos=True) as branch:
        first = next(branch)
        client.generations.delete(root.id)
        tokens = [first, *branch]
    assert tuple(get_ids(tokens))[:8] == root.sequences[0].token_ids[:8]
    assert len(tokens) == 40
    with pytest.raises(NotFoundError):
        client.fork(root.id, step=8).result()


BRANCHES: dict[str, Callable[[Client, Generation], Generation]] = {
    "of a sample": lambda client, parent: client.fork(parent.id, step=6, instead="e"),
    "with a penalty": lambda client, parent: client.fork(
        parent.id, step=6, repetition_penalty=1.2, top_k=9
    ),
    "of two": lambda client, parent: client.fork(parent.id, step=4, n=2),
    "greedy": lambda client, parent: client.fork(parent.id, step=4, greedy=True),
    "of another prompt": lambda client, parent: client.fork(
        parent.id, step=4, edits=[PromptEdit(begin=0, end=1)]
    ),
    "of a second sequence": lambda client, _: client.fork(
        run(client, n=2).id, sequence=1, step=3, temperature=0.7
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branch_is_verified_by_replay(client: Client, parent: Generation, name: str) -> None:
    branch = BRANCHES[name](client, parent).result()
    with client.generations.verify(branch.id, every_step=True) as events:
        last = list(events)[-1].result
    assert last.verdict in {
        verification_pb2.VERDICT_VERIFIED,
        verification_pb2.VERDICT_VERIFIED_WITHIN_MARGIN,
    }, last
    assert f"the first {branch.started.fork.num_forced_steps} tokens" in last.message


def test_command_shows_a_branch_beside_its_parent(
    server: ServerProcess, client: Client, parent: Generation
) -> None:
    theirs = read(client, parent)
    other = next(it for it in theirs[6].candidates if it.token_id != theirs[6].token_id)
    arguments = ("fork", parent.id, "--step", "6", "--token-id", str(other.token_id))
    done = run_whence(*arguments, "--target", server.target)
    assert done.returncode == 0, done.stderr
    heading, repeated, changed, *_ = done.stdout.splitlines()
    assert heading.split() == ["step", "parent", "p", "branch", "p"]
    assert repeated.split()[0] == "0-5"
    assert changed.split()[0] == "6"
    assert "  |  " in changed
    assert changed.endswith("given")
    assert "from step 6: another token; it parts from its parent at step 6" in done.stderr
    (listed, *_) = client.generations.list(parent=parent.id)
    shown = run_whence_well("generations", "show", listed.generation_id, "--target", server.target)
    assert f"branch of     {parent.id}, from step 6: another token" in shown
    tree = run_whence_well("generations", "tree", listed.generation_id, "--target", server.target)
    lines = tree.splitlines()
    assert lines[0].startswith(f"  {parent.id}  prompt")
    assert any(line.startswith(f"*   {listed.generation_id}  from step 6") for line in lines)
    same = run_whence("fork", parent.id, "--step", "6", "--target", server.target)
    assert "from step 6: nothing differs; it is equal to its parent" in same.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--set", "warmth=1"), "'warmth' is no setting"),
        (("--remove", "1-2"), "is not BEGIN:END"),
        (("--mask", "1:2=x"), "is not the id of a token"),
        (("--seed", "1", "--set", "seed=2"), "contradict"),
        (("--prompt", "a", "--remove", "0:1"), "change the parent's prompt"),
        (("--set", "temperature=hot"), "temperature"),
    ],
)
def test_command_refuses_what_no_request_can_represent(
    server: ServerProcess, parent: Generation, arguments: tuple[str, ...], told: str
) -> None:
    done = run_whence("fork", parent.id, *arguments, "--target", server.target)
    assert done.returncode == 2
    assert told in done.stderr
