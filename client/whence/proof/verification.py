"""Verification of bundles: who made a generation, with which weights, and what is on record."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from whence.proof.bundle import Bundle, OpenLeaf, read_bundle
from whence.proof.faults import ProofError
from whence.proof.key_list import find_trusted
from whence.proof.log_check import check_log
from whence.proof.merkle_tree import compute_root
from whence.proof.notes import VerifierKey
from whence.proof.public_key import PublicKey
from whence.proof.statement import Signed, Statement, open_statement

T = TypeVar("T")


class Check(NamedTuple):
    """One thing that was checked.

    Attributes:
        name: "format", "signature", "record", "entries", "training" or "document".
        passed: True if it is as it should be; None if there was nothing to check.
        detail: what was found, in words.
    """

    name: str
    passed: bool | None
    detail: str


class Report(NamedTuple):
    """Result of a verification.

    Attributes:
        checks: what was checked, in order; nothing after the first fault.
        statement: what is proven; None if the signature was not valid.
    """

    checks: Sequence[Check]
    statement: Statement | None

    @property
    def verified(self) -> bool:
        """True if nothing is at fault."""
        return self.statement is not None and all(
            check.passed is not False for check in self.checks
        )


class Origin(NamedTuple):
    """Files about the training of the weights.

    Attributes:
        training: the training's signature, `lineage.sig`.
        document: a document of the training set; None to check none.
        proof: output of `whence training proof --json` for it.
    """

    training: bytes
    document: bytes | None = None
    proof: bytes = b""


class LogKeys(NamedTuple):
    """Keys of a transparency log that must have the statement.

    Attributes:
        log: verifier key of the log, NAME+ID+BASE64.
        witnesses: verifier keys of the witnesses that must have cosigned its checkpoint.
    """

    log: str
    witnesses: Sequence[str] = ()


def verify_bundle(
    data: bytes,
    keys: Sequence[str],
    origin: Origin | None = None,
    log: LogKeys | None = None,
) -> Report:
    """Check a bundle without its server.

    Args:
        data: content of the bundle's file.
        keys: trusted public keys, PEM, each of which suffices.
        origin: files about the training of the weights; None to check the generation alone.
        log: keys of the transparency log; None to check no log.

    Raises:
        ProofError: a given key is none.
    """
    trusted = [PublicKey(pem, "--key") for pem in keys]
    log_key = None if log is None else VerifierKey.parse(log.log)
    witnesses = [] if log is None else [VerifierKey.parse(text) for text in log.witnesses]
    checks: list[Check] = []
    try:
        bundle = _run(checks, "format", lambda: _read(data))
        signed = _run(checks, "signature", lambda: _open(bundle, trusted))
    except _StoppedError:
        return Report(checks, None)
    try:
        _run(checks, "record", lambda: _check_record(bundle, signed.statement))
        _run(checks, "entries", lambda: _check_entries(bundle, signed.statement))
        if log_key is None:
            checks.append(Check("log", None, _describe_log(bundle)))
        else:
            _run(checks, "log", lambda: _check_log(bundle, log_key, witnesses))
        if origin is not None:
            _check_origin(checks, origin, trusted, signed.statement)
    except _StoppedError:
        pass
    return Report(checks, signed.statement)


class _StoppedError(Exception):
    """A check has failed, and the report says so."""


def _run(checks: list[Check], name: str, check: Callable[[], tuple[T, str]]) -> T:
    """Run a check, note its result, and return what it found."""
    try:
        found, detail = check()
    except ProofError as error:
        checks.append(Check(name, passed=False, detail=str(error)))
        raise _StoppedError from None
    checks.append(Check(name, passed=True, detail=detail))
    return found


def _read(data: bytes) -> tuple[Bundle, str]:
    return read_bundle(data), f"a bundle of {len(data):,} bytes"


def _open(bundle: Bundle, trusted: Sequence[PublicKey]) -> tuple[Signed, str]:
    signed = open_statement(bundle.envelope, find_trusted(trusted, bundle.keys))
    is_given = signed.key_id in {key.key_id for key in trusted}
    how = "which you trust" if is_given else "which follows from the key that you trust"
    return signed, f"signed by key {signed.key_id[:16]}, {how}"


def _check_record(bundle: Bundle, statement: Statement) -> tuple[None, str]:
    num_leaves = len(bundle.leaves)
    if num_leaves != statement.num_leaves:
        raise ProofError(
            f"the statement covers {statement.num_leaves} entries, and the bundle has {num_leaves}"
        )
    if compute_root(leaf.hash for leaf in bundle.leaves) != statement.root:
        raise ProofError("the entries are not those that were signed: their Merkle root differs")
    num_open = sum(isinstance(leaf, OpenLeaf) for leaf in bundle.leaves)
    return None, f"{num_leaves} entries as they were signed, {num_open} of them shown"


def _check_entries(bundle: Bundle, statement: Statement) -> tuple[None, str]:
    # It parses messages: nothing is imported for a bundle that fails before.
    from whence.proof.entries_check import check_entries

    check_entries(bundle, statement)
    if bundle.leaves and isinstance(bundle.leaves[0], OpenLeaf):
        return None, "the statement agrees with the start on record"
    return None, "the start is hidden: the statement alone says model, decoding and times"


def _check_origin(
    checks: list[Check], origin: Origin, trusted: Sequence[PublicKey], statement: Statement
) -> None:
    from whence.proof.training_check import check_document, check_training

    def check() -> tuple[Mapping[str, Any], str]:
        found = check_training(origin.training, trusted, statement)
        return found, f"the weights are those of step {found.get('step')} of the signed training"

    training = _run(checks, "training", check)
    if (document := origin.document) is not None:
        _run(
            checks,
            "document",
            lambda: (None, check_document(document, origin.proof, training)),
        )


def _check_log(
    bundle: Bundle, log_key: VerifierKey, witnesses: Sequence[VerifierKey]
) -> tuple[None, str]:
    if bundle.log is None:
        raise ProofError("the bundle has no proof that the statement is in a transparency log")
    return None, check_log(bundle.log, bundle.envelope, log_key, witnesses)


def _describe_log(bundle: Bundle) -> str:
    if bundle.log is None:
        return "the bundle has no proof that the statement is in a transparency log"
    return "not checked: name the key of the transparency log with --log-key"
