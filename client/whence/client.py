"""The synchronous client."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self, Unpack
from uuid import UUID

import grpc

from whence.audit import AuditOptions, make_audit_request
from whence.backoff import Backoff, RetryPolicy
from whence.bundles import make_bundle_stream
from whence.calls import Calls
from whence.errors import DeadlineExceededError, WhenceError
from whence.explainer import Explainer
from whence.following import Following
from whence.forks import ForkOptions, open_branch
from whence.generation import GenerationState, TokenReader, VocabularyLookup, open_stream
from whence.once import add_event, make_record_stream, make_verification_stream
from whence.options import FilterOptions, GenerateOptions, Prompt
from whence.readiness import ReadyWait
from whence.recovery import may_still_run
from whence.requests import make_filter
from whence.resume import GenerationStream, WatchStream
from whence.security import FilePath, choose_server
from whence.tokens import Token
from whence.training import TrainingRuns
from whence.transparency_log import TransparencyLog
from whence.v1 import (
    audit_pb2,
    generation_pb2,
    model_pb2,
    proof_pb2,
    trace_pb2,
    verification_pb2,
)
from whence.vocabulary import Vocabulary, VocabularyBuilder, VocabularyStream

CLOSE_TIMEOUT_S = 5.0


class Client(Explainer):
    """A client of a whence server, with two connections; safe to share between threads.

    It works in the process that made it, not in a forked child, which makes its own.

    Args:
        target: "HOST:PORT", "https://HOST:PORT" for TLS, or "unix:PATH"; default: $WHENCE_TARGET,
            else 127.0.0.1:50051.
        credentials: gRPC's credentials for TLS, instead of the files.
        ca: PEM file of the CA certificates to trust, which asks for TLS; default: $WHENCE_CA, else
            gRPC's own.
        cert: PEM file of the client's certificate; default: $WHENCE_CERT, else none.
        key: PEM file of its private key; default: $WHENCE_KEY.
        token: token of the caller; default: $WHENCE_TOKEN, else none.
        token_file: file of the token, read for each call; default: $WHENCE_TOKEN_FILE, else none.
        metadata: gRPC metadata of every call.
        timeout_s: timeout of every call that is not a stream, in seconds; None for no timeout.
        connect_timeout_s: seconds to retry a stream that has not begun while the server is
            UNAVAILABLE or the connection breaks, and any call while its model is loading.
        resume_timeout_s: seconds to retry a stream that broke after its first event.

    Raises:
        ValueError: the target is not an address, a file is unusable, or a token would travel
            unencrypted to another machine.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        ca: FilePath | None = None,
        cert: FilePath | None = None,
        key: FilePath | None = None,
        token: str | None = None,
        token_file: FilePath | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float | None = 30.0,
        connect_timeout_s: float = 5.0,
        resume_timeout_s: float = 30.0,
    ) -> None:
        self._policy = RetryPolicy(connect_timeout_s, resume_timeout_s)
        server = choose_server(
            target, credentials, ca=ca, cert=cert, key=key, token=token, token_file=token_file
        )
        self._calls = Calls(server, metadata, timeout_s, self._policy)
        self._timeout_s = timeout_s
        self._vocabularies: dict[str, Vocabulary] = {}
        self._vocabularies_lock = threading.Lock()
        self.generations = Generations(self._calls, self._policy, self._find_text)
        self.training_runs = TrainingRuns(self._calls, self._policy)
        self.transparency_log = TransparencyLog(self._calls)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; running calls end with CallCancelledError."""
        self._calls.close()

    def generate(
        self, prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> "Generation":
        """Start a generation; iterate over it for its tokens.

        Args:
            prompt: text, or token ids; or give `messages`.
            options: options of `GenerateOptions`.

        Raises:
            TypeError: an unknown option, or a value of the wrong type.
            ValueError: a value that the wire cannot carry, or options that contradict.
        """
        stream, metadata = open_stream(prompt, options, self._policy)
        following = self._calls.follow(stream, metadata)
        return Generation(stream, following, self._calls, self._find_text)

    def fork(self, parent: str | UUID, **options: Unpack[ForkOptions]) -> "Generation":
        """Start a branch of a recorded generation, with something changed from a step on.

        Args:
            parent: id of the generation.
            options: options of `ForkOptions`.

        Raises:
            TypeError: an unknown option, or a value of the wrong type.
            ValueError: a value that the wire cannot carry, or options that contradict.
        """
        stream, metadata = open_branch(parent, options, self._policy)
        following = self._calls.follow(stream, metadata)
        return Generation(stream, following, self._calls, self._find_text)

    def cancel(self, generation_id: str) -> None:
        """Stop a running generation at once.

        Raises:
            NotFoundError: there is no such generation.
        """
        request = generation_pb2.CancelGenerationRequest(generation_id=generation_id)
        self._calls.call_unary(self._calls.generation.CancelGeneration, request)

    def models(self) -> list[model_pb2.Model]:
        """Return the served models."""
        answer = self._calls.call_unary(self._calls.model.ListModels, model_pb2.ListModelsRequest())
        return list(answer.models)

    def model(self, model: str = "") -> model_pb2.Model:
        """Return one model, by default the server's default model.

        Raises:
            NotFoundError: the server does not serve the model.
        """
        request = model_pb2.GetModelRequest(model=model)
        return self._calls.call_unary(self._calls.model.GetModel, request).model

    def signing_keys(self) -> list[proof_pb2.SigningKey]:
        """Return the keys with which the server signs generations, oldest first."""
        answer = self._calls.call_unary(self._calls.proof.GetKeys, proof_pb2.GetKeysRequest())
        return list(answer.keys)

    def audit(
        self, *, page_size: int = 0, **options: Unpack[AuditOptions]
    ) -> Iterator[audit_pb2.AuditRecord]:
        """Yield audit records, newest first; pages are fetched when needed.

        Raises:
            TypeError: an unknown option, or a value of the wrong type.
            ValueError: a time without a time zone, or an unknown action.
        """
        request = make_audit_request(options, page_size)
        pages = self._calls.list_pages(self._calls.audit.ListAudit, request)
        return (record for page in pages for record in page.records)

    def wait_ready(self, timeout_s: float | None = None, *, model: str = "") -> model_pb2.Model:
        """Wait until the server is reachable and has loaded its model; return the model.

        Args:
            timeout_s: seconds to wait; None for no limit.
            model: name of the model; by default the server's default model.

        Raises:
            UnavailableError: the model is not ready in time, or no server is reachable.
            FailedPreconditionError: the model could not be loaded.
            NotFoundError: the server does not serve the model.
        """
        waiting = ReadyWait(timeout_s)
        request = model_pb2.GetModelRequest(model=model)
        while True:
            error: WhenceError | None = None
            try:
                answer = self._calls.call_unary(
                    self._calls.model.GetModel, request, timeout_s=waiting.call_timeout_s
                )
                if waiting.is_ready(answer.model):
                    return answer.model
            except WhenceError as unary_error:
                error = unary_error
            time.sleep(waiting.choose_delay_s(error))

    def vocabulary(self, model: str = "", *, tokenizer_digest: str = "") -> Vocabulary:
        """Return a vocabulary, which is fetched once for each tokenizer.

        Args:
            model: name of the model; "" for the served one.
            tokenizer_digest: `GenerationStarted.tokenizer_digest` of a generation on record, whose
                model need not be served.
        """
        if tokenizer_digest:
            return self._fetch_vocabulary(model, tokenizer_digest)
        served = self.model(model)
        return self._fetch_vocabulary(served.model, served.tokenizer_digest)

    def _fetch_vocabulary(self, model: str, tokenizer_digest: str) -> Vocabulary:
        key = tokenizer_digest or model
        with self._vocabularies_lock:
            if key not in self._vocabularies:
                builder = VocabularyBuilder()
                request = model_pb2.GetVocabularyRequest(
                    model=model, tokenizer_digest=tokenizer_digest
                )
                stream = VocabularyStream(request, Backoff(self._policy), timeout_s=self._timeout_s)
                with self._calls.follow(stream) as parts:
                    for part in parts:
                        builder.add(part)
                self._vocabularies[key] = builder.build()
            return self._vocabularies[key]

    def _find_text(self, model: str, tokenizer_digest: str, token_id: int) -> str:
        return self._fetch_vocabulary(model, tokenizer_digest).text_of(token_id)


class Generation(GenerationState):
    """A running generation: an iterator over its tokens and a context manager.

    It resumes after a broken connection; every token is yielded exactly once, in order.
    Leaving the with-block before the end cancels the generation on the server.
    """

    def __init__(
        self,
        stream: GenerationStream,
        following: Following[generation_pb2.GenerationEvent],
        calls: Calls,
        lookup: VocabularyLookup,
    ) -> None:
        super().__init__(stream.generation_id, lookup, stream)
        self._following = following
        self._calls = calls
        self._pending: deque[Token] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        """Return the next token, of any sequence.

        Raises:
            GenerationFailedError: the generation failed, after all of its tokens.
            WhenceError: the stream cannot continue.
        """
        token = self.read()
        if token is None:
            raise StopIteration
        return token

    def read(self, timeout_s: float | None = None) -> Token | None:
        """Return the next token, of any sequence; None at the end.

        Args:
            timeout_s: maximum wait in seconds; None for no maximum.

        Raises:
            TimeoutError: no token came in time. Nothing is lost: the next read continues.
            GenerationFailedError: the generation failed, after all of its tokens.
            WhenceError: the stream cannot continue.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._pending:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            event = self._read_event(left_s)
            if event is None:
                return None
            self._pending.extend(self.tokens_of(event))
        return self._pending.popleft()

    def events(self, *, progress: bool = False) -> Iterator[generation_pb2.GenerationEvent]:
        """Yield the events of the contract instead of tokens; raise as iteration does.

        `tokens_of` returns the tokens of an event.

        Args:
            progress: also yield `progress`, which the server sends every few seconds while
                nothing happens, and which is not recorded.
        """
        while (event := self._read_event()) is not None:
            if progress or not event.HasField("progress"):
                yield event

    def result(self) -> Self:
        """Read to the end; return this generation."""
        for _ in self.events():
            pass
        return self

    def close(self) -> None:
        """Stop reading, and cancel the generation on the server unless it has finished."""
        self._following.close()  # first: a connection that is full of streams has one more place
        if self.finished is None and self._may_run:
            self._may_run = False
            request = generation_pb2.CancelGenerationRequest(generation_id=self.id)
            # The generation may be over or unreachable; then `disconnect_grace` ends it.
            with suppress(WhenceError):
                self._calls.call_unary(
                    self._calls.generation.CancelGeneration, request, timeout_s=CLOSE_TIMEOUT_S
                )

    def _read_event(self, timeout_s: float | None = None) -> generation_pb2.GenerationEvent | None:
        try:
            event = self._following.read(timeout_s)
        except DeadlineExceededError as error:
            raise self._explain_deadline(error) from None
        except WhenceError as error:
            self._may_run = may_still_run(error)
            raise
        if event is None:
            self._raise_if_failed()
        else:
            self._observe(event)
        return event


