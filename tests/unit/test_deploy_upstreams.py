"""The files that put whence before an inference server of others: reachable, hardened, bounded."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_files import DEPLOY, GIVEN, load_compose

from whence_server.config import ServeConfig, add_arguments, make_serve_config

KINDS = ["llama-cpp", "vllm"]
COMPONENT = DEPLOY / "kubernetes" / "components" / "upstream"
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder in the place of the model that the containers mount."""
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def read(environment: dict[str, str], mount: str, model: Path) -> ServeConfig:
    """Read the settings, with `model` where the container has its model."""
    environment = {
        name: str(model) if value == mount else value for name, value in environment.items()
    }
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return make_serve_config(parser.parse_args([]), environment)


def load_patch(path: Path) -> Any:
    return yaml.safe_load((DEPLOY / "kubernetes" / path).read_text(encoding="utf-8"))


def get_container(kind: str) -> dict[str, Any]:
    """Return the container that an overlay adds, before the one of whence."""
    first = load_patch(Path("overlays") / kind / "upstream.yaml")[0]
    assert (first["op"], first["path"]) == ("add", "/spec/template/spec/initContainers/0")
    container: dict[str, Any] = first["value"]
    return container


def read_flags(arguments: list[str]) -> dict[str, str]:
    pairs = (argument.removeprefix("--").partition("=") for argument in arguments)
    return {name: value for name, _, value in pairs}


def read_settings() -> dict[str, str]:
    lines = (COMPONENT / "whence.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


@every_kind
def test_compose_puts_whence_before_the_upstream(kind: str, model: Path) -> None:
    services = load_compose(f"compose.{kind}.yaml")["services"]
    base = load_compose("compose.yaml")["services"]["whence"]
    assert services.keys() == {"whence", kind}
    environment = base["environment"] | services["whence"]["environment"]
    environment = {name: value for name, value in environment.items() if value is not None}
    settings = read(environment, "/model", model)
    assert settings.upstream_weights == model
    flags = read_flags(services[kind]["command"])
    assert settings.upstream == f"http://{kind}:{flags['port']}/v1"
    assert flags["served-model-name" if kind == "vllm" else "alias"] == settings.model_name
    assert settings.http_listen == "0.0.0.0:8000"
    assert services["whence"]["ports"] == ["127.0.0.1:8000:8000"]
    assert services["whence"]["depends_on"] == {kind: {"condition": "service_healthy"}}


@every_kind
def test_the_upstream_of_compose_is_hardened_and_bounded(kind: str) -> None:
    service = load_compose(f"compose.{kind}.yaml")["services"][kind]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "10001:10001"
    assert service["mem_limit"]
    assert service["healthcheck"]["test"][0] == "CMD"
    # Only whence is published: what goes past it would not be on record.
    assert "ports" not in service
    (mount,) = service["volumes"]
    assert (mount["source"], mount["read_only"]) == (GIVEN["MODEL_DIR"], True)
    assert service["command"][0].partition("=")[2].startswith(mount["target"])


@every_kind
def test_images_are_pinned(kind: str) -> None:
    pinned = r"[a-z./-]+:(server-b[0-9]{5}|v[0-9]+\.[0-9]+\.[0-9]+)"
    image = get_container(kind)["image"]
    assert re.fullmatch(pinned, image)
    assert load_compose(f"compose.{kind}.yaml")["services"][kind]["image"] == image


@every_kind
def test_in_a_pod_everything_is_on_loopback(kind: str, model: Path) -> None:
    settings = read(read_settings(), "/models/current", model)
    assert settings.upstream_weights == model
    flags = read_flags(get_container(kind)["args"])
    assert flags["host"] == "127.0.0.1"
    assert settings.upstream == f"http://127.0.0.1:{flags['port']}/v1"
    assert all(address.startswith("unix:") for address in settings.listen)
    (container,) = load_patch(COMPONENT / "containers.yaml")["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["env"] == [
        {"name": "OPENAI_BASE_URL", "value": f"http://{settings.http_listen}/v1"}
    ]
    ports = {settings.http_listen.rpartition(":")[2], flags["port"], "9464", "8080"}
    assert len(ports) == 4, "containers of a pod share their ports"
    assert flags["served-model-name" if kind == "vllm" else "alias"] == settings.model_name


@every_kind
def test_the_upstream_of_a_pod_is_probed_hardened_and_bounded(kind: str) -> None:
    container = get_container(kind)
    # A native sidecar: the pod ends when its application does.
    assert container["restartPolicy"] == "Always"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = " ".join(container[probe]["exec"]["command"])
        assert "http://127.0.0.1:8001/health" in command
    resources = container["resources"]
    assert resources["requests"].keys() >= {"cpu", "memory"}
    assert resources["limits"]["memory"] == resources["requests"]["memory"]
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_whence_computes_nothing_and_asks_for_little(model: Path) -> None:
    (sidecar,) = load_patch(COMPONENT / "containers.yaml")["spec"]["template"]["spec"][
        "initContainers"
    ]
    assert sidecar["name"] == "whence"
    assert sidecar["resources"]["limits"]["memory"] == "1Gi"
    assert not read(read_settings(), "/models/current", model).model


def test_vllms_tokenizer_is_whences_too(model: Path) -> None:
    patch = load_patch(Path("overlays/vllm/sidecar.yaml"))
    (sidecar,) = patch["spec"]["template"]["spec"]["initContainers"]
    environment = read_settings() | {it["name"]: it["value"] for it in sidecar["env"]}
    assert read(environment, "/models/current", model).tokenizer == model
