"""Decisions: the chosen tokens, and the numbers that explain them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from computing import DEVICE
from decoding_oracle import DECISIONS, GREEDY, SAMPLE, TOKENS, entropy, expected, log_softmax

from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.domain.errors import GenerationFailedError
from whence_server.domain.steps import Decision
from whence_server.engines.transformers.decoding import Chooser, NonFiniteLogits, Row, statistics

V = 700
CHOOSER = Chooser(V, torch.device(DEVICE))
FORCED = Decoding(Strategy.FORCED, max_new_tokens=3, forced_token_ids=(11, 500, 2))
MASK = 0xFFFFFFFF


def random_logits(seed: int, num_rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, V, generator=generator) * 2).to(dtype)


def rows_of(*decodings: Decoding, trace: TraceOptions = DECISIONS) -> list[Row]:
    return [Row(decoding, trace, i, [1, 2, 3]) for i, decoding in enumerate(decodings)]


def check_own(decision: Decision, logits: torch.Tensor, num_candidates: int) -> None:
    """Check the numbers under the model's own distribution."""
    scores = logits.double().numpy()
    logprobs = log_softmax(scores)
    assert decision.logprob == pytest.approx(logprobs[decision.token_id], abs=1e-5)
    assert decision.rank == (scores > scores[decision.token_id]).sum()
    assert decision.entropy == pytest.approx(entropy(logprobs), abs=1e-5)
    assert decision.candidates is not None
    best = np.argsort(-scores, kind="stable")[:num_candidates]
    assert decision.candidates.token_ids == best.tolist()
    assert decision.candidates.logprobs == pytest.approx(logprobs[best].tolist(), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_equal_a_plain_computation(dtype: torch.dtype) -> None:
    logits = random_logits(1, 4, dtype)
    logits[3, ::3] = -torch.inf
    rows = rows_of(GREEDY, SAMPLE, FORCED, SAMPLE)
    for i, decision in enumerate(CHOOSER.choose(logits, rows)):
        assert isinstance(decision, Decision)
        check_own(decision, logits[i], 8)
        assert decision.effects is None
        assert (decision.draw is not None) == (i in {1, 3})
        if i == 2:
            assert decision.token_id == 11
            assert decision.sampling_logprob is decision.sampling_entropy is None
            assert decision.candidates.sampling_logprobs == []
        else:
            assert decision.sampling_logprob == decision.logprob
            assert decision.sampling_entropy == decision.entropy
            assert decision.candidates.sampling_logprobs == decision.candidates.logprobs
    assert decision.logprob > -math.inf


def test_greedy_takes_the_most_likely_and_the_lowest_id_of_equal_ones() -> None:
    logits = random_logits(2, 3)
    logits[1] = 0.0
    logits[2, [600, 77, 300]] = 9.0
    decisions = CHOOSER.choose(logits, rows_of(GREEDY, GREEDY, GREEDY))
    assert [d.token_id for d in decisions] == [int(logits[0].argmax()), 0, 77]
    assert [d.rank for d in decisions] == [0, 0, 0]
    assert decisions[2].candidates.token_ids[:3] == [77, 300, 600]


def test_forced_tokens_may_be_impossible() -> None:
    logits = random_logits(3, 1)
    logits[0, 11] = -torch.inf
    [row] = rows_of(FORCED)
    [decision] = CHOOSER.choose(logits, [row])
    assert (decision.token_id, decision.logprob, decision.rank) == (11, -math.inf, V - 1)
    row.append(11)
    assert CHOOSER.choose(logits, [row])[0].token_id == 500


def philox_word(counter: tuple[int, int, int, int], key: tuple[int, int]) -> int:
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1, 0x1234567890ABCDEF])
def test_a_draw_can_be_recomputed_from_its_record(seed: int) -> None:
    decoding = dataclasses.replace(SAMPLE, seed=seed, top_k=20, temperature=1.4)
    trace = TraceOptions(TraceDetail.DECISIONS, num_candidates=20)
    rows = rows_of(*[decoding] * 3, trace=trace)
    logits = random_logits(seed % 1000, 3)
    for index in range(4):
        for row, decision in zip(rows, CHOOSER.choose(logits, rows), strict=True):
            keys = {}
            for token_id, logprob in zip(
                decision.candidates.token_ids, decision.candidates.sampling_logprobs, strict=True
            ):
                counter = (token_id, index, row.sequence_index, 0)
                word = philox_word(counter, (seed & MASK, seed >> 32))
                keys[token_id] = -math.log((word + 0.5) / 2**32) / math.exp(logprob)
            winner, runner_up = sorted(keys, key=keys.__getitem__)[:2]
            assert decision.token_id == winner
            assert decision.draw.runner_up_token_id == runner_up
            noise = keys[winner] * math.exp(decision.sampling_logprob)
            assert decision.draw.noise == pytest.approx(noise, rel=1e-9)
            margin = math.log(keys[runner_up] / keys[winner])
            assert decision.draw.margin == pytest.approx(margin, abs=1e-6)
            row.append(decision.token_id)


