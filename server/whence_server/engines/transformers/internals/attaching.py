"""Addition of a step's probe readout to the decisions of the step."""

from collections.abc import Sequence

from whence_server.domain.steps import Decision
from whence_server.engines.transformers.decoding import NoChoice, Round
from whence_server.engines.transformers.internals.probed_rows import Readout


def attach_internals(
    decisions: Sequence[Decision | NoChoice], readout: Readout
) -> list[Decision | NoChoice]:
    """Return the decisions, with internals for the probed rows.

    Args:
        decisions: one for each row.
        readout: readout whose rows are indices of `decisions`.
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


def attach_internals_to_round(made: Round, readout: Readout) -> None:
    """Add internals to the decisions of a beam search round; a token's are those of its parent.

    Args:
        made: the round, whose survivors' decisions are replaced.
        readout: readout whose rows are beams: all of them, or none.
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
