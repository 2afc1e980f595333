"""Command `whence-server attest`: signatures of a trained model, and documents about it."""

import argparse
import json
from pathlib import Path
from typing import Any

from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.lineage.reader import is_being_written

EPILOG = """exit status: 0 done; 1 the record or a file of the model is damaged or missing, or a
file cannot be written; 2 an argument or the key cannot be used"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", type=Path, metavar="DIR", help="directory of model and record")
    parser.add_argument(
        "--signing-key",
        type=Path,
        metavar="FILE",
        help="sign the files (model.sig, OpenSSF model signing) and the record (lineage.sig) by "
        "this private key, PEM on the curve P-256; it is made if it is missing",
    )
    parser.add_argument(
        "--slsa", type=Path, metavar="FILE", help="write a SLSA provenance v1 (JSON)"
    )
    parser.add_argument(
        "--ml-bom", type=Path, metavar="FILE", help="write a CycloneDX 1.7 ML-BOM (JSON)"
    )


def run(parsed: argparse.Namespace) -> int:
    """Run the command; return the exit status.

    Raises:
        ConfigurationError: the key cannot be used, or nothing is asked for.
        LineageError: the record or the model is damaged or being written, or a file cannot be
            written.
    """
    from whence_server.training.attest.ml_bom import describe_ml_bom
    from whence_server.training.attest.provenance import describe_provenance
    from whence_server.training.attest.signatures import check_files, sign_model
    from whence_server.training.attest.trained import read_trained

    if not (parsed.signing_key or parsed.slsa or parsed.ml_bom):
        raise ConfigurationError("nothing to do: give --signing-key, --slsa or --ml-bom")
    trained = read_trained(parsed.model)
    if is_being_written(trained.run.path):
        raise LineageError(
            f"{trained.run.path}: is being written; let the training end: what is signed now would "
            "be about an older record"
        )
    check_files(parsed.model, trained)
    if parsed.signing_key is not None:
        key = sign_model(parsed.model, parsed.signing_key)
        print(f"{parsed.model}: signed by key {key.public.key_id}")
    for path, describe in ((parsed.slsa, describe_provenance), (parsed.ml_bom, describe_ml_bom)):
        if path is not None:
            _write(path, describe(trained))
    return 0


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise LineageError(f"{path}: cannot be written ({error.strerror})") from error
    print(f"wrote {path}")