class Generations:
    """Recorded generations of the server: `client.generations`."""

    def __init__(self, calls: Calls, policy: RetryPolicy, lookup: VocabularyLookup) -> None:
        self._calls = calls
        self._policy = policy
        self._lookup = lookup

    def list(
        self, *, page_size: int = 0, **options: Unpack[FilterOptions]
    ) -> Iterator[trace_pb2.GenerationSummary]:
        """Yield recorded generations, newest first; pages are fetched when needed.

        Raises:
            TypeError: an unknown option, or a value of the wrong type.
            ValueError: a time without a time zone.
        """
        request = trace_pb2.ListGenerationsRequest(
            page_size=page_size,
            filter=make_filter(options),
        )
        pages = self._calls.list_pages(self._calls.trace.ListGenerations, request)
        return (summary for page in pages for summary in page.generations)

    def search(
        self,
        text: str,
        *,
        page_size: int = 0,
        when_cut: Callable[[], object] | None = None,
        **options: Unpack[FilterOptions],
    ) -> Iterator[trace_pb2.SearchHit]:
        """Yield the generations that contain a text, or most of it: exact hits first.

        Args:
            text: from 20 to 2,000 characters.
            page_size: most hits of one page; 0 for the server's default.
            when_cut: called once if others may have the text, because too many have a part of it.
            options: options of `FilterOptions`.

        Raises:
            InvalidRequestError: the text is too short or too long.
            WhenceError: the server's journal is encrypted.
            TypeError: an unknown option, or a value of the wrong type.
            ValueError: a time without a time zone.
        """
        request = trace_pb2.SearchGenerationsRequest(
            text=text, page_size=page_size, filter=make_filter(options)
        )
        for page in self._calls.list_pages(self._calls.trace.SearchGenerations, request):
            if page.is_cut and when_cut is not None:
                when_cut()
                when_cut = None
            yield from page.hits

    def get(self, generation_id: str) -> trace_pb2.GetGenerationResponse:
        """Return one generation: its summary, start, occurrences and, if finished, finish.

        Raises:
            NotFoundError: the generation is unknown or was deleted.
        """
        request = trace_pb2.GetGenerationRequest(generation_id=generation_id)
        return self._calls.call_unary(self._calls.trace.GetGeneration, request)

    def steps(
        self, generation_id: str, *, prompt: bool = False, page_size: int = 0
    ) -> Iterator[Token]:
        """Yield a generation's recorded tokens, or those of its prompt.

        Raises:
            NotFoundError: the generation is unknown or was deleted.
        """
        reader = TokenReader(self.get(generation_id).started, self._lookup)
        request = trace_pb2.ListStepsRequest(
            generation_id=generation_id, prompt=prompt, page_size=page_size
        )
        for page in self._calls.list_pages(self._calls.trace.ListSteps, request):
            yield from reader.read(page.steps, prompt=prompt)

    def watch(
        self,
        *,
        lifecycle_only: bool = False,
        after_position: str = "",
        **options: Unpack[FilterOptions],
    ) -> Following[trace_pb2.WatchGenerationsResponse]:
        """Follow the events of all generations as they happen; resumes after a broken connection.

        Args:
            lifecycle_only: only starts and finishes, no steps.
            after_position: position after which to continue; "" skips all past events.
            options: options of `FilterOptions`.

        Raises:
            TypeError: an unknown option, or a value of the wrong type.
            ValueError: a time without a time zone.
        """
        request = trace_pb2.WatchGenerationsRequest(
            filter=make_filter(options),
            lifecycle_only=lifecycle_only,
            after_position=after_position,
        )
        return self._calls.follow(WatchStream(request, Backoff(self._policy)))

    def bundle(
        self,
        generation_id: str,
        *,
        hide: Collection[str] = (),
        steps: range | None = None,
        known_log_size: int = 0,
    ) -> Following[bytes]:
        """Stream the pieces of a generation's bundle, a file that is checked without the server.

        Args:
            generation_id: id of the generation, which has ended.
            hide: parts whose content stays out: "prompt", "text".
            steps: indexes of the only steps that are shown; None for all of them.
            known_log_size: number of entries of an earlier transparency log, which the bundle
                proves to be continued; 0 for no proof.

        Raises:
            NotFoundError: the generation is unknown or was deleted.
            FailedPreconditionError: it still runs, has no signed statement, or its bundle would
                be larger than those who check bundles read.
            InvalidRequestError: the published log has fewer entries than the known one.
            ValueError: an unknown part, or steps that are no range of indexes.
        """
        return self._calls.follow(
            make_bundle_stream(
                generation_id, hide, steps, self._policy, known_log_size=known_log_size
            )
        )

    def record(self, generation_id: str) -> verification_pb2.GenerationRecord:
        """Return a whole generation in one message, to be kept in a file and verified elsewhere.

        Raises:
            NotFoundError: the generation is unknown or was deleted.
        """
        whole = verification_pb2.GenerationRecord()
        stream = make_record_stream(generation_id, self._policy)
        with self._calls.follow(stream) as events:
            for event in events:
                add_event(whole, event)
        return whole

    def verify(
        self, generation_id: str, *, every_step: bool = False
    ) -> Following[verification_pb2.VerifyGenerationResponse]:
        """Stream the findings of computing a generation again; the last one is `result`.

        The call has no timeout; `close`, or the end of the with-block, ends the computation.

        Args:
            generation_id: id of a finished generation.
            every_step: also stream the steps that are exact.

        Raises:
            NotFoundError: the generation is unknown or was deleted.
            ResourceExhaustedError: too many verifications wait; retry after `retry_delay_s`.
        """
        request = verification_pb2.VerifyGenerationRequest(
            generation_id=generation_id, every_step=every_step
        )
        return self._calls.follow(make_verification_stream(request, self._policy))

    def delete(self, generation_id: str) -> None:
        """Destroy a generation's content irrecoverably; its id stays taken.

        Raises:
            NotFoundError: the generation is unknown or was already deleted.
        """
        request = trace_pb2.DeleteGenerationRequest(generation_id=generation_id)
        self._calls.call_unary(self._calls.trace.DeleteGeneration, request)
