"""Errors that the server raises on purpose.

WhenceError                     a code, a machine-readable reason, a message
├── InvalidRequestError         INVALID_ARGUMENT, names each wrong field
├── RequestTooLargeError        RESOURCE_EXHAUSTED: more bytes than --max-message-bytes
├── MethodNotFoundError         UNIMPLEMENTED
├── RouteNotFoundError          NOT_FOUND: a path over HTTP
├── MediaTypeError              INVALID_ARGUMENT: a body over HTTP that is not JSON by its type
├── OriginRefusedError          PERMISSION_DENIED: a browser's request for another site's page
├── ForgeryRefusedError         PERMISSION_DENIED: a write that another site could have made
├── HostRefusedError            PERMISSION_DENIED: a request to another machine's name
├── HealthNotFoundError         NOT_FOUND: health of an unknown service
├── GenerationNotFoundError     NOT_FOUND
├── ModelNotFoundError          NOT_FOUND
├── TrainingRunNotFoundError    NOT_FOUND
├── DocumentNotFoundError       NOT_FOUND
├── DocumentChangedError        FAILED_PRECONDITION
├── EmergenceRefusedError       FAILED_PRECONDITION
├── EmergenceBusyError          RESOURCE_EXHAUSTED, gives a retry delay
├── VerificationBusyError       RESOURCE_EXHAUSTED, gives a retry delay
├── ExplanationBusyError        RESOURCE_EXHAUSTED, gives a retry delay
├── ExplanationTooLargeError    RESOURCE_EXHAUSTED: more work than one explanation may need
├── ExplanationRefusedError     FAILED_PRECONDITION: other weights, or no tokens on record
├── AnalysisFailedError         INTERNAL
│   └── AnalysisEndedError      UNAVAILABLE: the process was killed
├── GenerationExistsError       ALREADY_EXISTS
├── GenerationElsewhereError    FAILED_PRECONDITION: another server runs it
├── GenerationRunningError      FAILED_PRECONDITION
├── GenerationUnsignedError     FAILED_PRECONDITION: it has no signed statement
├── ForkRefusedError            FAILED_PRECONDITION: its record lacks what a branch needs
├── BundleTooLargeError         FAILED_PRECONDITION: its bundle is larger than checks read
├── ContentNotReadError         RESOURCE_EXHAUSTED: content was in memory alone
├── ContentsFullError           RESOURCE_EXHAUSTED, gives a retry delay
├── QueueFullError              RESOURCE_EXHAUSTED, gives a retry delay
├── TextQueueFullError          RESOURCE_EXHAUSTED, gives a retry delay
├── TextProcessError            INTERNAL: the text process failed
├── ModelNotReadyError          UNAVAILABLE, gives a retry delay
├── ModelFailedError            FAILED_PRECONDITION: the model cannot be loaded; the server ends
├── NoModelError                FAILED_PRECONDITION: the server only records
├── NotOfferedError             UNIMPLEMENTED
├── DrainingError               UNAVAILABLE, gives a retry delay
├── EngineLostError             UNAVAILABLE
├── UnauthenticatedError        UNAUTHENTICATED
├── ProviderAwayError           UNAVAILABLE, gives a retry delay: the identity provider
├── ScopeMissingError           PERMISSION_DENIED
├── CallerLimitError            RESOURCE_EXHAUSTED, gives a retry delay
├── PublicCallsError            RESOURCE_EXHAUSTED, gives a retry delay
├── StoredBytesError            RESOURCE_EXHAUSTED: the caller has to delete generations
├── RecordersFullError          RESOURCE_EXHAUSTED, gives a retry delay
├── VocabulariesFullError       RESOURCE_EXHAUSTED: too many bytes of recorders' vocabularies
├── DeadlinePassedError         DEADLINE_EXCEEDED
├── GenerationFailedError       INTERNAL: one generation failed
├── ConfigurationError          the server does not start
├── DeletionPendingError        FAILED_PRECONDITION: deleted, but still on disk
├── GenerationHeldError         FAILED_PRECONDITION: under a hold by label, not deleted
├── GenerationInOtherLogError   FAILED_PRECONDITION: only another server could append to its log
├── RecordDamagedError          DATA_LOSS: a generation's rows have changed since they were written
├── JournalError                INTERNAL
│   ├── JournalUnwritableError  UNAVAILABLE, gives a retry delay
│   │   ├── JournalFullError    RESOURCE_EXHAUSTED: the disk is full
│   │   └── JournalUnreachableError  UNAVAILABLE: the database is away
│   ├── JournalLostError        UNAVAILABLE: the server ends
│   └── LeaseLostError          UNAVAILABLE: another server has the log; this one ends
├── NoTransparencyLogError      UNIMPLEMENTED
├── StatementNotLoggedError     NOT_FOUND
├── CheckpointPendingError      UNAVAILABLE, gives a retry delay
├── TransparencyLogDamagedError DATA_LOSS
├── LineageError                INTERNAL: a training run's record
└── UpstreamError               UNAVAILABLE: the server of another engine failed
    ├── UpstreamAwayError       UNAVAILABLE, gives a retry delay
    ├── UpstreamMalformedError  UNAVAILABLE: its answer cannot be read
    ├── UpstreamUnfinishedError UNAVAILABLE: its answer ended early
    ├── UpstreamBusyError       RESOURCE_EXHAUSTED, gives a retry delay
    ├── UpstreamRefusedError    INVALID_ARGUMENT: it refused the request
    ├── UpstreamKeyError        FAILED_PRECONDITION: it does not accept the API key
    └── UpstreamModelError      FAILED_PRECONDITION: it has another model
"""

