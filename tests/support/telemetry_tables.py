"""Tables of docs/telemetry/tables.md, made from the registry.

`make telemetry-tables` runs this module; a test compares the page with it.
"""

from telemetry_registry import (
    FOLDER,
    OFFICIAL,
    Attribute,
    Signal,
    read_attributes,
    read_groups,
    read_signals,
)

PAGE = FOLDER / "tables.md"
_TITLES = {"span": "Spans", "event": "Events", "metric": "Metrics"}
_LEVELS = {"required": "always", "recommended": "if recorded", "opt_in": "if asked for"}


def render_page() -> str:
    """Return the page: every span, event and metric with its attributes, then the attributes."""
    own = read_attributes()
    lines = [
        "# Tables of the registry",
        "",
        "Made from the YAML files of this folder by `make telemetry-tables`. Attributes without a",
        f"meaning here are [OpenTelemetry's]({OFFICIAL['source']}).",
    ]
    for kind in ("span", "event"):
        for signal in read_signals(kind).values():
            lines += ["", f"## {_TITLES[kind][:-1]} `{signal.name}`", "", signal.brief]
            lines += _render_attributes(signal, own)
    lines += ["", "## Metrics", "", "Meanings are in [metrics.md](../metrics.md) and"]
    lines += ["[training-telemetry.md](../training-telemetry.md).", ""]
    lines += ["| metric | kind | unit | attributes |", "| --- | --- | --- | --- |"]
    for signal in read_signals("metric").values():
        keys = ", ".join(f"`{key}`" for key in signal.attributes)
        lines.append(f"| `{signal.name}` | {signal.kind} | `{signal.unit}` | {keys} |")
    lines += ["", "## Attributes", "", "| attribute | type | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{it.key}` | {_show_type(it)} | {it.brief} |" for it in own.values()]
    return "\n".join(lines) + "\n"


def _render_attributes(signal: Signal, own: dict[str, Attribute]) -> list[str]:
    if not signal.attributes:
        return ["", "It has no attributes."]
    lines = ["", "| attribute | type | present |", "| --- | --- | --- |"]
    for key, level in signal.attributes.items():
        kind = _show_type(own[key]) if key in own else OFFICIAL["attributes"][key]
        lines.append(f"| `{key}` | {kind} | {_LEVELS.get(level, level)} |")
    return lines


def _show_type(attribute: Attribute) -> str:
    if attribute.members:
        return ", ".join(f"`{member}`" for member in _list_members(attribute.key))
    return attribute.type


def _list_members(key: str) -> list[str]:
    """Return an enumeration's values in the order of the registry."""
    return [
        member["value"]
        for group in read_groups()
        if group["type"] == "attribute_group"
        for entry in group["attributes"]
        if entry["id"] == key
        for member in entry["type"]["members"]
    ]


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
