"""Observable instruments, which read the running server's state on each collection."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from whence_server.telemetry.export.stats import ExportStats
from whence_server.telemetry.live import (
    Consumers,
    LiveGenerations,
    LiveRetention,
    LiveServer,
    LiveTransparency,
)
from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.catalogue import Definition, Kind
from whence_server.telemetry.metrics.step_histograms import StepHistograms
from whence_server.telemetry.spans.names import GEN_AI_REQUEST_MODEL


@dataclass(frozen=True, slots=True)
class LiveSources:
    """State that observable instruments read; absent parts of the server have no series.

    Attributes:
        live: the running server.
        consumers: followers of the journal, by name.
        steps: histograms that count the steps' values that are not finite.
    """

    live: LiveServer
    consumers: Consumers
    steps: StepHistograms


_Look: TypeAlias = Callable[[LiveSources], Iterator[Observation]]


def create_observables(meter: Meter, observed: LiveSources) -> None:
    """Create the catalogue's observable instruments."""
    for definition, look in _LOOKS.items():
        create = (
            meter.create_observable_counter
            if definition.kind is Kind.COUNTER
            else meter.create_observable_gauge
        )
        create(
            definition.name,
            [_make_callback(look, observed)],
            unit=definition.unit,
            description=definition.description,
        )


def _make_callback(
    look: _Look, observed: LiveSources
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return look(observed)

    return observe


def _observe_generations(read: Callable[[LiveGenerations], int]) -> _Look:
    """Return an observer of the generations; it yields nothing before the model is loaded."""

    def look(observed: LiveSources) -> Iterator[Observation]:
        if observed.live.generations is not None:
            yield Observation(read(observed.live.generations))

    return look


def _observe_exports(read: Callable[[ExportStats], int]) -> _Look:
    """Return an observer of each consumer that exports."""

    def look(observed: LiveSources) -> Iterator[Observation]:
        for name, consumer in observed.consumers.items():
            if consumer.export is not None:
                yield Observation(read(consumer.export), {catalogue.CONSUMER: name})

    return look


def _observe_cache_free(observed: LiveSources) -> Iterator[Observation]:
    live = observed.live
    if live.generations is not None:
        yield Observation(live.max_cache_tokens - live.generations.activity.num_cache_tokens)


def _observe_step_non_finite(observed: LiveSources) -> Iterator[Observation]:
    for model, quantity, number in observed.steps.count_non_finite():
        yield Observation(number, {GEN_AI_REQUEST_MODEL: model, catalogue.QUANTITY: quantity})


def _observe_journal_size(observed: LiveSources) -> Iterator[Observation]:
    yield Observation(observed.live.journal.size_bytes)


def _observe_cursor_lag(observed: LiveSources) -> Iterator[Observation]:
    for name, consumer in observed.consumers.items():
        yield Observation(consumer.lag().num_entries, {catalogue.CONSUMER: name})


def _observe_cursor_delay(observed: LiveSources) -> Iterator[Observation]:
    for name, consumer in observed.consumers.items():
        yield Observation(consumer.lag().oldest_s, {catalogue.CONSUMER: name})


def _observe_export_spans(observed: LiveSources) -> Iterator[Observation]:
    for name, consumer in observed.consumers.items():
        if consumer.export is None:
            continue
        for outcome, number in (
            ("exported", consumer.export.num_exported),
            ("rejected", consumer.export.num_rejected),
            ("set_aside", consumer.export.num_set_aside),
        ):
            attributes = {catalogue.CONSUMER: name, catalogue.EXPORT_OUTCOME: outcome}
            yield Observation(number, attributes)


def _observe_refused(observed: LiveSources) -> Iterator[Observation]:
    for cause, number in observed.live.refused.items():
        yield Observation(number, {catalogue.REFUSAL_CAUSE: cause})


def _observe_retention(read: Callable[[LiveRetention], int]) -> _Look:
    """Return an observer of retention; it yields nothing before the journal is open."""

    def look(observed: LiveSources) -> Iterator[Observation]:
        if observed.live.retention is not None:
            yield Observation(read(observed.live.retention))

    return look


def _observe_retention_deleted(observed: LiveSources) -> Iterator[Observation]:
    if observed.live.retention is not None:
        for cause, number in observed.live.retention.num_deleted.items():
            yield Observation(number, {catalogue.RETENTION_CAUSE: cause})


def _observe_transparency(read: Callable[[LiveTransparency], float]) -> _Look:
    """Return an observer of the transparency log; it yields nothing without one."""

    def look(observed: LiveSources) -> Iterator[Observation]:
        if observed.live.transparency is not None:
            yield Observation(read(observed.live.transparency))

    return look


def _observe_witnesses(observed: LiveSources) -> Iterator[Observation]:
    if observed.live.transparency is not None:
        for name, number in observed.live.transparency.failures.items():
            yield Observation(number, {catalogue.WITNESS: name})


_LOOKS: dict[Definition, _Look] = {
    catalogue.GENERATIONS_RUNNING: _observe_generations(lambda it: it.num_running),
    catalogue.GENERATIONS_UNRECORDED: _observe_generations(lambda it: it.num_unrecorded),
    catalogue.SEQUENCES_WAITING: _observe_generations(lambda it: it.num_waiting_sequences),
    catalogue.BATCH_SIZE: _observe_generations(lambda it: it.activity.batch_size),
    catalogue.CACHE_USED: _observe_generations(lambda it: it.activity.num_cache_tokens),
    catalogue.CACHE_FREE: _observe_cache_free,
    catalogue.PREFIX_CACHE_USED: _observe_generations(lambda it: it.activity.num_prefix_tokens),
    catalogue.PREFILL_CHUNKS: _observe_generations(lambda it: it.activity.num_prefill_chunks),
    catalogue.ENGINE_RESTARTS: _observe_generations(lambda it: it.activity.num_restarts),
    catalogue.STEP_NON_FINITE: _observe_step_non_finite,
    catalogue.JOURNAL_SIZE: _observe_journal_size,
    catalogue.JOURNAL_USED: _observe_retention(lambda it: it.used_bytes),
    catalogue.RETENTION_DELETED: _observe_retention_deleted,
    catalogue.RETENTION_UNREAD: _observe_retention(lambda it: it.num_unread),
    catalogue.RETENTION_WAITING: _observe_retention(lambda it: it.num_waiting),
    catalogue.RETENTION_HELD: _observe_retention(lambda it: it.num_held),
    catalogue.CURSOR_LAG: _observe_cursor_lag,
    catalogue.CURSOR_DELAY: _observe_cursor_delay,
    catalogue.EXPORT_SPANS: _observe_export_spans,
    catalogue.EXPORT_REQUESTS: _observe_exports(lambda it: it.num_requests),
    catalogue.EXPORT_RETRIES: _observe_exports(lambda it: it.num_retries),
    catalogue.EXPORT_REFUSING: _observe_exports(lambda it: int(it.refusing)),
    catalogue.EXPORT_UNREADABLE: _observe_exports(lambda it: it.num_unreadable),
    catalogue.CALLS_REFUSED: _observe_refused,
    catalogue.LOG_SIZE: _observe_transparency(lambda it: it.size),
    catalogue.LOG_DELAY: _observe_transparency(lambda it: it.delay_s),
    catalogue.WITNESS_FAILURES: _observe_witnesses,
}
