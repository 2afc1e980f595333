"""First message to the analysis process."""

from typing import Any, NamedTuple


class AnalysisSetup(NamedTuple):
    """Model that generations are verified with.

    Attributes:
        options: the engine's `EngineOptions`, which the front passes on unread.
        noise_file: path of a JSON file that keeps measured noise; "" for none.
        num_threads: number of torch's threads.
        follows_record: True to load the model with the data type and kernels that a record names,
            which is for its reader to decide and not for whoever made the record.
    """

    options: Any
    noise_file: str
    num_threads: int
    follows_record: bool = False
