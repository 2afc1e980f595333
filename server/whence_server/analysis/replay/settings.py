"""Check of the settings that no request can set: those of the model's generation config."""

import struct
from collections.abc import Iterator
from typing import Any

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.question import Question
from whence_server.analysis.replay.checks import make_check
from whence_server.domain.decoding import Configured, Decoding, DecodingRequest, Strategy
from whence_server.domain.model import ModelInfo
from whence_server.generation.defaults import select_configured


def check_configured(question: Question, info: ModelInfo) -> Iterator[pb.VerificationCheck]:
    """Yield the check of the generation config's settings, if they are not as recorded."""
    decoding = question.decoding
    wanted = _round(_select(decoding, info, len(question.prompt_token_ids)))
    found = _round(decoding.configured)
    fault = ""
    if wanted != found:
        fault = "settings of the generation config are on record that the model here has not"
    defaults = () if decoding.strategy is Strategy.FORCED else info.defaults.bad_word_ids
    if not decoding.bad_words and set(decoding.bad_word_ids) != set(defaults):
        fault = "bad words are on record that the model's generation config has not"
    if fault:
        yield make_check(pb.VERIFICATION_SUBJECT_PROCESSORS, same=False, message=fault)


def _select(decoding: Decoding, info: ModelInfo, num_prompt_tokens: int) -> Configured:
    if decoding.strategy is Strategy.FORCED:
        return Configured()
    request = DecodingRequest(logit_bias=decoding.logit_bias)
    sampling = decoding.strategy is Strategy.SAMPLE
    return select_configured(request, info.defaults, num_prompt_tokens, sampling=sampling)


def _round(value: Any) -> Any:
    """Return settings as they are on record: numbers as float32, and in lists."""
    if isinstance(value, Configured):
        return [_round(getattr(value, name)) for name in Configured.__dataclass_fields__]
    if isinstance(value, float):
        return struct.unpack("<f", struct.pack("<f", value))[0]
    return [_round(each) for each in value] if isinstance(value, tuple) else value
