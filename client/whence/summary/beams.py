"""Summary of a beam search's round: the beams kept, and those that they were kept over."""

from collections.abc import Sequence

from whence.summary.names import TokenNames
from whence.v1.generation_pb2 import BeamContinuation, BeamRound

_SHOWN = 4


def summarise_beam_round(beam_round: BeamRound, names: TokenNames) -> str:
    """Return a round in one line: the tokens that go on, those dropped, and those that ended.

    '2 kept: " of" -2.31, " the" -2.75; over 2: " a" -3.02, " its" -3.40'. The number after a token
    is its hypothesis' running score in nats, without the length penalty.

    Args:
        beam_round: the round.
        names: the tokens' names.
    """
    ranked = sorted(beam_round.continuations, key=lambda one: -one.score)
    kept = [one for one in ranked if one.kept]
    ended = [one for one in ranked if one.finished]
    others = [one for one in ranked if not one.kept and not one.finished]
    parts = [_list(f"{len(kept)} kept", kept, names)]
    if others:
        parts.append(_list(f"over {len(others)}", others, names))
    if ended:
        parts.append(_list(f"{len(ended)} ended", ended, names))
    return "; ".join(parts)


def _list(heading: str, continuations: Sequence[BeamContinuation], names: TokenNames) -> str:
    shown = [_describe(one, names) for one in continuations[:_SHOWN]]
    if len(continuations) > _SHOWN:
        shown.append("…")
    return f"{heading}: {', '.join(shown)}" if shown else heading


def _describe(one: BeamContinuation, names: TokenNames) -> str:
    score = f"{one.score:.2f}"
    return f"{names(one.token_id)} {score}" if one.HasField("token_id") else score
