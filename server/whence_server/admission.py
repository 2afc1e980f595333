"""Composition of what decides who may connect and do what.

PyJWT and cryptography are imported only if they are needed: they take a tenth of a second.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from whence_server.access.audit import AuditTrail
from whence_server.access.failures import Failures
from whence_server.access.gate import Gate
from whence_server.access.ssl_contexts import make_ssl_context
from whence_server.access.tls_files import TlsFiles, TlsPaths
from whence_server.access.token_file import TokenFile
from whence_server.config import ServeConfig
from whence_server.config.environment import copy_environment
from whence_server.domain.audit import AuditAction, AuditEntry, Deed
from whence_server.domain.identity import Scope
from whence_server.domain.limits import CallerLimits, Limits
from whence_server.http.credentials import read_credentials
from whence_server.journal.journal import Journal
from whence_server.proof.opening import Proof, open_proof
from whence_server.telemetry.metrics.http import PageAccess

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from whence_server.access.jwks import KeySet
    from whence_server.access.jwt_tokens import JwtVerifier


@dataclass(frozen=True, slots=True)
class Access:
    """TLS and the gate of the servers of gRPC, HTTP and metrics.

    Attributes:
        tls: files of TLS; None for plain text.
        gate: admits calls.
        keys: keys of an identity provider; None without one.
        watch: task that ends calls whose credentials become invalid.
    """

    tls: TlsFiles | None
    gate: Gate
    keys: "KeySet | None"
    watch: "asyncio.Task[None]"

    def make_http_context(self) -> ssl.SSLContext | None:
        """Return the TLS of the HTTP server; None for plain text."""
        return None if self.tls is None else make_ssl_context(self.tls)

    def make_page_access(self) -> PageAccess:
        """Return TLS and admission of the metrics page, where probes need no certificate."""
        tls = None if self.tls is None else make_ssl_context(self.tls, requires_client=False)

        async def admit(name: str, request: web.Request) -> None:
            await self.gate.admit(name, read_credentials(request))

        return PageAccess(tls, None if self.gate.is_open else admit)

    def open_audit(self, write: Callable[[AuditEntry], None], exports: Sequence[str]) -> None:
        """Begin to write the audit.

        Args:
            write: puts an entry on record.
            exports: destinations to which the server sends its record.
        """
        trail = self.gate.trail
        trail.open(write)
        for destination in exports:
            trail.note(Deed(AuditAction.EXPORT, time.time_ns(), detail=destination))

    async def report_keys(self, on_ready: Callable[[bool], Awaitable[None]]) -> None:
        """Say whether the identity provider's keys are there, as `KeySet.report`."""
        if self.keys is not None:
            await self.keys.report(on_ready)

    async def close(self) -> None:
        """Stop watching calls and fetching keys."""
        self.watch.cancel()
        await asyncio.gather(self.watch, return_exceptions=True)
        if self.keys is not None:
            await self.keys.close()


async def open_access(settings: ServeConfig, failures: Failures) -> Access:
    """Read the files that the settings name, and fetch the identity provider's keys.

    Raises:
        ConfigurationError: a file is unusable, or the provider's answer is.
    """
    _warn_if_open(settings)
    tls = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls = TlsFiles(TlsPaths(settings.tls_cert, settings.tls_key, settings.tls_client_ca))
    tokens = None if settings.auth_tokens is None else TokenFile(settings.auth_tokens)
    trail = AuditTrail(settings.audit_level)
    if tokens is not None:
        tokens.on_change = lambda path: trail.note(
            Deed(AuditAction.CHANGE, time.time_ns(), detail=path)
        )
    keys, jwts = (None, None) if not settings.auth_jwks else await _open_keys(settings)
    gate = Gate(
        tokens,
        jwts,
        socket_scopes=settings.socket_scopes,
        public=settings.public_services,
        failures=failures,
        trail=trail,
        max_calls=settings.caller_max_calls,
    )
    return Access(tls, gate, keys, asyncio.create_task(gate.watch(), name="access-watch"))


def _warn_if_open(settings: ServeConfig) -> None:
    if not settings.insecure_listen_anywhere or settings.is_guarded:
        return
    missing = [] if settings.tls_cert is not None else ["TLS (--tls-cert, --tls-key)"]
    if not (settings.auth_tokens or settings.auth_jwks):
        missing.append("authentication (--auth-tokens or --auth-jwks)")
    _log.warning(
        "--insecure-listen-anywhere is set without %s: whoever can connect may read, cancel and "
        "delete everybody's generations, or listen in",
        " and ".join(missing),
    )


async def _open_keys(settings: ServeConfig) -> "tuple[KeySet, JwtVerifier]":
    from whence_server.access.jwks import KeySet
    from whence_server.access.jwt_tokens import JwtRules, JwtVerifier

    keys = KeySet(settings.auth_jwks)
    await keys.start()
    scopes: dict[str, frozenset[Scope]] = {}
    for value, scope in settings.auth_jwt_scopes:
        scopes[value] = scopes.get(value, frozenset()) | {scope}
    rules = JwtRules(
        settings.auth_jwt_issuer,
        settings.auth_jwt_audience,
        settings.auth_jwt_id_claim,
        settings.auth_jwt_scope_claim,
        scopes,
    )
    return keys, JwtVerifier(keys, rules)


def make_limits(settings: ServeConfig) -> Limits:
    """Return the limits on requests that the settings set."""
    return Limits(
        max_queue=settings.max_queue,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_batch_size=settings.max_batch_size,
        max_cache_tokens=settings.max_cache_tokens,
        max_return_sequences=min(64, settings.max_batch_size),
        default_candidates=settings.default_candidates,
        default_disconnect_grace_s=settings.default_disconnect_grace,
        longest_grace_s=settings.max_disconnect_grace,
        content=settings.content_policy,
        per_caller=CallerLimits(
            settings.caller_max_generations,
            settings.caller_max_queue,
            settings.caller_tokens_per_minute,
            settings.caller_max_stored_bytes,
        ),
    )


def sign_generations(settings: ServeConfig, journal: Journal) -> Proof | None:
    """Sign the generations of a journal from now on; None if the server does not sign.

    Raises:
        ConfigurationError: the signing key cannot be used.
    """
    if settings.signing == "off":
        return None
    proof = open_proof(settings.data_dir, settings.signing_key, copy_environment())
    journal.signing.use(proof.statements)
    return proof
