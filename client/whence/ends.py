"""Ends of calls that whence's server did not send, as gRPC describes them in words."""

import re
from typing import NamedTuple

from whence.errors import Origin


class End(NamedTuple):
    """End of a call that whence's server did not send."""

    origin: Origin
    reason: str = ""
    message: str = ""
    """Description for people; "" leaves gRPC's words."""


_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([^:]+)")


def describe_tls_end(description: str) -> End | None:
    """Return the end of a connection that failed at TLS, as grpcio describes it; None for others.

    Args:
        description: gRPC's words for the status.
    """
    if found := _UNTRUSTED.search(description):
        remedy = "give the CA that signed it: `ca`, --ca or WHENCE_CA"
        if "expired" in found[1]:
            remedy = "the server needs a new one"
        return End(
            Origin.PATH,
            "TLS_UNTRUSTED",
            f"this client does not trust the server's certificate ({found[1]}); {remedy}",
        )
    if "Hostname Verification Check failed" in description:
        return End(
            Origin.PATH,
            "TLS_WRONG_NAME",
            "the server's certificate does not have the name or address of the target; connect by "
            "one that it has",
        )
    if "WRONG_VERSION_NUMBER" in description:
        return End(
            Origin.PATH,
            "TLS_NOT_SPOKEN",
            "the server speaks no TLS there; leave out https://, the CA and the certificate",
        )
    if "failed to connect" in description and "Socket closed" in description:
        return End(
            Origin.PATH,
            message=f"{description} (a server with TLS needs https:// in the target; one that asks "
            "for client certificates needs `cert` and `key`)",
        )
    return None
