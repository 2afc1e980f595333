"""Every setting is documented, and every documented setting exists."""

import inspect
import re
from pathlib import Path

from whence_server.config import (
    get_flag,
    get_train_fields,
    get_train_flag,
    list_setting_fields,
    spell_variable,
)
from whence_server.training import record

ROOT = Path(__file__).parents[2]
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def test_every_setting_is_documented() -> None:
    for field in list_setting_fields():
        row = f"| `{get_flag(field)}` | `{spell_variable(field.name)}` |"
        assert row in SETTINGS, row


def test_the_documented_meaning_of_a_setting_is_its_help_text() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)` \| `.+?` \| [^|]*\| (.+) \|$", SETTINGS, re.MULTILINE)
    assert dict(rows) == {
        get_flag(field): field.metadata["help"] for field in list_setting_fields()
    }


def test_no_other_setting_is_documented() -> None:
    flags = {get_flag(field) for field in list_setting_fields()}
    assert set(re.findall(r"^\| `(--[a-z-]+)`", SETTINGS, re.MULTILINE)) == flags


def test_every_setting_of_a_training_is_documented_and_no_other() -> None:
    rows = re.findall(r"^\| `(--[a-z0-9-]+)` \| (?:`.*`)? ?\| (.+) \|$", TRAINING, re.MULTILINE)
    assert rows == [
        (get_train_flag(field.name), field.metadata["help"]) for field in get_train_fields()
    ]


def test_every_argument_of_record_is_documented() -> None:
    rows = set(re.findall(r"^\| `([a-z_]+)` \|", TRAINING, re.MULTILINE))
    # Parameters that only whence-server train can set.
    assert rows | {"trainer", "recipe_json", "writer"} == set(inspect.signature(record).parameters)
