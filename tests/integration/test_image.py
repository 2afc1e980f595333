"""The image, in a container as it is deployed: it generates, and writes only where it may."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_container import USER, ImageContainer, find_image
from required import skip_without

from whence import Client

START_TIMEOUT_S = 240.0


@pytest.fixture(scope="module")
def container(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ImageContainer]:
    find_image()
    if os.geteuid() != 0:
        pytest.skip("the image is in root's storage: run `make image-test` as root")
    directory = tmp_path_factory.mktemp("image")
    for folder in (directory, directory.parent, directory.parent.parent):
        folder.chmod(0o755)
    model = directory / "model"
    shutil.copytree(request.getfixturevalue("real_model"), model, copy_function=shutil.copyfile)
    with ImageContainer(directory / "mounts", model) as started:
        deadline = time.monotonic() + START_TIMEOUT_S
        while started.ask("healthcheck", "run", "NAME").returncode != 0:
            state = started.ask("inspect", "--format", "{{.State.Status}}", "NAME").stdout.strip()
            assert state == "running", started.ask("logs", "NAME").stderr
            assert time.monotonic() < deadline, started.ask("logs", "NAME").stderr
        yield started


def test_the_image_generates_over_its_socket(container: ImageContainer) -> None:
    with Client(container.target) as client:
        generation = client.generate("The capital of France is", max_new_tokens=3)
        assert generation.result().text.startswith(" Paris")
        recorded = client.generations.get(generation.id)
    assert recorded.HasField("finished")


def test_the_server_is_the_images_user_without_any_right(container: ImageContainer) -> None:
    status = container.execute("cat", "/proc/1/status").stdout
    facts = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert set(facts["Uid"].split()) == set(facts["Gid"].split()) == {str(USER)}
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    command = container.execute("cat", "/proc/1/cmdline").stdout.split("\0")
    assert command[1:3] == ["/opt/venv/bin/whence-server", "serve"]


def test_only_what_is_mounted_can_be_written(container: ImageContainer) -> None:
    for place in ("/", "/opt/venv", "/opt/whence", "/etc", "/models/current", "/var"):
        done = container.execute("touch", f"{place}/touched")
        assert "Read-only file system" in done.stderr, place
    for place in ("/data", "/cache", "/tmp", "/run/whence"):
        assert container.execute("touch", f"{place}/touched").returncode == 0, place
    # The journal is there, for nobody but the server.
    journal = container.data / "journal.db"
    assert journal.stat().st_uid == USER
    assert journal.stat().st_mode & 0o077 == 0


def test_the_bill_of_materials_lists_what_is_installed(container: ImageContainer) -> None:
    path = os.environ.get("TEST_IMAGE_BILL")
    if not path:
        skip_without("image", "no bill is given: run `make image-test`")
    bill = json.loads(Path(path).read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed: dict[str, set[tuple[str, str]]] = {"pypi": set(), "deb": set()}
    for component in bill["components"]:
        kind = component.get("purl", "pkg:file/").removeprefix("pkg:").partition("/")[0]
        if kind in listed:
            listed[kind].add((component["name"], component["version"]))
    told = container.execute("python", "-m", "pip", "list", "--format", "json").stdout
    installed = {(it["name"], it["version"]) for it in json.loads(told)}
    # The wheel of whence itself was built in the image, and is on no index.
    installed = {it for it in installed if it[0] != "whence"}
    assert listed["pypi"] == installed
    shown = container.execute("dpkg-query", "--show", "--showformat", "${Package} ${Version}\n")
    assert listed["deb"] == {tuple(line.split(" ")) for line in shown.stdout.splitlines()}


# The last one: it stops the container.
def test_the_server_drains_when_it_is_told_to_stop(container: ImageContainer) -> None:
    assert container.ask("stop", "--time", "60", "NAME").returncode == 0
    code = container.ask("inspect", "--format", "{{.State.ExitCode}}", "NAME").stdout.strip()
    assert code == "0", container.ask("logs", "NAME").stderr
