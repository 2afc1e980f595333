"""What a user can set is documented, and the documentation names nothing that is not there."""

import re
from pathlib import Path

from whence_server.config import flag_of, setting_fields, variable_of

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def test_every_setting_is_documented() -> None:
    for field in setting_fields():
        row = f"| `{flag_of(field.name)}` | `{variable_of(field.name)}` |"
        assert row in SETTINGS, row


def test_no_other_setting_is_documented() -> None:
    flags = {flag_of(field.name) for field in setting_fields()}
    assert set(re.findall(r"^\| `(--[a-z-]+)`", SETTINGS, re.MULTILINE)) == flags
