"""Settings of who may connect and do what: TLS, callers, addresses beyond loopback."""

from dataclasses import dataclass
from pathlib import Path

from whence_server.config.fields import declare_setting
from whence_server.config.spelling import (
    MAX_GRACE_S,
    accept_choice,
    accept_whole,
    parse_grace_seconds,
    parse_permissions,
    parse_readable_file,
    parse_switch,
    parse_text,
)
from whence_server.domain.addresses import NEEDS_GUARD, is_loopback, parse_host_port
from whence_server.domain.audit import AuditLevel
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.identity import Scope

PUBLIC_SERVICES = ("health", "keys", "metrics", "reflection")


def parse_file(text: str) -> Path:
    """Parse the path of a readable regular file."""
    path = Path(text).expanduser()
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        with path.open("rb"):
            return path
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); expected a file") from None


def parse_scopes(text: str) -> tuple[Scope, ...]:
    """Parse all, none, or scopes with commas between."""
    if text in {"all", "none"}:
        return tuple(Scope) if text == "all" else ()
    return tuple(_parse_scope(part.strip()) for part in text.split(","))


def parse_scope_mapping(text: str) -> tuple[str, Scope]:
    """Parse VALUE=SCOPE."""
    value, _, scope = text.rpartition("=")
    if not value:
        raise ValueError("expected VALUE=SCOPE")
    return value, _parse_scope(scope)


def parse_public_services(text: str) -> tuple[str, ...]:
    """Parse none, or names of services with commas between."""
    found = () if text == "none" else tuple(part.strip() for part in text.split(","))
    for name in found:
        if name not in PUBLIC_SERVICES:
            raise ValueError(f"expected none, or some of {', '.join(PUBLIC_SERVICES)}")
    return found


def _parse_scope(text: str) -> Scope:
    if text not in list(Scope):
        raise ValueError(f"{text!r} is no scope; scopes are {', '.join(Scope)}")
    return Scope(text)


# Without slots: a class cannot inherit the slots of two.
@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """The part of the server's settings that says who may connect, and do what."""

    insecure_listen_anywhere: bool = declare_setting(
        False,
        parse_switch,
        "allow addresses beyond loopback without TLS and authentication, with a warning at every "
        "start",
    )
    socket_mode: int = declare_setting(
        0o600,
        parse_permissions,
        "permissions of Unix sockets, in octal; anyone with write permission can connect",
        "MODE",
    )
    tls_cert: Path | None = declare_setting(
        None,
        parse_readable_file,
        "PEM file with the server's certificate, followed by those between it and its CA; with it, "
        "all TCP ports of gRPC and HTTP speak TLS 1.2 or later; read again when it changes "
        "(default: no TLS)",
        "FILE",
    )
    tls_key: Path | None = declare_setting(
        None,
        parse_readable_file,
        "PEM file with the private key of --tls-cert; read again when it changes",
        "FILE",
    )
    tls_client_ca: Path | None = declare_setting(
        None,
        parse_readable_file,
        "PEM file with the CA certificates of clients: over TCP, every client needs a certificate "
        "that one of them signed; read again when it changes (default: clients need none)",
        "FILE",
    )
    auth_tokens: Path | None = declare_setting(
        None,
        parse_file,
        "file of the callers that may connect: SHA-256 of tokens or names in certificates, and "
        "scopes; `whence-server token new` writes its lines; read again when it changes "
        "(default: without it and --auth-jwks, callers are not authenticated)",
        "FILE",
    )
    auth_jwks: str = declare_setting(
        "",
        str,
        "public keys (JWK set) of the identity provider whose JWTs are accepted: a file, or an "
        "https:// URL, which is fetched again every five minutes",
        "FILE_OR_URL",
    )
    auth_jwt_issuer: str = declare_setting(
        "", str, "issuer (claim iss) that a JWT must have; needed with --auth-jwks", "ISSUER"
    )
    auth_jwt_audience: str = declare_setting(
        "", str, "audience (claim aud) that a JWT must have; needed with --auth-jwks", "AUDIENCE"
    )
    auth_jwt_id_claim: str = declare_setting(
        "sub", parse_text, "claim of a JWT with the caller's id", "CLAIM"
    )
    auth_jwt_scope_claim: str = declare_setting(
        "scope",
        parse_text,
        "claim of a JWT with the caller's scopes or groups: a list, or words with spaces between",
        "CLAIM",
    )
    auth_jwt_scopes: tuple[tuple[str, Scope], ...] = declare_setting(
        (),
        parse_scope_mapping,
        "scope of the callers with VALUE in --auth-jwt-scope-claim; the flag can be repeated, and "
        "commas separate the mappings in the variable (default: the claim names scopes)",
        "VALUE=SCOPE",
        each="--auth-jwt-scope",
    )
    socket_scopes: tuple[Scope, ...] = declare_setting(
        tuple(Scope),
        parse_scopes,
        "scopes of callers over a Unix socket that show no token, if callers are authenticated: "
        "all, none, or scopes with commas between (default: all, because --socket-mode limits "
        "who connects)",
        "SCOPES",
    )
    public_services: tuple[str, ...] = declare_setting(
        ("health",),
        parse_public_services,
        "services that need no authentication: none, or health (gRPC health and /healthz), keys "
        "(GetKeys and /keys.json), reflection and metrics, with commas between (default: health)",
        "SERVICES",
    )
    max_connections_per_address: int = declare_setting(
        1_024,
        accept_whole(0),
        "maximum number of connections from one address (IPv4, or an IPv6 /64) to each of --listen "
        "and --http-listen; further ones are closed; loopback and Unix sockets have no limit; 0 is "
        "no limit",
        "N",
    )
    caller_max_generations: int = declare_setting(
        0,
        accept_whole(0),
        "maximum number of generations of one caller that run or wait; 0 is no limit",
        "N",
    )
    caller_max_calls: int = declare_setting(
        0,
        accept_whole(0),
        "maximum number of calls of one caller that run at one time, watches and other streams "
        "among them, if callers are authenticated; 0 is no limit",
        "N",
    )
    caller_max_queue: int = declare_setting(
        0,
        accept_whole(0),
        "maximum number of waiting sequences of one caller; 0 is no limit besides --max-queue",
        "N",
    )
    caller_tokens_per_minute: int = declare_setting(
        0,
        accept_whole(0),
        "maximum number of tokens of one caller in a minute, of prompts and outputs; 0 is no limit",
        "N",
    )
    caller_max_stored_bytes: int = declare_setting(
        0,
        accept_whole(0),
        "size in bytes of the record of one caller, from which no further generation of it is "
        "accepted until some are deleted; 0 is no limit",
        "BYTES",
    )
    max_disconnect_grace: float = declare_setting(
        float(MAX_GRACE_S),
        parse_grace_seconds,
        "longest time in seconds that a generation goes on without a reader; requests that ask for "
        "more get this",
        "S",
    )

    audit: str = declare_setting(
        "auto",
        accept_choice("auto", *AuditLevel),
        "what callers do that is put on record, for `whence audit`: off, writes (all but reads), "
        "or all; auto is all if callers are authenticated, else off (default: auto)",
    )

    @property
    def audit_level(self) -> AuditLevel:
        """Deeds that the audit records."""
        if self.audit != "auto":
            return AuditLevel(self.audit)
        is_on = bool(self.auth_tokens or self.auth_jwks)
        return AuditLevel.ALL if is_on else AuditLevel.OFF

    @property
    def is_guarded(self) -> bool:
        """True if TCP ports speak TLS and callers are authenticated."""
        return self.tls_cert is not None and bool(self.auth_tokens or self.auth_jwks)


