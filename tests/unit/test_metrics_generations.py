"""Journal entries as measurements: what is counted, when, and with which attributes."""

import math

import pytest
from metrics_parts import (
    bring_to_life,
    busy,
    exemplars_in,
    families_of,
    live_server,
    measuring,
    value_of,
)
from telemetry_journal import TRACE_ID, MemoryJournal, call, finished, server_span_id, started, step

from whence.v1 import generation_pb2 as g
from whence.v1 import step_pb2
from whence_server.domain.entries import EntryKind
from whence_server.telemetry.metrics.metrics import MetricsOptions
from whence_server.telemetry.spans.ids import SpanIds


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


async def test_one_generation_is_measured_by_the_conventions(journal: MemoryJournal) -> None:
    async with measuring(journal) as metrics:
        journal.append("a", EntryKind.STARTED, started("a", operation="chat"))
        for index in range(11):
            journal.append("a", EntryKind.STEP, step(index))
        journal.append(
            "a",
            EntryKind.FINISHED,
            finished(11, queue_ns=3_000_000, prefill_ns=7_000_000, num_cached_prompt_tokens=4),
        )
        journal.append("a", EntryKind.CALL, call("a", 11))
        assert await metrics.flush(30)
        page = families_of(metrics)
    gen_ai = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "whence",
        "gen_ai_request_model": "demo",
        "gen_ai_response_model": "demo",
    }

    def sum_of(name: str, **labels: str) -> float:
        assert value_of(page, name + "_count", **labels) == 1
        return value_of(page, name + "_sum", **labels)

    assert math.isclose(sum_of("gen_ai_server_request_duration_seconds", **gen_ai), 0.055)
    assert math.isclose(sum_of("gen_ai_server_time_to_first_token_seconds", **gen_ai), 0.014)
    assert math.isclose(sum_of("gen_ai_server_time_per_output_token_seconds", **gen_ai), 0.004)
    usage = "gen_ai_client_token_usage"
    assert sum_of(usage, gen_ai_token_type="input", **gen_ai) == 5
    assert sum_of(usage, gen_ai_token_type="output", **gen_ai) == 11
    assert math.isclose(sum_of("whence_generation_queue_duration_seconds"), 0.003)
    assert math.isclose(sum_of("whence_generation_prefill_duration_seconds"), 0.007)
    rpc = {
        "rpc_system_name": "grpc",
        "rpc_method": "whence.v1.GenerationService/Generate",
        "rpc_response_status_code": "OK",
    }
    assert math.isclose(sum_of("rpc_server_call_duration_seconds", **rpc), 0.056)
    assert value_of(page, "whence_tokens_generated_total", gen_ai_request_model="demo") == 11
    assert value_of(page, "whence_tokens_prompt_total", gen_ai_request_model="demo") == 5
    assert value_of(page, "whence_tokens_prompt_cached_total", gen_ai_request_model="demo") == 4
    assert value_of(page, "whence_generations_started_total", gen_ai_operation_name="chat") == 1
    ended = {"gen_ai_operation_name": "chat", "whence_generation_finish_reason": "stop"}
    assert value_of(page, "whence_generations_finished_total", **ended) == 1


async def test_a_value_lies_in_the_bucket_whose_bound_it_equals(journal: MemoryJournal) -> None:
    values = [0.0, 0.25, 0.2500001, 10.0, 11.0]
    async with measuring(journal) as metrics:
        journal.append("a", EntryKind.STARTED, started("a"))
        for index, value in enumerate(values):
            draw = step_pb2.Draw(noise=1, margin=value)
            journal.append(
                "a", EntryKind.STEP, step(index, entropy=value, logprob=-value, draw=draw)
            )
        assert await metrics.flush(30)
        page = families_of(metrics)
    for name in ("whence_step_entropy", "whence_step_surprise"):
        assert value_of(page, name + "_bucket", le="0.1") == 1
        assert value_of(page, name + "_bucket", le="0.25") == 2
        assert value_of(page, name + "_bucket", le="0.5") == 3
        assert value_of(page, name + "_bucket", le="8.0") == 3
        assert value_of(page, name + "_bucket", le="10.0") == 4
        assert value_of(page, name + "_bucket", le="+Inf") == 5
        assert math.isclose(value_of(page, name + "_sum"), sum(values), rel_tol=1e-6)
    assert value_of(page, "whence_draw_margin_count") == 5


