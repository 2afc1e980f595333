"""Opening of what signs a server's generations."""

from collections.abc import Mapping
from pathlib import Path

from whence_server.domain.signing import choose_key_path, is_service
from whence_server.proof.key_services import ServiceKey
from whence_server.proof.signing_keys import KEY_NAME, LIST_NAME, SigningKeys, certify
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


def open_proof(data_dir: Path, signing_key: str | None, environment: Mapping[str, str]) -> Proof:
    """Open the signing keys of a server whose data directory exists.

    Args:
        data_dir: the data directory, which has the list of keys.
        signing_key: place of the key; None for the one in the data directory.
        environment: variables of the process, for a key service.

    Raises:
        ConfigurationError: a key cannot be used.
    """
    key_path = choose_key_path(signing_key, data_dir / KEY_NAME)
    list_path = data_dir / LIST_NAME
    if signing_key is not None and is_service(signing_key):
        certify(key_path, list_path, signing_key, lambda: ServiceKey(signing_key, environment))
    return Proof(SigningKeys.open(key_path, list_path))
