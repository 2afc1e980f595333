"""Differences of branches from their parents, and the settings that they ask for."""

from dataclasses import replace

import pytest

from whence.summary import describe_fork
from whence.v1 import generation_pb2 as pb
from whence_server.domain.content import ContentPolicy
from whence_server.domain.decoding import Configured, Decoding, GenerationDefaults, Strategy
from whence_server.domain.errors import InvalidRequestError
from whence_server.generation.branches import compare_configured, compare_settings
from whence_server.journal.codec import convert_configured, convert_decoding
from whence_server.rpc.fork_decoding import merge_decoding, merge_trace

SAMPLED = Decoding(Strategy.SAMPLE, 20, temperature=0.7, top_p=0.9, seed=5, stop=("a", "b"))
# As a model's generation config may have it: no float32.
DEFAULTS = GenerationDefaults(do_sample=True, temperature=0.7, top_p=0.8)


def merge(parent: Decoding, **asked: object) -> pb.Decoding:
    request = pb.ForkGenerationRequest(**asked)  # type: ignore[arg-type]
    return merge_decoding(convert_decoding(parent), request, DEFAULTS)


def test_only_what_differs_is_kept_of_the_parent() -> None:
    theirs = convert_decoding(SAMPLED).SerializeToString()
    assert compare_settings(theirs, SAMPLED) == ((), b"")
    paths, kept = compare_settings(theirs, replace(SAMPLED, temperature=0.5, stop=("a",)))
    assert paths == ("decoding.sample.temperature", "decoding.stop")
    parent = pb.Decoding.FromString(kept)
    assert list(parent.stop) == ["a", "b"]
    assert parent.sample.temperature == pytest.approx(0.7)
    assert not parent.sample.HasField("seed")
    assert not parent.HasField("max_new_tokens")


def test_another_strategy_is_one_difference_and_given_tokens_are_none() -> None:
    theirs = convert_decoding(SAMPLED).SerializeToString()
    greedy = Decoding(Strategy.GREEDY, 20, stop=("a", "b"))
    paths, kept = compare_settings(theirs, greedy)
    assert paths == ("decoding.greedy", "decoding.sample")
    assert pb.Decoding.FromString(kept).sample.seed == 5
    traced = Decoding(Strategy.FORCED, 2, forced_token_ids=(1, 2))
    other = replace(traced, forced_token_ids=(1, 3))
    assert compare_settings(convert_decoding(traced).SerializeToString(), other) == ((), b"")


def test_settings_of_the_generation_config_are_compared() -> None:
    had = replace(SAMPLED, configured=Configured(top_h=0.5, suppress_token_ids=(3, 4)))
    message = convert_configured(had)
    assert message is not None
    theirs = message.SerializeToString()
    assert compare_configured(theirs, had, keeps_lists=True) == ()
    other = replace(had, configured=Configured(suppress_token_ids=(3,), forced_bos_token_id=0))
    assert compare_configured(theirs, other, keeps_lists=True) == (
        "configured_decoding.forced_bos_token_id",
        "configured_decoding.suppress_token_ids",
        "configured_decoding.top_h",
    )
    assert compare_configured(b"", had, keeps_lists=False) == ("configured_decoding.top_h",)
    started = pb.GenerationStarted(
        fork=pb.Fork(changed_settings=["configured_decoding.top_h", "model_digest"])
    )
    assert describe_fork(started) == (
        "from step 0: another top_h of the generation config, other files of the model, with the "
        "same weights"
    )


def test_set_fields_replace_the_parents_and_lists_as_a_whole() -> None:
    merged = merge(SAMPLED, decoding=pb.Decoding(stop=["c"], max_new_tokens=9))
    assert list(merged.stop) == ["c"]
    assert (merged.max_new_tokens, merged.sample.seed) == (9, 5)
    assert merged.num_return_sequences == 1
    assert list(merge(SAMPLED, reset_decoding=["stop"]).stop) == []
    kept = merge(SAMPLED, decoding=pb.Decoding(sample=pb.Sample()))
    assert kept.sample.top_p == pytest.approx(0.9)
    assert merge(SAMPLED, decoding=pb.Decoding(greedy=pb.Greedy())).HasField("greedy")


