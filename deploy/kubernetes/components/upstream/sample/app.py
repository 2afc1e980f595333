#!/usr/bin/env python3
"""A sample application: answers questions over HTTP, with a server that speaks OpenAI's API.

    GET /ask?question=...   the answer; then, as trailing line, the generation's id on record
    GET /healthz            ok

It knows nothing of whence: OPENAI_BASE_URL decides which server it asks. It needs no package, so
that any image with Python runs it; a service has OpenAI's own client.
"""

import json
import os
import signal
import threading
import urllib.error
import urllib.request
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
MODEL = os.environ.get("MODEL_NAME", "demo")
MAX_TOKENS = 64
MAX_QUESTION_CHARACTERS = 4_000


class Requests(BaseHTTPRequestHandler):
    """One request."""

    timeout = 30

    def do_GET(self) -> None:
        """Answers a request."""
        url = urlsplit(self.path)
        question = parse_qs(url.query).get("question", [""])[0]
        if url.path == "/healthz":
            self._answer(HTTPStatus.OK, "ok")
        elif url.path != "/ask":
            self._answer(HTTPStatus.NOT_FOUND, "GET /ask?question=...")
        elif not 0 < len(question) <= MAX_QUESTION_CHARACTERS:
            problem = f"question: expected 1 to {MAX_QUESTION_CHARACTERS} characters"
            self._answer(HTTPStatus.BAD_REQUEST, problem)
        else:
            self._ask(question)

    def log_request(self, code: int | str = "-", *_: object) -> None:
        """Log the request without its question."""
        self.log_message("%s %s %s", self.command, urlsplit(self.path).path, code)

    def _ask(self, question: str) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": MAX_TOKENS,
        }
        headers = {"content-type": "application/json"}
        # whence's spans are then part of the caller's trace.
        if traceparent := self.headers.get("traceparent"):
            headers["traceparent"] = traceparent
        asked = urllib.request.Request(  # noqa: S310 - the address is a setting
            f"{BASE_URL}/chat/completions", data=json.dumps(body).encode(), headers=headers
        )
        try:
            with urllib.request.urlopen(asked, timeout=120) as response:  # noqa: S310
                answer = json.load(response)
                generation_id = response.headers.get("whence-generation-id", "not on record")
        except urllib.error.HTTPError as error:
            with error:
                self._answer(HTTPStatus.BAD_GATEWAY, error.read().decode(errors="replace"))
        except OSError as error:
            self._answer(HTTPStatus.BAD_GATEWAY, f"{BASE_URL}: {error}")
        else:
            text = answer["choices"][0]["message"]["content"]
            self._answer(HTTPStatus.OK, f"{text}\n[generation {generation_id}]")

    def _answer(self, status: HTTPStatus, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write(f"{text}\n".encode())


def main() -> None:
    """Serve until SIGTERM."""
    address = ("0.0.0.0", int(os.environ.get("PORT", "8080")))  # noqa: S104 - the pod's
    with ThreadingHTTPServer(address, Requests) as application:
        # The first process of a container has no default for SIGTERM.
        signal.signal(
            signal.SIGTERM,
            lambda *_: threading.Thread(target=application.shutdown, daemon=True).start(),
        )
        application.serve_forever()


if __name__ == "__main__":
    main()
