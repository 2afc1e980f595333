"""A server with TLS, tokens and JWTs, whose clock and disk a test rules."""

import hashlib
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from certificates import Authority
from cryptography.hazmat.primitives.asymmetric import ec
from fault_shim import FaultShim
from honest_callers import describe_error
from jwt.algorithms import ECAlgorithm
from paced_model import save_paced_model
from server_process import ServerProcess
from slow_clients import Address

from whence.v1 import model_pb2, model_pb2_grpc

ANSWER_S = 30.0
"""Seconds within which an honest call is answered, on a busy machine."""
KEY = ec.generate_private_key(ec.SECP256R1())


def make_header(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


class RuledServer:
    """The server; its tokens are the names of their callers.

    Attributes:
        authority: CA of its certificate.
        server: its process.
        shim: its clock and its disk.
        data: its data directory.
        num_known_tracebacks: number of tracebacks in its log that a test has caused.
    """

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "ca")
        self._callers = folder / "callers"
        self.write_callers("honest", "other")
        self.renew_certificate()
        self.shim = FaultShim(folder)
        key = json.loads(ECAlgorithm.to_jwk(KEY.public_key())) | {"kid": "1"}
        keys = folder / "jwks.json"
        keys.write_text(json.dumps({"keys": [key]}))
        self.data = folder / "data"
        self.num_known_tracebacks = 0
        flags = {
            "--listen": "127.0.0.1:0",
            "--http-listen": "127.0.0.1:0",
            "--metrics-listen": "127.0.0.1:0",
            "--tls-cert": str(self.authority.directory / "server.pem"),
            "--tls-key": str(self.authority.directory / "server.key"),
            "--auth-tokens": str(self._callers),
            "--auth-jwks": str(keys),
            "--auth-jwt-issuer": "https://idp",
            "--auth-jwt-audience": "whence",
            "--durability": "strict",
            "--journal-patience": "120",
        }
        self.server = ServerProcess(
            save_paced_model(folder / "model", 0.01).directory,
            self.data,
            "--trust-remote-code",
            *(part for pair in flags.items() for part in pair),
            environment=self.shim.environment,
        )

    def write_callers(self, *names: str, whole: bool = True) -> None:
        """Replace the file of callers; not whole, its last line is torn."""
        until = datetime.now(UTC) + timedelta(minutes=10)
        lines = [
            {
                "id": name,
                "sha256": hashlib.sha256(name.encode()).hexdigest(),
                "scopes": ["generate", "read:content", "read:all"],
            }
            | ({"expires": until.isoformat()} if name == "brief" else {})
            for name in names
        ]
        text = "\n".join(json.dumps(line) for line in lines)
        new = self._callers.with_suffix(".new")
        new.write_text(text if whole else text[:-20])
        new.chmod(0o600)
        # Written in place, it could be read between two of its lines.
        new.rename(self._callers)

    def renew_certificate(self) -> None:
        """Write another certificate, and then its key."""
        self.authority.issue("server", "localhost", "127.0.0.1")

    def connect(self) -> grpc.Channel:
        """Return a channel with a connection of its own."""
        credentials = grpc.ssl_channel_credentials(self.authority.ca.read_bytes())
        target = self.server.target.removeprefix("grpcs://")
        return grpc.secure_channel(target, credentials, [("grpc.use_local_subchannel_pool", 1)])

    def ask(self, token: str) -> str:
        """Ask for the models over a new connection; return the status."""
        with self.connect() as channel:
            stub = model_pb2_grpc.ModelServiceStub(channel)
            request, metadata = model_pb2.ListModelsRequest(), make_header(token)
            try:
                stub.ListModels(request, timeout=ANSWER_S, metadata=metadata, wait_for_ready=True)
            except grpc.RpcError as error:
                return describe_error(error).split()[0]
            return "OK"

    def list_addresses(self) -> dict[str, Address]:
        """Return the addresses of gRPC, HTTP and the page of metrics."""
        urls = {
            "gRPC": self.server.target,
            "HTTP": self.server.http_url,
            "metrics": self.server.find_metrics(),
        }
        parts = {name: urlsplit(url) for name, url in urls.items()}
        return {name: (part.hostname or "", part.port or 0) for name, part in parts.items()}

    def count_tracebacks(self) -> int:
        """Return the number of tracebacks in its log."""
        return sum("Traceback" in line for line in list(self.server.log))

    def assert_chain_verifies(self) -> None:
        """Verify a copy that is made while the server runs."""
        with tempfile.TemporaryDirectory() as folder:
            copy = str(Path(folder, "copy"))
            for arguments in (
                ("backup", "--from", str(self.data), "--to", copy),
                ("verify", "--data-dir", copy),
            ):
                command = [sys.executable, "-m", "whence_server", *arguments]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
