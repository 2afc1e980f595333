"""Keys in a key service or a security module, through securesystemslib's signers.

A call of a service takes tens of milliseconds. So its key signs no statement: it signs the entry of
the server's own key, once, and who trusts it can check what that key signs.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from whence.proof.envelope import Signature, encode_for_signing
from whence.proof.faults import ProofError
from whence.proof.public_key import PublicKey
from whence_server.domain.errors import ConfigurationError

_PIN = "HSM_PIN"
_P256 = "ecdsa-sha2-nistp256"


class ServiceKey:
    """Key that never leaves its service.

    Attributes:
        public: its public key.
    """

    def __init__(self, uri: str, environment: Mapping[str, str]) -> None:
        """Ask the service for the public key.

        Args:
            uri: URI of a signer, as `awskms:KEY`.
            environment: variables of the process; HSM_PIN is the PIN of a security module.

        Raises:
            ConfigurationError: the service does not answer, a package is missing, or it is no key
                on the curve P-256.
        """
        self._uri = uri
        self._signer, pem = self._call(lambda: _open(uri, environment))
        try:
            self.public = PublicKey(pem, f"--signing-key {uri}")
        except ProofError as error:
            raise ConfigurationError(str(error)) from None

    def sign(self, payload_type: str, payload: bytes) -> Signature:
        """Return the signature of a DSSE payload.

        Raises:
            ConfigurationError: the service does not sign.
        """
        signed = encode_for_signing(payload_type, payload)
        made = self._call(lambda: self._signer.sign(signed))
        return Signature(self.public.key_id, bytes.fromhex(made.signature))

    def _call(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except ConfigurationError:
            raise
        except ImportError as error:
            raise ConfigurationError(
                f"--signing-key {self._uri}: needs the package {error.name}: "
                "pip install 'whence[key-services]', and the package of the service that "
                "securesystemslib's documentation names"
            ) from None
        except Exception as error:  # each service has errors of its own
            raise ConfigurationError(
                f"--signing-key {self._uri}: {type(error).__name__}: {error}"
            ) from error


def _open(uri: str, environment: Mapping[str, str]) -> tuple[Any, str]:
    """Return a signer of securesystemslib, and its public key as PEM."""
    # Its types leave out what it exports.
    signer: Any = import_module("securesystemslib.signer")
    scheme, _, place = uri.partition(":")

    def read_pin(_name: str) -> str:
        if _PIN not in environment:
            raise ConfigurationError(f"--signing-key {uri}: set the variable {_PIN} to its PIN")
        return environment[_PIN]

    match scheme:
        case "awskms":
            full, key = signer.AWSSigner.import_(place, _P256)
        case "gcpkms":
            full, key = signer.GCPSigner.import_(place)
        case "azurekms":
            full, key = signer.AzureSigner.import_(*place.strip("/").split("/", 1))
        case "hsm":
            full, key = signer.HSMSigner.import_(int(place), secrets_handler=read_pin)
        case _:
            full, key = uri, _read_own(signer, place)
    opened = signer.Signer.from_priv_key_uri(full, key, read_pin)
    return opened, key.keyval["public"]


def _read_own(signer: Any, place: str) -> Any:
    """Return the public key of a private key in a file."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with open(place, "rb") as file:  # noqa: PTH123 - as securesystemslib opens it
        private = load_pem_private_key(file.read(), None)
    return signer.SSlibKey.from_crypto(private.public_key())
