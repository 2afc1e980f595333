"""Comparison of what a record names with the model that is loaded here."""

from collections.abc import Iterator

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.question import Question, Unverifiable
from whence_server.analysis.replay.checks import make_check
from whence_server.domain.model import ModelInfo

_COMPARED = (
    "torch_version",
    "transformers_version",
    "dtype",
    "device",
    "attention_implementation",
    "step_kernels",
)
"""Parts of the environment on which the numbers depend; the noise covers numbers of threads."""


_REQUIRED = ("torch_version", "dtype", "device")


def check_identity(
    question: Question, info: ModelInfo
) -> Iterator[tuple[pb.VerificationCheck, Unverifiable | None]]:
    """Yield the checks of digests and environment, each with the cause to give up, if it is one."""
    recorded = question.identity
    yield _check_weights(recorded.weights_digest or recorded.model_digest, question, info)
    if recorded.weights_digest and recorded.model_digest:
        yield _check_model(question, info), None
    if recorded.adapter:
        yield _check_adapter(question, info)
    if recorded.tokenizer_digest:
        same = recorded.tokenizer_digest == info.tokenizer_digest
        yield (
            make_check(
                pb.VERIFICATION_SUBJECT_TOKENIZER,
                # Another program may have digested other files of an equal tokenizer.
                same=None if not same and question.logprobs_only else same,
                recorded=recorded.tokenizer_digest,
                found=info.tokenizer_digest,
                message="" if same else "the tokenizer here is another one than on record",
            ),
            None,
        )
    yield _check_environment(question, info), None


def _check_weights(
    digest: str, question: Question, info: ModelInfo
) -> tuple[pb.VerificationCheck, Unverifiable | None]:
    found = info.weights_digest if question.identity.weights_digest else info.model_digest
    same = bool(digest) and digest == found
    message = ""
    if not digest:
        message = "the record names no weights"
    elif not same:
        message = "the weights here are others than on record: verify with --model DIR of those"
    cause = Unverifiable.OTHER_WEIGHTS
    dtype = question.identity.environment.get("dtype", "")
    if digest and not same and dtype and dtype != str(info.environment.dtype):
        # The digest is of the tensors in their data type.
        cause = Unverifiable.OTHER_ENVIRONMENT
        message = (
            f"the weights on record are in {dtype}, and those here in {info.environment.dtype}: "
            "verify with whence-server verify-generation --model DIR"
        )
    check = make_check(
        pb.VERIFICATION_SUBJECT_WEIGHTS,
        same=same if digest else None,
        recorded=digest,
        found=found,
        message=message,
    )
    return check, None if same else cause


def _check_model(question: Question, info: ModelInfo) -> pb.VerificationCheck:
    """Compare the files beside the tensors, which have the end tokens and other settings."""
    recorded = question.identity.model_digest
    same = recorded == info.model_digest
    what = "the tensors are those on record, and other files (config.json ...) are not"
    # Another program may serve the same tensors from other files.
    outcome = None if not same and question.logprobs_only else same
    return make_check(
        pb.VERIFICATION_SUBJECT_WEIGHTS,
        same=outcome,
        recorded=recorded,
        found=info.model_digest,
        message="" if same else what,
    )


def _check_adapter(
    question: Question, info: ModelInfo
) -> tuple[pb.VerificationCheck, Unverifiable | None]:
    named = {adapter.name: adapter for adapter in info.adapters}
    adapter = named.get(question.identity.adapter)
    digest = question.identity.adapter_weights_digest
    same = adapter is not None and adapter.weights_digest == digest
    check = make_check(
        pb.VERIFICATION_SUBJECT_WEIGHTS,
        same=same,
        recorded=digest,
        found="" if adapter is None else adapter.weights_digest,
        message=""
        if same
        else f"adapter {question.identity.adapter!r} is not here, or is another one",
    )
    return check, None if same else Unverifiable.OTHER_ADAPTER


def _check_environment(question: Question, info: ModelInfo) -> pb.VerificationCheck:
    recorded = question.identity.environment
    missing = [name for name in _REQUIRED if not recorded.get(name)]
    if missing and not any(recorded.get(name) for name in _COMPARED):
        what = "the environment is not on record"
        return make_check(pb.VERIFICATION_SUBJECT_ENVIRONMENT, same=None, message=what)
    differences = [f"{name} is not on record" for name in missing]
    for name in _COMPARED:
        ours, theirs = str(getattr(info.environment, name)), recorded.get(name, "")
        if theirs and ours != theirs:
            differences.append(f"{name} {theirs} on record, {ours} here")
    return make_check(
        pb.VERIFICATION_SUBJECT_ENVIRONMENT,
        same=not differences,
        message="; ".join(differences),
    )
