"""What was seen of a step joins what was decided in it."""

from collections.abc import Sequence

from whence_server.domain.steps import Decision
from whence_server.engine.decoding import NoChoice, Round
from whence_server.engine.internals.probed_rows import Observation


def explained(
    decisions: Sequence[Decision | NoChoice], observation: Observation
) -> list[Decision | NoChoice]:
    """The decisions, those of the observed rows with what was seen of them.

    Args:
        decisions: one for each row.
        observation: its rows are places among the decisions.
    """
    complete = list(decisions)
    made = [(row, decision) for row in observation.rows if (decision := _made(decisions[row]))]
    for (row, decision), internals in zip(
        made,
        observation.of([row for row, _ in made]).explain([decision for _, decision in made]),
        strict=True,
    ):
        complete[row] = decision._replace(internals=internals)
    return complete


def explain_round(made: Round, observation: Observation) -> None:
    """Completes the decisions of a search's round: each token drew on what its parent read.

    Args:
        made: its survivors' decisions are changed.
        observation: its rows are beams, all of them or none.
    """
    survivors = [
        (survivor, survivor.decision)
        for survivor in made.survivors
        if observation.rows and survivor.decision is not None
    ]
    seen = observation.of([survivor.parent for survivor, _ in survivors])
    for (survivor, decision), internals in zip(
        survivors, seen.explain([decision for _, decision in survivors]), strict=True
    ):
        survivor.decision = decision._replace(internals=internals)


def _made(decision: Decision | NoChoice) -> Decision | None:
    return None if isinstance(decision, NoChoice) else decision