def test_with_one_token_left_there_is_no_runner_up() -> None:
    [decision] = CHOOSER.choose(random_logits(4, 1), rows_of(dataclasses.replace(SAMPLE, top_k=1)))
    assert decision.sampling_logprob == 0.0
    assert decision.draw.runner_up_token_id is decision.draw.margin is None
    assert decision.draw.noise > 0


def test_tokens_and_logprobs_do_not_depend_on_the_trace() -> None:
    warped = dataclasses.replace(SAMPLE, temperature=0.8, top_p=0.9, repetition_penalty=1.2)
    decodings = (GREEDY, SAMPLE, warped, warped, FORCED)
    logits = random_logits(5, len(decodings))
    traces = [TOKENS, *(TraceOptions(TraceDetail.DECISIONS, n) for n in (0, 1, 128, 5000))]
    found = [CHOOSER.choose(logits, rows_of(*decodings, trace=trace)) for trace in traces]
    mixed = rows_of(*decodings)
    mixed[1::2] = rows_of(*decodings, trace=TOKENS)[1::2]
    found.append(CHOOSER.choose(logits, mixed))
    for decisions in found[1:]:
        assert [d[:3] for d in decisions] == [d[:3] for d in found[0]]
    assert all(field is None for decision in found[0] for field in decision[3:])
    assert all(d.candidates is None and d.rank is not None for d in found[1])
    assert all(len(d.candidates.token_ids) == V for d in found[4])


@pytest.mark.parametrize("trace", [TOKENS, DECISIONS], ids=["tokens", "decisions"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, "all -inf"])
def test_a_row_without_a_distribution_has_its_own_reason(
    broken: float | str, trace: TraceOptions
) -> None:
    warped = dataclasses.replace(
        SAMPLE, top_p=0.9, typical_p=0.9, eta_cutoff=0.01, repetition_penalty=1.1
    )
    decodings = (GREEDY, warped, SAMPLE, warped, FORCED)
    good = random_logits(6, len(decodings))
    expected = CHOOSER.choose(good, rows_of(*decodings, trace=trace))
    for i in range(len(decodings)):
        logits = good.clone()
        if isinstance(broken, str):
            logits[i] = -torch.inf
        else:
            logits[i, 123] = broken
        found = CHOOSER.choose(logits, rows_of(*decodings, trace=trace))
        assert isinstance(found[i], NonFiniteLogits)
        assert found[:i] + found[i + 1 :] == expected[:i] + expected[i + 1 :]


def test_choosing_does_not_change_the_logits() -> None:
    logits = random_logits(7, 3)
    before = logits.clone()
    penalised = dataclasses.replace(SAMPLE, repetition_penalty=1.3, no_repeat_ngram_size=2)
    CHOOSER.choose(logits, rows_of(GREEDY, penalised, SAMPLE))
    CHOOSER.choose(logits, rows_of(penalised, penalised, penalised))
    assert torch.equal(logits, before)


def test_no_rows_make_no_decisions() -> None:
    assert CHOOSER.choose(torch.empty(0, V), []) == []


def test_a_beam_search_is_not_chosen_row_by_row() -> None:
    beam = Decoding(Strategy.BEAM_SEARCH, max_new_tokens=4, num_beams=2)
    with pytest.raises(ValueError, match="row by row"):
        CHOOSER.choose(random_logits(8, 1), rows_of(beam))


