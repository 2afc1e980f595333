"""Recording of everything that one model generates, for the length of a block."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

from whence.content import CONTENT_POLICIES
from whence.security import FilePath, Server, choose_server
from whence.v1.generation_pb2 import ContentPolicy
from whence_hooks.recorder import Recorder
from whence_hooks.transformers.call import Destination
from whence_hooks.transformers.hook import (
    add_destination,
    find_generating_model,
    remove_destination,
)
from whence_hooks.transformers.identity import IdentifiedModel

_MAX_CANDIDATES = 128
_MAX_LABELS, _MAX_LABEL_CHARACTERS = 32, 256


def record_generate(
    model: Any,
    tokenizer: Any,
    target: str | None = None,
    *,
    model_name: str = "",
    labels: Mapping[str, str] | None = None,
    num_candidates: int = 8,
    content: Literal["full", "tokens", "none"] | None = None,
    weights_digest: bool = True,
    max_buffer_bytes: int = 64 << 20,
    flush_timeout_s: float = 5.0,
    skip_unsupported: bool = False,
    ca: FilePath | None = None,
    cert: FilePath | None = None,
    key: FilePath | None = None,
    token: str | None = None,
    token_file: FilePath | None = None,
) -> "Recording":
    """Put every `generate` of a model on record with a whence server.

    `model.generate` and pipelines work unchanged inside the block, and their output is the same to
    the bit. The service never waits for the server: while it is away, the record is buffered.

        with record_generate(model, tokenizer, target="unix:/run/whence/sock"):
            model.generate(...)

    Args:
        model: a decoder-only model of transformers.
        tokenizer: its tokenizer, with a `tokenizer.json`.
        target: address of the server, "https://HOST:PORT" for TLS; by default $WHENCE_TARGET,
            else 127.0.0.1:50051.
        model_name: name of the model in the record; by default the one that it was loaded by.
        labels: labels of the generations.
        num_candidates: most likely tokens to record of each step, 0 to 128.
        content: content that the server stores and exports: "full", "tokens" (token ids and
            numbers) or "none" (numbers alone); at most what its --journal-content keeps. None
            takes the server's. The server receives the token ids all the same.
        weights_digest: True if a thread computes the digest of the weights once, which links the
            generations to a served model or a recorded training.
        max_buffer_bytes: bound on the record that is buffered; beyond it steps are lost, counted,
            and their generations on record as failed.
        flush_timeout_s: seconds that the end of the block waits for the server.
        skip_unsupported: True if calls that cannot be recorded run unrecorded, with a warning;
            False if they raise NotRecordableError.
        ca: PEM file of the CA certificates to trust, which asks for TLS; by default $WHENCE_CA.
        cert: PEM file of the client's certificate; by default $WHENCE_CERT.
        key: PEM file of its private key; by default $WHENCE_KEY.
        token: token of the caller, with the scope `generate`; by default $WHENCE_TOKEN.
        token_file: file of the token, read for each connection; by default $WHENCE_TOKEN_FILE.

    Raises:
        NotRecordableError: the model or its tokenizer is of a kind that cannot be recorded.
        RuntimeError: this version of transformers cannot be recorded.
        ValueError: an argument is out of its range, or a token would travel unencrypted to
            another machine.
    """
    _check_labels(labels or {})
    if not 0 <= num_candidates <= _MAX_CANDIDATES:
        raise ValueError(
            f"num_candidates must be from 0 to {_MAX_CANDIDATES}, not {num_candidates}"
        )
    if content not in CONTENT_POLICIES:
        raise ValueError(f"content must be 'full', 'tokens' or 'none', not {content!r}")
    if max_buffer_bytes <= 0:
        raise ValueError(f"max_buffer_bytes must be more than 0, not {max_buffer_bytes}")
    server = choose_server(target, ca=ca, cert=cert, key=key, token=token, token_file=token_file)
    generating = find_generating_model(model)
    identified = IdentifiedModel(generating, tokenizer, model_name, digests_weights=weights_digest)
    return Recording(
        generating,
        identified,
        server,
        max_buffer_bytes=max_buffer_bytes,
        flush_timeout_s=flush_timeout_s,
        num_candidates=num_candidates,
        content=CONTENT_POLICIES[content],
        labels=dict(labels or {}),
        skips_unsupported=skip_unsupported,
    )


class Recording:
    """Context manager inside which a model's generations are recorded; made by `record_generate`.

    `start` and `close` do the same without a block.
    """

    def __init__(
        self,
        model: Any,
        identified: IdentifiedModel,
        server: Server,
        *,
        max_buffer_bytes: int,
        flush_timeout_s: float,
        num_candidates: int,
        content: ContentPolicy.ValueType,
        labels: dict[str, str],
        skips_unsupported: bool,
    ) -> None:
        self._model = model
        self._identified = identified
        self._server = server
        self._max_buffer_bytes = max_buffer_bytes
        self._flush_timeout_s = flush_timeout_s
        self._num_candidates = num_candidates
        self._content = content
        self._labels = labels
        self._skips_unsupported = skips_unsupported
        self._destination: Destination | None = None
        self._recorder: Recorder | None = None

    def start(self) -> None:
        """Begin to record.

        Raises:
            RuntimeError: it has begun already.
        """
        if self._recorder is not None:
            raise RuntimeError("this recording has begun already; make another one")
        recorder = self._recorder = Recorder(self._server, self._max_buffer_bytes)
        destination = Destination(
            recorder=recorder,
            model=self._identified,
            num_candidates=self._num_candidates,
            content=self._content,
            labels=self._labels,
            skips_unsupported=self._skips_unsupported,
        )
        add_destination(self._model, destination)
        self._destination = destination

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until all that was generated is on record; return False at the timeout."""
        return self._recorder is None or self._recorder.flush(timeout_s)

    @property
    def num_lost_generations(self) -> int:
        """Number of generations that are not on record."""
        return 0 if self._recorder is None else self._recorder.num_lost_generations

    @property
    def num_lost_steps(self) -> int:
        """Number of lost steps of generations that are on record as failed."""
        return 0 if self._recorder is None else self._recorder.num_lost_steps

    def close(self) -> None:
        """End the recording; calls that still run are recorded to their end."""
        destination, self._destination = self._destination, None
        if destination is not None:
            remove_destination(self._model, destination)
            destination.recorder.close(self._flush_timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > _MAX_LABELS:
        raise ValueError(f"at most {_MAX_LABELS} labels are allowed, not {len(labels)}")
    for key, value in labels.items():
        if not key or max(len(key), len(value)) > _MAX_LABEL_CHARACTERS:
            raise ValueError(
                f"label {key[:64]!r}: a key is not empty, and key and value have at most "
                f"{_MAX_LABEL_CHARACTERS} characters"
            )
