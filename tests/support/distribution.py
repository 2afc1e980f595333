"""Distribution of tests to workers: a file to one of them, and an architecture's models too.

Making and loading a tiny model takes longer than most tests of it. Several files test every
architecture, in an order that is the same in all of them.
"""

import re
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

_OF_ARCHITECTURES = frozenset(
    f"test_engine_{name}.py" for name in ("beams", "internals", "oracle", "prefix_cache")
)
_TYPE = re.compile(r"b?float\d+")


class ByArchitecture(LoadFileScheduling):
    """Scheduler that gives the tests of one architecture to one worker, from several files."""

    def _split_scope(self, nodeid: str) -> str:
        """Return the group of a test."""
        return find_group(nodeid)


def find_group(node_id: str) -> str:
    """Return the group of a test: its file, or the architecture that its parameters name."""
    path, _, test = node_id.partition("::")
    if Path(path).name in _OF_ARCHITECTURES:
        # A parameter that is neither a number nor a type of numbers is an architecture.
        for parameter in test.partition("[")[2].rstrip("]").split("-"):
            if parameter[:1].isalpha() and not _TYPE.fullmatch(parameter):
                return f"architecture {parameter}"
    return path
