#!/usr/bin/env python3
"""Writes the bill of materials of an image, in CycloneDX's format (JSON, version 1.6).

    sbom.py ROOT --name NAME --version VERSION --output FILE

ROOT is the image's root directory, mounted. Its Python packages are read by `cyclonedx-py`, its
Debian packages from the database of dpkg. Libraries that a package bundles, as torch's wheel does,
have no entry of their own. The bill is checked with CycloneDX's own schema before it is written.

Exit status: 0 written, 1 the bill or the image is not as it should be, 2 a wrong argument.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from email.parser import HeaderParser
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

# The environment of the server, and the folders of Debian's Python and of python.org's.
PYTHON_FOLDERS = (
    "opt/venv/lib/python3.*/site-packages",
    "usr/local/lib/python3.*/site-packages",
    "usr/lib/python3/dist-packages",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the bill.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description="Writes the bill of materials of an image.")
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parsed = parser.parse_args(arguments)
    try:
        text = make_bill(parsed.root, parsed.name, parsed.version)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"{parsed.root}: {error}", file=sys.stderr)
        return 1
    parsed.output.write_text(text, encoding="utf-8")
    return 0


def make_bill(root: Path, name: str, version: str) -> str:
    """Return the bill of the image that is mounted at a directory.

    Raises:
        ValueError: the directory is no Debian with Python packages, or the bill is not valid.
        OSError: its files cannot be read.
        subprocess.CalledProcessError: `cyclonedx-py` failed.
    """
    bill = list_python_packages(root)
    debian = list(list_debian_packages(root))
    if not bill.components or not debian:
        raise ValueError("there are no Python packages or no Debian packages in it")
    packages = [*bill.components, *debian]
    bill.components.update(debian)
    if not any(it.name.startswith("python3.") for it in debian):
        interpreter = _describe_interpreter(root)
        bill.components.add(interpreter)
        packages.append(interpreter)
    bill.components.add(_describe_system(root))
    image = Component(
        type=ComponentType.CONTAINER, name=name, version=version, bom_ref=f"image:{name}@{version}"
    )
    bill.metadata.component = image
    bill.register_dependency(image, packages)
    text = JsonV1Dot6(bill).output_as_string(indent=1)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise ValueError(f"the bill is not valid: {problem}")
    return text


def list_python_packages(root: Path) -> Bom:
    """Return the bill of an image's Python packages, with their licences and dependencies.

    Raises:
        subprocess.CalledProcessError: `cyclonedx-py` failed.
    """
    folders = [str(found) for pattern in PYTHON_FOLDERS for found in sorted(root.glob(pattern))]
    with tempfile.TemporaryDirectory() as directory:
        # cyclonedx-py asks an interpreter for its path, and nothing else. The image's own would
        # answer with folders of this machine.
        interpreter = Path(directory) / "python"
        interpreter.write_text(f"#!{sys.executable}\nprint({json.dumps(folders)!r})\n")
        interpreter.chmod(0o700)
        command = str(Path(sysconfig.get_path("scripts")) / "cyclonedx-py")
        flags = ["--spec-version", "1.6", "--output-format", "JSON", "--output-file", "-"]
        done = subprocess.run(  # noqa: S603 # it comes with this script's own environment
            [command, "environment", *flags, str(interpreter)], stdout=subprocess.PIPE, check=True
        )
    bill: Bom = Bom.from_json(json.loads(done.stdout))
    return bill


def list_debian_packages(root: Path) -> Iterator[Component]:
    """Yield the installed Debian packages of an image.

    Raises:
        OSError: the image has no database of dpkg.
    """
    release = _read_release(root)
    status = (root / "var/lib/dpkg/status").read_text(encoding="utf-8")
    for paragraph in filter(str.strip, status.split("\n\n")):
        package = HeaderParser().parsestr(paragraph.lstrip("\n"))
        if package["Status"] != "install ok installed":
            continue
        name, version, architecture = (package[it] for it in ("Package", "Version", "Architecture"))
        place = {"arch": architecture, "distro": f"{release['ID']}-{release['VERSION_ID']}"}
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            description=package["Description"].partition("\n")[0],
            bom_ref=f"deb:{name}:{architecture}@{version}",
            purl=PackageURL("deb", release["ID"], name, version, place),
        )


def _describe_interpreter(root: Path) -> Component:
    """Return the Python that was compiled for the image, and is in no package.

    Raises:
        ValueError: its version is not known.
    """
    for configuration in root.glob("opt/venv/pyvenv.cfg"):
        for line in configuration.read_text(encoding="utf-8").splitlines():
            key, _, version = (part.strip() for part in line.partition("="))
            if key == "version":
                purl = PackageURL("generic", name="python", version=version)
                return Component(
                    type=ComponentType.APPLICATION,
                    name="python",
                    version=version,
                    bom_ref=f"python@{version}",
                    purl=purl,
                )
    raise ValueError("opt/venv/pyvenv.cfg does not say which Python is in it")


def _describe_system(root: Path) -> Component:
    release = _read_release(root)
    return Component(
        type=ComponentType.OPERATING_SYSTEM,
        name=release["ID"],
        version=release["VERSION_ID"],
        description=release["PRETTY_NAME"],
        bom_ref=f"system:{release['ID']}@{release['VERSION_ID']}",
    )


def _read_release(root: Path) -> dict[str, str]:
    # The link etc/os-release would lead out of the image, were it absolute.
    lines = (root / "usr/lib/os-release").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name: value.strip('"') for name, _, value in pairs}


if __name__ == "__main__":
    sys.exit(main())
