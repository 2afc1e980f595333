"""Checks of the files in deploy/ by the tools that read them, where these are installed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from rendered import KUBERNETES_VERSION, run_kustomize
from required import find_program

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"


def promtool(*arguments: str) -> str:
    remedy = "apt-get install --no-install-recommends prometheus"
    return told(find_program("promtool", remedy, tool="prometheus"), *arguments)


def told(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=PROMETHEUS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_its_configuration() -> None:
    assert "is valid prometheus config" in promtool("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_an_alert_that_does_not_fire_is_noticed(tmp_path: Path) -> None:
    rules = (PROMETHEUS / "rules.yml").read_text(encoding="utf-8")
    quiet = rules.replace("min_over_time(whence_sequences_waiting[10m]) > 0", "vector(1) > 2")
    assert quiet != rules
    (tmp_path / "rules.yml").write_text(quiet, encoding="utf-8")
    shutil.copy(PROMETHEUS / "rules_test.yml", tmp_path)
    with pytest.raises(AssertionError, match="WhenceQueueWaiting"):
        promtool("test", "rules", str(tmp_path / "rules_test.yml"))


def test_prometheus_understands_every_panel(tmp_path: Path) -> None:
    queries = [
        target["expr"]
        for path in (DEPLOY / "grafana" / "dashboards").glob("*.json")
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", ())
    ]
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries)
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), "utf-8")
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


FOLDERS = ["base", "overlays/example", "overlays/llama-cpp", "overlays/vllm"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_builds_what_kubernetes_takes(folder: str) -> None:
    text = run_kustomize(folder)
    documents = {document["kind"]: document for document in yaml.safe_load_all(text)}
    for kind, document in documents.items():
        if kind != "ServiceMonitor":
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
        assert kind == "Namespace" or document["metadata"]["namespace"] == "whence-sample"
    pod = documents["StatefulSet"]["spec"]["template"]["spec"]
    # Native sidecars start in order: the upstream comes first, as whence waits for it.
    *upstreams, sidecar = pod["initContainers"]
    assert [it["name"] for it in upstreams] == (
        [folder.removeprefix("overlays/")] if folder in FOLDERS[2:] else []
    )
    assert {mount["name"] for it in upstreams for mount in it["volumeMounts"]} <= {
        volume["name"] for volume in pod["volumes"]
    }
    # The name has the hash of the content: a changed setting starts the pods anew.
    name = sidecar["envFrom"][0]["configMapRef"]["name"]
    assert re.fullmatch(r"whence-settings-[a-z0-9]+", name)
    assert f"name: {name}\n" in text
    if folder == "overlays/example":
        assert documents["StatefulSet"]["spec"]["replicas"] == 2
        assert sidecar["image"].startswith("registry.example.com/whence:")
        assert "WHENCE_DURABILITY: strict" in text


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = find_program("hadolint", "put it on the PATH (it is GPL: a tool of yours, not ours)")
    assert told(hadolint, str(DEPLOY / "Dockerfile")) == ""
