"""How many of each a request may hold, told before any of them is looked at.

A message of 4 MB can hold a million stop strings. Looking at each of them takes seconds in which
no stream moves, so that their number alone decides.
"""

from whence.v1 import generation_pb2
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.limits import Limits


def check_counts(request: generation_pb2.GenerateRequest, limits: Limits) -> None:
    """Refuse a request that holds more of something than is taken.

    Raises:
        InvalidRequestError: with every field of which there is too much.
    """
    decoding = request.decoding
    forced = decoding.forced.tokens.token_ids
    counted = (
        ("chat.messages", len(request.chat.messages), limits.max_messages, "messages"),
        ("labels", len(request.labels), limits.max_labels, "labels"),
        ("decoding.stop", len(decoding.stop), limits.max_stop_strings, "strings"),
        (
            "decoding.stop_token_ids",
            len(decoding.stop_token_ids),
            limits.max_stop_token_ids,
            "ids",
        ),
        ("decoding.logit_bias", len(decoding.logit_bias), limits.max_logit_biases, "entries"),
        # A server whose cache holds no more can run no longer one, whatever its model.
        ("tokens.token_ids", len(request.tokens.token_ids), limits.max_cache_tokens, "tokens"),
        ("decoding.forced.tokens.token_ids", len(forced), limits.max_cache_tokens, "tokens"),
        ("decoding.bad_words", len(decoding.bad_words), limits.max_bad_words, "words"),
    )
    violations = [
        FieldViolation(field, f"has {number} {what}; this server takes at most {most}")
        for field, number, most, what in counted
        if number > most
    ]
    if violations:
        raise InvalidRequestError(*violations)
