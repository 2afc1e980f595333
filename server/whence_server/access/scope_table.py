"""The scopes that each RPC and each HTTP route needs.

A test walks this table over the descriptors and the routes: a new one without a row fails it.
docs/access.md shows the same table.
"""

from dataclasses import dataclass
from typing import Final

from whence_server.domain.api_routes import API_ROUTES, LOGIN, LOGOUT, PULSE, STATE
from whence_server.domain.audit import AuditAction
from whence_server.domain.identity import Identity, Scope

_READ = (Scope.READ, Scope.READ_CONTENT)
_NUMBERS = "text and token ids only with `read:content`; of one's own, with `read:all` of all"
_SERVICE = "whence.v1."


_GENERATES = (Scope.GENERATE,)
# Recorders bring vocabularies of their own; callers that neither generate nor read need none.
_MODEL_USERS = (Scope.GENERATE, *_READ)


@dataclass(frozen=True, slots=True)
class Rule:
    """Condition for a call.

    Attributes:
        scopes: scopes of which the caller needs one; empty for every authenticated caller.
        note: what the scopes show or allow, for the documentation.
        public: name by which `--public-services` opens it to everybody; "" if that cannot be.
        action: action that the audit records; None for calls that tell of nobody's data.
        shows_content: True if the method shows content to callers with `read:content`, and
            numbers to others.
    """

    scopes: tuple[Scope, ...] = ()
    note: str = ""
    public: str = ""
    action: AuditAction | None = None
    shows_content: bool = False

    def find_action(self, identity: Identity) -> AuditAction | None:
        """Return the action of a caller that calls the method; None if the audit leaves it out."""
        if self.shows_content and identity.has(Scope.READ_CONTENT):
            return AuditAction.READ_CONTENT
        return self.action


def _read_record() -> Rule:
    return Rule(_READ, _NUMBERS, action=AuditAction.READ, shows_content=True)


def _read_training() -> Rule:
    return Rule(_READ, action=AuditAction.READ)


def _read_document() -> Rule:
    return Rule((Scope.READ_CONTENT,), action=AuditAction.READ_CONTENT)


RPCS: Final[dict[str, Rule]] = {
    _SERVICE + "GenerationService/Generate": Rule(_GENERATES, action=AuditAction.GENERATE),
    _SERVICE + "GenerationService/ResumeGeneration": Rule(
        (Scope.GENERATE, Scope.READ_CONTENT),
        "one's own; others' with `read:content` and `read:all`",
        action=AuditAction.READ_CONTENT,
    ),
    _SERVICE + "GenerationService/ForkGeneration": Rule(
        _GENERATES,
        "of one's own; of others' with `read:content` and `read:all`",
        action=AuditAction.GENERATE,
    ),
    _SERVICE + "GenerationService/CancelGeneration": Rule(
        (Scope.GENERATE, Scope.ADMIN),
        "one's own; others' with `admin`",
        action=AuditAction.CANCEL,
    ),
    _SERVICE + "RecordService/RecordGenerations": Rule(
        _GENERATES, "the generations are the caller's", action=AuditAction.RECORD
    ),
    _SERVICE + "TraceService/GetGeneration": _read_record(),
    _SERVICE + "TraceService/ListGenerations": _read_record(),
    _SERVICE + "TraceService/SearchGenerations": Rule(
        (Scope.READ_CONTENT,),
        "of one's own, with `read:all` of all",
        action=AuditAction.READ_CONTENT,
    ),
    _SERVICE + "TraceService/ListSteps": _read_record(),
    _SERVICE + "TraceService/WatchGenerations": _read_record(),
    _SERVICE + "TraceService/DeleteGeneration": Rule(
        (Scope.DELETE,), "one's own; others' with `read:all`", action=AuditAction.DELETE
    ),
    _SERVICE + "ModelService/ListModels": Rule(),
    _SERVICE + "ModelService/GetModel": Rule(),
    _SERVICE + "ModelService/GetVocabulary": Rule(_MODEL_USERS),
    _SERVICE + "TrainingService/ListTrainingRuns": _read_training(),
    _SERVICE + "TrainingService/GetTrainingRun": _read_training(),
    _SERVICE + "TrainingService/ListTrainingSteps": _read_training(),
    _SERVICE + "TrainingService/WatchTrainingRun": _read_training(),
    _SERVICE + "TrainingService/GetInclusionProof": _read_training(),
    _SERVICE + "TrainingService/GetDocument": _read_document(),
    _SERVICE + "TrainingService/ReadDocument": _read_document(),
    _SERVICE + "TrainingService/TraceEmergence": Rule((Scope.EXPLAIN,), action=AuditAction.EXPLAIN),
    _SERVICE + "TransparencyLogService/GetCheckpoint": Rule(),
    _SERVICE + "TransparencyLogService/ProveInclusion": Rule(),
    _SERVICE + "TransparencyLogService/ProveConsistency": Rule(),
    _SERVICE + "VerificationService/VerifyGeneration": Rule(
        (Scope.READ_CONTENT,), "one's own; others' with `read:all`", action=AuditAction.VERIFY
    ),
    _SERVICE + "ExplainService/Explain": Rule(
        (Scope.EXPLAIN,),
        "a text; of one's own generations with `read:content`, of others' with `read:all` too",
        action=AuditAction.EXPLAIN,
    ),
    _SERVICE + "AuditService/ListAudit": Rule((Scope.ADMIN,), action=AuditAction.READ_AUDIT),
    _SERVICE + "ProofService/GetKeys": Rule(public="keys"),
    _SERVICE + "ProofService/ExportBundle": _read_record(),
    "grpc.health.v1.Health/Check": Rule(public="health"),
    "grpc.health.v1.Health/List": Rule(public="health"),
    "grpc.health.v1.Health/Watch": Rule(public="health"),
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Rule(public="reflection"),
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(public="reflection"),
}
"""Rules by the method's full name."""

ROUTES: Final[dict[str, Rule]] = {
    "POST /v1/chat/completions": Rule(_GENERATES, action=AuditAction.GENERATE),
    "POST /v1/completions": Rule(_GENERATES, action=AuditAction.GENERATE),
    "POST /v1/responses": Rule(_GENERATES, action=AuditAction.GENERATE),
    "GET /v1/models": Rule(),
    "GET /v1/models/{model:.+}": Rule(),
    "GET /keys.json": Rule(public="keys"),
    "GET /metrics": Rule((Scope.METRICS,), public="metrics"),
    "GET /healthz": Rule(public="health"),
    **{route.name: RPCS[route.rpc] for route in API_ROUTES},
    f"GET {PULSE}": RPCS["whence.v1.TraceService/WatchGenerations"],
    f"GET {STATE}": Rule(),
    f"POST {LOGIN}": Rule(note="with a token in its body"),
    f"POST {LOGOUT}": Rule(note="needs nothing"),
}
"""Rules by the request's method and route."""

TABLE: Final = RPCS | ROUTES
PUBLIC: Final = tuple(sorted({rule.public for rule in TABLE.values()} - {""}))
"""Names that `--public-services` takes."""
