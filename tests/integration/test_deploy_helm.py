"""The Helm chart renders what kustomize builds for the same choices, and refuses wrong values."""

import re
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
from deploy_files import DEPLOY
from rendered import (
    CHART,
    KUBERNETES_VERSION,
    Manifests,
    get_environment,
    get_pod,
    render_helm,
    render_kustomize,
    run_helm,
)

# Values in deploy/helm/examples, and the folder of deploy/kubernetes with the same choices.
CHOICES = {
    "sidecar": "base",
    "gateway": "overlays/gateway",
    "gateway-mtls": "overlays/gateway-mtls",
    "gateway-jwt": "overlays/gateway-jwt",
    "gateway-replicas": "overlays/gateway-replicas",
    "gateway-encrypted": "overlays/gateway-encrypted",
}
# What comes apart from a release of the chart.
APART = {"Namespace", "PersistentVolumeClaim", "Certificate"}
every_choice = pytest.mark.parametrize("choice", CHOICES)


def render(choice: str, *arguments: str) -> Manifests:
    release = "sample" if choice == "sidecar" else "whence"
    return render_helm(
        release, "--values", str(DEPLOY / f"helm/examples/{choice}.yaml"), *arguments
    )


@every_choice
def test_helm_has_nothing_to_say(choice: str) -> None:
    values = str(DEPLOY / f"helm/examples/{choice}.yaml")
    assert "1 chart(s) linted, 0 chart(s) failed" in run_helm(
        "lint", "--strict", str(CHART), "--values", values
    )


