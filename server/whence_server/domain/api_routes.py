"""Routes of the JSON API: each is one RPC of the contract, with its scopes and its audit."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

API: Final = "/api/v1"
STATE: Final = f"{API}/server"
"""State of the server, and what it offers."""
PULSE: Final = f"{API}/pulse"
"""Texts and probabilities of what runs, for the page: with `STATE` the routes that are no RPC."""
LOGIN: Final = "/login"
LOGOUT: Final = "/logout"
_SERVICE = "whence.v1."
_GENERATION = f"{API}/generations/{{generation_id}}"
_PARENT = f"{API}/generations/{{parent_generation_id}}"
_RUN = f"{API}/training/runs/{{training_run_id}}"


class Form(Enum):
    """Form of the answers of an RPC that streams."""

    EVENTS = "events"
    """Server-sent events, one for each message."""
    JOINED = "joined"
    """One message with the lists of all."""
    FILE = "file"
    """The bytes of the field `data` of all messages."""


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """One route.

    Attributes:
        verb: request method.
        path: path, whose parts in braces are fields of the request.
        rpc: full name of the RPC.
        offer: name under which the server's state offers it to a page; "" for what every server
            has.
        form: form of the answer, if the RPC streams.
        within: field of the request whose fields the path's parts are; "" for the request itself.
    """

    verb: str
    path: str
    rpc: str
    offer: str = ""
    form: Form = Form.EVENTS
    within: str = ""

    @property
    def name(self) -> str:
        """Request method and path."""
        return f"{self.verb} {self.path}"

    @property
    def writes(self) -> bool:
        """True if a request may change something, or start a computation."""
        return self.verb != "GET"


def _read(path: str, rpc: str, offer: str = "", form: Form = Form.EVENTS) -> ApiRoute:
    return ApiRoute("GET", path, _SERVICE + rpc, offer, form)


def _write(verb: str, path: str, rpc: str, offer: str, within: str = "") -> ApiRoute:
    return ApiRoute(verb, path, _SERVICE + rpc, offer, within=within)


API_ROUTES: Final = (
    _read(f"{API}/generations", "TraceService/ListGenerations"),
    _write("POST", f"{API}/generations", "GenerationService/Generate", "generate"),
    _read(_GENERATION, "TraceService/GetGeneration"),
    _write("DELETE", _GENERATION, "TraceService/DeleteGeneration", "delete"),
    _read(f"{_GENERATION}/steps", "TraceService/ListSteps"),
    _read(f"{_GENERATION}/events", "GenerationService/ResumeGeneration"),
    _read(f"{_GENERATION}/bundle", "ProofService/ExportBundle", "bundle", Form.FILE),
    _write("POST", f"{_GENERATION}:cancel", "GenerationService/CancelGeneration", "cancel"),
    _write("POST", f"{_PARENT}:fork", "GenerationService/ForkGeneration", "fork"),
    _write("POST", f"{_GENERATION}:verify", "VerificationService/VerifyGeneration", "verify"),
    _write("POST", f"{_GENERATION}:explain", "ExplainService/Explain", "explain", "recorded"),
    _write("POST", f"{API}/explain", "ExplainService/Explain", "explain"),
    _read(f"{API}/search", "TraceService/SearchGenerations", "search"),
    _read(f"{API}/watch", "TraceService/WatchGenerations"),
    _read(f"{API}/models", "ModelService/ListModels"),
    _read(f"{API}/models/{{model:.+}}", "ModelService/GetModel"),
    _read(f"{API}/vocabulary", "ModelService/GetVocabulary", form=Form.JOINED),
    _read(f"{API}/training/runs", "TrainingService/ListTrainingRuns", "training"),
    _read(_RUN, "TrainingService/GetTrainingRun"),
    _read(f"{_RUN}/steps", "TrainingService/ListTrainingSteps"),
    _read(f"{_RUN}/events", "TrainingService/WatchTrainingRun"),
    _read(f"{_RUN}/document", "TrainingService/GetDocument", "documents"),
    _read(f"{_RUN}/inclusion", "TrainingService/GetInclusionProof"),
    _write("POST", f"{_RUN}:trace", "TrainingService/TraceEmergence", "trace"),
    _read(f"{API}/audit", "AuditService/ListAudit", "audit"),
)
"""All routes of the API but `STATE`."""
