"""Server-sent events as a browser reads them (WHATWG HTML, "Server-sent events")."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Event(NamedTuple):
    """One event, and the id that a reader would come back with after it."""

    name: str
    data: Any
    id: str


def read_event_stream(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events of the lines of an answer."""
    name, data, last_id = "", "", ""
    for line in lines:
        if not line:
            if data:
                yield Event(name, json.loads(data), last_id)
            name, data = "", ""
            continue
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data += value
        elif field == "id":
            last_id = value
