"""The compose files are well-formed, hardened, pinned, and name what is there."""

import argparse
import json
import re
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from deploy_files import DEPLOY, GIVEN, load_compose, load_yaml

from whence_server.config import add_arguments, make_serve_config

STACK = load_compose("compose.yaml")
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
COLLECTOR = load_yaml("collector/config.yaml")
JAEGER = load_yaml("jaeger/config.yaml")
PROMETHEUS = load_yaml("prometheus/prometheus.yml")
every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.glob("compose*.yaml")))
def test_compose_files_follow_the_specification(name: str) -> None:
    PyCompose.from_json(json.dumps(load_compose(name))).validate()


def test_the_specifications_reader_refuses_what_is_wrong() -> None:
    broken = {"services": {"whence": {"image": "whence:1", "read_onl": True}}}
    with pytest.raises(ValueError, match="read_onl"):
        PyCompose.from_json(json.dumps(broken))


def test_the_gpu_file_changes_a_service_of_the_stack() -> None:
    assert load_compose("compose.cuda.yaml")["services"].keys() == {"whence"}


@every_service
def test_services_are_hardened(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "devices"}


@every_service
def test_images_are_pinned(service: dict[str, Any]) -> None:
    assert re.fullmatch(r"[a-z/-]+:v?[0-9]+\.[0-9]+\.[0-9]+", service["image"])


def test_everything_that_can_has_a_health_check() -> None:
    without = [name for name, service in SERVICES.items() if "healthcheck" not in service]
    # Its image holds a single program, and that has no such command.
    assert without == ["collector"]


