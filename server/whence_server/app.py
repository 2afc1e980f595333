"""Composition root: the only module that builds the server's parts and connects them."""

import asyncio
import dataclasses
import logging
import math
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from opentelemetry.sdk.trace.sampling import Sampler

from whence_server.access.failures import Failures
from whence_server.admission import Access, make_limits, open_access, sign_generations
from whence_server.config import ServeConfig
from whence_server.config.environment import copy_environment
from whence_server.domain.errors import ConfigurationError, EngineLostError, JournalError
from whence_server.domain.generation import CallRecord
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.engines.absent import AbsentEngine
from whence_server.engines.transformers.supervisor import EngineSupervisor
from whence_server.engines.upstream.engine import UpstreamEngine
from whence_server.generation.content.forms import StoredForms
from whence_server.generation.content.held import HeldContents
from whence_server.generation.content.redaction import Redaction, open_redaction
from whence_server.generation.record_failure import RecordFailure
from whence_server.generation.recording.recorders import Recorders
from whence_server.generation.recovery import close_interrupted
from whence_server.generation.service import Generations
from whence_server.generation.texts import TextProcesses
from whence_server.generation.upstream_prepare import fit_checks
from whence_server.http.server import HttpServer
from whence_server.journal.codec import encode_call
from whence_server.journal.journal import Journal
from whence_server.journal.open_store import choose_store
from whence_server.journal.recorded_vocabularies import RecordedVocabularies
from whence_server.journal.rows import Durability
from whence_server.journal.sealing.opening import KEYS_BESIDE_JOURNAL, SealingOptions
from whence_server.journal.search.indexer import CURSOR, Indexer
from whence_server.journal.search.search import Search
from whence_server.journal.vocabularies import Vocabularies
from whence_server.lineage.library import RunLibrary
from whence_server.observability import Observability
from whence_server.rpc import (
    audit_servicer,
    generation_servicer,
    model_servicer,
    proof_servicer,
    record_servicer,
    trace_servicer,
    training_servicer,
    transparency_servicer,
)
from whence_server.rpc.audit_servicer import AuditServicer
from whence_server.rpc.calls import CallLog, Method
from whence_server.rpc.descriptors import compute_max_connections, raise_descriptor_limit
from whence_server.rpc.generation_servicer import GenerationServicer
from whence_server.rpc.model_servicer import ModelServicer
from whence_server.rpc.proof_servicer import ProofServicer
from whence_server.rpc.readiness import Readiness
from whence_server.rpc.record_servicer import RecordServicer
from whence_server.rpc.server import RpcServer, ServerOptions, build_server
from whence_server.rpc.serving import Serving
from whence_server.rpc.trace_servicer import TraceServicer
from whence_server.rpc.training_servicer import TrainingServicer
from whence_server.rpc.transparency_servicer import TransparencyLogServicer
from whence_server.stopping import set_on_signals, wait_or_stop
from whence_server.takeover import Follower, Takeovers
from whence_server.telemetry.live import LiveServer
from whence_server.text.tokenizer import TextTokenizer
from whence_server.transparency import Transparency
from whence_server.verification import open_analyses
from whence_server.web import WebParts, make_http_server

ServedEngine: TypeAlias = EngineSupervisor | UpstreamEngine | AbsentEngine

_log = logging.getLogger(__name__)

EXIT_DRAINED, EXIT_LOST = 0, 1
# Time that calls get to end by themselves after the last generation has ended.
_CLOSING_CALLS_S = 1.0


async def serve(settings: ServeConfig, engine: ServedEngine) -> int:
    """Serve until SIGTERM or SIGINT, or until the engine is lost.

    Args:
        settings: the server's settings.
        engine: the engine, whose process may have been started already; it is stopped at the end.

    Returns:
        The process's exit status.

    Raises:
        ConfigurationError: the server cannot start with these settings.
        JournalError: the journal's last entries could not be written.
    """
    # Before the journal opens: nobody waits for an unusable certificate or pattern.
    redaction = open_redaction(settings.redact, settings.redact_patterns)
    redaction.check_labels(settings.retention_policy)
    access = await open_access(settings, Failures())
    try:
        return await _serve_with(settings, engine, access, redaction)
    finally:
        await access.close()