def test_a_row_can_exceed_its_initial_capacity() -> None:
    row = Row(dataclasses.replace(GREEDY, max_new_tokens=2), DECISIONS, 0, [4, 5], 1)
    for token_id in range(20):
        row.append(token_id)
    assert row.token_ids.tolist() == [4, 5, *range(20)]
    assert row.index == 21


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prompt_is_scored_in_slices(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(9, 23, dtype)
    token_ids = torch.arange(23) * 30
    whole = CHOOSER.score_prompt(logits, token_ids, DECISIONS)
    for i, decision in enumerate(whole):
        assert decision.token_id == 30 * i
        check_own(decision, logits[i], 8)
        assert decision.sampling_logprob is decision.sampling_entropy is None
        assert decision.candidates.sampling_logprobs == []
        assert decision.effects is decision.draw is None
    monkeypatch.setattr(
        "whence_server.engines.transformers.decoding.prompt.MAX_TEMPORARY_BYTES", 5 * 4 * 4 * V
    )
    sliced = CHOOSER.score_prompt(logits, token_ids, DECISIONS)
    # A sum's order may depend on how many rows there are, on another device than the CPU.
    close = [d._replace(entropy=pytest.approx(d.entropy, abs=1e-5)) for d in whole]
    assert sliced == close
    bare = CHOOSER.score_prompt(logits, token_ids, TOKENS)
    assert bare == [Decision(d.token_id, d.logprob) for d in whole]


def test_a_prompt_with_broken_logits_fails() -> None:
    logits = random_logits(10, 4)
    logits[2, 5] = torch.nan
    with pytest.raises(GenerationFailedError, match="no distribution") as raised:
        CHOOSER.score_prompt(logits, torch.arange(4), DECISIONS)
    assert raised.value.reason == "NON_FINITE_LOGITS"


def test_tensors_of_any_type_and_shape_are_copied_in_one_transfer() -> None:
    tensors = [
        torch.arange(3, dtype=torch.int32),
        torch.rand(2, 3),
        torch.arange(4),
        torch.empty(0, dtype=torch.int64),
        torch.rand(2, 2, dtype=torch.float64)[:, 1],
    ]
    found = statistics.unpack(statistics.pack(tensors), tensors)
    for tensor, unpacked in zip(tensors, found, strict=True):
        assert unpacked.dtype is tensor.dtype
        assert torch.equal(unpacked, tensor)


def test_requested_logprobs_are_those_of_both_distributions() -> None:
    """Rows with other requests beside them, and with none."""
    warped = dataclasses.replace(SAMPLE, temperature=0.7, top_k=20, top_p=0.9)
    penalised = dataclasses.replace(GREEDY, repetition_penalty=1.5, logit_bias=((7, 4.0),))
    decodings = (GREEDY, warped, penalised, FORCED, warped, SAMPLE)
    wanted = [(5,), (V - 1, 0, 40), tuple(range(128)), (3, 11), (), (2,)]
    rows = rows_of(*decodings)
    for row, ids in zip(rows, wanted, strict=True):
        row.logprob_token_ids = ids
    logits = random_logits(11, len(rows))
    logits[0, 5] = -torch.inf
    found = CHOOSER.choose(logits, rows)
    without = CHOOSER.choose(logits, rows_of(*decodings))
    assert [d._replace(requested_logprobs=None) for d in found] == without
    for i, (row, decision) in enumerate(zip(rows, found, strict=True)):
        prompt = row.token_ids.tolist()
        distributions = expected(logits[i].cpu(), decodings[i], prompt, []).distributions
        own, final = distributions[0], distributions[-1]
        if not wanted[i]:
            assert decision.requested_logprobs is None
            continue
        requested = decision.requested_logprobs
        ids = list(wanted[i])
        assert requested.logprobs == pytest.approx(own[ids].tolist(), abs=1e-5)
        drawn = [] if decodings[i] is FORCED else final[ids].tolist()
        assert requested.sampling_logprobs == pytest.approx(drawn, abs=1e-5)
    assert found[0].requested_logprobs.logprobs == [-math.inf]
    assert -math.inf in found[1].requested_logprobs.sampling_logprobs


def test_a_prompts_requested_logprobs_are_the_models_own() -> None:
    logits = random_logits(12, 5)
    trace = TraceOptions(num_candidates=0, logprob_token_ids=(V - 1, 4))
    scored = CHOOSER.score_prompt(logits, torch.arange(5), trace)
    for i, decision in enumerate(scored):
        own = log_softmax(logits[i].double().cpu().numpy())[[V - 1, 4]]
        assert decision.candidates is None
        assert decision.requested_logprobs.logprobs == pytest.approx(own.tolist(), abs=1e-5)
        assert decision.requested_logprobs.sampling_logprobs == []
