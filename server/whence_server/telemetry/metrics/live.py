"""The live part: asked for whenever somebody looks."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.catalogue import Definition, Kind
from whence_server.telemetry.metrics.seams import LiveParts
from whence_server.telemetry.spans.names import GEN_AI_REQUEST_MODEL

_Look: TypeAlias = Callable[[LiveParts], Iterator[Observation]]


def observe(meter: Meter, parts: LiveParts) -> None:
    """Makes the catalogue's observed instruments, which look at the parts as they then are."""
    for definition, look in _LOOKS.items():
        create = (
            meter.create_observable_counter
            if definition.kind is Kind.COUNTER
            else meter.create_observable_gauge
        )
        create(
            definition.name,
            [_callback(look, parts)],
            unit=definition.unit,
            description=definition.description,
        )


def _callback(look: _Look, parts: LiveParts) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def callback(_options: CallbackOptions) -> Iterable[Observation]:
        return look(parts)

    return callback


def _generations_running(parts: LiveParts) -> Iterator[Observation]:
    if parts.generations is not None:
        yield Observation(parts.generations.num_running)


def _sequences_waiting(parts: LiveParts) -> Iterator[Observation]:
    if parts.generations is not None:
        yield Observation(parts.generations.num_waiting_sequences)


def _batch_size(parts: LiveParts) -> Iterator[Observation]:
    if parts.engine is not None:
        yield Observation(parts.engine.batch_size)


def _cache_used(parts: LiveParts) -> Iterator[Observation]:
    if parts.engine is not None:
        yield Observation(parts.engine.num_cache_tokens)


def _cache_free(parts: LiveParts) -> Iterator[Observation]:
    if parts.engine is not None:
        yield Observation(parts.engine.max_cache_tokens - parts.engine.num_cache_tokens)


def _prefill_chunks(parts: LiveParts) -> Iterator[Observation]:
    if parts.engine is not None:
        yield Observation(parts.engine.num_prefill_chunks)


def _engine_restarts(parts: LiveParts) -> Iterator[Observation]:
    if parts.engine is not None:
        yield Observation(parts.engine.num_restarts)


def _step_non_finite(parts: LiveParts) -> Iterator[Observation]:
    for model, quantity, number in parts.non_finite():
        yield Observation(number, {GEN_AI_REQUEST_MODEL: model, catalogue.QUANTITY: quantity})


def _journal_size(parts: LiveParts) -> Iterator[Observation]:
    if parts.journal is not None:
        yield Observation(parts.journal.size_bytes)


def _cursor_lag(parts: LiveParts) -> Iterator[Observation]:
    for name, lag in parts.lags.items():
        yield Observation(lag().num_entries, {catalogue.CONSUMER: name})


def _cursor_delay(parts: LiveParts) -> Iterator[Observation]:
    for name, lag in parts.lags.items():
        yield Observation(lag().oldest_s, {catalogue.CONSUMER: name})


def _export_spans(parts: LiveParts) -> Iterator[Observation]:
    for name, counts in parts.exports.items():
        for outcome, number in (
            ("exported", counts.num_exported),
            ("rejected", counts.num_rejected),
            ("set_aside", counts.num_set_aside),
        ):
            attributes = {catalogue.CONSUMER: name, catalogue.EXPORT_OUTCOME: outcome}
            yield Observation(number, attributes)


def _export_requests(parts: LiveParts) -> Iterator[Observation]:
    for name, counts in parts.exports.items():
        yield Observation(counts.num_requests, {catalogue.CONSUMER: name})


def _export_retries(parts: LiveParts) -> Iterator[Observation]:
    for name, counts in parts.exports.items():
        yield Observation(counts.num_retries, {catalogue.CONSUMER: name})


def _export_refusing(parts: LiveParts) -> Iterator[Observation]:
    for name, counts in parts.exports.items():
        yield Observation(int(counts.refusing), {catalogue.CONSUMER: name})


def _export_unreadable(parts: LiveParts) -> Iterator[Observation]:
    for name, counts in parts.exports.items():
        yield Observation(counts.num_unreadable, {catalogue.CONSUMER: name})


_LOOKS: dict[Definition, _Look] = {
    catalogue.GENERATIONS_RUNNING: _generations_running,
    catalogue.SEQUENCES_WAITING: _sequences_waiting,
    catalogue.BATCH_SIZE: _batch_size,
    catalogue.CACHE_USED: _cache_used,
    catalogue.CACHE_FREE: _cache_free,
    catalogue.PREFILL_CHUNKS: _prefill_chunks,
    catalogue.ENGINE_RESTARTS: _engine_restarts,
    catalogue.STEP_NON_FINITE: _step_non_finite,
    catalogue.JOURNAL_SIZE: _journal_size,
    catalogue.CURSOR_LAG: _cursor_lag,
    catalogue.CURSOR_DELAY: _cursor_delay,
    catalogue.EXPORT_SPANS: _export_spans,
    catalogue.EXPORT_REQUESTS: _export_requests,
    catalogue.EXPORT_RETRIES: _export_retries,
    catalogue.EXPORT_REFUSING: _export_refusing,
    catalogue.EXPORT_UNREADABLE: _export_unreadable,
}
