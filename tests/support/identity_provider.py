"""An identity provider: JWTs, and over HTTPS the keys that verify them."""

import http.server
import json
import socket
import ssl
import threading
import time

import jwt
from certificates import Authority
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm


class IdentityProvider:
    """Provider on loopback, which refuses connections until `start`.

    Attributes:
        issuer: its URL, and the issuer of its tokens.
        jwks_url: URL of its keys.
    """

    def __init__(self, authority: Authority) -> None:
        """Take a port; the authority signs the certificate."""
        self._certificate = authority.issue("provider", "127.0.0.1")
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._socket = socket.socket()
        # Nobody else gets the port, and without `listen` its connections are refused.
        self._socket.bind(("127.0.0.1", 0))
        self._server: http.server.ThreadingHTTPServer | None = None
        self.issuer = f"https://127.0.0.1:{self._socket.getsockname()[1]}"
        self.jwks_url = f"{self.issuer}/jwks"

    def start(self) -> None:
        """Answer from now on."""
        key = json.loads(ECAlgorithm.to_jwk(self._key.public_key())) | {"kid": "1"}
        body = json.dumps({"keys": [key]}).encode()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                """Say nothing."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._certificate)
        self._socket.listen(16)
        address = self._socket.getsockname()
        self._server = http.server.ThreadingHTTPServer(address, Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = context.wrap_socket(self._socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def sign(self, audience: str, **claims: object) -> str:
        """Return a token for an hour."""
        given = {"iss": self.issuer, "aud": audience, "exp": time.time() + 3_600} | claims
        return jwt.encode(given, self._key, "ES256", headers={"kid": "1"})

    def close(self) -> None:
        """Give the port back."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._socket.close()
