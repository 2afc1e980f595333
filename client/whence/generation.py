"""State of a generation while it streams, without I/O."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from whence.backoff import Backoff, RetryPolicy
from whence.context import Context
from whence.errors import Code, DeadlineExceededError, GenerationFailedError
from whence.options import GenerateOptions, Prompt
from whence.outputs import ToolCall, convert_tool_call, make_message
from whence.requests import generate_request
from whence.resume import GenerationStream
from whence.summary import FORCED, PROMPT, count
from whence.tokens import Token
from whence.v1 import generation_pb2 as pb
from whence.v1.step_pb2 import Step

VocabularyLookup = Callable[[str, str, int], str]
"""(model, tokenizer digest, token id) -> text"""


class FinishReason(StrEnum):
    """Reason why a sequence or a generation ended."""

    UNKNOWN = "unknown"
    """A reason that this version of the client does not know."""
    END_OF_SEQUENCE = "end_of_sequence"
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    FAILED = "failed"

    @classmethod
    def from_wire(cls, number: int) -> "FinishReason":
        """Return the reason of an enum value of the contract."""
        if number not in pb.FinishReason.values():
            return cls.UNKNOWN
        name = pb.FinishReason.Name(pb.FinishReason.ValueType(number))
        return cls.__members__.get(name.removeprefix("FINISH_REASON_"), cls.UNKNOWN)


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """One returned sequence, complete or so far."""

    sequence_index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    """None while the sequence is running."""
    stop: str | None = None
    """Stop string or token that ended the sequence; None if none did, or while it is running."""
    logprob: float | None = None
    """Sum of the tokens' logprobs, in nats; None while the sequence is running."""
    score: float | None = None
    """Final, length-penalised score of beam search; None for other strategies."""
    constraint_complete: bool | None = None
    """True if `text` belongs to the constraint's language, False if it was cut off before; None
    without a constraint, and where it is not known."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Tool calls that the server read from the text; empty while it is running."""
    reasoning: str | None = None
    """Reasoning that the server read from the text; None for none, or while it is running."""
    message: Mapping[str, Any] | None = field(default=None, compare=False)
    """The output as a message to send back; None while it is running."""


def open_stream(
    prompt: Prompt | None, options: GenerateOptions, policy: RetryPolicy
) -> tuple[GenerationStream, Mapping[str, str]]:
    """Return the stream of a call of `generate`, and the metadata of its calls.

    Raises:
        TypeError: an unknown option, or a value of the wrong type.
        ValueError: a value that the wire cannot carry, or options that contradict.
    """
    request = generate_request(prompt, options)
    stream = GenerationStream(request, Backoff(policy), timeout_s=options.get("timeout_s"))
    return stream, options.get("metadata") or {}


class TokenReader:
    """Conversion of one generation's steps to tokens."""

    def __init__(self, started: pb.GenerationStarted, lookup: VocabularyLookup) -> None:
        self._started = started
        self._processor_names = tuple(started.processor_names)
        self._strategy = started.effective_decoding.WhichOneof("strategy") or ""
        self._logprob_token_ids = tuple(started.effective_trace.logprob_token_ids)
        self._lookup = lookup
        self._context = Context(started.prompt_token_ids)

    def read(self, steps: Iterable[Step], *, prompt: bool = False) -> list[Token]:
        """Return the steps as tokens.

        Args:
            steps: steps of the generation, or of its prompt.
            prompt: True for steps of the prompt.
        """
        if prompt:
            nothing = Context(())
            return [self._make_token(step, nothing, PROMPT) for step in steps]
        tokens = []
        for step in steps:
            self._context.add(step)
            given = step.index < self._started.fork.num_forced_steps
            strategy = FORCED if given else self._strategy
            tokens.append(self._make_token(step, self._context, strategy))
        return tokens

    def _make_token(self, step: Step, context: Context, strategy: str) -> Token:
        names, ids = self._processor_names, self._logprob_token_ids
        return Token(step, names, self._find_text, context, ids, strategy)

    def _find_text(self, token_id: int) -> str:
        return self._lookup(self._started.model, self._started.tokenizer_digest, token_id)


