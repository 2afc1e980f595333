"""Words about signed statements."""

import json

from whence.v1.generation_pb2 import GenerationFinished

_MAX_ID = 64


def find_signer(finished: GenerationFinished) -> str:
    """Return the id of the key that a generation's statement names; "" without a statement.

    It is what the server says: the signature is not checked.
    """
    try:
        key_id = json.loads(finished.statement.envelope)["signatures"][0]["keyid"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return key_id[:_MAX_ID] if isinstance(key_id, str) else ""
