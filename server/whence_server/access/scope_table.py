"""The scopes that each RPC and each HTTP route needs.

A test walks this table over the descriptors and the routes: a new one without a row fails it.
docs/access.md shows the same table.
"""

from dataclasses import dataclass
from typing import Final

from whence_server.domain.identity import Scope

_READ = (Scope.READ, Scope.READ_CONTENT)
_NUMBERS = "text and token ids only with `read:content`; of one's own, with `read:all` of all"
_SERVICE = "whence.v1."


@dataclass(frozen=True, slots=True)
class Rule:
    """Condition for a call.

    Attributes:
        scopes: scopes of which the caller needs one; empty for every authenticated caller.
        note: what the scopes show or allow, for the documentation.
        public: name by which `--public-services` opens it to everybody; "" if that cannot be.
    """

    scopes: tuple[Scope, ...] = ()
    note: str = ""
    public: str = ""


RPCS: Final[dict[str, Rule]] = {
    _SERVICE + "GenerationService/Generate": Rule((Scope.GENERATE,)),
    _SERVICE + "GenerationService/ResumeGeneration": Rule(
        (Scope.GENERATE, Scope.READ_CONTENT),
        "one's own; others' with `read:content` and `read:all`",
    ),
    _SERVICE + "GenerationService/CancelGeneration": Rule(
        (Scope.GENERATE, Scope.ADMIN), "one's own; others' with `admin`"
    ),
    _SERVICE + "RecordService/RecordGenerations": Rule(
        (Scope.GENERATE,), "the generations are the caller's"
    ),
    _SERVICE + "TraceService/GetGeneration": Rule(_READ, _NUMBERS),
    _SERVICE + "TraceService/ListGenerations": Rule(_READ, _NUMBERS),
    _SERVICE + "TraceService/ListSteps": Rule(_READ, _NUMBERS),
    _SERVICE + "TraceService/WatchGenerations": Rule(_READ, _NUMBERS),
    _SERVICE + "TraceService/DeleteGeneration": Rule(
        (Scope.DELETE,), "one's own; others' with `read:all`"
    ),
    _SERVICE + "ModelService/ListModels": Rule(),
    _SERVICE + "ModelService/GetModel": Rule(),
    _SERVICE + "ModelService/GetVocabulary": Rule(),
    _SERVICE + "TrainingService/ListTrainingRuns": Rule(_READ),
    _SERVICE + "TrainingService/GetTrainingRun": Rule(_READ),
    _SERVICE + "TrainingService/ListTrainingSteps": Rule(_READ),
    _SERVICE + "TrainingService/WatchTrainingRun": Rule(_READ),
    _SERVICE + "TrainingService/GetInclusionProof": Rule(_READ),
    _SERVICE + "TrainingService/GetDocument": Rule((Scope.READ_CONTENT,)),
    _SERVICE + "TrainingService/ReadDocument": Rule((Scope.READ_CONTENT,)),
    _SERVICE + "TrainingService/TraceEmergence": Rule((Scope.EXPLAIN,)),
    "grpc.health.v1.Health/Check": Rule(public="health"),
    "grpc.health.v1.Health/List": Rule(public="health"),
    "grpc.health.v1.Health/Watch": Rule(public="health"),
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Rule(public="reflection"),
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(public="reflection"),
}
"""Rules by the method's full name."""

ROUTES: Final[dict[str, Rule]] = {
    "POST /v1/chat/completions": Rule((Scope.GENERATE,)),
    "POST /v1/completions": Rule((Scope.GENERATE,)),
    "POST /v1/responses": Rule((Scope.GENERATE,)),
    "GET /v1/models": Rule(),
    "GET /v1/models/{model:.+}": Rule(),
    "GET /metrics": Rule((Scope.METRICS,), public="metrics"),
    "GET /healthz": Rule(public="health"),
}
"""Rules by the request's method and route."""

TABLE: Final = RPCS | ROUTES
PUBLIC: Final = tuple(sorted({rule.public for rule in TABLE.values()} - {""}))
"""Names that `--public-services` takes."""