async def test_absent_and_non_finite_values_of_steps_are_in_no_histogram(
    journal: MemoryJournal,
) -> None:
    async with measuring(journal) as metrics:
        journal.append("a", EntryKind.STARTED, started("a"))
        bare = step(0)
        for name in ("entropy", "logprob", "draw"):
            bare.ClearField(name)
        journal.append("a", EntryKind.STEP, bare)
        journal.append("a", EntryKind.STEP, step(1, logprob=-math.inf, entropy=math.nan))
        unrivalled = step(2)
        unrivalled.draw.ClearField("margin")
        journal.append("a", EntryKind.STEP, unrivalled)
        assert await metrics.flush(30)
        page = families_of(metrics)
    assert value_of(page, "whence_step_entropy_count") == 1
    assert value_of(page, "whence_step_surprise_sum") == 1.5
    assert value_of(page, "whence_draw_margin_count") == 1
    counted = {
        sample.labels["whence_step_quantity"]: sample.value
        for sample in page["whence_step_non_finite"].samples
    }
    assert counted == {"entropy": 1, "surprise": 1, "margin": 0}
    assert value_of(page, "whence_tokens_generated_total") == 3


async def test_only_generations_that_came_to_their_own_end_have_token_times(
    journal: MemoryJournal,
) -> None:
    async with measuring(journal) as metrics:
        busy(journal)
        assert await metrics.flush(30)
        page = families_of(metrics)
    first = "gen_ai_server_time_to_first_token_seconds_count"
    counts = [s.value for f in page.values() for s in f.samples if s.name == first]
    assert sum(counts) == 3  # END_OF_SEQUENCE, STOP and LENGTH
    duration = "gen_ai_server_request_duration_seconds_count"
    assert value_of(page, duration, error_type="NON_FINITE_LOGITS") == 1
    assert value_of(page, duration, error_type="", gen_ai_operation_name="chat") == 3


async def test_a_beam_search_has_no_time_to_a_first_token(journal: MemoryJournal) -> None:
    decoding = g.Decoding(beam_search=g.BeamSearch(num_beams=2), num_return_sequences=1)
    async with measuring(journal) as metrics:
        journal.append("a", EntryKind.STARTED, started("a", effective_decoding=decoding))
        journal.append("a", EntryKind.STEP, step(0))
        journal.append("a", EntryKind.FINISHED, finished(1))
        assert await metrics.flush(30)
        page = families_of(metrics)
    assert "gen_ai_server_time_to_first_token_seconds" not in page
    assert "gen_ai_server_request_duration_seconds" in page


async def test_exemplars_name_the_generations_own_spans(journal: MemoryJournal) -> None:
    async with measuring(journal) as metrics:
        journal.append_generation("seen", 3, num_sequences=2)
        journal.append_generation("unseen", 3, flags=0)
        assert await metrics.flush(30)
        found = list(exemplars_in(families_of(metrics)))
    ids = SpanIds(bytes.fromhex(TRACE_ID), "seen")
    decodes = {ids.get_decode_id(0).hex(), ids.get_decode_id(1).hex()}
    spans: dict[str, set[str]] = {}
    for name, labels, _ in found:
        assert labels["trace_id"] == TRACE_ID
        spans.setdefault(name.removesuffix("_bucket"), set()).add(labels["span_id"])
    assert spans.pop("rpc_server_call_duration_seconds") == {server_span_id("seen")}
    for name in ("whence_step_entropy", "whence_step_surprise", "whence_draw_margin"):
        assert spans.pop(name) <= decodes
    assert "gen_ai_server_request_duration_seconds" in spans
    assert all(ids_seen == {ids.get_generation_id().hex()} for ids_seen in spans.values())


async def test_an_unsampled_generation_is_measured_and_has_no_exemplar(
    journal: MemoryJournal,
) -> None:
    async with measuring(journal) as metrics:
        journal.append_generation("a", 3, flags=0)
        assert await metrics.flush(30)
        page = families_of(metrics)
    assert value_of(page, "whence_step_entropy_count") == 3
    assert not list(exemplars_in(page))


