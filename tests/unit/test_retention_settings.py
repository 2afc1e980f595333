"""Settings of retention: what they accept, and what they refuse with which words."""

import argparse
from datetime import date
from pathlib import Path

import pytest

from whence_server.config import (
    ServeConfig,
    add_arguments,
    add_retention_arguments,
    make_serve_config,
    read_retention_policy,
)
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.retention import LabelAge, LabelPattern, RetentionPolicy

DAY = 86_400


def policy_of(*flags: str, environment: dict[str, str] | None = None) -> RetentionPolicy:
    parser = argparse.ArgumentParser()
    add_retention_arguments(parser)
    return read_retention_policy(parser.parse_args(flags), environment or {})


def make_config(*flags: str) -> ServeConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return make_serve_config(parser.parse_args(["--record-only", *flags]), {})


def test_a_journal_in_postgresql_takes_each_setting() -> None:
    url = "postgresql://whence@db.example/whence"
    keys = "postgresql://whence:hunter2@keys.example/keys"
    config = make_config(
        *("--journal", url, "--retain", "180d", "--retain-bytes", "50GB", "--hold-label", "a=*"),
        *("--journal-key", "/etc/whence/master.key", "--journal-keys", keys),
    )
    assert config.retention_policy.deletes
    assert str(config.journal_keys) == "keys.example/keys"
    assert "hunter2" not in repr(config)


def test_keys_in_a_file_are_refused_with_a_journal_that_servers_share() -> None:
    key = ("--journal-key", "/etc/whence/master.key", "--journal-keys")
    with pytest.raises(ConfigurationError, match="all its servers share"):
        make_config("--journal", "postgresql://whence@db.example/whence", *key, "keys.db")
    with pytest.raises(ConfigurationError, match="as %40") as caught:
        make_config(*key, "postgresql://whence:hun@ter2@keys.example/keys")
    assert "ter2" not in str(caught.value)
    assert make_config(*key, "keys.db").journal_keys == Path("keys.db")


def test_a_time_for_exports_without_a_rule_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no setting deletes anything"):
        policy_of("--retain-unread", "3d")
    assert policy_of("--retain-unread", "3d", "--retain", "9d").unread_s == 3 * DAY


def test_without_settings_nothing_is_deleted() -> None:
    policy = policy_of()
    assert not policy.deletes
    assert policy == RetentionPolicy(unread_s=7 * DAY)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("180d", 180 * DAY), ("36h", 36 * 3_600), ("26w", 182 * DAY), ("ai-act", 184 * DAY)],
)
def test_ages_are_read_in_their_units(text: str, seconds: int) -> None:
    assert policy_of(f"--retain={text}").age_s == seconds


@pytest.mark.parametrize("text", ["0d", "-1d", "1.5d", "180", "7m", "d", "", "40000d", "٣d"])
def test_other_ages_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--retain .*as 36h, 180d or 26w"):
        policy_of(f"--retain={text}")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50GB", 50 * 10**9),
        ("64GiB", 64 << 30),
        ("1.5GB", None),
        ("800 MB", 800 * 10**6),
        ("2000000", 2_000_000),
        ("0", 0),
        ("999", None),
        ("10XB", None),
        ("9999999TB", None),
    ],
)
def test_sizes_are_read_in_their_units(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(ConfigurationError, match="as 800MB, 50GB or 64GiB"):
            policy_of(f"--retain-bytes={text}")
    else:
        assert policy_of(f"--retain-bytes={text}").max_bytes == size


def test_rules_about_labels_may_have_equals_signs_and_come_from_variables() -> None:
    policy = policy_of(
        "--retain-label",
        "env=a=b=7d",
        "--retain-label",
        "team=*=2w",
        environment={"WHENCE_HOLD_LABELS": "matter=*, customer=acme", "WHENCE_RETAIN": "1w"},
    )
    assert policy.label_ages == (
        LabelAge(LabelPattern("env", "a=b"), 7 * DAY),
        LabelAge(LabelPattern("team", "*"), 14 * DAY),
    )
    assert policy.holds == (LabelPattern("matter", "*"), LabelPattern("customer", "acme"))
    assert policy.age_s == 7 * DAY


@pytest.mark.parametrize("text", ["env=7d", "env=test", "=test=7d", "env==7d", "env=test=7"])
def test_malformed_rules_about_labels_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--retain-label"):
        policy_of(f"--retain-label={text}")


@pytest.mark.parametrize("text", ["matter", "=x", "matter=", ""])
def test_malformed_holds_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="expected NAME=VALUE"):
        policy_of(f"--hold-label={text}")


def test_two_ages_for_one_label_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="with 7d and with 8d: give one age"):
        policy_of("--retain-label", "env=test=7d", "--retain-label", "env=test=8d")


@pytest.mark.parametrize(
    "flags",
    [("--retain-bytes", "50GB"), ("--retain-label", "env=test=183d")],
    ids=["size", "label"],
)
def test_the_preset_refuses_what_would_delete_before_six_months(flags: tuple[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="at least six months"):
        policy_of("--retain", "ai-act", *flags)


def test_the_preset_keeps_the_longest_six_months_of_the_calendar() -> None:
    starts = [date(year, month, 1) for year in (2027, 2028) for month in range(1, 13)]
    longest = max(
        (date(it.year + (it.month > 6), (it.month + 5) % 12 + 1, 1) - it).days for it in starts
    )
    policy = policy_of("--retain", "ai-act", "--retain-label", "env=test=300d")
    assert policy.age_s == longest * DAY
