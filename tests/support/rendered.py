"""Manifests of deploy/ as kustomize and Helm render them, and the settings in them."""

import argparse
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import yaml
from deploy_files import DEPLOY
from required import find_program

from whence_server.config import ServeConfig, add_arguments, make_serve_config

KUBERNETES_VERSION = "1.37"
"""The newest whose schemas are known here."""
CHART = DEPLOY / "helm" / "whence"

Manifests = dict[str, dict[str, Any]]
"""Documents by their kind and name, for example "Service/whence"."""


def run_kustomize(folder: str) -> str:
    """Return what kustomize builds of a folder of deploy/kubernetes; kubectl contains it."""
    kubectl = shutil.which("kubectl")
    if kubectl is not None:
        command = [kubectl, "kustomize"]
    else:
        command = [find_program("kustomize", "put it or kubectl on the PATH"), "build"]
    return run(*command, str(DEPLOY / "kubernetes" / folder))


def run_helm(command: str, *arguments: str) -> str:
    """Return what a command of Helm writes about the chart.

    Raises:
        AssertionError: it failed; the message is its output.
    """
    return run(find_program("helm"), command, *arguments)


def render_kustomize(folder: str) -> Manifests:
    """Return the manifests of a folder of deploy/kubernetes."""
    return _index(run_kustomize(folder))


def render_helm(release: str, *arguments: str) -> Manifests:
    """Return the manifests of a release, in a namespace of its name."""
    cluster = (f"--namespace={release}", f"--kube-version={KUBERNETES_VERSION}.0")
    return _index(run_helm("template", release, str(CHART), *cluster, *arguments))


def run(*command: str, env: Mapping[str, str] | None = None) -> str:
    """Return what a command writes to standard output.

    Raises:
        AssertionError: it failed; the message is its output.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _index(text: str) -> Manifests:
    documents = [document for document in yaml.safe_load_all(text) if document]
    manifests = {f"{it['kind']}/{it['metadata']['name']}": it for it in documents}
    assert len(manifests) == len(documents), "two manifests have one kind and name"
    return manifests


def get_pod(manifests: Manifests) -> dict[str, Any]:
    """Return the specification of the pods of the only StatefulSet."""
    (found,) = (it for it in manifests.values() if it["kind"] == "StatefulSet")
    pod: dict[str, Any] = found["spec"]["template"]["spec"]
    return pod


def get_container(manifests: Manifests) -> dict[str, Any]:
    """Return the container of whence, which is a sidecar or the pod's only one."""
    pod = get_pod(manifests)
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    (container,) = (it for it in containers if it["name"] == "whence")
    found: dict[str, Any] = container
    return found


def get_environment(manifests: Manifests) -> dict[str, str]:
    """Return the variables that the container of whence is given, references as empty texts."""
    container = get_container(manifests)
    environment: dict[str, str] = {}
    for source in container["envFrom"]:
        environment |= manifests[f"ConfigMap/{source['configMapRef']['name']}"]["data"]
    return environment | {it["name"]: it.get("value", "") for it in container["env"]}


def read_settings(environment: Mapping[str, str]) -> ServeConfig:
    """Read variables as the server does."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return make_serve_config(parser.parse_args([]), environment)
