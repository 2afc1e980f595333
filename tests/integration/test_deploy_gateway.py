"""The gateway of deploy/kubernetes: its manifests are valid, and it serves as they say."""

import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
from backend_process import find_free_port
from certificates import Authority
from deploy_files import DEPLOY
from rendered import (
    KUBERNETES_VERSION,
    Manifests,
    get_container,
    get_environment,
    get_pod,
    read_settings,
    render_kustomize,
)
from server_process import ServerProcess

from whence import Client, NotFoundError, UnavailableError
from whence_server.config import ServeConfig
from whence_server.journal.sealing.key_source import read_master_keys
from whence_server.journal.sealing.master_keys import make_master_key

OVERLAYS = ["gateway", "gateway-mtls", "gateway-jwt", "gateway-replicas", "gateway-encrypted"]
MOUNT = "/etc/whence"
UNKNOWN_TO_KUBERNETES = {"ServiceMonitor", "Certificate"}
SECRETS = {"whence-tls", "whence-callers", "whence-journal", "whence-encryption"}
JOURNAL = "postgresql://whence@primary.postgresql.svc/whence"
KEYS = "postgresql://whence@keys.postgresql.svc/keys"


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    return render_kustomize(f"overlays/{request.param}")


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The secrets' files, as the kubelet mounts them: links to a folder that it replaces."""
    root = tmp_path_factory.mktemp("mounted")
    authority = Authority(root / "authority")
    certificate, key = authority.issue("server", "localhost", "127.0.0.1")
    authority.issue("billing", "billing.example.com")
    caller = '{"id": "billing", "certificate": "DNS:billing.example.com", "scopes": ["read"]}'
    secrets = {
        "tls": {
            "tls.crt": certificate.read_text(),
            "tls.key": key.read_text(),
            "ca.crt": authority.ca.read_text(),
        },
        "callers": {"callers.jsonl": caller},
        "encryption": {"master.key": f"{make_master_key()}\n"},
    }
    for secret, files in secrets.items():
        version = root / secret / "..2026_11_30"
        version.mkdir(parents=True)
        (root / secret / "..data").symlink_to(version.name)
        for name, text in files.items():
            (version / name).write_text(text)
            (version / name).chmod(0o440)
            (root / secret / name).symlink_to(f"..data/{name}")
    return root


def move_mounts(environment: dict[str, str], mounted: Path) -> dict[str, str]:
    return {name: value.replace(MOUNT, str(mounted)) for name, value in environment.items()}


def read(manifests: Manifests, mounted: Path) -> ServeConfig:
    environment = move_mounts(get_environment(manifests), mounted)
    if "WHENCE_JOURNAL" in environment:
        environment["WHENCE_JOURNAL"] = JOURNAL
    if "WHENCE_JOURNAL_KEYS" in environment:
        environment["WHENCE_JOURNAL_KEYS"] = KEYS
    return read_settings(environment)


def test_manifests_are_valid_for_kubernetes(manifests: Manifests) -> None:
    for document in manifests.values():
        if document["kind"] not in UNKNOWN_TO_KUBERNETES:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "whence"


def test_the_settings_are_the_servers(manifests: Manifests, mounted: Path) -> None:
    settings = read(manifests, mounted)
    assert settings.tls_cert is not None
    assert settings.auth_tokens is not None or settings.auth_jwks
    assert not settings.insecure_listen_anywhere
    assert not settings.insecure_metrics_anywhere
    # Whoever gets a shell in the container has no rights by it.
    assert settings.socket_scopes == ()


def test_files_that_settings_name_are_mounted(manifests: Manifests) -> None:
    container, pod = get_container(manifests), get_pod(manifests)
    mounts = {it["mountPath"]: it for it in container["volumeMounts"]}
    volumes = {it["name"]: it for it in pod["volumes"]}
    named = [
        value for value in get_environment(manifests).values() if value.startswith(f"{MOUNT}/")
    ]
    assert named
    for path in named:
        mount = mounts[str(Path(path).parent)]
        assert mount["readOnly"] is True
        secret = volumes[mount["name"]]["secret"]
        assert secret["secretName"] in SECRETS
        # The group reads, and nobody writes: a file of callers that others can write to is refused.
        assert secret["defaultMode"] == 0o440
    # The URL of the database names files of its secret, which no setting does.
    secrets = {it["secret"]["secretName"] for it in pod["volumes"] if "secret" in it}
    assert len(secrets - {"whence-journal"}) == len({Path(path).parent for path in named})


