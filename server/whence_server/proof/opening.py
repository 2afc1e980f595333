"""Opening of what signs a server's generations."""

from pathlib import Path

from whence_server.proof.signing_keys import KEY_NAME, LIST_NAME, SigningKeys
from whence_server.proof.statements import Statements


class Proof:
    """Keys and statements of one server.

    Attributes:
        keys: its signing keys.
        statements: maker of the statements about generations.
    """

    def __init__(self, keys: SigningKeys) -> None:
        self.keys = keys
        self.statements = Statements(keys.choose)


def open_proof(data_dir: Path, signing_key: Path | None) -> Proof:
    """Open the signing keys of a server whose data directory exists.

    Args:
        data_dir: the data directory, which has the list of keys.
        signing_key: file of the private key; None for the one in the data directory.

    Raises:
        ConfigurationError: a key cannot be used.
    """
    key_path = data_dir / KEY_NAME if signing_key is None else signing_key
    return Proof(SigningKeys.open(key_path, data_dir / LIST_NAME))