from whence_server.domain.errors.access import (
    CallerLimitError,
    ProviderAwayError,
    PublicCallsError,
    ScopeMissingError,
    StoredBytesError,
    UnauthenticatedError,
)
from whence_server.domain.errors.analysis import (
    AnalysisEndedError,
    AnalysisFailedError,
    ExplanationBusyError,
    ExplanationRefusedError,
    ExplanationTooLargeError,
    VerificationBusyError,
)
from whence_server.domain.errors.base import (
    Code,
    FieldViolation,
    WhenceError,
)
from whence_server.domain.errors.calls import (
    ConfigurationError,
    DeadlinePassedError,
    DrainingError,
    HealthNotFoundError,
    InvalidRequestError,
    MethodNotFoundError,
    NotOfferedError,
    RequestTooLargeError,
)
from whence_server.domain.errors.content import ContentNotReadError, ContentsFullError
from whence_server.domain.errors.generations import (
    BundleTooLargeError,
    EngineLostError,
    ForkRefusedError,
    GenerationElsewhereError,
    GenerationExistsError,
    GenerationFailedError,
    GenerationNotFoundError,
    GenerationRunningError,
    GenerationUnsignedError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    NoModelError,
    QueueFullError,
    TextProcessError,
    TextQueueFullError,
)
from whence_server.domain.errors.http import (
    ForgeryRefusedError,
    HostRefusedError,
    MediaTypeError,
    OriginRefusedError,
    RouteNotFoundError,
)
from whence_server.domain.errors.journal import (
    DeletionPendingError,
    GenerationHeldError,
    GenerationInOtherLogError,
    JournalError,
    JournalFullError,
    JournalLostError,
    JournalUnreachableError,
    JournalUnwritableError,
    LeaseLostError,
    RecordDamagedError,
)
from whence_server.domain.errors.recording import RecordersFullError, VocabulariesFullError
from whence_server.domain.errors.training import (
    DocumentChangedError,
    DocumentNotFoundError,
    EmergenceBusyError,
    EmergenceRefusedError,
    LineageError,
    TrainingRunNotFoundError,
)
from whence_server.domain.errors.transparency import (
    CheckpointPendingError,
    NoTransparencyLogError,
    StatementNotLoggedError,
    TransparencyLogDamagedError,
)
from whence_server.domain.errors.upstream import (
    UpstreamAwayError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamKeyError,
    UpstreamMalformedError,
    UpstreamModelError,
    UpstreamRefusedError,
    UpstreamUnfinishedError,
)

__all__ = [
    "AnalysisEndedError",
    "AnalysisFailedError",
    "BundleTooLargeError",
    "CallerLimitError",
    "CheckpointPendingError",
    "Code",
    "ConfigurationError",
    "ContentNotReadError",
    "ContentsFullError",
    "DeadlinePassedError",
    "DeletionPendingError",
    "DocumentChangedError",
    "DocumentNotFoundError",
    "DrainingError",
    "EmergenceBusyError",
    "EmergenceRefusedError",
    "EngineLostError",
    "ExplanationBusyError",
    "ExplanationRefusedError",
    "ExplanationTooLargeError",
    "FieldViolation",
    "ForgeryRefusedError",
    "ForkRefusedError",
    "GenerationElsewhereError",
    "GenerationExistsError",
    "GenerationFailedError",
    "GenerationHeldError",
    "GenerationInOtherLogError",
    "GenerationNotFoundError",
    "GenerationRunningError",
    "GenerationUnsignedError",
    "HealthNotFoundError",
    "HostRefusedError",
    "InvalidRequestError",
    "JournalError",
    "JournalFullError",
    "JournalLostError",
    "JournalUnreachableError",
    "JournalUnwritableError",
    "LeaseLostError",
    "LineageError",
    "MediaTypeError",
    "MethodNotFoundError",
    "ModelFailedError",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "NoModelError",
    "NoTransparencyLogError",
    "NotOfferedError",
    "OriginRefusedError",
    "ProviderAwayError",
    "PublicCallsError",
    "QueueFullError",
    "RecordDamagedError",
    "RecordersFullError",
    "RequestTooLargeError",
    "RouteNotFoundError",
    "ScopeMissingError",
    "StatementNotLoggedError",
    "StoredBytesError",
    "TextProcessError",
    "TextQueueFullError",
    "TrainingRunNotFoundError",
    "TransparencyLogDamagedError",
    "UnauthenticatedError",
    "UpstreamAwayError",
    "UpstreamBusyError",
    "UpstreamError",
    "UpstreamKeyError",
    "UpstreamMalformedError",
    "UpstreamModelError",
    "UpstreamRefusedError",
    "UpstreamUnfinishedError",
    "VerificationBusyError",
    "VocabulariesFullError",
    "WhenceError",
]

for _name in __all__:
    # Records and logs name an error by the package, whichever file it is in.
    globals()[_name].__module__ = __name__
