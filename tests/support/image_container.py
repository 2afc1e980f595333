"""A container of whence's image, started as the files of deploy/ start it, by podman."""

import os
import subprocess
import uuid
from pathlib import Path
from typing import Self

from rendered import run
from required import find_program, skip_without

USER = 10001
SOCKET = "/run/whence/whence.sock"


def find_image() -> str:
    """Return the name of the image to test; skip the test if there is none."""
    image = os.environ.get("TEST_IMAGE")
    if not image:
        skip_without("image", "no image is given: run `make image`, then `make image-test`")
    return image


class ImageContainer:
    """A container that serves a model: the image's own user, command and health check.

    Its root file system is read-only. It has no network, no capabilities, and no way to gain any.

    Args:
        directory: a new folder for what is mounted.
        model: folder of the model, which every user can read.
        settings: further variables.

    Attributes:
        target: address of its Unix socket, for clients.
        data: the folder that it has as /data.
    """

    def __init__(self, directory: Path, model: Path, **settings: str) -> None:
        self.data = self._make_writable(directory / "data")
        cache, run_dir = (self._make_writable(directory / it) for it in ("cache", "run"))
        self.target = f"unix:{os.path.relpath(run_dir / Path(SOCKET).name)}"
        self._podman = find_program("podman", "apt-get install --no-install-recommends podman crun")
        self._name = f"whence-{uuid.uuid4()}"
        # The test asks for the health check itself, and needs no timer of systemd for it.
        self._environment = os.environ | {"DISABLE_HC_SYSTEMD": "true"}
        environment = {
            "WHENCE_MODEL": "/models/current",
            "WHENCE_MODEL_NAME": "demo",
            "WHENCE_LISTEN": f"unix:{SOCKET}",
            "WHENCE_TARGET": f"unix:{SOCKET}",
            "HF_HUB_OFFLINE": "1",
        }
        variables = (environment | settings).items()
        command = [
            *(self._podman, "run", "--detach", "--name", self._name, "--pull", "never"),
            *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:mode=1777"),
            *("--cap-drop", "all", "--security-opt", "no-new-privileges", "--network", "none"),
            *("--volume", f"{self.data}:/data", "--volume", f"{cache}:/cache"),
            *("--volume", f"{run_dir}:{Path(SOCKET).parent}"),
            *("--volume", f"{model}:/models/current:ro"),
            *(f"--env={name}={value}" for name, value in variables),
            find_image(),
        ]
        run(*command, env=self._environment)

    def _make_writable(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        os.chown(folder, USER, USER)
        return folder

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of podman about the container, whose name replaces "NAME"."""
        return subprocess.run(
            [self._podman, *(self._name if it == "NAME" else it for it in command)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=self._environment,
        )

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as the image's user."""
        return self.ask("exec", "NAME", *command)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.ask("rm", "--force", "--time", "0", "NAME")
