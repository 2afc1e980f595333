"""The settings of proxies in deploy/README.md are those of the configurations that tests run."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from proxies import REMEDY
from required import find_program

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ("nginx.conf", "haproxy.cfg", "envoy.yaml")
SETTING = re.compile(r"`([^`]+)`")


def read_column(number: int) -> list[str]:
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    section = text.split("## Proxies and load balancers")[1].split("\n## ")[0]
    rows = [line.split("|")[2:-1] for line in section.splitlines() if line.startswith("| ")]
    return [setting for row in rows for setting in SETTING.findall(row[number])]


@pytest.mark.parametrize(("number", "file"), tuple(enumerate(FILES)))
def test_each_setting_of_the_table_is_in_its_file(number: int, file: str) -> None:
    content = (DEPLOY / "proxies" / file).read_text(encoding="utf-8")
    settings = read_column(number)
    assert len(settings) >= 3
    assert [setting for setting in settings if setting not in content] == []


def test_envoys_file_is_yaml_with_one_listener_before_one_server() -> None:
    text = (DEPLOY / "proxies" / "envoy.yaml").read_text(encoding="utf-8")
    resources = yaml.safe_load(text)["static_resources"]
    (listener,), (cluster,) = resources["listeners"], resources["clusters"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert route["route"]["cluster"] == cluster["name"]


@pytest.mark.parametrize("file", ["haproxy.cfg", "haproxy-replicas.cfg"])
def test_haproxy_accepts_its_files(file: str) -> None:
    program = find_program("haproxy", REMEDY)
    path = DEPLOY / "proxies" / file
    done = subprocess.run(
        [program, "-c", "-f", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