async def _serve_with(
    settings: ServeConfig, engine: ServedEngine, access: Access, redaction: Redaction
) -> int:
    durability = Durability(settings.durability)
    patience_s = settings.journal_patience
    if settings.record_failure == RecordFailure.OPEN.value and durability is Durability.GROUP:
        # Streams go on: their entries are shown before they are on disk.
        patience_s = math.inf
    journal = await Journal.open(
        settings.data_dir,
        durability=durability,
        patience_s=patience_s,
        read_patience_s=settings.journal_patience,
        sealing=_make_sealing(settings),
        open_store=choose_store(settings.journal, settings.journal_lease),
        # From the first moment: other servers may have left deletions to do.
        holds=settings.retention_policy.holds,
    )
    try:
        proof = sign_generations(settings, journal)
        live = LiveServer(journal, settings.max_cache_tokens)
        live.refused = access.gate.failures.counts
        vocabularies = Vocabularies(settings.data_dir)
        transparency = await Transparency.open(settings, journal, proof)
        live.transparency = transparency.stats
        observability = Observability(
            settings,
            journal,
            vocabularies,
            live,
            access.make_page_access(),
            public=transparency.list_routes(),
        )
        access.open_audit(journal.audit.record, observability.list_destinations())
        try:
            await observability.start()
            await close_interrupted(journal)
            await transparency.start()
            policy = settings.retention_policy
            readers = (*observability.export_names, *transparency.cursors)
            sweeper = journal.make_sweeper(policy, readers)
            live.retention = None if sweeper is None else sweeper.stats
            search = None if settings.journal_key is not None else Search(journal)
            make_followers = partial(_make_followers, transparency, observability, search)
            takeovers = Takeovers(journal, make_followers, policy, sweeper)
            takeovers.start()
            try:
                async with (
                    nullcontext() if sweeper is None else sweeper.running(),
                    nullcontext() if search is None else search.running(),
                ):
                    return await _serve(
                        settings,
                        engine,
                        access,
                        redaction,
                        journal,
                        vocabularies,
                        live,
                        observability.sampler,
                        transparency,
                        search,
                    )
            finally:
                await takeovers.close()
                await transparency.close()
        finally:
            access.gate.trail.write_due(at_end=True)
            await observability.close()
    finally:
        await journal.close()


def _make_followers(
    transparency: Transparency,
    observability: Observability,
    search: Search | None,
    journal: Journal,
) -> Mapping[str, Follower]:
    """Make what reads the log of another server to its end, by the names of their cursors."""
    found = transparency.make_followers(observability, journal)
    return found if search is None else {**found, CURSOR: Indexer(journal)}


def _make_sealing(settings: ServeConfig) -> SealingOptions | None:
    """Return the keys of the journal; None if it is not encrypted."""
    if settings.journal_key is None:
        return None
    place = settings.journal_keys or settings.journal
    if place is not None and place == settings.journal:
        _log.warning(KEYS_BESIDE_JOURNAL)
    return SealingOptions(settings.journal_key, place, copy_environment())