class GenerationState:
    """State of a generation so far, for both clients."""

    def __init__(
        self,
        generation_id: str,
        lookup: VocabularyLookup,
        stream: GenerationStream | None = None,
    ) -> None:
        self._id = generation_id
        self._stream = stream
        self._lookup = lookup
        self._started: pb.GenerationStarted | None = None
        self._finished: pb.GenerationFinished | None = None
        self._progress: pb.GenerationProgress | None = None
        self._prompt_tokens: list[Token] = []
        self._texts: dict[int, list[str]] = {}
        self._token_ids: dict[int, list[int]] = {}
        self._reader = TokenReader(pb.GenerationStarted(), lookup)
        # False after the server's error, or if it could not be reached: there is nothing to cancel.
        self._may_run = True

    @property
    def id(self) -> str:
        """The generation's id, known before the first event."""
        return self._id

    @property
    def started(self) -> pb.GenerationStarted | None:
        """Start of the generation, with its effective settings; None before it arrives."""
        return self._started

    @property
    def finished(self) -> pb.GenerationFinished | None:
        """Finish of the generation; None while it is running."""
        return self._finished

    @property
    def num_unrecorded_tokens(self) -> int:
        """Number of tokens that this client received and that are not on record.

        If the server dies before its newest entries are on disk (`--durability group`), the
        recorded generation, and with it `sequences` and `text`, ends before them. 0 while it runs.
        """
        if self._finished is None:
            return 0
        num_received = sum(map(len, self._texts.values()))
        return max(0, num_received - self._finished.num_generated_tokens)

    @property
    def lacks_content(self) -> bool:
        """True if a part of the stream came without text or token ids.

        A stream that resumes is whole for as long as the server holds it in memory. Later it comes
        from the record, from which a content policy (`content`, `--journal-content`) keeps them.
        """
        return self._stream is not None and self._stream.lacks_content

    @property
    def progress(self) -> pb.GenerationProgress | None:
        """State of a generation that is quiet, as last received; None while events arrive."""
        return self._progress

    @property
    def trace_id(self) -> str:
        """W3C id of the request's trace; "" before `started` arrives."""
        return "" if self._started is None else self._started.trace_id

    @property
    def finish_reason(self) -> FinishReason | None:
        """Reason why the generation ended; None while it is running."""
        if self._finished is None:
            return None
        return FinishReason.from_wire(self._finished.finish_reason)

    @property
    def prompt_tokens(self) -> tuple[Token, ...]:
        """Tokens of the prompt; empty without `trace_prompt=True`."""
        return tuple(self._prompt_tokens)

    @property
    def text(self) -> str:
        """Text of the first sequence so far; of the best one for beam search."""
        return self.sequences[0].text if self.sequences else ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Tool calls of the first sequence; empty while it is running."""
        return self.sequences[0].tool_calls if self.sequences else ()

    @property
    def message(self) -> Mapping[str, Any] | None:
        """The first sequence as a message to send back; None while it is running."""
        return self.sequences[0].message if self.sequences else None

    @property
    def sequences(self) -> tuple[GeneratedSequence, ...]:
        """Returned sequences so far; best first for beam search."""
        if self._finished is not None:
            return tuple(map(self._make_sequence, self._finished.sequences))
        return tuple(
            GeneratedSequence(index, "".join(texts), tuple(self._token_ids[index]))
            for index, texts in sorted(self._texts.items())
        )

    def _make_sequence(self, result: pb.SequenceResult) -> GeneratedSequence:
        sequence = _convert_sequence(result)
        if not self.lacks_content or sequence.text:
            return sequence
        # What came before the stream broke is whole, and no message to send back.
        index = result.sequence_index
        text = "".join(self._texts.get(index, ()))
        token_ids = sequence.token_ids or tuple(self._token_ids.get(index, ()))
        return replace(sequence, text=text, token_ids=token_ids, message=None)

    def tokens_of(self, event: pb.GenerationEvent) -> list[Token]:
        """Return the generated tokens of one of this generation's events."""
        return self._reader.read(event.steps.steps)

    def _observe(self, event: pb.GenerationEvent) -> None:
        """Update the state with the next event."""
        self._progress = event.progress if event.HasField("progress") else None
        match event.WhichOneof("event"):
            case "started":
                self._started = event.started
                self._reader = TokenReader(event.started, self._lookup)
            case "finished":
                self._finished = event.finished
            case "prompt_steps":
                self._prompt_tokens += self._reader.read(event.prompt_steps.steps, prompt=True)
            case "steps":
                for step in event.steps.steps:
                    self._texts.setdefault(step.sequence_index, []).append(step.text)
                    token_ids = self._token_ids.setdefault(step.sequence_index, [])
                    token_ids.extend([step.token_id] if step.HasField("token_id") else [])
            case _:  # a beam's round, or an event of a later version
                pass

    def _explain_deadline(self, error: DeadlineExceededError) -> DeadlineExceededError:
        """Return the error of a deadline that passed, with the number of tokens before it."""
        tokens = count(sum(map(len, self._texts.values())), "token")
        return DeadlineExceededError(
            f"the call's deadline passed after {tokens}: a longer timeout reads more",
            origin=error.origin,
            reason=error.reason,
            metadata=error.metadata,
        )

    def _raise_if_failed(self) -> None:
        if self.finish_reason is not FinishReason.FAILED or self._finished is None:
            return
        failure = self._finished.failure
        raise GenerationFailedError(
            failure.message or "the generation failed",
            code=Code(failure.code) if failure.code in Code.__members__.values() else None,
            reason=failure.reason,
            metadata={"generation_id": self._id},
        )


def _convert_sequence(result: pb.SequenceResult) -> GeneratedSequence:
    return GeneratedSequence(
        sequence_index=result.sequence_index,
        text=result.text,
        token_ids=tuple(result.token_ids),
        finish_reason=FinishReason.from_wire(result.finish_reason),
        stop=result.stop or None,
        logprob=result.logprob if result.HasField("logprob") else None,
        score=result.score if result.HasField("score") else None,
        constraint_complete=(
            result.constraint_complete if result.HasField("constraint_complete") else None
        ),
        tool_calls=tuple(map(convert_tool_call, result.tool_calls)),
        reasoning=result.reasoning.text if result.HasField("reasoning") else None,
        message=make_message(result),
    )
