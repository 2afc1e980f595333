"""Random requests of every RPC and HTTP route, made from the contract's descriptors and the routes.

The same seed gives the same requests.
"""

import json
import random
import re
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from whence.v1 import audit_pb2, generation_pb2, model_pb2, record_pb2, trace_pb2, training_pb2
from whence_server.access.scope_table import ROUTES, RPCS

MODULES = (
    *(audit_pb2, generation_pb2, model_pb2, record_pb2, trace_pb2, training_pb2),
    *(health_pb2, reflection_pb2),
)
_INTEGERS = (
    0,
    1,
    2,
    7,
    63,
    64,
    65,
    1_000,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63 - 1,
    2**64 - 1,
)
_FLOATS = (0.0, 1.0, 0.5, -1.0, 1e-45, 3.4e38, -3.4e38, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    *("", "a", "The quick", "\0", "\u202e", "\N{GRINNING FACE}", "{}", "[]", "null", "a" * 5_000),
    *('{"type": "object"}', "(a+)+$", "root ::= root", "{{ messages }}", "../../etc/passwd"),
    *("' OR 1=1 --", "%00", "bm90IG9uZQ==", "00000000-0000-4000-8000-000000000001", "-1"),
)
_KEYS = (
    *("model", "prompt", "messages", "input", "stream", "max_tokens", "temperature", "seed", "n"),
    *("logprobs", "top_logprobs", "tools", "response_format", "stop", "user", "metadata", "echo"),
)
_SIGNED = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


@dataclass(frozen=True)
class Rpc:
    """A call: its messages as bytes, which may be malformed.

    Attributes:
        caller: name of the caller's token; "" for a stranger.
        header: authorization header; "" for none.
    """

    method: str
    messages: tuple[bytes, ...]
    caller: str
    header: str


@dataclass(frozen=True)
class Http:
    """An HTTP request; `route` is its name in the table of scopes."""

    route: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    caller: str


def list_methods() -> dict[str, MethodDescriptor]:
    """Return every method that the server has, by its full name."""
    methods = {}
    for module in MODULES:
        file: FileDescriptor = module.DESCRIPTOR
        for service in file.services_by_name.values():
            for method in service.methods:
                methods[f"{service.full_name}/{method.name}"] = method
    return methods