def _share_connections(settings: ServeConfig) -> int:
    """Return how many connections a front may have: gRPC and HTTP share the file descriptors."""
    num_fronts = 2 if settings.http_listen else 1
    return max(compute_max_connections(raise_descriptor_limit()) // num_fronts, 1)


async def _serve(  # noqa: PLR0917 - the parts of a server
    settings: ServeConfig,
    engine: ServedEngine,
    access: Access,
    redaction: Redaction,
    journal: Journal,
    vocabularies: Vocabularies,
    live: LiveServer,
    sampler: Sampler,
    transparency: Transparency,
    search: Search | None,
) -> int:
    limits = make_limits(settings)
    serving = Serving(settings.served_name, journal, has_model=not settings.record_only)
    analyses = open_analyses(settings, engine)
    library = RunLibrary(settings.training_runs, settings.model)
    forms = StoredForms(redaction.make_form)
    recorders = Recorders(
        journal,
        RecordedVocabularies(vocabularies, settings.data_dir),
        lambda: serving.model,
        library.link,
        is_taken=serving.is_taken,
        max_generations=settings.caller_max_generations,
        forms=forms,
        max_stored_bytes=settings.caller_max_stored_bytes,
    )
    closing = asyncio.Event()
    calls = CallLog(
        lambda call: _record_call(journal, redaction.redact_call(call)), sampler=sampler
    )
    services: dict[str, list[Method[Any]]] = {
        generation_servicer.SERVICE: GenerationServicer(serving, limits).list_methods(),
        trace_servicer.SERVICE: TraceServicer(journal, closing, search).list_methods(),
        training_servicer.SERVICE: TrainingServicer(
            library, serving, analyses.tracer, closing
        ).list_methods(),
        **analyses.list_services(
            journal, closing, lambda: serving.num_running, redaction.redact_label
        ),
        proof_servicer.SERVICE: ProofServicer(
            journal, transparency.board, transparency.log
        ).list_methods(),
        audit_servicer.SERVICE: AuditServicer(journal.audit).list_methods(),
        model_servicer.SERVICE: ModelServicer(serving, vocabularies).list_methods(),
        transparency_servicer.SERVICE: TransparencyLogServicer(transparency.log).list_methods(),
        record_servicer.SERVICE: RecordServicer(recorders, journal, limits, sampler).list_methods(),
    }
    rpc = await build_server(
        ServerOptions(
            listen=settings.listen,
            insecure_listen_anywhere=settings.insecure_listen_anywhere,
            is_guarded=settings.is_guarded,
            max_message_bytes=settings.max_message_bytes,
            max_concurrent_streams=settings.max_concurrent_streams,
            socket_mode=settings.socket_mode,
            max_connections=_share_connections(settings),
            progress_interval_s=settings.progress_interval,
            metrics_listen=settings.metrics_listen,
            tls=access.tls,
        ),
        services,
        calls,
        access.gate,
    )
    http = make_http_server(
        WebParts(settings, access, serving, services, live, limits, calls, transparency, search),
        _share_connections(settings),
    )
    await rpc.server.start()
    rpc.watch_addresses(settings.max_connections_per_address)
    serving.note_opened()
    library.start()
    stop = asyncio.Event()

    readiness = Readiness(lambda up: rpc.set_serving(up and not stop.is_set()))
    await _report_parts(engine, access, readiness)
    live.show_start(engine, lambda: rpc.is_serving, stop.is_set)
    texts: TextProcesses | None = None
    try:
        if http is not None:
            await http.start()
        with set_on_signals(stop):
            watch = JournalWatch(journal, readiness, RecordFailure(settings.record_failure))
            if isinstance(engine, AbsentEngine):
                return await _run_until_stopped(settings, Fronts(rpc, http), None, stop, watch)
            model = await _load(engine, serving, stop)
            if model is None:
                return EXIT_DRAINED
            model = dataclasses.replace(
                model,
                training_run=await library.link(model),
                adapters=await library.link_adapters(model),
            )
            tokenizer = await _load_tokenizer(model, vocabularies, journal)
            if tokenizer is not None:
                texts = TextProcesses(*fit_checks(model, limits))
                texts.start()
            generations = Generations(
                engine=engine,
                journal=journal,
                model=model,
                tokenizer=tokenizer,
                texts=texts,
                limits=limits,
                grader=engine if isinstance(engine, UpstreamEngine) else None,
                record_failure=RecordFailure(settings.record_failure),
                forms=forms,
                contents=HeldContents(strict=settings.durability == Durability.STRICT.value),
            )
            live.show_generations(generations)
            serving.set_ready(model, tokenizer, generations)
            if isinstance(engine, UpstreamEngine):
                engine.watch_model(partial(_replace_model, serving, limits, texts))
            return await _run_until_stopped(settings, Fronts(rpc, http), generations, stop, watch)
    finally:
        closing.set()
        if http is not None:
            await http.close()
        await rpc.stop(_CLOSING_CALLS_S)
        recorders.close()
        if texts is not None:
            await texts.close()
        library.close()
        await engine.stop()
        await analyses.close()


async def _report_parts(engine: ServedEngine, access: Access, readiness: Readiness) -> None:
    engine.on_change = partial(readiness.set, "engine")
    await access.report_keys(partial(readiness.set, "keys"))


def _replace_model(
    serving: Serving, limits: Limits, texts: TextProcesses | None, model: ModelInfo
) -> None:
    """Serve the model as the upstream describes it after it was started anew."""
    served, generations = serving.model, serving.get_generations()
    if served is not None:
        model = dataclasses.replace(
            model, training_run=served.training_run, adapters=served.adapters
        )
    generations.set_model(model)
    if texts is not None:
        texts.set_model(*fit_checks(model, limits))
    serving.set_ready(model, serving.tokenizer, generations)


class Fronts(NamedTuple):
    """Servers that callers connect to."""

    rpc: RpcServer
    http: HttpServer | None

    def list_addresses(self) -> list[str]:
        """Return what clients connect to: targets of gRPC, then the URL of HTTP."""
        return [*self.rpc.targets, *([] if self.http is None else [self.http.url])]


class JournalWatch(NamedTuple):
    """Journal to watch, and the readiness that depends on it, unless requests are served anyway."""

    journal: Journal
    readiness: Readiness
    policy: RecordFailure


async def _run_until_stopped(
    settings: ServeConfig,
    fronts: Fronts,
    generations: Generations | None,
    stop: asyncio.Event,
    watch: JournalWatch,
) -> int:
    readiness = watch.readiness
    working = stop.wait() if generations is None else generations.run()
    running = asyncio.create_task(working, name="generations")
    writable = asyncio.create_task(_watch_journal(watch), name="journal-watch")
    await readiness.set("engine", True)
    # The only line on standard output: a parent process may wait for it.
    served = "records alone" if generations is None else generations.model_name
    print(f"serving {served} on {', '.join(fronts.list_addresses())}", flush=True)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopped, writable}, return_when=asyncio.FIRST_COMPLETED)
        await fronts.rpc.set_serving(False)
        for ended in (running, writable):
            if ended.done():
                ended.result()
        if generations is not None:
            _log.info("draining %d generations", generations.num_running)
            await generations.drain(settings.drain_grace)
    except (EngineLostError, JournalError) as error:
        _log.critical("%s", error)
        return EXIT_LOST
    finally:
        for task in (running, stopped, writable):
            task.cancel()
        await asyncio.gather(running, stopped, writable, return_exceptions=True)
    return EXIT_DRAINED


