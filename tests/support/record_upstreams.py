"""Record what real upstream servers answer, into tests/data/upstreams/, for tests that have none.

    python tests/support/record_upstreams.py llama.cpp http://127.0.0.1:8080
    python tests/support/record_upstreams.py vllm http://127.0.0.1:8000

Each file is one exchange: the request, and status, content type and body of the answer as they came
over the wire.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from upstream_questions import REQUESTS, Request

FOLDER = Path(__file__).parents[1] / "data" / "upstreams"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=list(REQUESTS))
    parser.add_argument("url", help="address of the server, without /v1")
    parser.add_argument("--only", nargs="*", help="names of exchanges; all by default")
    arguments = parser.parse_args()
    version = find_version(arguments.kind, arguments.url)
    folder = FOLDER / arguments.kind
    folder.mkdir(parents=True, exist_ok=True)
    for name, request in REQUESTS[arguments.kind].items():
        if arguments.only and name not in arguments.only:
            continue
        exchange = {
            "kind": arguments.kind,
            "version": version,
            "date": datetime.now(UTC).date().isoformat(),
            "origin": "recorded",
            "request": request.describe(),
            **ask(arguments.url, request),
        }
        path = folder / f"{name}.json"
        path.write_text(json.dumps(exchange, indent=1, ensure_ascii=False) + "\n")
        print(exchange["status"], path.name, file=sys.stderr)


def find_version(kind: str, url: str) -> str:
    """Return the server's version, as it tells it."""
    where, key = {"llama.cpp": ("/props", "build_info"), "vllm": ("/version", "version")}[kind]
    with urllib.request.urlopen(url + where, timeout=60) as response:
        return str(json.load(response)[key])


def ask(url: str, request: Request) -> dict[str, Any]:
    """Return status, content type and body of an answer."""
    asked = urllib.request.Request(
        url + request.path,
        method=request.method,
        data=None if request.body is None else json.dumps(request.body).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(asked, timeout=300) as response:
            status, headers, body = response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, headers, body = error.code, error.headers, error.read()
    return {
        "status": status,
        "headers": {"content-type": headers.get("content-type", "")},
        "body": body.decode(),
    }


if __name__ == "__main__":
    main()
