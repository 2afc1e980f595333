"""The table of scopes: every RPC and route has a row, and docs/access.md shows the table."""

import re
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import whence.v1
from whence.v1 import (
    audit_pb2,
    explain_pb2,
    generation_pb2,
    model_pb2,
    proof_pb2,
    record_pb2,
    trace_pb2,
    training_pb2,
    transparency_log_pb2,
    verification_pb2,
)
from whence_server.access.gate import OPEN_GATE
from whence_server.access.scope_table import PUBLIC, ROUTES, RPCS, TABLE, Rule
from whence_server.config.access import PUBLIC_SERVICES
from whence_server.domain.api_routes import API_ROUTES
from whence_server.domain.identity import Scope
from whence_server.domain.limits import Limits
from whence_server.http.api.routes import list_api_routes
from whence_server.http.api.state import list_state_routes
from whence_server.http.login import list_login_routes
from whence_server.http.openai.routes import list_routes
from whence_server.http.openai.running import Front
from whence_server.http.page.pulse import list_pulse_routes
from whence_server.http.proof_routes import list_proof_routes
from whence_server.proof.key_board import KeyBoard
from whence_server.rpc.calls import CallLog, Method
from whence_server.telemetry.live import LiveServer
from whence_server.telemetry.metrics.http import HEALTH_PATH, PATH

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "access.md").read_text(encoding="utf-8")
CONTRACT = (
    audit_pb2,
    explain_pb2,
    generation_pb2,
    model_pb2,
    proof_pb2,
    record_pb2,
    trace_pb2,
    training_pb2,
    transparency_log_pb2,
    verification_pb2,
)
FILES = (*CONTRACT, health_pb2, reflection_pb2)


def test_every_file_of_the_contract_with_a_service_is_walked() -> None:
    """Notice a new service, whose file the other tests would not know."""
    folder = Path(whence.v1.__file__).parent
    with_services = {
        path.name.removesuffix("_grpc.py")
        for path in folder.glob("*_pb2_grpc.py")
        if "Stub" in path.read_text(encoding="utf-8")
    }
    assert with_services == {it.__name__.rpartition(".")[2] for it in CONTRACT}


def test_every_rpc_of_the_descriptors_has_a_rule_and_no_other() -> None:
    methods = {
        f"{service.full_name}/{method.name}"
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    # The package has the older name alone; the server serves both.
    methods |= {name.replace("v1alpha", "v1") for name in methods if "reflection" in name}
    assert set(RPCS) == methods


def test_every_http_route_has_a_rule_and_no_other() -> None:
    front = Front(None, Limits(), 1, 0.0)  # type: ignore[arg-type]  # nothing is called
    calls = CallLog(lambda _: None)
    keys: KeyBoard = object()  # type: ignore[assignment]  # the same
    methods: dict[str, list[Method[Any]]] = {}
    for rpc in RPCS:
        service, _, name = rpc.partition("/")
        methods.setdefault(service, []).append(Method(name, Message))
    listed = [
        *list_routes(front, calls),
        *list_proof_routes(keys, calls),
        *list_api_routes(methods, calls, max_body_bytes=1),
        *list_pulse_routes(methods, calls),
        *list_state_routes(methods, LiveServer(None, 0), calls),  # type: ignore[arg-type]  # the same
        *list_login_routes(calls, OPEN_GATE),
    ]
    # A browser asks with OPTIONS what a page may send, without credentials.
    # "*" is what has no route.
    routes = {f"{method} {path}" for method, path in listed if method not in {"OPTIONS", "*"}}
    assert set(ROUTES) == routes | {f"GET {PATH}", f"GET {HEALTH_PATH}"}


def test_every_part_of_a_path_is_a_field_of_its_rpc() -> None:
    methods = {
        f"{service.full_name}/{method.name}": method.input_type
        for file in CONTRACT
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    for route in API_ROUTES:
        parts = re.findall(r"{(\w+)", route.path)
        holder = methods[route.rpc]
        if route.within:
            holder = holder.fields_by_name[route.within].message_type
        assert set(parts) <= set(holder.fields_by_name), route.name


def test_no_field_of_a_filter_is_hidden_by_one_of_its_request() -> None:
    """Hold the query parameters apart, which have the names of both."""
    for file in CONTRACT:
        for request in file.DESCRIPTOR.message_types_by_name.values():
            if "filter" in request.fields_by_name:
                parts = request.fields_by_name["filter"].message_type.fields_by_name
                assert not set(parts) & set(request.fields_by_name), request.full_name


def test_content_is_never_shown_for_a_scope_of_numbers_by_rule_alone() -> None:
    """Hold the methods that stream or return text to the scopes that include it."""
    for name in ("ReadDocument", "GetDocument"):
        assert RPCS[f"whence.v1.TrainingService/{name}"].scopes == (Scope.READ_CONTENT,)
    assert Scope.READ not in RPCS["whence.v1.GenerationService/ResumeGeneration"].scopes


def test_public_services_are_those_of_the_setting() -> None:
    assert PUBLIC == PUBLIC_SERVICES


def make_row(name: str, rule: Rule) -> str:
    scopes = " or ".join(f"`{scope}`" for scope in rule.scopes) or "any caller"
    if rule.public:
        scopes += f"; nobody with `--public-services {rule.public}`"
    return f"| `{name}` | {scopes} | {rule.note} |"


def test_documentation_shows_the_table() -> None:
    rows = re.findall(r"^\| `(?:[a-z.]+v1[a-z]*\.\w+/|GET|POST|DELETE).*\|$", PAGE, re.MULTILINE)
    assert rows == [make_row(name, rule) for name, rule in TABLE.items()]


def test_documentation_shows_the_routes_of_the_api() -> None:
    streams = {
        f"{service.full_name}/{method.name}"
        for file in CONTRACT
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.server_streaming
    }
    expected = []
    for route in API_ROUTES:
        rpc = route.rpc.removeprefix("whence.v1.").replace("/", ".")
        form = route.form.value if route.rpc in streams else "JSON"
        expected.append(f"| `{route.name}` | {rpc} | {form} |")
    page = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(?:GET|POST|DELETE).*\|$", page, re.MULTILINE) == expected


def test_documentation_shows_every_scope() -> None:
    rows = re.findall(r"^\| `([a-z:]+)` \| [A-Z]", PAGE, re.MULTILINE)
    assert rows == list(Scope)
