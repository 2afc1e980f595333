"""Recording of the generations of transformers' `generate`."""

from whence_hooks.transformers.recording import Recording, record_generate
from whence_hooks.transformers.refusals import NotRecordableError

__all__ = ["NotRecordableError", "Recording", "record_generate"]
