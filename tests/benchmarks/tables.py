"""Tables of docs/performance.md: a row for each quantity, a column for each workload."""

from collections.abc import Mapping, Sequence

Cells = Mapping[str, Mapping[str, str]]
"""Cell by quantity and by workload."""


def print_columns(what: str, cells: Cells) -> None:
    """Print a table as the page has it; a cell that was not measured is empty."""
    workloads = list(dict.fromkeys(name for of_row in cells.values() for name in of_row))
    print(f"\nThe table of docs/performance.md:\n\n{format_row([what, *workloads])}")
    print(f"| --- |{' ---: |' * len(workloads)}")
    for quantity, of_row in cells.items():
        print(format_row([quantity, *(of_row.get(name, "") for name in workloads)]))
    print(flush=True)


def format_row(cells: Sequence[str]) -> str:
    """Return a row of Markdown."""
    return f"| {' | '.join(cells)} |"