def test_ports_are_those_that_the_server_listens_on(manifests: Manifests, mounted: Path) -> None:
    settings = read(manifests, mounted)
    grpc_address, socket = settings.listen
    addresses = (grpc_address, settings.http_listen, settings.metrics_listen)
    grpc_port, http_port, metrics_port = (int(it.rpartition(":")[2]) for it in addresses)
    ports = {it["name"]: it["containerPort"] for it in get_container(manifests)["ports"]}
    assert ports == {"grpc": grpc_port, "https": http_port, "metrics": metrics_port}
    (callers, scraper) = manifests["NetworkPolicy/whence"]["spec"]["ingress"]
    assert [it["port"] for it in callers["ports"]] == [grpc_port, http_port]
    assert [it["port"] for it in scraper["ports"]] == [metrics_port]
    exposed = manifests["Service/whence"]["spec"]["ports"]
    assert {it["targetPort"] for it in exposed} == {"grpc", "https"}
    (page,) = manifests["Service/whence-metrics"]["spec"]["ports"]
    assert page["targetPort"] == metrics_port
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert get_container(manifests)[probe]["exec"]["command"][-1] == socket


def test_the_network_policy_opens_what_the_settings_need(
    manifests: Manifests, mounted: Path
) -> None:
    settings = read(manifests, mounted)
    assert settings.upstream is not None
    needed = {
        _get_namespace_and_port(url)
        for url in (settings.upstream, get_environment(manifests)["WHENCE_OTLP_ENDPOINT"])
    }
    if "WHENCE_JOURNAL" in get_environment(manifests):
        needed.add(("postgresql", 5432))
    rules = manifests["NetworkPolicy/whence"]["spec"]["egress"]
    opened = {
        (peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], port["port"])
        for rule in rules
        for peer in rule["to"]
        for port in rule["ports"]
        if "namespaceSelector" in peer
    }
    assert opened == needed | {("kube-system", 53)}
    beyond = [port["port"] for it in rules for port in it["ports"] if "ipBlock" in it["to"][0]]
    assert beyond == ([443] if settings.auth_jwks else [])


def _get_namespace_and_port(url: str) -> tuple[str, int]:
    match = re.fullmatch(r"http://[a-z]+\.([a-z]+)\.svc:(\d+)(/v1)?", url)
    assert match is not None, url
    return match[1], int(match[2])


def test_replicas_share_a_journal_or_there_is_one(manifests: Manifests) -> None:
    replicas = manifests["StatefulSet/whence"]["spec"]
    variables = {it["name"]: it for it in get_container(manifests)["env"]}
    data = {it["mountPath"]: it["name"] for it in get_container(manifests)["volumeMounts"]}["/data"]
    if "WHENCE_JOURNAL" in variables:
        assert replicas["replicas"] == 2
        secret = variables["WHENCE_JOURNAL"]["valueFrom"]["secretKeyRef"]
        assert secret == {"name": "whence-journal", "key": "url"}
        assert "volumeClaimTemplates" not in replicas
        assert data in {it["name"] for it in get_pod(manifests)["volumes"] if "emptyDir" in it}
    else:
        assert replicas["replicas"] == 1
        assert data in {it["metadata"]["name"] for it in replicas["volumeClaimTemplates"]}


def test_the_master_key_is_read_from_its_secret(manifests: Manifests, mounted: Path) -> None:
    source = read(manifests, mounted).journal_key
    if "WHENCE_JOURNAL_KEYS" not in get_environment(manifests):
        assert source is None
        return
    assert source is not None
    assert len(read_master_keys(source, {})) == 1
    variables = {it["name"]: it for it in get_container(manifests)["env"]}
    # Without the database of the keys they are in the journal's.
    assert variables["WHENCE_JOURNAL_KEYS"]["valueFrom"]["secretKeyRef"] == {
        "name": "whence-encryption",
        "key": "keys-url",
        "optional": True,
    }


