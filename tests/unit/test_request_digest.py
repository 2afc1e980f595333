"""Equal requests have one digest, in every order of their maps."""

import hashlib
import json
import os
import random
import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import struct_pb2

from whence.v1 import generation_pb2 as g
from whence_server.domain.errors import InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.rpc.conversions import convert_request
from whence_server.rpc.request_digest import encode_struct

KEYS = ["k10", "k2", "k1", "é", "k", "Z", "kk"]


def shuffled(seed: int) -> g.GenerateRequest:
    """Return a request with entries in every map, inserted in random order."""
    keys = random.Random(seed).sample(KEYS, len(KEYS))
    request = g.GenerateRequest(generation_id="", max_duration={"seconds": 5})
    request.chat.messages.add(role="user", content="x")
    for key in keys:
        request.labels[key] = key * 2
        request.decoding.logit_bias[KEYS.index(key) * 7] = 0.1 * KEYS.index(key)
        request.chat.template_arguments[key] = {k: [{k: 1, "a": [k]}, 2.5] for k in keys}
    return request


def digest(request: g.GenerateRequest) -> str:
    return convert_request(request, Limits()).digest


@pytest.mark.parametrize("seed", range(5))
def test_order_of_maps_does_not_change_the_digest(seed: int) -> None:
    request = shuffled(seed)
    assert digest(request) == digest(shuffled(99))
    assert digest(g.GenerateRequest.FromString(request.SerializeToString())) == digest(request)


DIGESTS = """
import test_request_digest as t
print(*[t.digest(t.shuffled(seed)) for seed in range(3)])
"""


@pytest.mark.parametrize("implementation", ["upb", "python"])
@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_every_protobuf_implementation_gives_the_same_digest(
    implementation: str, hash_seed: str
) -> None:
    environment = {
        **os.environ,
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation,
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.path.dirname(__file__),  # noqa: PTH120 - a string is wanted
    }
    given = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert given == [digest(shuffled(7))] * 3


def test_digest_equals_the_contracts_formula() -> None:
    plain = g.GenerateRequest(prompt="x", decoding=g.Decoding(stop=["a"], max_new_tokens=3))
    assert digest(plain) == hashlib.sha256(plain.SerializeToString()).hexdigest()
    mapped = g.GenerateRequest.FromString(plain.SerializeToString())
    mapped.labels["b"], mapped.labels["a"] = "2", "1"
    mapped.decoding.logit_bias[10], mapped.decoding.logit_bias[9] = 0.5, -1
    maps = '{"labels":{"a":"1","b":"2"},"logit_bias":{"9":-1.0,"10":0.5}}'
    expected = hashlib.sha256(plain.SerializeToString() + maps.encode()).hexdigest()
    assert digest(mapped) == expected


CHANGES: list[Any] = [
    lambda r: r.labels.update({"k": "other"}),
    lambda r: r.labels.pop("k"),
    lambda r: r.labels.clear(),
    lambda r: r.decoding.logit_bias.update({7: 0.2}),
    lambda r: r.decoding.logit_bias.clear(),
    lambda r: r.chat.template_arguments.update({"k": 1}),
    lambda r: r.chat.template_arguments.fields.clear(),
    lambda r: r.chat.ClearField("template_arguments"),
    lambda r: setattr(r.chat, "template_name", "t"),
    lambda r: r.max_duration.FromSeconds(6),
]


@pytest.mark.parametrize("change", range(len(CHANGES)))
def test_any_changed_field_changes_the_digest(change: int) -> None:
    others = [shuffled(1), *(shuffled(2) for _ in CHANGES[:change])]
    for other, apply in zip(others[1:], CHANGES, strict=False):
        apply(other)
    request = shuffled(0)
    CHANGES[change](request)
    assert digest(request) not in {digest(other) for other in others}


def test_former_digest_equals_that_of_older_versions() -> None:
    request = shuffled(3)
    converted = convert_request(request, Limits())
    old = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
    assert converted.former_digest == old != converted.digest


def struct(**values: Any) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(values)
    return made


def test_struct_json_does_not_depend_on_the_order() -> None:
    texts = {encode_struct(shuffled(seed).chat.template_arguments) for seed in range(5)}
    assert len(texts) == 1
    assert list(json.loads(texts.pop())) == sorted(KEYS)


def test_integral_numbers_of_a_struct_become_integers() -> None:
    given = struct(
        a=512, b=1.0, c=-3, d=0.5, e=2**53 - 1, f=2.0**53, g=1e300, h=-0.0, i=[True, None]
    )
    assert encode_struct(given) == (
        '{"a":512,"b":1,"c":-3,"d":0.5,"e":9007199254740991,"f":9007199254740992.0,'
        '"g":1e+300,"h":0,"i":[true,null]}'
    )
    assert encode_struct(struct_pb2.Struct()) == ""


def faults(request: g.GenerateRequest) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        convert_request(request, Limits())
    return {v.field: v.description for v in caught.value.violations}


def chat(**fields: Any) -> g.GenerateRequest:
    messages = [g.ChatMessage(role="user", content="x")]
    return g.GenerateRequest(chat=g.ChatInput(messages=messages, **fields))


def test_struct_and_json_arguments_together_are_refused() -> None:
    both = chat(template_arguments=struct(a=1), template_arguments_json='{"a":1}')
    assert "set one of them" in faults(both)["chat.template_arguments_json"]


def test_template_arguments_are_bounded() -> None:
    most = Limits().max_template_arguments_bytes
    long = chat(template_arguments_json=json.dumps({"a": "x" * most}))
    assert f"at most {most}" in faults(long)["chat.template_arguments_json"]
    large = chat(template_arguments=struct(a="x" * most))
    assert f"at most {most}" in faults(large)["chat.template_arguments"]


MANY = 1_000_000


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (g.GenerateRequest(tokens=g.TokenInput(token_ids=[1] * MANY)), "tokens.token_ids"),
        (
            g.GenerateRequest(
                prompt="x",
                decoding=g.Decoding(forced=g.Forced(tokens=g.TokenInput(token_ids=[1] * MANY))),
            ),
            "decoding.forced.tokens.token_ids",
        ),
        (g.GenerateRequest(prompt="x", decoding=g.Decoding(stop=[""] * MANY)), "decoding.stop"),
        (
            g.GenerateRequest(prompt="x", decoding=g.Decoding(bad_words=[""] * MANY)),
            "decoding.bad_words",
        ),
        (
            g.GenerateRequest(prompt="x", decoding=g.Decoding(stop_token_ids=[1] * MANY)),
            "decoding.stop_token_ids",
        ),
        (
            g.GenerateRequest(
                prompt="x", decoding=g.Decoding(logit_bias=dict.fromkeys(range(10**5), 1.0))
            ),
            "decoding.logit_bias",
        ),
        (
            g.GenerateRequest(prompt="x", labels={str(i): "" for i in range(10**5)}),
            "labels",
        ),
        (
            g.GenerateRequest(chat=g.ChatInput(messages=[g.ChatMessage()] * 10**5)),
            "chat.messages",
        ),
    ],
)
def test_millions_of_entries_are_refused_without_a_copy(
    request_: g.GenerateRequest, field: str
) -> None:
    (described,) = faults(request_).items()
    assert described[0] == field
    assert "at most" in described[1]
