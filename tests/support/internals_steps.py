"""Steps with internals, as an engine records them, for the fake server and the page."""

from client_fake_server import TOKEN_IDS, VOCABULARY, step
from google.protobuf.timestamp_pb2 import Timestamp

from whence.v1 import generation_pb2 as pb
from whence.v1.step_pb2 import Internals, Step

PROMPT_IDS = (0, 1, 2)
METHOD = "value-norm-attention/2"


def internals_step(
    index: int,
    token_id: int,
    text: str,
    *,
    num_prompt_tokens: int = len(PROMPT_IDS),
    begin: int = 0,
) -> Step:
    """Return a step with half of its sources at position 1, leading from the middle layer on."""
    made = step(index, 0, text, begin=begin)
    made.token_id = token_id
    made.text_end_byte = begin + len(text.encode("utf-8", "surrogatepass"))
    made.candidates.token_ids[:] = [token_id, 5 if token_id != 5 else 6]
    newest = num_prompt_tokens + index - 1
    made.timing.context_length = newest + 1
    made.internals.CopyFrom(
        Internals(
            source_positions=[1, 0] if newest > 1 else [],
            source_shares=[0.5, 0.125] if newest > 1 else [],
            self_share=0.25 if newest > 1 else 1.0,
            layer_shares=[0.25, 0.5, 0.75],
            layer_leaders=[1, 0, 0],
        )
    )
    return made


def internals_journal(
    token_ids: tuple[int, ...] = TOKEN_IDS,
    *,
    prompt_ids: tuple[int, ...] = PROMPT_IDS,
    vocabulary: tuple[bytes, ...] = VOCABULARY,
    texts: tuple[str, ...] | None = None,
) -> list[pb.GenerationEvent]:
    """Return the events of a complete generation with internals, one for each offset."""
    said = texts or tuple(vocabulary[token_id].decode() for token_id in token_ids)
    begins = [
        sum(len(text.encode("utf-8", "surrogatepass")) for text in said[:i])
        for i in range(len(said))
    ]
    made = [
        internals_step(
            index, token_id, said[index], num_prompt_tokens=len(prompt_ids), begin=begins[index]
        )
        for index, token_id in enumerate(token_ids)
    ]
    started = pb.GenerationStarted(
        generation_id="6f0e",
        trace_id="ab" * 16,
        span_id="cd" * 8,
        start_time=Timestamp(seconds=1_700_000_000),
        model="fake",
        tokenizer_digest="t1",
        prompt="".join(vocabulary[token_id].decode("utf-8", "replace") for token_id in prompt_ids),
        prompt_token_ids=prompt_ids,
        processor_names=["temperature"],
        source_method=METHOD,
        effective_decoding=pb.Decoding(sample=pb.Sample(temperature=0.5, seed=7)),
        effective_trace=pb.TraceOptions(detail=pb.TRACE_DETAIL_INTERNALS, num_candidates=2),
    )
    finished = pb.GenerationFinished(
        sequences=[
            pb.SequenceResult(
                text="".join(said), token_ids=token_ids, finish_reason=pb.FINISH_REASON_LENGTH
            )
        ],
        num_prompt_tokens=len(prompt_ids),
        num_generated_tokens=len(made),
        finish_reason=pb.FINISH_REASON_LENGTH,
    )
    events = [
        pb.GenerationEvent(started=started),
        *(pb.GenerationEvent(steps=pb.StepBatch(steps=[each])) for each in made),
        pb.GenerationEvent(finished=finished),
    ]
    for offset, event in enumerate(events, 1):
        event.first_offset = event.last_offset = offset
    return events
