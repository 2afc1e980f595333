"""The JSON API of a real server: what gRPC answers, in protobuf's JSON mapping, and the login."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from event_stream import Event, read_event_stream
from google.protobuf.json_format import MessageToDict, ParseDict
from server_process import ServerProcess

from whence import Client
from whence.audit import get_action_name
from whence.cli.main import main
from whence.v1 import audit_pb2, generation_pb2, model_pb2, trace_pb2
from whence.v1.audit_pb2_grpc import AuditServiceStub
from whence.v1.generation_pb2_grpc import GenerationServiceStub
from whence.v1.model_pb2_grpc import ModelServiceStub
from whence.v1.trace_pb2_grpc import TraceServiceStub

SCOPES = {
    "ann": ["generate", "read:content", "explain", "delete", "admin", "read:all"],
    "explainer": ["explain", "read:all"],
    "counter": ["read", "read:all"],
    "maker": ["generate"],
    "leaver": ["read"],
}
ANN = {"Authorization": "Bearer ann-secret"}
EXPLAINER = {"Authorization": "Bearer explainer-secret"}
COUNTER = {"Authorization": "Bearer counter-secret"}
REQUEST = {"prompt": "The capital of France is", "labels": {"team": "red"}}
GREEDY = {"decoding": {"greedy": {}, "maxNewTokens": 6}}
UNKNOWN = "6f1c2f0e-1d2b-4c57-9a41-0c3f5f7f9d10"


@dataclass
class Site:
    """A server, and its file of callers."""

    server: ServerProcess
    callers: Path

    def get(self, path: str, headers: dict[str, str] = ANN, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers, timeout=60, **more)

    def post(self, path: str, headers: dict[str, str] = ANN, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, headers=headers, timeout=60, **more)

    def stream(
        self, verb: str, path: str, headers: dict[str, str] = ANN, **more: Any
    ) -> Iterator[Event]:
        with httpx.stream(verb, self.url + path, headers=headers, timeout=60, **more) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            yield from read_event_stream(answer.iter_lines())

    def generate(self, **more: Any) -> list[Event]:
        """Return the events of a generation whose end is on record."""
        events = list(self.stream("POST", "/api/v1/generations", json=REQUEST | GREEDY | more))
        path = f"/api/v1/generations/{get_id(events)}"
        wait_for(lambda: self.get(path).json(), lambda found: "finished" in found)
        return events

    @property
    def url(self) -> str:
        return self.server.http_url

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", ANN["Authorization"]),)


@pytest.fixture(scope="module")
def site(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("api")
    callers = folder / "callers"
    write_callers(callers, list(SCOPES))
    flags = ("--auth-tokens", str(callers), "--http-listen", "127.0.0.1:0")
    data = folder / "data"
    options = ("--progress-interval", "0.5", "--audit", "all", "--model-name", "tiny")
    with ServerProcess(tiny_model("gpt2"), data, *flags, *options) as process:
        yield Site(process, callers)


def write_callers(path: Path, names: list[str]) -> None:
    lines = []
    for name in names:
        digest = hashlib.sha256(f"{name}-secret".encode()).hexdigest()
        lines.append(json.dumps({"id": name, "sha256": digest, "scopes": SCOPES[name]}))
    # A rename, because the server may look at any moment.
    written = path.with_suffix(".new")
    written.write_text("\n".join(lines))
    written.chmod(0o600)
    written.rename(path)


@pytest.fixture(scope="module")
def channel(site: Site) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(site.server.target) as opened:
        yield opened


@pytest.fixture(scope="module")
def events(site: Site) -> list[Event]:
    """Events of a generation that has ended."""
    return site.generate()


@pytest.fixture(scope="module")
def generation_id(events: list[Event]) -> str:
    return get_id(events)


def wait_for(read: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    """Return what is read once a condition holds for it."""
    deadline = time.monotonic() + 60
    while not holds(found := read()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def get_id(events: list[Event]) -> str:
    found: str = events[0].data["event"]["started"]["generationId"]
    return found


def get_error(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


def test_reads_have_what_grpc_answers(
    site: Site, channel: grpc.Channel, generation_id: str
) -> None:
    trace, models = TraceServiceStub(channel), ModelServiceStub(channel)
    one = trace.GetGeneration(
        trace_pb2.GetGenerationRequest(generation_id=generation_id), metadata=site.metadata
    )
    steps = trace.ListSteps(
        trace_pb2.ListStepsRequest(generation_id=generation_id), metadata=site.metadata
    )
    listed = trace.ListGenerations(
        trace_pb2.ListGenerationsRequest(filter={"labels": {"team": "red"}}),
        metadata=site.metadata,
    )
    served = models.ListModels(model_pb2.ListModelsRequest(), metadata=site.metadata)
    path = f"/api/v1/generations/{generation_id}"
    shown = site.get(path).json()
    # A reader that leaves is put on record a moment after it has left.
    assert {**MessageToDict(one), "occurrences": []} == {**shown, "occurrences": []}
    assert site.get(f"{path}/steps").json() == MessageToDict(steps)
    assert site.get("/api/v1/generations?labels=team%3Dred").json() == MessageToDict(listed)
    assert site.get("/api/v1/models").json() == MessageToDict(served)
    assert site.get("/api/v1/models/tiny").json()["model"] == MessageToDict(served.models[0])


def test_the_vocabulary_is_one_message(site: Site, channel: grpc.Channel) -> None:
    parts = list(
        ModelServiceStub(channel).GetVocabulary(
            model_pb2.GetVocabularyRequest(), metadata=site.metadata
        )
    )
    answer = ParseDict(site.get("/api/v1/vocabulary").json(), model_pb2.GetVocabularyResponse())
    assert list(answer.tokens) == [token for part in parts for token in part.tokens]


def test_pages_follow_each_other(site: Site, events: list[Event], generation_id: str) -> None:
    path = f"/api/v1/generations/{generation_id}/steps"
    whole = site.get(path).json()["steps"]
    found, token = [], ""
    while True:
        page = site.get(path, params={"page_size": 4, "pageToken": token}).json()
        found += page["steps"]
        assert len(page["steps"]) <= 4
        token = page.get("nextPageToken", "")
        if not token:
            break
    assert found == whole
    assert len(whole) == 6
    # Of the filter, times and the model.
    assert events[0].data["event"]["started"]["model"] == "tiny"
    for query, is_there in (
        ({"model": "tiny", "start_before": "2199-01-01T00:00:00Z"}, True),
        ({"model": "other"}, False),
        ({"startAfter": "2199-01-01T00:00:00Z"}, False),
    ):
        listed = site.get("/api/v1/generations", params=query).json().get("generations", [])
        assert (generation_id in [it["generationId"] for it in listed]) is is_there


def test_a_generation_streams_the_events_that_are_on_record(
    site: Site, channel: grpc.Channel, events: list[Event], generation_id: str
) -> None:
    resumed = GenerationServiceStub(channel).ResumeGeneration(
        generation_pb2.ResumeGenerationRequest(generation_id=generation_id),
        metadata=site.metadata,
    )
    recorded = [message.event for message in resumed]
    *shown, end = events
    steps = [step for it in shown for step in it.data["event"].get("steps", {}).get("steps", [])]
    expected = [step for it in recorded for step in it.steps.steps]
    assert steps == list(map(MessageToDict, expected))
    assert shown[-1].data["event"]["finished"] == MessageToDict(recorded[-1].finished)
    assert end.name == "end"

    again = list(site.stream("GET", f"/api/v1/generations/{generation_id}/events"))
    assert again[-1].name == "end"
    assert [it.id for it in again[:-1]] == [it.data["event"]["lastOffset"] for it in again[:-1]]


def test_a_reader_comes_back_after_the_last_event_that_it_has(
    site: Site, generation_id: str
) -> None:
    path = f"/api/v1/generations/{generation_id}/events"
    back = list(site.stream("GET", path, {**ANN, "Last-Event-ID": "3"}))
    assert back[0].data["event"]["firstOffset"] == "4"
    assert back[-2].data["event"]["finished"]["numGeneratedTokens"] == 6
    by_parameter = list(site.stream("GET", f"{path}?after_offset=3"))
    assert by_parameter[0].data["event"]["firstOffset"] == "4"
    # After the end a browser would come back for ever.
    answer = site.get(path, {**ANN, "Last-Event-ID": back[-1].id})
    assert answer.status_code == 204


def test_a_watch_shows_what_begins_later_and_is_resumed(site: Site) -> None:
    watch = site.stream("GET", "/api/v1/watch?lifecycle_only=true")
    try:
        # Silence is broken by the position, so that the watch has begun.
        next(watch)
        begun = get_id(site.generate())
        own = (it for it in watch if it.data.get("generationId") == begun)
        started = next(own)
        assert started.data["event"]["started"]["generationId"] == begun
        assert "finished" in next(own).data["event"]
    finally:
        watch.close()
    back = site.stream(
        "GET", "/api/v1/watch?lifecycle_only=true", {**ANN, "Last-Event-ID": started.id}
    )
    try:
        missed = next(it for it in back if "event" in it.data)
        assert missed.data["generationId"] == begun
        assert "finished" in missed.data["event"]
    finally:
        back.close()


def test_an_answer_that_the_reader_has_is_not_sent_again(site: Site, generation_id: str) -> None:
    path = f"/api/v1/generations/{generation_id}/steps"
    answer = site.get(path)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["cache-control"] == "private, no-cache"
    tag = answer.headers["etag"]
    again = site.get(path, {**ANN, "If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    other = site.get(path, {**COUNTER, "If-None-Match": tag})
    assert other.status_code == 200
    plain = site.get(path, {**ANN, "Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == answer.json()


def test_a_reader_of_numbers_gets_no_text(site: Site, generation_id: str) -> None:
    path = f"/api/v1/generations/{generation_id}"
    whole, numbers = site.get(path).text, site.get(path, COUNTER).text
    assert "capital of France" in whole
    assert "capital of France" not in numbers
    assert "promptTokenIds" in whole
    assert "promptTokenIds" not in numbers
    steps = site.get(f"{path}/steps", COUNTER).json()["steps"]
    assert all("logprob" in step and "tokenId" not in step for step in steps)
    assert get_error(site.get(f"{path}/events", COUNTER))["reason"] == "SCOPE_MISSING"


def test_errors_say_what_is_wrong(site: Site) -> None:
    path = "/api/v1/generations"
    for answer, status, reason, words in (
        (site.get(f"{path}/{UNKNOWN}"), 404, "GENERATION_NOT_FOUND", UNKNOWN),
        (site.get(f"{path}/{UNKNOWN}/events"), 404, "GENERATION_NOT_FOUND", UNKNOWN),
        (site.get(f"{path}?page_size=-1"), 400, "INVALID_REQUEST", "page_size"),
        (site.get(f"{path}?size=3"), 400, "INVALID_REQUEST", "page_size, page_token"),
        (site.get(f"{path}?labels=team"), 400, "INVALID_REQUEST", "KEY=VALUE"),
        (site.get("/api/v1/nothing"), 404, "ROUTE_NOT_FOUND", "/api/v1/nothing"),
        (site.get(path, {}), 401, "UNAUTHENTICATED", "token"),
        (site.post(path, json={"promt": "x"}), 400, "INVALID_REQUEST", "promt"),
        (site.post(path, json={}), 400, "INVALID_REQUEST", "input"),
        (site.post(path, json={"prompt": "x", "model": "other"}), 404, "MODEL_NOT_FOUND", "tiny"),
    ):
        assert answer.status_code == status
        error = get_error(answer)
        assert error["reason"] == reason
        assert words in error["message"]


def test_a_write_that_another_site_could_forge_is_refused(site: Site, generation_id: str) -> None:
    path = f"/api/v1/generations/{generation_id}"
    for verb, target, body in (
        ("POST", "/api/v1/generations", "prompt=x"),
        ("POST", f"{path}:cancel", ""),
        ("DELETE", path, ""),
        ("POST", "/logout", ""),
    ):
        headers = {**ANN, "Content-Type": "application/x-www-form-urlencoded"}
        answer = httpx.request(verb, site.url + target, headers=headers, content=body, timeout=60)
        assert (answer.status_code, get_error(answer)["reason"]) == (403, "REQUEST_HEADER_MISSING")
    foreign = {**ANN, "Origin": "https://evil.example"}
    assert get_error(site.post("/api/v1/generations", foreign, json=REQUEST))["reason"] == (
        "ORIGIN_NOT_ALLOWED"
    )
    rebound = {**ANN, "Host": "evil.example"}
    assert get_error(site.get("/api/v1/generations", rebound))["reason"] == "HOST_NOT_ALLOWED"
    assert get_error(site.get("/api/v1/server", rebound))["reason"] == "HOST_NOT_ALLOWED"


def test_a_generation_is_cancelled_and_deleted(site: Site) -> None:
    long = {"decoding": {"greedy": {}, "maxNewTokens": 900, "ignoreEos": True}}
    stream = site.stream("POST", "/api/v1/generations", json=REQUEST | long)
    begun = next(it for it in stream if "started" in it.data["event"])
    path = f"/api/v1/generations/{begun.data['event']['started']['generationId']}"
    written = {**ANN, "X-Whence-Request": "1"}
    assert site.post(f"{path}:cancel", written).json() == {}
    *_, finished, end = stream
    assert finished.data["event"]["finished"]["finishReason"] == "FINISH_REASON_CANCELLED"
    assert end.name == "end"
    deleted = httpx.delete(site.url + path, headers=written, timeout=60)
    assert (deleted.status_code, deleted.json()) == (200, {})
    assert get_error(site.get(path))["reason"] == "GENERATION_DELETED"


def test_a_branch_is_streamed_as_its_parent_and_listed_by_it(
    site: Site, events: list[Event], generation_id: str
) -> None:
    path = f"/api/v1/generations/{generation_id}:fork"
    branch = list(site.stream("POST", path, json={"step": 3}))
    theirs, ours = (
        next(it.data["event"]["finished"] for it in each if "finished" in it.data.get("event", {}))
        for each in (events, branch)
    )
    assert ours["sequences"][0]["tokenIds"] == theirs["sequences"][0]["tokenIds"]
    assert branch[-1].name == "end"
    assert branch[0].id == "1"
    listed = site.get(f"/api/v1/generations?parent_generation_id={generation_id}").json()
    assert [it["generationId"] for it in listed["generations"]] == [get_id(branch)]
    wrong = site.post(path, json={"step": 99})
    assert (wrong.status_code, get_error(wrong)["reason"]) == (400, "INVALID_REQUEST")
    assert "step" in get_error(wrong)["message"]


def test_a_bundle_is_the_file_that_the_client_gets(site: Site, generation_id: str) -> None:
    with (
        Client(site.server.target, token="ann-secret") as client,
        client.generations.bundle(generation_id) as pieces,
    ):
        expected = json.loads(b"".join(pieces))
    shown = site.get(f"/api/v1/generations/{generation_id}/bundle").json()
    # The proof by the log may be a newer one.
    assert {**shown, "log": None} == {**expected, "log": None}


def test_a_sentence_is_found_at_its_token(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "Seven grey herons stood in the shallow water."
    forced = {"decoding": {"forced": {"text": f" I saw this: {sentence}"}}}
    begun = get_id(site.generate(**forced))
    asked = get_id(site.generate(prompt=f"Who said: {sentence}"))
    most = sentence.replace("grey", "white")
    wanted = {"text": sentence, "labels": "team=red"}

    # A generation is found a moment after its end.
    hits = wait_for(
        lambda: site.get("/api/v1/search", params=wanted).json().get("hits", []),
        lambda found: len(found) == 2,
    )
    assert [hit["summary"]["generationId"] for hit in hits] == [asked, begun]
    assert [hit["part"] for hit in hits] == ["SEARCH_PART_PROMPT", "SEARCH_PART_OUTPUT"]
    assert [hit["share"] for hit in hits] == [1, 1]
    assert (hits[1]["before"], hits[1]["match"]) == (" I saw this: ", sentence)
    steps = site.get(f"/api/v1/generations/{begun}/steps").json()["steps"]
    step = steps[hits[1]["stepIndex"]]
    assert step.get("textBeginByte", 0) <= hits[1]["beginByte"] < step["textEndByte"]
    shares = [it["share"] for it in site.get(f"/api/v1/search?text={most}").json()["hits"]]
    assert len(shares) == 2
    assert all(0.6 <= share < 1 for share in shares)

    assert "hits" not in site.get("/api/v1/search?text=nobody has said this sentence").json()
    for headers in (COUNTER, {"Authorization": "Bearer maker-secret"}):
        refused = site.get("/api/v1/search", headers, params=wanted)
        assert get_error(refused)["reason"] == "SCOPE_MISSING"
    assert "20" in get_error(site.get("/api/v1/search?text=short"))["message"]

    token = tmp_path / "token"
    token.write_text("ann-secret")
    common = ["--target", site.server.target, "--token-file", str(token)]
    assert main(["find", sentence, *common, "--limit", "1"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"100%  {asked}")
    assert f"»{sentence}«" in told
    assert main(["find", sentence, "--json", "--label", "team=red", *common]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = [ParseDict(json.loads(line), trace_pb2.SearchHit()) for line in lines]
    assert list(map(MessageToDict, printed)) == hits


def read_results(events: Iterable[Event]) -> list[Any]:
    """Return the results among the events of an explanation."""
    return [event.data["result"] for event in events if "result" in (event.data or {})]


def test_a_step_and_a_text_are_explained(site: Site, generation_id: str) -> None:
    path = f"/api/v1/generations/{generation_id}:explain"
    asked = {"recorded": {"beginStep": 2}, "segmentation": {"unit": "SEGMENT_UNIT_WORDS"}}
    found = read_results(site.stream("POST", path, json=asked))
    assert found[0]["span"]["beginStep"] == 2
    assert found[0]["segments"][0]["text"]
    assert "verdict" in found[0]["trust"]
    wrong = site.post(path, json={"recorded": {"beginStep": 99}})
    assert wrong.status_code == 400
    assert get_error(wrong)["fields"][0]["field"] == "recorded.begin_step"
    text = {"given": {"prompt": "The capital of France is", "text": " Paris"}, "omitTrust": True}
    found = read_results(site.stream("POST", "/api/v1/explain", EXPLAINER, json=text))
    assert found[0]["span"]["text"] == " Paris"
    # An explanation shows the prompt: the scope to explain alone does not reach the record.
    refused = site.post(path, EXPLAINER, json=asked)
    assert (refused.status_code, get_error(refused)["reason"]) == (403, "SCOPE_MISSING")
    refused = site.post("/api/v1/explain", COUNTER, json=text)
    assert (refused.status_code, get_error(refused)["reason"]) == (403, "SCOPE_MISSING")


def test_the_server_offers_what_the_caller_may_do(site: Site) -> None:
    own = site.get("/api/v1/server").json()
    assert own["models"] == site.get("/api/v1/models").json()["models"]
    assert own["caller"]["id"] == "ann"
    assert own["login"] is True
    assert {"running", "queued", "batchSize", "tokensPerSecond"} <= own.keys()
    assert {"generate", "verify", "explain", "delete", "cancel", "search", "audit"} <= set(
        own["offers"]
    )
    numbers = site.get("/api/v1/server", COUNTER).json()
    assert not {"generate", "verify", "delete", "cancel", "search", "audit"} & set(
        numbers["offers"]
    )


def test_a_request_is_in_the_audit_under_its_route(
    site: Site, channel: grpc.Channel, generation_id: str
) -> None:
    site.get(f"/api/v1/generations/{generation_id}", {**ANN, "Whence-Reason": "a%20test"})
    request = audit_pb2.ListAuditRequest(generation_id=generation_id)

    def read() -> list[audit_pb2.AuditRecord]:
        listed = AuditServiceStub(channel).ListAudit(request, metadata=site.metadata)
        return [it for it in listed.records if it.reason == "a test"]

    # A record is committed a moment after the answer.
    found = wait_for(read, bool)
    assert [(it.method, it.caller_id, get_action_name(it.action)) for it in found] == [
        ("GET /api/v1/generations/{generation_id}", "ann", "read_content")
    ]


def test_a_login_is_a_cookie_that_no_script_reads(site: Site) -> None:
    with httpx.Client(base_url=site.url, timeout=60) as browser:
        assert browser.get("/api/v1/generations").status_code == 401
        refused = browser.post("/login", json={"token": "nobody-secret"})
        assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
        answer = browser.post("/login", json={"token": "ann-secret"})
        assert answer.json()["caller"]["id"] == "ann"
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert "Max-Age=" in cookie
        assert "secret" not in cookie
        assert browser.get("/api/v1/generations").status_code == 200
        # OpenAI's routes are for programs.
        assert browser.get("/v1/models").status_code == 401
        forged = browser.post("/api/v1/generations", content="x")
        assert get_error(forged)["reason"] == "REQUEST_HEADER_MISSING"

        kept = dict(browser.cookies)
        out = browser.post("/logout", headers={"X-Whence-Request": "1"})
        assert out.status_code == 204
        assert dict(browser.cookies) == {}
        cookies = "; ".join(f"{name}={value}" for name, value in kept.items())
        assert site.get("/api/v1/generations", {"Cookie": cookies}).status_code == 401


def test_behind_a_proxy_with_tls_the_cookie_is_secure(site: Site) -> None:
    host = site.url.removeprefix("http://")
    headers = {"Origin": f"https://{host}"}
    answer = site.post("/login", headers, json={"token": "ann-secret"})
    assert "Secure" in answer.headers["set-cookie"].split("; ")


def test_a_revoked_token_ends_its_logins(site: Site) -> None:
    with httpx.Client(base_url=site.url, timeout=60) as browser:
        browser.post("/login", json={"token": "leaver-secret"}).raise_for_status()
        assert browser.get("/api/v1/generations").status_code == 200
        write_callers(site.callers, [name for name in SCOPES if name != "leaver"])
        assert browser.get("/api/v1/generations").status_code == 401


def test_every_answer_tells_a_browser_to_run_nothing(site: Site, generation_id: str) -> None:
    for path in ("/api/v1/server", f"/api/v1/generations/{generation_id}", "/v1/models", "/x"):
        headers = site.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
