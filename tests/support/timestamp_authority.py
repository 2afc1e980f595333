"""An authority of timestamps (RFC 3161): OpenSSL behind a small HTTP server."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

_CONFIG = """
[ req ]
distinguished_name = name
prompt = no
[ name ]
CN = {name}
[ root ]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[ stamping ]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[ tsa ]
default_tsa = the_tsa
[ the_tsa ]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
ess_cert_id_alg = sha256
"""


class Authority:
    """An authority with a root of its own.

    Args:
        folder: folder of its files, which is made.
        name: common name of its certificates.
    """

    def __init__(self, folder: Path, name: str = "a test") -> None:
        """Make the certificates."""
        folder.mkdir()
        self._folder = folder
        self.root = folder / "root.pem"
        for what in ("root", "tsa"):
            (folder / f"{what}.cnf").write_text(
                _CONFIG.format(folder=folder, name=f"{what} of {name}")
            )
        (folder / "serial").write_text("01\n")
        new = ("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        self._run(
            *new, "-x509", "-days", "3650", "-extensions", "root", "-config", "root.cnf",
            "-keyout", "root.key", "-out", "root.pem",
        )  # fmt: skip
        self._run(*new, "-config", "tsa.cnf", "-keyout", "tsa.key", "-out", "tsa.csr")
        self._run(
            "x509", "-req", "-in", "tsa.csr", "-CA", "root.pem", "-CAkey", "root.key",
            "-CAcreateserial", "-days", "3650", "-extfile", "tsa.cnf", "-extensions", "stamping",
            "-out", "tsa.pem",
        )  # fmt: skip

    def answer(self, query: bytes) -> bytes:
        """Return the answer to a request."""
        (self._folder / "query.tsq").write_bytes(query)
        self._run(
            "ts", "-reply", "-queryfile", "query.tsq", "-config", "tsa.cnf", "-out", "answer.tsr"
        )
        return (self._folder / "answer.tsr").read_bytes()

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Answer over HTTP; yield the URL."""
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = self.rfile.read(int(self.headers["Content-Length"]))
                answer = authority.answer(query)
                self.send_response(200)
                self.send_header("Content-Type", "application/timestamp-reply")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/"
            finally:
                server.shutdown()
                thread.join(60)

    def _run(self, *given: str) -> None:
        ran = subprocess.run(
            ["openssl", *given],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
