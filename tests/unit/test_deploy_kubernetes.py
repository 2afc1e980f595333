"""The manifests are what Kubernetes takes, refer to what is there, and ask for no rights."""

import argparse
import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from whence_server.config import ServeConfig, add_arguments, make_serve_config

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
BASE, OVERLAY = KUBERNETES / "base", KUBERNETES / "overlays" / "example"
# The first with native sidecars on by default, and the newest that is known here.
VERSIONS = ("1.29", "1.37")
OTEL_VARIABLES = {"OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def kustomization(folder: Path) -> dict[str, Any]:
    (document,) = documents(folder / "kustomization.yaml")
    return document


def variables(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


MANIFESTS = {
    f"{document['kind']}/{document['metadata']['name']}": document
    for name in kustomization(BASE)["resources"]
    for document in documents(BASE / name)
}
SET = MANIFESTS["StatefulSet/sample"]
POD = SET["spec"]["template"]["spec"]
(SIDECAR,), (APPLICATION,) = POD["initContainers"], POD["containers"]
SETTINGS = variables(BASE / "whence.env")


def read(environment: dict[str, str]) -> ServeConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return make_serve_config(parser.parse_args([]), environment)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", sorted(set(MANIFESTS) - {"ServiceMonitor/whence"}))
def test_manifests_are_valid_for_kubernetes(name: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


@pytest.mark.parametrize("folder", [BASE, OVERLAY], ids=["base", "overlay"])
def test_what_kustomize_is_told_of_is_there_and_nothing_else(folder: Path) -> None:
    told = kustomization(folder)
    named = {"kustomization.yaml", *(it for it in told["resources"] if not it.startswith(".."))}
    for generator in told["configMapGenerator"]:
        named |= set(generator.get("envs", ()))
        named |= {it.split("=")[-1] for it in generator.get("files", ())}
    named |= {patch["path"] for patch in told.get("patches", ())}
    there = {str(it.relative_to(folder)) for it in folder.rglob("*") if it.is_file()}
    assert named == {it for it in there if "__pycache__" not in it}


def test_the_overlay_changes_what_is_in_the_base() -> None:
    told = kustomization(OVERLAY)
    assert [(OVERLAY / it).resolve() for it in told["resources"]] == [BASE]
    images = {container["image"].split(":")[0] for container in (SIDECAR, APPLICATION)}
    assert {image["name"] for image in told["images"]} == images
    assert {it["name"] for it in told["replicas"]} == {SET["metadata"]["name"]}
    generated = {it["name"] for it in kustomization(BASE)["configMapGenerator"]}
    assert {it["name"] for it in told["configMapGenerator"]} <= generated
    operations = yaml.safe_load((OVERLAY / "fast-disk.yaml").read_text(encoding="utf-8"))
    claim = "/spec/volumeClaimTemplates/0/spec/"
    assert all(operation["path"].startswith(claim) for operation in operations)
    assert len(SET["spec"]["volumeClaimTemplates"]) == 1
    (patch,) = documents(OVERLAY / "room.yaml")
    assert patch["metadata"]["name"] == SET["metadata"]["name"]
    (container,) = patch["spec"]["template"]["spec"]["initContainers"]
    assert container["name"] == SIDECAR["name"]


def test_names_within_the_manifests_are_of_something() -> None:
    generated = {it["name"] for it in kustomization(BASE)["configMapGenerator"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    claims = {template["metadata"]["name"] for template in SET["spec"]["volumeClaimTemplates"]}
    for container in (SIDECAR, APPLICATION):
        assert {it["name"] for it in container["volumeMounts"]} <= volumes.keys() | claims
        for source in container.get("envFrom", ()):
            assert source["configMapRef"]["name"] in generated
    for volume in volumes.values():
        assert volume.get("configMap", {}).get("name", "sample-application") in generated
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert f"PersistentVolumeClaim/{claim}" in MANIFESTS
    assert f"ServiceAccount/{POD['serviceAccountName']}" in MANIFESTS
    assert f"Service/{SET['spec']['serviceName']}" in MANIFESTS
    labels = SET["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        SET["spec"]["selector"]["matchLabels"],
        MANIFESTS["Service/sample"]["spec"]["selector"],
        MANIFESTS["Service/sample-whence-metrics"]["spec"]["selector"],
        MANIFESTS["NetworkPolicy/sample"]["spec"]["podSelector"]["matchLabels"],
        MANIFESTS["PodDisruptionBudget/sample"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels


@pytest.mark.parametrize("overlaid", [False, True])
def test_the_settings_are_the_servers(overlaid: bool) -> None:
    environment = SETTINGS | (variables(OVERLAY / "whence.env") if overlaid else {})
    environment |= {it["name"]: it.get("value", "") for it in SIDECAR["env"]}
    settings = read(environment)
    assert settings.listen == ("unix:/run/whence/whence.sock",)
    assert settings.durability == ("strict" if overlaid else "group")
    ours = {name for name in environment if name.startswith(("WHENCE_", "OTEL_"))}
    assert {name for name in ours if name.startswith("OTEL_")} <= OTEL_VARIABLES


def test_what_the_server_writes_to_is_mounted() -> None:
    settings = read(SETTINGS)
    mounts = {it["mountPath"]: it for it in SIDECAR["volumeMounts"]}
    writable = {path for path, it in mounts.items() if not it.get("readOnly")}
    assert {str(settings.data_dir), "/run/whence", "/cache", "/tmp"} == writable
    assert Path(settings.model).is_relative_to("/models")
    assert mounts["/models"]["readOnly"]


def test_grpc_is_on_the_socket_alone() -> None:
    settings = read(SETTINGS)
    assert all(address.startswith("unix:") for address in settings.listen)
    (target,) = (it["value"] for it in APPLICATION["env"] if it["name"] == "WHENCE_TARGET")
    assert target == settings.listen[0]
    (socket,) = (it for it in APPLICATION["volumeMounts"] if it["name"] == "socket")
    assert Path(target.removeprefix("unix:")).is_relative_to(socket["mountPath"])
    # 107 bytes is what a Unix socket's path may have.
    assert len(target.removeprefix("unix:")) <= 107
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = SIDECAR[name]["exec"]["command"]
        assert command[:2] == ["python", "/opt/whence/healthcheck.py"]
        assert command[-1] == target
        assert ("--live" in command) is (name == "livenessProbe")


def test_the_metrics_port_is_one() -> None:
    port = int(SETTINGS["WHENCE_METRICS_LISTEN"].rpartition(":")[2])
    assert [it["containerPort"] for it in SIDECAR["ports"]] == [port]
    service = MANIFESTS["Service/sample-whence-metrics"]
    (exposed,) = service["spec"]["ports"]
    assert exposed["targetPort"] == port
    opened = [
        it["port"]
        for rule in MANIFESTS["NetworkPolicy/sample"]["spec"]["ingress"]
        for it in rule["ports"]
    ]
    assert opened == [APPLICATION["ports"][0]["containerPort"], port]


def test_the_service_monitor_finds_the_page() -> None:
    monitor = MANIFESTS["ServiceMonitor/whence"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    spec = monitor["spec"]
    assert spec.keys() == {"selector", "jobLabel", "scrapeProtocols", "endpoints"}
    assert spec["scrapeProtocols"][0].startswith("OpenMetrics")
    service = MANIFESTS["Service/sample-whence-metrics"]
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = spec["endpoints"]
    assert endpoint["port"] in {it["name"] for it in service["spec"]["ports"]}
    # The alerts look for jobs that begin with "whence".
    (pairs,) = (it["pairs"] for it in kustomization(BASE)["labels"])
    assert pairs[spec["jobLabel"]] == "whence"


def test_no_variable_of_kubernetes_own_is_taken_for_a_setting() -> None:
    assert POD["enableServiceLinks"] is False


def test_the_sidecar_outlives_the_application_and_may_drain() -> None:
    assert SIDECAR["restartPolicy"] == "Always"
    assert "restartPolicy" not in APPLICATION
    drain = read(SETTINGS).drain_grace
    assert POD["terminationGracePeriodSeconds"] >= drain + 30


@pytest.mark.parametrize("container", [SIDECAR, APPLICATION], ids=["whence", "application"])
def test_containers_fit_the_restricted_profile(container: dict[str, Any]) -> None:
    pod, own = POD["securityContext"], container["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["readOnlyRootFilesystem"] is True
    assert not own.keys() & {"privileged", "runAsUser", "procMount"}
    assert not POD.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert all("hostPort" not in port for port in container["ports"])
    allowed = {"name", "configMap", "emptyDir", "persistentVolumeClaim"}
    assert all(volume.keys() <= allowed for volume in POD["volumes"])
    assert POD["automountServiceAccountToken"] is False


@pytest.mark.parametrize("container", [SIDECAR, APPLICATION], ids=["whence", "application"])
def test_containers_are_bounded_and_pinned(container: dict[str, Any]) -> None:
    resources = container["resources"]
    assert resources["requests"].keys() >= {"cpu", "memory"}
    assert resources["limits"]["memory"]
    assert re.fullmatch(r"[a-z]+:[0-9]+\.[0-9]+\.[0-9]+", container["image"])
