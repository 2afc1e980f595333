#!/usr/bin/env python3
"""A sample application: completes texts over HTTP, with the whence beside it.

    GET /complete?prompt=...   the text, as it comes; then, as trailing line, its trace
    GET /healthz               ok

A caller's `traceparent` goes on to whence, whose spans then are part of the caller's trace.
"""

import os
import signal
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from whence import Client, WhenceError

MAX_NEW_TOKENS = 64
MAX_PROMPT_CHARACTERS = 4_000


class Application(ThreadingHTTPServer):
    """The HTTP server, with the one client that its requests share."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], client: Client) -> None:
        self.client = client
        super().__init__(address, Requests)


class Requests(BaseHTTPRequestHandler):
    """One request."""

    server: Application
    timeout = 30

    def do_GET(self) -> None:
        """Answers a request."""
        url = urlsplit(self.path)
        prompt = parse_qs(url.query).get("prompt", [""])[0]
        if url.path == "/healthz":
            self._answer(HTTPStatus.OK, "ok")
        elif url.path != "/complete":
            self._answer(HTTPStatus.NOT_FOUND, "GET /complete?prompt=...")
        elif not 0 < len(prompt) <= MAX_PROMPT_CHARACTERS:
            problem = f"prompt: expected 1 to {MAX_PROMPT_CHARACTERS} characters"
            self._answer(HTTPStatus.BAD_REQUEST, problem)
        else:
            self._complete(prompt)

    def log_request(self, code: int | str = "-", *_: object) -> None:
        """Log the request without its prompt."""
        self.log_message("%s %s %s", self.command, urlsplit(self.path).path, code)

    def _complete(self, prompt: str) -> None:
        traceparent = self.headers.get("traceparent")
        metadata = {"traceparent": traceparent} if traceparent else {}
        begun = False
        try:
            with self.server.client.generate(
                prompt, max_new_tokens=MAX_NEW_TOKENS, metadata=metadata
            ) as generation:
                for token in generation:
                    if not begun:
                        self._begin(HTTPStatus.OK)
                        begun = True
                    self.wfile.write(token.text.encode())
                    self.wfile.flush()
                trailer = f"\n[{generation.finish_reason}, trace {generation.trace_id}]\n"
        except WhenceError as error:
            if not begun:
                self._answer(HTTPStatus.BAD_GATEWAY, str(error))
                return
            trailer = f"\n[broken off: {error}]\n"
        except ConnectionError:
            return  # the caller is gone, and the generation is cancelled
        if not begun:
            self._begin(HTTPStatus.OK)
        self.wfile.write(trailer.encode())

    def _answer(self, status: HTTPStatus, text: str) -> None:
        self._begin(status)
        self.wfile.write(f"{text}\n".encode())

    def _begin(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()


def main() -> None:
    """Serve until SIGTERM."""
    address = ("0.0.0.0", int(os.environ.get("PORT", "8080")))  # noqa: S104 - the pod's
    # The target is $WHENCE_TARGET.
    with Client() as client, Application(address, client) as application:
        # The first process of a container has no default for SIGTERM.
        signal.signal(
            signal.SIGTERM,
            lambda *_: threading.Thread(target=application.shutdown, daemon=True).start(),
        )
        application.serve_forever()


if __name__ == "__main__":
    main()