@every_service
def test_ports_are_published_on_loopback_alone(service: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@every_service
def test_nothing_of_the_host_is_mounted_but_this_folder_and_the_model(
    service: dict[str, Any],
) -> None:
    for mount in service.get("volumes", ()):
        if isinstance(mount, dict):
            assert mount["source"] == GIVEN["MODEL_DIR"]
            assert mount["read_only"] is True
            continue
        source, _, options = mount.partition(":")
        if source.startswith("."):
            assert (DEPLOY / source).resolve().is_relative_to(DEPLOY)
            assert (DEPLOY / source).exists()
            assert options.endswith(":ro")
        else:
            assert source in STACK["volumes"]


def test_services_wait_for_services_that_are_there() -> None:
    for service in SERVICES.values():
        for name, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[name]


def test_volumes_are_used() -> None:
    mounts = [it for service in SERVICES.values() for it in service.get("volumes", ())]
    used = {mount.partition(":")[0] for mount in mounts if isinstance(mount, str)}
    assert {it for it in used if not it.startswith(".")} == STACK["volumes"].keys()


@pytest.mark.parametrize("gpu", [False, True])
def test_the_settings_are_the_servers(gpu: bool) -> None:
    environment = dict(SERVICES["whence"]["environment"])
    if gpu:
        environment |= load_compose("compose.cuda.yaml")["services"]["whence"]["environment"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    settings = make_serve_config(parser.parse_args([]), environment)
    assert settings.insecure_listen_anywhere
    targets = {
        it["target"] if isinstance(it, dict) else it.split(":")[1]
        for it in SERVICES["whence"]["volumes"]
    }
    assert {settings.model, str(settings.data_dir)} <= targets
    seconds = int(SERVICES["whence"]["stop_grace_period"].removesuffix("s"))
    assert seconds >= settings.drain_grace + 20
    assert settings.device == ("cuda" if gpu else "cpu")


def test_the_example_of_an_environment_names_what_compose_asks_for() -> None:
    text = (DEPLOY / ".env.example").read_text(encoding="utf-8")
    offered = set(re.findall(r"^([A-Z_]+)=", text, re.MULTILINE))
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    assert offered == asked
    # whence refuses to start with WHENCE_* variables that are no settings.
    assert not any(name.startswith("WHENCE_") for name in asked)


def published(service: str) -> set[int]:
    return {int(port.rpartition(":")[2]) for port in SERVICES[service]["ports"]}


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


@pytest.mark.parametrize("config", [COLLECTOR, JAEGER], ids=["collector", "jaeger"])
def test_pipelines_are_made_of_what_is_configured(config: dict[str, Any]) -> None:
    service = config["service"]
    assert set(service.get("extensions", ())) == config.get("extensions", {}).keys()
    for part in ("receivers", "processors", "exporters"):
        used = {it for pipeline in service["pipelines"].values() for it in pipeline[part]}
        assert used == config.get(part, {}).keys()


def test_spans_reach_jaeger_and_only_then_count_as_delivered() -> None:
    endpoint = SERVICES["whence"]["environment"]["WHENCE_OTLP_ENDPOINT"]
    assert endpoint == "http://collector:4317"
    protocols = COLLECTOR["receivers"]["otlp"]["protocols"]
    assert port_of(protocols["grpc"]["endpoint"]) == port_of(endpoint)
    assert published("collector") == {port_of(it["endpoint"]) for it in protocols.values()}
    exporter = COLLECTOR["exporters"]["otlp_grpc/jaeger"]
    jaeger = JAEGER["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    assert exporter["endpoint"] == f"jaeger:{port_of(jaeger)}"
    assert exporter["sending_queue"] == exporter["retry_on_failure"] == {"enabled": False}
    for config in (COLLECTOR, JAEGER):
        assert "batch" not in config["service"]["pipelines"]["traces"]["processors"]
    store = JAEGER["exporters"]["jaeger_storage_exporter"]["trace_storage"]
    assert store in JAEGER["extensions"]["jaeger_storage"]["backends"]
    assert JAEGER["extensions"]["jaeger_query"]["storage"]["traces"] == store


def test_what_is_looked_at_listens_where_it_is_looked_for() -> None:
    query = JAEGER["extensions"]["jaeger_query"]["http"]["endpoint"]
    assert published("jaeger") == {port_of(query)}
    assert SERVICES["jaeger"]["healthcheck"]["test"][-1] == (
        f"http://127.0.0.1:{port_of(JAEGER['extensions']['healthcheckv2']['http']['endpoint'])}"
        "/status"
    )
    path = DEPLOY / "grafana" / "provisioning" / "datasources" / "whence.yaml"
    sources = yaml.safe_load(path.read_text(encoding="utf-8"))["datasources"]
    assert {source["url"] for source in sources} == {
        f"http://jaeger:{port_of(query)}",
        "http://prometheus:9090",
    }
    (provider,) = yaml.safe_load(
        (DEPLOY / "grafana" / "provisioning" / "dashboards" / "whence.yaml").read_text("utf-8")
    )["providers"]
    assert (
        f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
    )


def own_metrics(config: dict[str, Any]) -> int:
    (reader,) = config["service"]["telemetry"]["metrics"]["readers"]
    return int(reader["pull"]["exporter"]["prometheus"]["port"])


def test_prometheus_scrapes_everything_and_keeps_exemplars() -> None:
    targets = {
        it["job_name"]: it["static_configs"][0]["targets"] for it in PROMETHEUS["scrape_configs"]
    }
    metrics = SERVICES["whence"]["environment"]["WHENCE_METRICS_LISTEN"]
    assert targets == {
        "whence": [f"whence:{port_of(metrics)}"],
        "applications": [f"collector:{port_of(COLLECTOR['exporters']['prometheus']['endpoint'])}"],
        "collector": [f"collector:{own_metrics(COLLECTOR)}"],
        "jaeger": [f"jaeger:{own_metrics(JAEGER)}"],
        "prometheus": ["localhost:9090"],
    }
    assert "--enable-feature=exemplar-storage" in SERVICES["prometheus"]["command"]
    assert PROMETHEUS["storage"]["exemplars"]["max_exemplars"] > 0
    assert all((DEPLOY / "prometheus" / name).is_file() for name in PROMETHEUS["rule_files"])
