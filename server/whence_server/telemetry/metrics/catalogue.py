"""Every metric of the server: instruments, views and docs/metrics.md are made from this table.

`gen_ai.*` and `rpc.*` follow OpenTelemetry's semantic conventions to the name, the unit, the
bucket boundaries and the attributes. An instrument keeps only the attributes listed here, so
that no id and no label of a request can become a series.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from whence_server.telemetry.spans import names


class Kind(Enum):
    """Kind of instrument."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Definition:
    """Definition of a metric.

    Attributes:
        name: OpenTelemetry's name; `prometheus.get_family_name` returns Prometheus' name.
        kind: counter, gauge or histogram.
        unit: UCUM unit; braces enclose an annotation.
        description: text for people, also on the Prometheus page.
        attributes: keys of all its attributes.
        boundaries: inclusive upper bounds of a histogram's buckets.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


# ---- attributes that spans do not have ----

TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - an attribute's name
"""input or output."""
CONSUMER: Final = "whence.consumer"
"""A cursor on the journal, by its name."""
QUANTITY: Final = "whence.step.quantity"
"""entropy, surprise or margin."""
EXPORT_OUTCOME: Final = "whence.export.outcome"
"""exported, rejected or set_aside."""
REFUSAL_CAUSE: Final = "whence.refusal.cause"
"""missing, unknown, expired, invalid or scope."""
RETENTION_CAUSE: Final = "whence.retention.cause"
"""age or size."""
WITNESS: Final = "whence.witness"
"""Name of a witness."""

# ---- bucket boundaries ----

REQUEST_SECONDS: Final = tuple(round(0.01 * 2**i, 2) for i in range(14))
FIRST_TOKEN_SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
PER_TOKEN_SECONDS: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
TOKENS: Final = tuple(float(4**i) for i in range(14))
CALL_SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
WAIT_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
COMMIT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
ENTROPY_NATS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
SURPRISE_NATS: Final = (*ENTROPY_NATS, 15.0, 20.0)
MARGIN_NATS: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)

_GEN_AI = (
    names.GEN_AI_OPERATION_NAME,
    names.GEN_AI_PROVIDER_NAME,
    names.GEN_AI_REQUEST_MODEL,
    names.GEN_AI_RESPONSE_MODEL,
)
_MODEL = (names.GEN_AI_REQUEST_MODEL,)
_STARTED = (names.GEN_AI_OPERATION_NAME, names.GEN_AI_REQUEST_MODEL)

# ---- from the journal: a generation's end, and a call's ----

REQUEST_DURATION: Final = Definition(
    "gen_ai.server.request.duration",
    Kind.HISTOGRAM,
    "s",
    "Time from the arrival of a request to the end of its last sequence.",
    (*_GEN_AI, names.ERROR_TYPE),
    REQUEST_SECONDS,
)
TIME_TO_FIRST_TOKEN: Final = Definition(
    "gen_ai.server.time_to_first_token",
    Kind.HISTOGRAM,
    "s",
    "Time from the arrival of a request to its first token, for generations that ended by "
    "themselves; not for beam search, which sends its tokens at the end.",
    _GEN_AI,
    FIRST_TOKEN_SECONDS,
)
TIME_PER_OUTPUT_TOKEN: Final = Definition(
    "gen_ai.server.time_per_output_token",
    Kind.HISTOGRAM,
    "s",
    "Mean time between the tokens after the first in the longest sequence, for generations "
    "that ended by themselves; not for beam search.",
    _GEN_AI,
    PER_TOKEN_SECONDS,
)
TOKEN_USAGE: Final = Definition(
    "gen_ai.client.token.usage",
    Kind.HISTOGRAM,
    "{token}",
    "Tokens of a generation: of its prompt (input), and of all its sequences (output).",
    (*_GEN_AI, TOKEN_TYPE),
    TOKENS,
)
QUEUE_DURATION: Final = Definition(
    "whence.generation.queue.duration",
    Kind.HISTOGRAM,
    "s",
    "Time from the arrival of a request until the engine began to read its prompt.",
    _MODEL,
    WAIT_SECONDS,
)
PREFILL_DURATION: Final = Definition(
    "whence.generation.prefill.duration",
    Kind.HISTOGRAM,
    "s",
    "Time in which the engine read the whole prompt.",
    _MODEL,
    WAIT_SECONDS,
)
GENERATIONS_STARTED: Final = Definition(
    "whence.generations.started",
    Kind.COUNTER,
    "{generation}",
    "Generations that were admitted.",
    _STARTED,
)
GENERATIONS_FINISHED: Final = Definition(
    "whence.generations.finished",
    Kind.COUNTER,
    "{generation}",
    "Generations that ended, by finish reason; includes generations that the end of the "
    "previous server process interrupted.",
    (*_STARTED, names.GENERATION_FINISH_REASON),
)
PROMPT_TOKENS: Final = Definition(
    "whence.tokens.prompt",
    Kind.COUNTER,
    "{token}",
    "Tokens of the prompts of generations that ended.",
    _MODEL,
)
CACHED_PROMPT_TOKENS: Final = Definition(
    "whence.tokens.prompt_cached",
    Kind.COUNTER,
    "{token}",
    "Tokens of the prompts of generations that ended that were found in the prefix cache, and "
    "not read.",
    _MODEL,
)
GENERATED_TOKENS: Final = Definition(
    "whence.tokens.generated",
    Kind.COUNTER,
    "{token}",
    "Tokens that were generated and recorded, counted at every step.",
    _MODEL,
)
CALL_DURATION: Final = Definition(
    "rpc.server.call.duration",
    Kind.HISTOGRAM,
    "s",
    "Duration of recorded calls: those that start or follow a generation.",
    (
        names.RPC_SYSTEM_NAME,
        names.RPC_METHOD,
        names.RPC_RESPONSE_STATUS_CODE,
        names.ERROR_TYPE,
    ),
    CALL_SECONDS,
)
HTTP_DURATION: Final = Definition(
    "http.server.request.duration",
    Kind.HISTOGRAM,
    "s",
    "Duration of recorded HTTP requests: those that start a generation.",
    (
        names.HTTP_REQUEST_METHOD,
        names.HTTP_ROUTE,
        names.HTTP_RESPONSE_STATUS_CODE,
        names.URL_SCHEME,
        names.ERROR_TYPE,
    ),
    CALL_SECONDS,
)
UNREADABLE_ENTRIES: Final = Definition(
    "whence.metrics.unreadable",
    Kind.COUNTER,
    "{entry}",
    "Journal entries that could not be read, and are in no metric.",
)

# ---- from the journal: every step ----

STEP_ENTROPY: Final = Definition(
    "whence.step.entropy",
    Kind.HISTOGRAM,
    "{nat}",
    "Entropy of the model's own distribution at a generated token.",
    _MODEL,
    ENTROPY_NATS,
)
STEP_SURPRISE: Final = Definition(
    "whence.step.surprise",
    Kind.HISTOGRAM,
    "{nat}",
    "Negative log probability of a generated token under the model's own distribution.",
    _MODEL,
    SURPRISE_NATS,
)
DRAW_MARGIN: Final = Definition(
    "whence.draw.margin",
    Kind.HISTOGRAM,
    "{nat}",
    "Decrease of a sampled token's log probability that would have made it lose its draw.",
    _MODEL,
    MARGIN_NATS,
)

# ---- live ----

GENERATIONS_RUNNING: Final = Definition(
    "whence.generations.running",
    Kind.GAUGE,
    "{generation}",
    "Generations that have started and not ended.",
)
GENERATIONS_UNRECORDED: Final = Definition(
    "whence.generations.unrecorded",
    Kind.COUNTER,
    "{generation}",
    "Generations that were served without a record, as the journal could not be written.",
)
SEQUENCES_WAITING: Final = Definition(
    "whence.sequences.waiting",
    Kind.GAUGE,
    "{sequence}",
    "Sequences with prompts that the engine has not read completely.",
)
BATCH_SIZE: Final = Definition(
    "whence.batch.size",
    Kind.GAUGE,
    "{sequence}",
    "Sequences that took a step in the latest turn of the engine.",
)
CACHE_USED: Final = Definition(
    "whence.cache.tokens.used",
    Kind.GAUGE,
    "{token}",
    "Positions of the key-value cache that are reserved, including padding.",
)
CACHE_FREE: Final = Definition(
    "whence.cache.tokens.free",
    Kind.GAUGE,
    "{token}",
    "Positions of the key-value cache that are free.",
)
PREFIX_CACHE_USED: Final = Definition(
    "whence.prefix_cache.tokens",
    Kind.GAUGE,
    "{token}",
    "Positions in the prefix cache.",
)
PREFILL_CHUNKS: Final = Definition(
    "whence.prefill.chunks",
    Kind.COUNTER,
    "{chunk}",
    "Chunks of prompts that the engine has read.",
)
ENGINE_RESTARTS: Final = Definition(
    "whence.engine.restarts",
    Kind.COUNTER,
    "{restart}",
    "Restarts of the engine process.",
)
JOURNAL_COMMIT: Final = Definition(
    "whence.journal.commit.duration",
    Kind.HISTOGRAM,
    "s",
    "Duration of the journal's transactions.",
    (),
    COMMIT_SECONDS,
)
STEP_NON_FINITE: Final = Definition(
    "whence.step.non_finite",
    Kind.COUNTER,
    "{value}",
    "Values of steps that are NaN or infinite, and therefore in no bucket of the step histograms.",
    (*_MODEL, QUANTITY),
)
JOURNAL_SIZE: Final = Definition(
    "whence.journal.size",
    Kind.GAUGE,
    "By",
    "Size of the journal on disk, including its write-ahead log.",
)
JOURNAL_USED: Final = Definition(
    "whence.journal.used",
    Kind.GAUGE,
    "By",
    "Size of the pages in use of the journal's database, or of this server's log in PostgreSQL.",
)
RETENTION_DELETED: Final = Definition(
    "whence.retention.deleted",
    Kind.COUNTER,
    "{generation}",
    "Generations that retention has deleted.",
    (RETENTION_CAUSE,),
)
RETENTION_UNREAD: Final = Definition(
    "whence.retention.unread",
    Kind.COUNTER,
    "{generation}",
    "Generations that retention has deleted before every export had read them.",
)
RETENTION_WAITING: Final = Definition(
    "whence.retention.waiting",
    Kind.GAUGE,
    "{generation}",
    "Generations that retention keeps only because an export has not read them.",
)
RETENTION_HELD: Final = Definition(
    "whence.retention.held",
    Kind.GAUGE,
    "{generation}",
    "Generations with a label under a hold, which nothing deletes.",
)
CURSOR_LAG: Final = Definition(
    "whence.cursor.lag",
    Kind.GAUGE,
    "{entry}",
    "Committed journal entries that a consumer has not processed.",
    (CONSUMER,),
)
CURSOR_DELAY: Final = Definition(
    "whence.cursor.delay",
    Kind.GAUGE,
    "s",
    "Minimum time that the oldest entry that a consumer has not processed has been on disk; 0 "
    "if there is none.",
    (CONSUMER,),
)
EXPORT_SPANS: Final = Definition(
    "whence.export.spans",
    Kind.COUNTER,
    "{span}",
    "Spans by outcome: exported, rejected by the destination, or set aside.",
    (CONSUMER, EXPORT_OUTCOME),
)
EXPORT_REQUESTS: Final = Definition(
    "whence.export.requests",
    Kind.COUNTER,
    "{request}",
    "Requests that were sent to a destination of spans.",
    (CONSUMER,),
)
EXPORT_RETRIES: Final = Definition(
    "whence.export.retries",
    Kind.COUNTER,
    "{retry}",
    "Times that spans were held back to be sent again.",
    (CONSUMER,),
)
EXPORT_REFUSING: Final = Definition(
    "whence.export.refusing",
    Kind.GAUGE,
    "{destination}",
    "1 while a destination answers but accepts nothing, so that all waiting spans are held; "
    "else 0.",
    (CONSUMER,),
)
EXPORT_UNREADABLE: Final = Definition(
    "whence.export.unreadable",
    Kind.COUNTER,
    "{entry}",
    "Journal entries that could not be made into spans.",
    (CONSUMER,),
)

CALLS_REFUSED: Final = Definition(
    "whence.calls.refused",
    Kind.COUNTER,
    "{call}",
    "Calls of callers that were not authenticated, or lacked the scope of the method.",
    (REFUSAL_CAUSE,),
)

LOG_SIZE: Final = Definition(
    "whence.transparency_log.size",
    Kind.GAUGE,
    "{entry}",
    "Entries of the transparency log in its newest published checkpoint.",
)
LOG_DELAY: Final = Definition(
    "whence.transparency_log.delay",
    Kind.GAUGE,
    "s",
    "Time for which a checkpoint of the transparency log has waited for its witnesses; 0 if none "
    "waits.",
)
WITNESS_FAILURES: Final = Definition(
    "whence.transparency_log.witness.failures",
    Kind.COUNTER,
    "{request}",
    "Requests that a witness did not answer with a cosignature.",
    (WITNESS,),
)

MEASURED: Final = (
    REQUEST_DURATION,
    TIME_TO_FIRST_TOKEN,
    TIME_PER_OUTPUT_TOKEN,
    TOKEN_USAGE,
    QUEUE_DURATION,
    PREFILL_DURATION,
    GENERATIONS_STARTED,
    GENERATIONS_FINISHED,
    PROMPT_TOKENS,
    CACHED_PROMPT_TOKENS,
    GENERATED_TOKENS,
    CALL_DURATION,
    HTTP_DURATION,
    UNREADABLE_ENTRIES,
    JOURNAL_COMMIT,
)
"""Recorded through the SDK's synchronous instruments."""
STEPS: Final = (STEP_ENTROPY, STEP_SURPRISE, DRAW_MARGIN)
"""Recorded by `StepHistograms`, because the SDK takes too long for every step."""
POLLED: Final = (
    STEP_NON_FINITE,
    GENERATIONS_RUNNING,
    GENERATIONS_UNRECORDED,
    SEQUENCES_WAITING,
    BATCH_SIZE,
    CACHE_USED,
    CACHE_FREE,
    PREFIX_CACHE_USED,
    PREFILL_CHUNKS,
    ENGINE_RESTARTS,
    JOURNAL_SIZE,
    JOURNAL_USED,
    RETENTION_DELETED,
    RETENTION_UNREAD,
    RETENTION_WAITING,
    RETENTION_HELD,
    CURSOR_LAG,
    CURSOR_DELAY,
    EXPORT_SPANS,
    EXPORT_REQUESTS,
    EXPORT_RETRIES,
    EXPORT_REFUSING,
    EXPORT_UNREADABLE,
    CALLS_REFUSED,
    LOG_SIZE,
    LOG_DELAY,
    WITNESS_FAILURES,
)
"""LiveSources on each collection."""
ALL: Final = (*MEASURED, *STEPS, *POLLED)