def test_selectors_find_the_pods(manifests: Manifests) -> None:
    replicas = manifests["StatefulSet/whence"]["spec"]
    labels = replicas["template"]["metadata"]["labels"].items()
    assert f"Service/{replicas['serviceName']}" in manifests
    for selector in (
        replicas["selector"]["matchLabels"],
        manifests["Service/whence"]["spec"]["selector"],
        manifests["Service/whence-metrics"]["spec"]["selector"],
        manifests["NetworkPolicy/whence"]["spec"]["podSelector"]["matchLabels"],
        manifests["PodDisruptionBudget/whence"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    # One replica at least stays, and a single one does not hold up the drain of its node.
    assert manifests["PodDisruptionBudget/whence"]["spec"]["maxUnavailable"] == 1


def test_the_scraper_trusts_the_name_of_the_gateway(manifests: Manifests) -> None:
    (endpoint,) = manifests["ServiceMonitor/whence"]["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["ca"]["secret"] == {"name": "whence-tls", "key": "ca.crt"}
    certificate = manifests.get("Certificate/whence-tls")
    if certificate is not None:
        assert certificate["spec"]["secretName"] == "whence-tls"
        assert endpoint["tlsConfig"]["serverName"] in certificate["spec"]["dnsNames"]


def test_pods_fit_the_restricted_profile(manifests: Manifests) -> None:
    pod, container = get_pod(manifests), get_container(manifests)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    allowed = {"name", "emptyDir", "secret"}
    assert all(volume.keys() <= allowed for volume in pod["volumes"])


def test_probes_and_certificates_work_with_the_settings_of_mtls(
    mounted: Path, tmp_path: Path
) -> None:
    manifests = render_kustomize("overlays/gateway-mtls")
    environment = move_mounts(get_environment(manifests), mounted)
    # The engine is not there: the gateway starts without it, and waits.
    replaced = {"/run/whence/whence.sock": os.path.relpath(tmp_path / "s"), "0.0.0.0": "127.0.0.1"}
    for there, here in replaced.items():
        environment = {name: value.replace(there, here) for name, value in environment.items()}
    environment = {
        name: re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:0", value)
        for name, value in environment.items()
    }
    environment |= {"WHENCE_UPSTREAM": "http://127.0.0.1:9/v1", "WHENCE_OTLP_ENDPOINT": ""}
    port, socket = find_free_port(), environment.pop("WHENCE_LISTEN").partition(",")[2]
    listen = f"127.0.0.1:{port},{socket}"
    container = get_container(manifests)
    server = ServerProcess(None, tmp_path / "data", "--listen", listen, environment=environment)
    try:
        deadline = time.monotonic() + 60.0
        while (started := probe(container["startupProbe"], socket))[0] != 0:
            assert time.monotonic() < deadline, "".join(server.log)
        assert started == probe(container["livenessProbe"], socket) == (0, "NOT_SERVING")
        assert probe(container["readinessProbe"], socket) == (1, "NOT_SERVING")
        target, authority = f"https://localhost:{port}", mounted / "authority"
        pair = {"cert": str(authority / "billing.pem"), "key": str(authority / "billing.key")}
        with Client(target, ca=str(authority / "ca.pem"), **pair) as client:
            # The caller is known, and may read; there is nothing to be read.
            with pytest.raises(NotFoundError):
                client.generations.get(str(uuid.uuid4()))
        with (
            Client(target, ca=str(authority / "ca.pem"), connect_timeout_s=2.0) as client,
            pytest.raises(UnavailableError),
        ):
            client.generations.get(str(uuid.uuid4()))
    finally:
        server.kill()


def probe(declared: dict[str, Any], target: str) -> tuple[int, str]:
    """Run a probe's command here; return its exit status and the state that it reports."""
    python, script, *arguments = declared["exec"]["command"]
    assert (python, script) == ("python", "/opt/whence/healthcheck.py")
    done = subprocess.run(
        [sys.executable, str(DEPLOY / "healthcheck.py"), *arguments[:-1], target],
        env={name: value for name, value in os.environ.items() if not name.startswith("WHENCE_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.strip().rpartition(" ")[2]
