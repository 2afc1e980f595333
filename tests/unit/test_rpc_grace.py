"""Grace of a request: its own, else the server's if the caller can come back."""

import pytest
from google.protobuf.duration_pb2 import Duration

from whence.v1 import generation_pb2 as g
from whence_server.domain.errors import InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.rpc.conversions import convert_request

ID = "00000000-0000-4000-8000-000000000001"
LIMITS = Limits(default_disconnect_grace_s=45.0)


@pytest.mark.parametrize(
    ("generation_id", "grace", "grace_s"),
    [
        ("", None, 0.0),
        (ID, None, 45.0),
        (ID, Duration(), 0.0),
        (ID, Duration(seconds=7), 7.0),
        ("", Duration(seconds=7), 7.0),
    ],
)
def test_only_a_request_with_an_id_gets_the_default(generation_id, grace, grace_s):
    request = g.GenerateRequest(prompt="x", generation_id=generation_id, disconnect_grace=grace)
    assert convert_request(request, LIMITS).disconnect_grace_s == grace_s


def test_a_grace_beyond_its_bounds_is_refused():
    request = g.GenerateRequest(prompt="x", disconnect_grace=Duration(seconds=3_601))
    with pytest.raises(InvalidRequestError, match="from 0 to 3600 s"):
        convert_request(request, LIMITS)
