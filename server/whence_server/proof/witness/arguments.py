"""Flags of `whence-server witness`."""

import argparse
from pathlib import Path

EPILOG = "exit status: 0 shut down in order; 2 a setting cannot be used"
DESCRIPTION = (
    "Cosign checkpoints of transparency logs over HTTP (C2SP tlog-witness), and refuse those that "
    "do not continue the last one. Run it where the logs' operators have no access."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "--name", required=True, help="name of the witness, as witness.example/w1; without spaces"
    )
    parser.add_argument(
        "--log",
        dest="logs",
        action="append",
        required=True,
        metavar="VKEY",
        help="verifier key of a log that is witnessed, NAME+ID+BASE64; may be repeated",
    )
    parser.add_argument(
        "--key",
        type=Path,
        default=Path("witness-key.pem"),
        metavar="FILE",
        help="PEM file of the Ed25519 key; made if it does not exist (default: witness-key.pem)",
    )
    parser.add_argument(
        "--db",
        type=Path,
        default=Path("witness.db"),
        metavar="FILE",
        help="SQLite database of what was cosigned, which belongs to the key; made with a new key "
        "(default: witness.db)",
    )
    parser.add_argument(
        "--new-memory",
        action="store_true",
        help="begin with an empty database although the key was used: the witness may then cosign "
        "a log that contradicts what it cosigned before",
    )
    parser.add_argument(
        "--listen",
        default="127.0.0.1:7380",
        metavar="ADDRESS",
        help="HOST:PORT to listen on; port 0 chooses a free one (default: 127.0.0.1:7380)",
    )
    parser.add_argument(
        "--url",
        default="",
        help="URL at which servers of logs reach the witness, as https://witness.example, for the "
        "line that is printed (default: http:// and the address of --listen)",
    )
    parser.add_argument(
        "--max-rate",
        type=float,
        default=10.0,
        metavar="N",
        help="requests without a known log's signature that an address may make in a second, ten "
        "times as many at once (default: 10)",
    )