def test_numbers_of_the_generation_config_are_left_to_it() -> None:
    """The record has them as float32, which are other numbers."""
    merged = merge(SAMPLED)
    assert not merged.sample.HasField("temperature")
    assert merged.sample.HasField("top_p")
    asked = pb.Decoding(sample=pb.Sample(temperature=0.7))
    assert merge(SAMPLED, decoding=asked).sample.HasField("temperature")


def test_branch_of_a_beam_search_keeps_its_beams_or_goes_on_as_one_sequence() -> None:
    beams = Decoding(Strategy.BEAM_SEARCH, 20, num_beams=4, num_return_sequences=3)
    assert merge(beams).num_return_sequences == 3
    assert merge(beams, decoding=pb.Decoding(greedy=pb.Greedy())).num_return_sequences == 1


def test_forced_parent_stays_forced_without_settings_of_a_choice() -> None:
    traced = Decoding(Strategy.FORCED, 2, forced_token_ids=(1, 2), ignore_eos=True)
    merged = merge(traced)
    assert merged.HasField("forced")
    assert merged.ignore_eos
    assert not merged.HasField("max_new_tokens")
    assert merge(traced, decoding=pb.Decoding(greedy=pb.Greedy())).HasField("greedy")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"decoding": pb.Decoding(forced=pb.Forced(text="a"))}, "decoding.forced"),
        ({"reset_decoding": ["warmth"]}, "reset_decoding[0]"),
        ({"reset_decoding": ["stop"] * 99}, "reset_decoding"),
    ],
)
def test_what_cannot_be_set_or_reset_is_refused(asked: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        merge(SAMPLED, **asked)
    assert refused.value.violations[0].field == field


def test_branch_keeps_no_more_content_than_its_parent_or_the_server() -> None:
    started = pb.GenerationStarted(
        content=pb.CONTENT_POLICY_TOKENS,
        effective_trace=pb.TraceOptions(
            num_candidates=3, content=pb.CONTENT_POLICY_TOKENS, logprob_token_ids=[1, 2]
        ),
    )
    merged = merge_trace(started, pb.TraceOptions(logprob_token_ids=[3]), ContentPolicy.FULL)
    assert merged.content == pb.CONTENT_POLICY_TOKENS
    assert list(merged.logprob_token_ids) == [3]
    assert merged.num_candidates == 3
    assert not merge_trace(started, pb.TraceOptions(), ContentPolicy.NONE).content
    with pytest.raises(InvalidRequestError) as refused:
        merge_trace(started, pb.TraceOptions(content=pb.CONTENT_POLICY_FULL), ContentPolicy.FULL)
    assert refused.value.violations[0].field == "trace.content"
    less = pb.TraceOptions(content=pb.CONTENT_POLICY_NONE)
    assert merge_trace(started, less, ContentPolicy.FULL).content == pb.CONTENT_POLICY_NONE


def test_difference_is_told_in_words() -> None:
    started = pb.GenerationStarted(
        effective_decoding=pb.Decoding(sample=pb.Sample(temperature=0.5, seed=2**40), stop=["x"]),
        fork=pb.Fork(
            step=5,
            sequence_index=1,
            num_forced_steps=6,
            changes_prompt=True,
            changed_settings=[
                "decoding.sample.seed",
                "decoding.sample.temperature",
                "decoding.stop",
            ],
            parent_decoding=pb.Decoding(sample=pb.Sample(temperature=1.0, seed=7)),
        ),
    )
    assert describe_fork(started) == (
        "from step 5 of sequence 1: another token, another prompt, seed 7 -> 1099511627776, "
        "temperature 1 -> 0.5, stop none -> ['x']"
    )
    other = pb.GenerationStarted(
        effective_decoding=pb.Decoding(greedy=pb.Greedy()),
        fork=pb.Fork(
            step=1,
            num_forced_steps=4,
            changed_settings=["decoding.greedy", "decoding.sample"],
            parent_decoding=pb.Decoding(sample=pb.Sample(seed=7)),
        ),
    )
    assert describe_fork(other) == "from step 1: 3 other tokens, greedy instead of sample"
    same = pb.GenerationStarted(fork=pb.Fork(step=0))
    assert describe_fork(same) == "from step 0: nothing differs"
