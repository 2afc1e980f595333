"""Attaches a step's probe readout to the decisions that were made in it."""

from collections.abc import Sequence

from whence_server.domain.steps import Decision
from whence_server.engine.decoding import NoChoice, Round
from whence_server.engine.internals.probed_rows import ProbeReadout


def attach_internals(
    decisions: Sequence[Decision | NoChoice], readout: ProbeReadout
) -> list[Decision | NoChoice]:
    """Return the decisions, those of the probed rows with their internals.

    Args:
        decisions: one for each row.
        readout: its rows are places among the decisions.
    """
    complete = list(decisions)
    made = [
        (row, decision) for row in readout.rows if (decision := _drop_no_choice(decisions[row]))
    ]
    for (row, decision), internals in zip(
        made,
        readout.select([row for row, _ in made]).build_internals(
            [decision for _, decision in made]
        ),
        strict=True,
    ):
        complete[row] = decision._replace(internals=internals)
    return complete


def attach_internals_to_round(made: Round, readout: ProbeReadout) -> None:
    """Complete the decisions of a search's round: each token drew on what its parent read.

    Args:
        made: its survivors' decisions are changed.
        readout: its rows are beams, all of them or none.
    """
    survivors = [
        (survivor, survivor.decision)
        for survivor in made.survivors
        if readout.rows and survivor.decision is not None
    ]
    seen = readout.select([survivor.parent for survivor, _ in survivors])
    for (survivor, decision), internals in zip(
        survivors, seen.build_internals([decision for _, decision in survivors]), strict=True
    ):
        survivor.decision = decision._replace(internals=internals)


def _drop_no_choice(decision: Decision | NoChoice) -> Decision | None:
    return None if isinstance(decision, NoChoice) else decision
