"""Beam search over gRPC: live rounds, then the winners, also after a death of the engine."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import torch
from server_process import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, step_pb2

PROMPT = "The quick brown fox: naïve 😀"


class Search:
    """A beam search's stream, by kinds of events."""

    def __init__(
        self, responses: Iterator[g.GenerateResponse], then: dict[int, Callable[[], None]]
    ) -> None:
        self.rounds: list[g.BeamRound] = []
        self.steps: list[step_pb2.Step] = []
        offset = 0
        for response in responses:
            event = response.event
            if event.HasField("progress"):
                continue  # on a machine that is slow now
            assert event.first_offset == offset + 1
            offset = event.last_offset
            match event.WhichOneof("event"):
                case "started":
                    self.started = event.started
                case "beam_round":
                    assert not self.steps, "rounds come while the search goes on"
                    assert event.beam_round.index == len(self.rounds)
                    self.rounds.append(event.beam_round)
                    then.get(len(self.rounds), lambda: None)()
                case "steps":
                    self.steps += event.steps.steps
                case "finished":
                    self.finished = event.finished

    def steps_of(self, sequence_index: int) -> list[step_pb2.Step]:
        return [step for step in self.steps if step.sequence_index == sequence_index]

    def descent(self) -> list[list[tuple[int, int, bool, bool]]]:
        """Each round's continuations, without times."""
        return [
            [(c.parent, c.token_id, c.kept, c.finished) for c in made.continuations]
            for made in self.rounds
        ]


def request(max_new_tokens: int = 24, **search: object) -> g.GenerateRequest:
    settings = {"num_beams": 4, "length_penalty": 0.6, **search}
    return g.GenerateRequest(
        prompt=PROMPT,
        decoding=g.Decoding(
            beam_search=g.BeamSearch(
                early_stopping=g.EARLY_STOPPING_HEURISTIC,
                **settings,  # type: ignore[arg-type]
            ),
            num_return_sequences=3,
            max_new_tokens=max_new_tokens,
            stop_token_ids=[7, 300],
        ),
    )


def run(
    target: str, asked: g.GenerateRequest, then: dict[int, Callable[[], None]] | None = None
) -> Search:
    with grpc.insecure_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        return Search(stub.Generate(asked), then or {})


def test_rounds_then_winners_with_the_ids_and_scores_of_generate(
    server: ServerProcess, tiny_model: Callable[..., Path]
) -> None:
    search = run(server.target, request())
    model = AutoModelForCausalLM.from_pretrained(tiny_model("gpt2")).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("gpt2"))
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = model.generate(
            ids,
            num_beams=4,
            num_return_sequences=3,
            length_penalty=0.6,
            early_stopping=False,
            max_new_tokens=24,
            eos_token_id=[0, 7, 300],
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    sequences = search.finished.sequences
    assert [s.score for s in sequences] == pytest.approx(
        expected.sequences_scores.tolist(), rel=1e-5
    )
    for i, theirs in enumerate(expected.sequences[:, ids.shape[1] :].tolist()):
        ours = list(sequences[i].token_ids)
        assert ours == theirs[: len(ours)]
        assert all(token_id == 0 for token_id in theirs[len(ours) :]), "padding"
        steps = search.steps_of(i)
        assert [step.token_id for step in steps] == ours
        assert [step.index for step in steps] == list(range(len(ours)))
        assert "".join(step.text for step in steps) == sequences[i].text
        assert sequences[i].logprob == pytest.approx(sum(s.logprob for s in steps), abs=1e-3)
        for step, made in zip(steps, search.rounds, strict=False):
            assert step.timing == made.timing, "the step's round"
            assert len(step.candidates.token_ids) == 8
            assert not step.HasField("draw")
    beam_search = search.started.effective_decoding.beam_search
    assert (beam_search.num_beams, round(beam_search.length_penalty, 6)) == (4, 0.6)
    assert search.finished.num_generated_tokens == sum(len(s.token_ids) for s in sequences)


def test_a_search_continues_after_the_engines_death_with_the_same_rounds(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    # Long enough that the engine cannot be at its end when the client has seen some rounds.
    asked = request(max_new_tokens=700)
    asked.decoding.ignore_eos = True
    del asked.decoding.stop_token_ids[:]
    with ServerProcess(tiny_model("gpt2-long"), tmp_path) as process:
        undisturbed = run(process.target, asked)
        engine = process.engine_pid
        killed = run(process.target, asked, {20: lambda: os.kill(engine, signal.SIGKILL)})
        assert not psutil.pid_exists(engine)
        assert process.engine_pid != engine
    assert len(undisturbed.rounds) == 700
    assert killed.descent() == undisturbed.descent()
    for one, other in zip(killed.finished.sequences, undisturbed.finished.sequences, strict=True):
        assert one.token_ids == other.token_ids
        assert one.score == pytest.approx(other.score, rel=1e-6)


def test_a_cancelled_search_leaves_its_rounds_and_no_sequence(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        asked = request(max_new_tokens=200)
        asked.decoding.ignore_eos = True
        del asked.decoding.stop_token_ids[:]
        identity = "0b5b2b0e-1d2b-4c57-9a41-0c3f5f7f9d10"
        asked.generation_id = identity

        def cancel() -> None:
            stub.CancelGeneration(g.CancelGenerationRequest(generation_id=identity))

        search = Search(stub.Generate(asked), {3: cancel})
    assert len(search.rounds) >= 3
    assert search.finished.finish_reason == g.FINISH_REASON_CANCELLED
    assert [list(sequence.token_ids) for sequence in search.finished.sequences] == [[], [], []]


def test_a_search_does_not_change_other_streams(server: ServerProcess) -> None:
    alone = run(server.target, request())
    stream = g.GenerateRequest(
        prompt="def generate(", decoding=g.Decoding(greedy=g.Greedy(), max_new_tokens=100)
    )
    with grpc.insecure_channel(server.target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        expected = [r.event.finished for r in stub.Generate(stream)][-1]
        streams = [stub.Generate(stream) for _ in range(5)]
        together = run(server.target, request())
        for responses in streams:
            finished = [r.event.finished for r in responses][-1]
            assert finished.sequences[0].token_ids == expected.sequences[0].token_ids
    assert together.descent() == alone.descent()