class Fuzz:
    """Source of requests.

    Args:
        seed: the seed.
        tokens: tokens of known callers, by the callers' names.
        known: texts that mean something to the server, as ids of generations.
    """

    def __init__(self, seed: int, tokens: Mapping[str, str], known: Iterable[str]) -> None:
        self._random = random.Random(seed)
        self._tokens = dict(tokens)
        self._texts = (*_TEXTS, *list(known) * 4)
        self._routes: list[str] = []
        # No part of a path is empty or has braces, which aiohttp takes for another path.
        self._parts = [it for it in self._texts if it and "{" not in it]
        self._methods = list_methods()
        assert {name.replace("v1alpha", "v1") for name in self._methods} <= set(RPCS)

    def make_request(self) -> Rpc | Http:
        """Return one request: four in five are RPCs."""
        caller, header = self._choose_caller()
        if self._random.random() < 0.8:
            return self._make_rpc(caller, header)
        return self._make_http(caller, header)

    def _choose_caller(self) -> tuple[str, str]:
        """Return a caller's name and header; "" as the name of a stranger."""
        if self._random.random() < 0.5:
            name = self._random.choice(sorted(self._tokens))
            return name, f"Bearer {self._tokens[name]}"
        token = "".join(self._random.choices(string.ascii_letters, k=20))
        headers = ("", "", "Bearer", "Basic YTpi", "Bearer a.b.c", f"Bearer {token}", "x" * 3_000)
        return "", self._random.choice(headers)

    # ---- gRPC ----

    def _make_rpc(self, caller: str, header: str) -> Rpc:
        name = self._random.choice(sorted(self._methods))
        method = self._methods[name]
        number = 1
        if method.client_streaming or self._random.random() < 0.05:
            number = self._random.choice((0, 1, 2, 5))
        messages = tuple(self._make_bytes(method.input_type) for _ in range(number))
        return Rpc(name, messages, caller, header)

    def _make_bytes(self, descriptor: Descriptor) -> bytes:
        raw = self.make_message(descriptor, 0).SerializeToString()
        if self._random.random() < 0.8:
            return raw
        damaged = bytearray(raw or b"\x0a\x05")
        match self._random.randrange(4):
            case 0:
                damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
            case 1:
                del damaged[self._random.randrange(len(damaged)) :]
            case 2:
                damaged += self._random.randbytes(self._random.randrange(40))
            case _:
                damaged = bytearray(self._random.randbytes(self._random.randrange(200)))
        return bytes(damaged)

    def make_message(self, descriptor: Descriptor, depth: int) -> Message:
        """Return a message with random fields."""
        message = message_factory.GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._random.random() < (0.35 if depth < 3 else 0.1):
                self._fill(message, field, depth)
        return message

    def _fill(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        value_type = field.message_type
        if field.is_repeated:
            number = self._random.choice((0, 1, 1, 2, 3, 70))
            if value_type is not None and value_type.GetOptions().map_entry:
                self._fill_map(getattr(message, field.name), value_type, number)
            elif value_type is not None:
                for _ in range(min(number, 3)):
                    getattr(message, field.name).add().CopyFrom(
                        self.make_message(value_type, depth + 1)
                    )
            else:
                values = [self._make_scalar(field) for _ in range(number)]
                getattr(message, field.name).extend(values)
        elif value_type is not None:
            getattr(message, field.name).CopyFrom(self.make_message(value_type, depth + 1))
        else:
            setattr(message, field.name, self._make_scalar(field))

    def _fill_map(self, into: Any, entry: Descriptor, number: int) -> None:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for _ in range(number):
            if value.message_type is not None:
                into[self._make_scalar(key)].CopyFrom(self.make_message(value.message_type, 3))
            else:
                into[self._make_scalar(key)] = self._make_scalar(value)

    def _make_scalar(self, field: FieldDescriptor) -> Any:
        choose = self._random.choice
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return choose((False, True))
            case FieldDescriptor.CPPTYPE_ENUM:
                return choose((*(value.number for value in field.enum_type.values), 99))
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return choose(_FLOATS)
            case FieldDescriptor.CPPTYPE_STRING:
                if field.type == FieldDescriptor.TYPE_BYTES:
                    return self._random.randbytes(choose((0, 1, 32, 300)))
                return choose(self._texts)
            case kind:
                least, most = _SIGNED[kind]
                return max(least, min(choose((*_INTEGERS, -1, -(2**31))), most))

    # ---- HTTP ----

    def _make_http(self, caller: str, header: str) -> Http:
        # In rounds, so that few requests reach every route.
        self._routes = self._routes or self._random.sample(sorted(ROUTES), len(ROUTES))
        route = self._routes.pop()
        method, path = route.split(" ")
        path = path.replace("{model:.+}", self._random.choice(("tiny", "no%2Fmodel", "%00", "..")))
        path = re.sub(r"{\w+}", lambda _: quote(self._random.choice(self._parts), safe=""), path)
        headers = {"Content-Type": "application/json"}
        if header:
            headers["Authorization"] = header
        if self._random.random() < 0.1:
            headers["whence-reason"] = self._random.choice(("%zz", "%C3%B6", "a" * 2_000))
        body = b"" if method == "GET" else self._make_body()
        return Http(route, method, path, headers, body, caller)

    def _make_body(self) -> bytes:
        if self._random.random() < 0.2:
            garbage = (b"", b"{", b"[" * 50_000, b"\xff\xfe", self._random.randbytes(100))
            return self._random.choice(garbage)
        keys = self._random.sample(_KEYS, self._random.randint(0, 8))
        document = {key: self._make_json(key, 0) for key in keys}
        return json.dumps(document, allow_nan=True).encode()

    def _make_json(self, key: str, depth: int) -> Any:
        sensible: dict[str, Callable[[], Any]] = {
            "model": lambda: "tiny",
            "prompt": lambda: "The quick",
            "input": lambda: "The quick",
            "messages": lambda: [{"role": "user", "content": "The quick"}],
            "max_tokens": lambda: 3,
        }
        if key in sensible and self._random.random() < 0.7:
            return sensible[key]()
        makers: tuple[Callable[[], Any], ...] = (
            lambda: None,
            lambda: self._random.choice((True, False)),
            lambda: self._random.choice(_INTEGERS),
            lambda: self._random.choice(_FLOATS),
            lambda: self._random.choice(self._texts),
            lambda: [self._make_json("", depth + 1) for _ in range(self._random.randrange(3))],
            lambda: {
                self._random.choice(("role", "content", "type", "text", "function", "x")): (
                    self._make_json("", depth + 1)
                )
                for _ in range(self._random.randrange(3))
            },
        )
        return self._random.choice(makers[:5] if depth > 3 else makers)()