@every_choice
def test_manifests_are_valid_for_kubernetes(choice: str) -> None:
    for document in render(choice).values():
        if document["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@every_choice
def test_the_chart_renders_what_kustomize_builds(choice: str) -> None:
    ours, theirs = render(choice), render_kustomize(CHOICES[choice])
    assert get_environment(ours) == get_environment(theirs)
    assert normalize_set(ours) == normalize_set(theirs)
    assert list_services(ours) == list_services(theirs)
    for kind, keys in {
        "NetworkPolicy": ("policyTypes", "ingress", "egress"),
        "PodDisruptionBudget": ("maxUnavailable", "unhealthyPodEvictionPolicy"),
        "ServiceMonitor": ("jobLabel", "scrapeProtocols", "endpoints"),
    }.items():
        here, there = find_spec(ours, kind), find_spec(theirs, kind)
        assert {key: here[key] for key in keys} == {key: there[key] for key in keys}
        assert here.keys() == there.keys()
    kinds = [document["kind"] for document in ours.values()]
    others = [it["kind"] for it in theirs.values() if it["kind"] not in APART]
    # The sample application's program comes apart from the chart too.
    assert sorted(kinds) == sorted(others)[(choice == "sidecar") :]


def find_spec(manifests: Manifests, kind: str) -> dict[str, Any]:
    (found,) = (it["spec"] for it in manifests.values() if it["kind"] == kind)
    spec: dict[str, Any] = found
    return spec


def normalize_set(manifests: Manifests) -> dict[str, Any]:
    """Return the StatefulSet's specification without labels and names that are made up."""
    spec = find_spec(manifests, "StatefulSet")
    pod = get_pod(manifests)
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        for source in container.get("envFrom", ()):
            source["configMapRef"]["name"] = "settings"
        # Their order means nothing.
        container["volumeMounts"] = {it["mountPath"]: it for it in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for volume in volumes.values():
        if "configMap" in volume:
            volume["configMap"]["name"] = re.sub(r"-[a-z0-9]{10}$", "", volume["configMap"]["name"])
    template = spec["template"]
    assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert f"Service/{spec['serviceName']}" in manifests
    kept = {key: spec[key] for key in spec.keys() - {"selector", "serviceName", "template"}}
    return kept | {"pod": pod | {"volumes": volumes}}


def list_services(manifests: Manifests) -> list[Any]:
    """Return ports and kind of each Service, and those of its labels that the monitor looks for."""
    return sorted(
        (
            it["metadata"]["labels"]["app.kubernetes.io/component"],
            it["spec"].get("clusterIP"),
            it["spec"].get("publishNotReadyAddresses"),
            it["spec"]["ports"],
        )
        for it in manifests.values()
        if it["kind"] == "Service"
    )


@every_choice
def test_selectors_find_the_pods(choice: str) -> None:
    manifests = render(choice)
    labels = find_spec(manifests, "StatefulSet")["template"]["metadata"]["labels"].items()
    found = [
        find_spec(manifests, "NetworkPolicy")["podSelector"]["matchLabels"],
        find_spec(manifests, "PodDisruptionBudget")["selector"]["matchLabels"],
        *(it["spec"]["selector"] for it in manifests.values() if it["kind"] == "Service"),
    ]
    assert all(selector.items() <= labels for selector in found)
    monitored = find_spec(manifests, "ServiceMonitor")["selector"]["matchLabels"].items()
    (service,) = (
        it
        for it in manifests.values()
        if it["kind"] == "Service" and monitored <= it["metadata"]["labels"].items()
    )
    assert service["metadata"]["labels"]["app.kubernetes.io/part-of"] == "whence"


def test_changed_settings_start_new_pods() -> None:
    def annotate(*arguments: str) -> Any:
        template = find_spec(render("gateway", *arguments), "StatefulSet")["template"]
        return template["metadata"]["annotations"]["checksum/settings"]

    assert annotate() == annotate()
    assert annotate() != annotate("--set-string", "settings.WHENCE_STEP_SPANS=7")


def test_settings_go_before_derived_ones_and_null_takes_one_away() -> None:
    changed = ("--set-string", "settings.WHENCE_SOCKET_SCOPES=read")
    taken = ("--set", "settings.WHENCE_LOG_LEVEL=null", "--set", "settings.WHENCE_HTTP_LISTEN=null")
    environment = get_environment(render("gateway", *changed, *taken))
    assert environment["WHENCE_SOCKET_SCOPES"] == "read"
    assert not environment.keys() & {"WHENCE_LOG_LEVEL", "WHENCE_HTTP_LISTEN"}


def test_parts_can_be_left_out() -> None:
    parts = ["networkPolicy", "podDisruptionBudget", "serviceMonitor"]
    off = [f"--set={part}.enabled=false" for part in parts]
    kinds = {document["kind"].lower() for document in render("gateway", *off).values()}
    assert not kinds & {part.lower() for part in parts}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("auth.callersSecret=", "give auth.callersSecret or auth.jwt.jwks"),
        ("auth.jwt.jwks=https://issuer.example.com/jwks", "'/auth/jwt/issuer': minLength"),
        ("replicas=2", "give postgresql.secret, or replicas: 1"),
        ("mode=sidecar", "'/application/containers': minItems"),
        ("mode=proxy", "'/mode': value must be one of"),
        # Helm would write 1e+06.
        ("settings.WHENCE_MAX_MESSAGE_BYTES=1000000", "got number, want null or string"),
        ("settings.whence_model=x", "'whence_model' does not match pattern"),
        ("tls.certificate=x", "additional properties 'certificate' not allowed"),
        ("upstream=", "give upstream or settings.WHENCE_MODEL"),
        ("settings.WHENCE_PUBLIC_SERVICES=metrics", "keep health in settings.WHENCE_PUBLIC"),
    ],
)
def test_wrong_values_are_refused(value: str, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        render("gateway", "--set", value)


def test_a_sidecar_without_an_engine_or_with_a_database_is_refused() -> None:
    for value, message in (
        ("settings.WHENCE_MODEL=null", "whence needs an engine"),
        ("postgresql.secret=x", "postgresql.secret is for mode gateway"),
    ):
        with pytest.raises(AssertionError, match=message):
            render("sidecar", "--set", value)


def test_an_engine_and_the_probes_can_be_had_in_other_ways() -> None:
    for changed in (
        "settings.WHENCE_RECORD_ONLY=true",
        "settings.WHENCE_MODEL=/models/current",
    ):
        render("gateway", "--set", "upstream=", "--set-string", changed)
    none = "--set-string=settings.WHENCE_PUBLIC_SERVICES=none"
    render("gateway", none, "--set-string", "settings.WHENCE_SOCKET_SCOPES=read")


def test_rules_of_the_network_can_be_taken_away() -> None:
    names = ("egress", "upstream", "extraEgress")
    taken = [f"--set=networkPolicy.{name}=null" for name in names]
    assert find_spec(render("gateway", *taken), "NetworkPolicy")["egress"] == []
