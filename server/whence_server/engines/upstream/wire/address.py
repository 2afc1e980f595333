"""Address of an upstream, as it is asked and as it is shown."""

from dataclasses import dataclass

from yarl import URL

from whence_server.domain.errors import ConfigurationError

_VERSION = "v1"


@dataclass(frozen=True, slots=True)
class Address:
    """Root of an upstream, below which its routes are."""

    root: URL
    """URL without "/v1", user, query and fragment."""
    is_given_with_version: bool = False
    """True if "/v1" was at the end of the URL."""
    has_version: bool = True
    """False if routes such as "/v1/models" are at "/models" below the root."""

    def join(self, route: str) -> URL:
        """Return the URL of a route, such as "/v1/models"."""
        if not self.has_version:
            route = route.removeprefix(f"/{_VERSION}")
        return self.root.with_path(self.root.path.rstrip("/") + route, keep_query=False)

    def __str__(self) -> str:
        return str(self.root).rstrip("/")


def parse_address(text: str) -> Address:
    """Return the address that a URL names; "/v1" at its end may be there or not.

    Raises:
        ConfigurationError: it is not a URL of an upstream.
    """
    try:
        url = URL(text.strip())
    except ValueError:
        url = URL()
    if url.scheme not in {"http", "https"} or not url.host:
        # The text is not quoted: it may hold a key.
        raise ConfigurationError(
            "the upstream's address must be a URL like http://127.0.0.1:8000/v1, with http:// or "
            "https:// and a host"
        )
    if url.user is not None or url.password is not None:
        raise ConfigurationError(
            "the upstream's address must not hold a user or a password; an API key belongs into a "
            "file (--upstream-api-key-file)"
        )
    if url.query_string or url.fragment:
        raise ConfigurationError(
            "the upstream's address must not have a query or a fragment; "
            f"{url.with_query(None).with_fragment(None)} would be right"
        )
    parts = [part for part in url.path.split("/") if part]
    has_version = bool(parts) and parts[-1] == _VERSION
    if has_version:
        parts.pop()
    return Address(url.with_path("/" + "/".join(parts)), is_given_with_version=has_version)
