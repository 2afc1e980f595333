"""Extract from OpenTelemetry's semantic conventions what the table beside this file says.

    python tests/conventions/extract.py FOLDER > tests/conventions/extract.yaml

FOLDER holds `model` and `docs` of open-telemetry/semantic-conventions, Apache-2.0, at the tag that
the table names: `git archive v1.41.0 model docs | tar --extract --directory FOLDER`.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
TABLE: dict[str, Any] = yaml.safe_load((HERE / "opentelemetry.yaml").read_text(encoding="utf-8"))
_BUCKETS = re.compile(
    r"### Metric: `([a-z_.]+)`(?:(?!### ).)*?(This metric SHOULD be.+?)\.\n\n", re.DOTALL
)


def extract(folder: Path) -> dict[str, Any]:
    """Return types, values, events, metrics and sentences about buckets, each with its file."""
    groups = {
        group["id"]: {**group, "file": str(path.relative_to(folder))}
        for path in sorted(folder.glob("model/**/*.yaml"))
        if "deprecated" not in path.parts
        for group in yaml.safe_load(path.read_text(encoding="utf-8")).get("groups", ())
    }
    return {
        "source": TABLE["source"],
        "attributes": {
            entry["id"]: {"file": group["file"], **_describe_type(entry["type"])}
            for group in groups.values()
            for entry in group.get("attributes", ())
            if entry.get("id") in TABLE["attributes"]
        },
        "events": {
            group["name"]: group["file"]
            for group in groups.values()
            if group["type"] == "event" and group["name"] in TABLE["events"]
        },
        "metrics": {
            group["metric_name"]: {
                **{key: group[key] for key in ("file", "instrument", "unit")},
                "attributes": sorted(_list_attributes(group["id"], groups)),
            }
            for group in groups.values()
            if group.get("metric_name") in TABLE["metrics"]
        },
        "buckets": _extract_buckets(folder),
    }


def _describe_type(kind: Any) -> dict[str, Any]:
    if isinstance(kind, dict):
        return {"type": "enum", "values": [member["value"] for member in kind["members"]]}
    return {"type": kind}


def _list_attributes(group_id: str, groups: Mapping[str, Any]) -> set[str]:
    group = groups[group_id]
    own = {entry["ref"] for entry in group.get("attributes", ()) if "ref" in entry}
    return own | (_list_attributes(group["extends"], groups) if "extends" in group else set())


def _extract_buckets(folder: Path) -> dict[str, dict[str, str]]:
    return {
        name: {"file": str(path.relative_to(folder)), "sentence": " ".join(sentence.split())}
        for path in sorted(folder.glob("docs/*/*-metrics.md"))
        for name, sentence in _BUCKETS.findall(path.read_text(encoding="utf-8"))
        if name in TABLE["metrics"]
    }


if __name__ == "__main__":
    print(
        "# Made by extract.py from the files that are named here; Apache-2.0, (c) The OpenTelemetry"
    )
    print("# Authors. Not to be edited.")
    yaml.safe_dump(extract(Path(sys.argv[1])), sys.stdout, width=100, allow_unicode=True)
