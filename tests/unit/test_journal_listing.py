"""Pages of generations: filters, tokens, and generations that start between two pages."""

import base64

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_cases import create, whole

from whence_server.domain.errors import InvalidRequestError
from whence_server.journal.journal import Journal
from whence_server.journal.listing import PageKey, decode_page_token, encode_page_token
from whence_server.journal.rows import ListFilter


@pytest.fixture
async def journal(tmp_path, each_store):
    journal = await Journal.open(tmp_path)
    yield journal
    await journal.close()


async def ids(journal, list_filter=None, page_size=100):
    rows, token = await journal.list(list_filter or ListFilter(), page_size)
    assert token == ""
    return [row.generation_id for row in rows]


async def test_new_generations_do_not_change_later_pages(journal):
    for i in range(7):
        # Pairs share a start time: the id decides between them.
        create(journal, f"g{i}", start_time_ns=1_000 + i // 2)
    seen, token = [], ""
    for expected_size in (3, 3, 1):
        rows, token = await journal.list(ListFilter(), 3, token)
        assert len(rows) == expected_size
        seen += [row.generation_id for row in rows]
        create(journal, f"new{len(seen)}", start_time_ns=5_000 + len(seen))
    assert token == ""
    assert seen == ["g6", "g5", "g4", "g3", "g2", "g1", "g0"]


async def test_the_last_full_page_has_no_token(journal):
    for i in range(4):
        create(journal, f"g{i}")
    _, token = await journal.list(ListFilter(), 2)
    rows, token = await journal.list(ListFilter(), 2, token)
    assert (len(rows), token) == (2, "")


async def test_list_filters_by_model_trace_labels_and_start_time(journal):
    whole(journal, "a", start_time_ns=10, model="m1", trace_id="t1", labels={"k": "1", "l": "2"})
    whole(journal, "b", start_time_ns=20, model="m2", trace_id="t1", labels={"k": "1"})
    whole(journal, "c", start_time_ns=30, model="m2", trace_id="t2", labels={'"$.k': "1"})
    assert await ids(journal) == ["c", "b", "a"]
    assert await ids(journal, ListFilter(start_after_ns=10)) == ["c", "b"]
    assert await ids(journal, ListFilter(start_before_ns=20)) == ["a"]
    assert await ids(journal, ListFilter(start_after_ns=-(10**20), start_before_ns=10**20)) == [
        "c", "b", "a",
    ]  # fmt: skip
    assert await ids(journal, ListFilter(model="m2")) == ["c", "b"]
    assert await ids(journal, ListFilter(model="m2", trace_id="t1")) == ["b"]
    assert await ids(journal, ListFilter(labels={"k": "1"})) == ["b", "a"]
    assert await ids(journal, ListFilter(labels={"k": "1", "l": "2"})) == ["a"]
    assert await ids(journal, ListFilter(labels={"k": "2"})) == []
    assert await ids(journal, ListFilter(labels={'"$.k': "1"})) == ["c"]
    assert await ids(journal, ListFilter(model="' OR 1 --")) == []


async def test_the_list_shows_what_was_just_appended_and_nothing_deleted(journal):
    whole(journal, "a")
    create(journal, "b")
    rows, _ = await journal.list(ListFilter(), 10)
    assert [(row.generation_id, row.finish is None) for row in rows] == [("b", True), ("a", False)]
    await journal.delete("a")
    assert await ids(journal) == ["b"]


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "????",
        "☃",
        "after:3",
        base64.urlsafe_b64encode(b"short").decode(),
    ],
)
async def test_malformed_token_is_refused_with_its_field(journal, token):
    with pytest.raises(InvalidRequestError) as caught:
        await journal.list(ListFilter(), 3, token)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


async def test_token_of_another_filter_is_refused(journal):
    for i in range(4):
        create(journal, f"g{i}")
    _, token = await journal.list(ListFilter(model="tiny"), 2)
    rows, _ = await journal.list(ListFilter(model="tiny"), 2, token)
    assert len(rows) == 2
    with pytest.raises(InvalidRequestError, match="another filter"):
        await journal.list(ListFilter(), 2, token)


@given(st.binary(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_token_is_read_or_refused(raw):
    with pytest.raises(InvalidRequestError):
        decode_page_token(base64.urlsafe_b64encode(raw).decode(), ListFilter(model="m"))


@given(st.integers(-(2**63), 2**63 - 1), st.uuids().map(str))
def test_token_round_trip_keeps_its_key(start_time_ns, generation_id):
    list_filter = ListFilter(model="m", labels={"b": "1", "a": "2"})
    key = PageKey(start_time_ns, generation_id.encode())
    token = encode_page_token(key, list_filter)
    same = ListFilter(model="m", labels={"a": "2", "b": "1"})
    assert decode_page_token(token, same) == key