def check_access(
    settings: AccessSettings, http_listen: str, metrics_listen: str, metrics_anywhere: bool
) -> None:
    """Check settings that must fit together.

    Raises:
        ConfigurationError: they do not.
    """
    _check_tls(settings)
    _check_jwts(settings)
    _check_http_listen(settings, http_listen, metrics_listen)
    allowed = metrics_anywhere or settings.insecure_listen_anywhere or settings.is_guarded
    if metrics_listen and not allowed and not _is_loopback(metrics_listen):
        raise ConfigurationError(
            f"--metrics-listen {metrics_listen}: {NEEDS_GUARD}; --insecure-metrics-anywhere lifts "
            "this"
        )


def _check_tls(settings: AccessSettings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        given, missing = ("--tls-cert", "--tls-key")[:: 1 if settings.tls_cert else -1]
        raise ConfigurationError(f"{given} is set without {missing}: TLS needs both")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise ConfigurationError(
            "--tls-client-ca is set without --tls-cert and --tls-key: clients show certificates "
            "only over TLS"
        )


def _check_jwts(settings: AccessSettings) -> None:
    needed = {
        "--auth-jwt-issuer": settings.auth_jwt_issuer,
        "--auth-jwt-audience": settings.auth_jwt_audience,
    }
    for flag, value in needed.items():
        if settings.auth_jwks and not value:
            raise ConfigurationError(
                f"--auth-jwks is set without {flag}: tokens that the provider made for others "
                "would be accepted"
            )
        if value and not settings.auth_jwks:
            raise ConfigurationError(f"{flag} is set without --auth-jwks, which has the keys")


def _check_http_listen(settings: AccessSettings, address: str, metrics_listen: str) -> None:
    if not address:
        return
    allowed = settings.insecure_listen_anywhere or settings.is_guarded
    if not allowed and not _is_loopback(address):
        raise ConfigurationError(
            f"--http-listen {address}: {NEEDS_GUARD}; --insecure-listen-anywhere lifts this"
        )
    if address == metrics_listen and parse_host_port(address)[1]:
        raise ConfigurationError(
            f"--http-listen and --metrics-listen both name {address}; give each a port of its own"
        )


def _is_loopback(address: str) -> bool:
    return is_loopback(parse_host_port(address)[0])
