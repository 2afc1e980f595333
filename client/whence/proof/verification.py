"""Verification of bundles: who made a generation, with which weights, and what is on record."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from whence.proof.bundle import Bundle, OpenLeaf, read_bundle
from whence.proof.checkpoints import Checkpoint
from whence.proof.faults import ProofError
from whence.proof.key_list import SavedKeys, find_trusted
from whence.proof.log_check import LogTrust, check_log
from whence.proof.log_growth import read_known
from whence.proof.merkle_tree import compute_root
from whence.proof.public_key import PublicKey
from whence.proof.statement import Signed, Statement, find_teller, open_statement

T = TypeVar("T")


class Check(NamedTuple):
    """One thing that was checked.

    Attributes:
        name: "format", "signature", "record", "entries", "origin", "log", "text", "training" or
            "document".
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
        bundle: what was checked; None if a check of the bundle itself failed.
    """

    checks: Sequence[Check]
    statement: Statement | None
    bundle: Bundle | None = None

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
        keys: public keys, PEM, of those who may sign trainings; each suffices.
        document: a document of the training set; None to check none.
        proof: output of `whence training proof --json` for it.
    """

    training: bytes
    keys: Sequence[str]
    document: bytes | None = None
    proof: bytes = b""


class LogKeys(NamedTuple):
    """Keys of a transparency log that must have the statement.

    Attributes:
        log: verifier key of the log, NAME+ID+BASE64.
        witnesses: verifier keys of the witnesses that may have cosigned its checkpoint.
        quorum: number of them that must have; None for all of them.
        known: earlier checkpoint of the log, or a bundle that has one, as somebody has kept it:
            the log must continue it. b"" for none.
    """

    log: str
    witnesses: Sequence[str] = ()
    quorum: int | None = None
    known: bytes = b""


class Demands(NamedTuple):
    """Further demands on a bundle.

    Attributes:
        text: text that one of its sequences has to have; None for any.
        known_keys: key list that was saved elsewhere (`parse_saved_list`).
        only_given_keys: True to trust no key that is only joined to a trusted one by rotations.
    """

    text: str | None = None
    known_keys: SavedKeys = SavedKeys(())
    only_given_keys: bool = False


_NONE = Demands()


def verify_bundle(
    data: bytes,
    keys: Sequence[str],
    origin: Origin | None = None,
    log: LogKeys | None = None,
    demands: Demands = _NONE,
) -> Report:
    """Check a bundle without its server.

    Args:
        data: content of the bundle's file.
        keys: public keys, PEM, of those who may sign generations; each suffices.
        origin: files about the training of the weights; None to check the generation alone.
        log: keys of the transparency log; None to check no log.
        demands: further demands; none by default.

    Raises:
        ProofError: a given key is none, more witnesses must have cosigned than are named, or the
            known checkpoint is none of the log.
    """
    trusted = [PublicKey(pem, "--key") for pem in keys]
    trainers = [] if origin is None else [PublicKey(pem, "--training-key") for pem in origin.keys]
    trust = None if log is None else LogTrust.parse(log.log, log.witnesses, log.quorum)
    known = None
    if log is not None and trust is not None and log.known:
        known = read_known(log.known, trust.log)
    checks: list[Check] = []
    signed: Signed | None = None
    try:
        bundle = _run(checks, "format", lambda: _read(data))
        signed = _run(checks, "signature", lambda: _open(bundle, trusted, demands))
        statement = signed.statement
        _run(checks, "record", lambda: _check_record(bundle, statement))
        _run(checks, "entries", lambda: _check_entries(bundle, statement))
        checks.append(Check("origin", None, _describe_origin(statement)))
        if trust is None:
            checks.append(Check("log", None, _describe_log(bundle)))
        else:
            _run(checks, "log", lambda: _check_log(bundle, trust, known))
        if (text := demands.text) is not None:
            _run(checks, "text", lambda: _check_text(bundle, statement, text))
        if origin is not None:
            _check_origin(checks, origin, trainers, statement)
    except _StoppedError:
        return Report(checks, None if signed is None else signed.statement)
    return Report(checks, signed.statement, bundle)


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


def _open(bundle: Bundle, trusted: Sequence[PublicKey], demands: Demands) -> tuple[Signed, str]:
    spans = find_trusted(
        trusted, bundle.keys, demands.known_keys, only_given=demands.only_given_keys
    )
    signed = open_statement(bundle.envelope, spans)
    return signed, f"signed by key {signed.key_id[:16]}, {signed.trust}"


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


def _describe_origin(statement: Statement) -> str:
    if teller := find_teller(statement.predicate):
        return f"{teller}: the server did not compute it"
    return "the server says that it computed the tokens itself"


def _check_text(bundle: Bundle, statement: Statement, text: str) -> tuple[None, str]:
    from whence.proof.content import find_text, read_content

    index = find_text(read_content(bundle, statement), text)
    return None, f"the text is that of sequence {index}"


def _check_origin(
    checks: list[Check], origin: Origin, trainers: Sequence[PublicKey], statement: Statement
) -> None:
    from whence.proof.training_check import Training, check_document, check_training

    def check() -> tuple[Training, str]:
        found = check_training(origin.training, trainers, statement)
        step, key_id = str(found.said.get("step"))[:20], found.key_id[:16]
        return found, (
            f"the weights are those of step {step} of the training that was signed by key {key_id}"
        )

    training = _run(checks, "training", check)
    if (document := origin.document) is not None:
        _run(
            checks,
            "document",
            lambda: (None, check_document(document, origin.proof, training.said)),
        )


def _check_log(bundle: Bundle, trust: LogTrust, known: Checkpoint | None) -> tuple[None, str]:
    if bundle.log is None:
        raise ProofError("the bundle has no proof that the statement is in a transparency log")
    return None, check_log(bundle.log, bundle.envelope, trust, known)


def _describe_log(bundle: Bundle) -> str:
    if bundle.log is None:
        return "the bundle has no proof that the statement is in a transparency log"
    return "not checked: name the key of the transparency log with --log-key"