async def _watch_journal(watch: JournalWatch) -> None:
    """Say when the journal cannot be written, and take the server out of service if so.

    Raises:
        JournalError: the journal is lost, and cannot be written again.
    """
    journal, readiness, policy = watch
    is_open = policy is RecordFailure.OPEN
    while journal.lost is None:
        trouble = journal.trouble
        if trouble is not None:
            _log.critical(
                "new requests are served without a record, and running generations go on"
                if is_open
                else "new requests are refused, and running generations wait"
            )
        await readiness.set("journal", trouble is None or is_open)
        if journal.trouble is trouble:
            await journal.trouble_changed.wait()
    raise journal.lost


def _record_call(journal: Journal, call: CallRecord) -> None:
    journal.record_call(call.generation_id, encode_call(call))


async def _load(
    engine: EngineSupervisor | UpstreamEngine, serving: Serving, stop: asyncio.Event
) -> ModelInfo | None:
    """Load the model; return None if the stop came first.

    Raises:
        ConfigurationError: the model cannot be loaded; callers that wait for it have been told.
    """
    try:
        return await wait_or_stop(engine.start(), stop)
    except ConfigurationError as error:
        serving.set_failed(error)
        telling_s = serving.telling_s
        if telling_s > 0:
            _log.critical(
                "%s; the server ends in %.0f s, after it has told callers that wait",
                error,
                telling_s,
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), telling_s)
        raise


async def _load_tokenizer(
    model: ModelInfo, vocabularies: Vocabularies, journal: Journal
) -> TextTokenizer | None:
    """Load the model's tokenizer and keep its vocabulary; None for an upstream without one."""
    if not model.text.tokenizer_json:
        return None
    tokenizer = await asyncio.to_thread(TextTokenizer, model.text, model.vocabulary_size)
    # Before a generation begins: its spans name tokens by their text from the first on.
    await asyncio.to_thread(
        vocabularies.keep,
        model.tokenizer_digest,
        tokenizer.list_vocabulary(),
        journal.committed_position,
    )
    return tokenizer