async def test_earlier_entries_are_not_measured_but_interrupted_generations_are_counted(
    journal: MemoryJournal,
) -> None:
    journal.append_generation("long gone", 5)
    journal.append("cut off", EntryKind.STARTED, started("cut off"))
    journal.append("cut off", EntryKind.STEP, step(0))
    journal.append("deleted", EntryKind.STARTED, started("deleted"))
    async with measuring(journal) as metrics:
        interrupted = finished(1, finish_reason=g.FINISH_REASON_INTERRUPTED)
        journal.append("cut off", EntryKind.FINISHED, interrupted)
        journal.append("deleted", EntryKind.FINISHED, interrupted)
        journal.deleted.add("deleted")
        assert await metrics.flush(30)
        page = families_of(metrics)
    assert value_of(page, "whence_generations_finished_total") == 1
    assert "gen_ai_server_request_duration_seconds" not in page
    assert "whence_step_entropy" not in page
    assert "whence_tokens_generated" not in page


async def test_deleted_and_unreadable_entries_do_not_affect_other_entries(
    journal: MemoryJournal, caplog: pytest.LogCaptureFixture
) -> None:
    async with measuring(journal) as metrics:
        journal.append("a", EntryKind.STARTED, started("a"))
        journal.append("a", EntryKind.STEP, step(0))
        journal.append("b", EntryKind.STARTED, started("b", trace_id="nonsense"))
        journal.append("c", EntryKind.STARTED, None)
        journal.append("c", EntryKind.FINISHED, None)
        entry = journal.append("a", EntryKind.STEP, None)
        journal.entries[-1] = entry._replace(payload=b"\xff\xff")
        journal.append("a", EntryKind.FINISHED, finished(1))
        assert await metrics.flush(30)
        page = families_of(metrics)
    assert value_of(page, "whence_metrics_unreadable_total") == 2
    assert value_of(page, "whence_generations_finished_total") == 1
    assert value_of(page, "whence_tokens_generated_total") == 1
    assert "in no metric" in caplog.text


async def test_a_journal_that_cannot_be_read_is_retried(
    journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, failures = journal.read_committed, [OSError("disk on holiday")]

    async def read_committed(after_position: int, limit: int):
        if failures:
            raise failures.pop()
        return await read(after_position, limit)

    monkeypatch.setattr(journal, "read_committed", read_committed)
    at_once = MetricsOptions(linger_s=0.0, retry_s=0.0)
    async with measuring(journal, options=at_once) as metrics:
        journal.append_generation("a", 2)
        assert await metrics.flush(30)
    assert "disk on holiday" in caplog.text


ALLOWED = {
    "gen_ai_operation_name": {"chat", "text_completion"},
    "gen_ai_provider_name": {"whence"},
    "gen_ai_request_model": {"demo"},
    "gen_ai_response_model": {"demo"},
    "gen_ai_token_type": {"input", "output"},
    "rpc_system_name": {"grpc"},
    "whence_refusal_cause": {"missing", "unknown", "expired", "invalid", "scope"},
    "whence_retention_cause": {"age", "size"},
    "rpc_method": {"whence.v1.GenerationService/Generate", "_OTHER"},
    "rpc_response_status_code": {
        *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
        *("ALREADY_EXISTS", "PERMISSION_DENIED", "INTERNAL", "_OTHER"),
    },
    "http_request_method": {"POST"},
    "http_response_status_code": {"200", "500"},
    "http_route": {"/v1/completions", "_OTHER"},
    "url_scheme": {"http"},
    "error_type": {
        *("", "500", "NON_FINITE_LOGITS", "UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "_OTHER"),
    },
    "whence_generation_finish_reason": {
        *("end_of_sequence", "stop", "length", "cancelled", "timeout", "interrupted", "failed"),
    },
    "whence_consumer": {"metrics", "otlp-spans"},
    "whence_witness": {"example.com/w"},
    "whence_export_outcome": {"exported", "rejected", "set_aside"},
    "whence_step_quantity": {"entropy", "surprise", "margin"},
}


async def test_labels_have_values_from_small_fixed_sets(journal: MemoryJournal) -> None:
    live = live_server()
    async with measuring(journal, live=live) as metrics:
        bring_to_life(live, metrics)
        for _ in range(3):
            busy(journal)
        odd = {"failure": g.Failure(reason="request 4711 went wrong")}
        journal.append("odd", EntryKind.STARTED, started("odd"))
        failed = finished(0, finish_reason=g.FINISH_REASON_FAILED, **odd)
        journal.append("odd", EntryKind.FINISHED, failed)
        assert await metrics.flush(30)
        page = families_of(metrics)
    seen: dict[str, set[str]] = {}
    for name, family in page.items():
        for sample in family.samples:
            if name != "target":
                for label, value in sample.labels.items():
                    seen.setdefault(label, set()).add(value)
    assert all(float(bound) >= 0 for bound in seen.pop("le"))
    assert seen == ALLOWED
