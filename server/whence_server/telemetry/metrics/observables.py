"""Observable instruments: they look at the running server whenever somebody asks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from whence_server.telemetry.export.stats import ExportStats
from whence_server.telemetry.live import Consumers, LiveGenerations, LiveServer
from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.catalogue import Definition, Kind
from whence_server.telemetry.metrics.step_histograms import StepHistograms
from whence_server.telemetry.spans.names import GEN_AI_REQUEST_MODEL


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that observable instruments look at. A part that is not there has no series.

    Attributes:
        live: the running server.
        consumers: the followers of the journal.
        steps: count values of steps that no histogram can hold.
    """

    live: LiveServer
    consumers: Consumers
    steps: StepHistograms


_Look: TypeAlias = Callable[[Observed], Iterator[Observation]]


def create_observables(meter: Meter, observed: Observed) -> None:
    """Create the catalogue's observable instruments."""
    for definition, look in _LOOKS.items():
        create = (
            meter.create_observable_counter
            if definition.kind is Kind.COUNTER
            else meter.create_observable_gauge
        )
        create(
            definition.name,
            [_callback(look, observed)],
            unit=definition.unit,
            description=definition.description,
        )


def _callback(
    look: _Look, observed: Observed
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def callback(_options: CallbackOptions) -> Iterable[Observation]:
        return look(observed)

    return callback


def _generations(read: Callable[[LiveGenerations], int]) -> _Look:
    """Return an observer of the generations, which yields nothing before the model is loaded."""

    def look(observed: Observed) -> Iterator[Observation]:
        if observed.live.generations is not None:
            yield Observation(read(observed.live.generations))

    return look


def _exports(read: Callable[[ExportStats], int]) -> _Look:
    """Return an observer of each consumer that sends something away."""

    def look(observed: Observed) -> Iterator[Observation]:
        for name, consumer in observed.consumers.items():
            if consumer.export is not None:
                yield Observation(read(consumer.export), {catalogue.CONSUMER: name})

    return look


def _cache_free(observed: Observed) -> Iterator[Observation]:
    live = observed.live
    if live.generations is not None:
        yield Observation(live.max_cache_tokens - live.generations.activity.num_cache_tokens)


def _step_non_finite(observed: Observed) -> Iterator[Observation]:
    for model, quantity, number in observed.steps.non_finite():
        yield Observation(number, {GEN_AI_REQUEST_MODEL: model, catalogue.QUANTITY: quantity})


def _journal_size(observed: Observed) -> Iterator[Observation]:
    yield Observation(observed.live.journal.size_bytes)


def _cursor_lag(observed: Observed) -> Iterator[Observation]:
    for name, consumer in observed.consumers.items():
        yield Observation(consumer.lag().num_entries, {catalogue.CONSUMER: name})


def _cursor_delay(observed: Observed) -> Iterator[Observation]:
    for name, consumer in observed.consumers.items():
        yield Observation(consumer.lag().oldest_s, {catalogue.CONSUMER: name})


def _export_spans(observed: Observed) -> Iterator[Observation]:
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


_LOOKS: dict[Definition, _Look] = {
    catalogue.GENERATIONS_RUNNING: _generations(lambda it: it.num_running),
    catalogue.SEQUENCES_WAITING: _generations(lambda it: it.num_waiting_sequences),
    catalogue.BATCH_SIZE: _generations(lambda it: it.activity.batch_size),
    catalogue.CACHE_USED: _generations(lambda it: it.activity.num_cache_tokens),
    catalogue.CACHE_FREE: _cache_free,
    catalogue.PREFILL_CHUNKS: _generations(lambda it: it.activity.num_prefill_chunks),
    catalogue.ENGINE_RESTARTS: _generations(lambda it: it.activity.num_restarts),
    catalogue.STEP_NON_FINITE: _step_non_finite,
    catalogue.JOURNAL_SIZE: _journal_size,
    catalogue.CURSOR_LAG: _cursor_lag,
    catalogue.CURSOR_DELAY: _cursor_delay,
    catalogue.EXPORT_SPANS: _export_spans,
    catalogue.EXPORT_REQUESTS: _exports(lambda it: it.num_requests),
    catalogue.EXPORT_RETRIES: _exports(lambda it: it.num_retries),
    catalogue.EXPORT_REFUSING: _exports(lambda it: int(it.refusing)),
    catalogue.EXPORT_UNREADABLE: _exports(lambda it: it.num_unreadable),
}
