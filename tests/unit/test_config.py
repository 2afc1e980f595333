"""Settings: each is validated, and unknown ones are refused."""

import argparse
from pathlib import Path

import pytest

from whence_server.config import ServeConfig, add_arguments, make_serve_config
from whence_server.domain.content import ContentPolicy
from whence_server.domain.errors import ConfigurationError


def read(*flags: str, **environment: str) -> ServeConfig:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return make_serve_config(parser.parse_args(flags), environment)


def test_settings_have_their_documented_defaults() -> None:
    settings = read("--model", "some/where")
    assert settings.listen == ("127.0.0.1:50051",)
    assert settings.durability == "group"
    assert settings.served_name == "some/where"


def test_flag_takes_precedence_over_the_environment() -> None:
    assert read("--model", "a", WHENCE_MAX_QUEUE="7").max_queue == 7
    assert read("--model", "a", "--max-queue", "9", WHENCE_MAX_QUEUE="7").max_queue == 9
    assert read(WHENCE_MODEL="b").model == "b"


def test_progress_interval_is_0_or_at_least_a_tenth_of_a_second() -> None:
    assert read("--model", "a").progress_interval == 10.0
    assert read("--model", "a", "--progress-interval", "0").progress_interval == 0.0
    with pytest.raises(ConfigurationError, match=r"expected seconds, from 0\.1 on, or 0"):
        read("--model", "a", "--progress-interval", "0.01")


def test_content_policy_is_full_unless_it_is_lowered() -> None:
    assert read("--model", "a").content_policy is ContentPolicy.FULL
    assert read("--model", "a", "--journal-content", "none").content_policy is ContentPolicy.NONE
    assert read(WHENCE_MODEL="a", WHENCE_JOURNAL_CONTENT="tokens").content_policy.value == 2
    with pytest.raises(ConfigurationError, match="expected one of full, tokens, none"):
        read("--model", "a", "--journal-content", "text")


def test_listen_takes_several_addresses() -> None:
    settings = read("--model", "a", "--listen", "127.0.0.1:1, unix:/tmp/s")
    assert settings.listen == ("127.0.0.1:1", "unix:/tmp/s")


METRICS_ALLOWED = [
    ("127.0.0.1:1", ()),
    ("127.9.9.9:0", ()),
    ("[::1]:1", ()),
    ("::1:1", ()),
    ("localhost:1", ()),
    ("0.0.0.0:1", ("--insecure-metrics-anywhere",)),
    ("[::]:1", ("--insecure-listen-anywhere",)),
]


@pytest.mark.parametrize(("address", "flags"), METRICS_ALLOWED)
def test_metrics_page_listens_on_loopback_or_with_a_flag(
    address: str, flags: tuple[str, ...]
) -> None:
    settings = read("--model", "a", "--metrics-listen", address, *flags)
    assert settings.metrics_listen == address


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:9464", "[::]:1", "::1", "192.0.2.1:1", "example.org:1", "[::ffff:1.2.3.4]:1"],
)
def test_metrics_page_beyond_loopback_is_refused_by_default(address: str) -> None:
    """Expect the message of gRPC's --listen for this flag."""
    for settings in (
        {"WHENCE_METRICS_LISTEN": address},
        {"WHENCE_METRICS_LISTEN": address, "WHENCE_INSECURE_METRICS_ANYWHERE": "false"},
    ):
        with pytest.raises(ConfigurationError) as caught:
            read("--model", "a", **settings)
        assert str(caught.value) == (
            f"--metrics-listen {address}: an address beyond loopback needs TLS and authentication: "
            "--tls-cert, --tls-key, and --auth-tokens or --auth-jwks; --insecure-metrics-anywhere "
            "lifts this"
        )


def test_served_name_is_the_directorys_name(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert read("--model", f"{tmp_path}/my-model/").served_name == "my-model"
    assert read("--model", str(tmp_path), "--model-name", "x").served_name == "x"


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        ((), {}, "--model"),
        (("--model", ""), {}, "must not be empty"),
        (("--model", "a", "--max-queue", "0"), {}, "--max-queue '0': expected a whole number"),
        (("--model", "a", "--max-queue", "many"), {}, "expected a whole number"),
        (("--model", "a", "--dtype", "float8"), {}, "expected one of auto"),
        (("--model", "a", "--device", "gpu"), {}, "expected cpu, cuda"),
        (("--model", "a", "--step-spans", "some"), {}, "expected all, off"),
        (("--model", "a", "--drain-grace", "-1"), {}, "expected seconds"),
        (("--model", "a", "--drain-grace", "nan"), {}, "expected seconds"),
        (("--model", "a", "--default-disconnect-grace", "3601"), {}, "from 0 to 3600"),
        (("--model", "a", "--listen", " , "), {}, "at least one address"),
        (("--model", "a"), {"WHENCE_DURABILITY": "maybe"}, "WHENCE_DURABILITY 'maybe'"),
        (("--model", "a"), {"WHENCE_MAX_QUEU": "7"}, "WHENCE_MAX_QUEU: no such setting"),
        (("--model", "a"), {"WHENCE_TRUST_REMOTE_CODE": "maybe"}, "expected true or false"),
    ],
)
def test_malformed_setting_is_an_error_with_the_expected_form(
    flags: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(*flags, **environment)
    assert words in str(caught.value)


def test_unknown_flags_are_errors() -> None:
    with pytest.raises(SystemExit):
        read("--model", "a", "--max-queu", "7")


def test_the_variables_of_client_and_demo_are_not_unknown_settings() -> None:
    beside = {
        "WHENCE_TARGET": "127.0.0.1:1",
        "WHENCE_TRACE_URL": "http://h/{trace_id}",
        "WHENCE_DEMO_MODEL_GGUF": "/models/a.gguf",
    }
    assert read("--model", "a", **beside).model == "a"


def test_training_runs_must_be_existing_directories(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    both = f"{tmp_path / 'a'}, {tmp_path / 'b'}"
    given = read("--model", "m", "--training-runs", both)
    assert given.training_runs == (tmp_path / "a", tmp_path / "b")
    with pytest.raises(ConfigurationError, match=r"--training-runs .*/c is not a directory"):
        read("--model", "m", "--training-runs", f"{both},{tmp_path / 'c'}")


def test_adapters_are_repeated_flags_or_one_variable(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y, z").mkdir()
    one, two = ("a", tmp_path / "x"), ("b.c-d_e", tmp_path / "y, z")
    flags = [f"--adapter={name}={path}" for name, path in (one, two)]
    assert read("--model", "m", *flags).adapters == (one, two)
    assert read("--model", "m").adapters == ()
    variable = f"a={tmp_path}/x, b={tmp_path}/x,"
    assert read("--model", "m", WHENCE_ADAPTERS=variable).adapters == (one, ("b", tmp_path / "x"))
    assert read("--model", "m", flags[1], WHENCE_ADAPTERS=variable).adapters == (two,)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("x", "--adapter 'x': expected NAME=DIR"),
        ("=x", "expected NAME=DIR, with a NAME of at most 64 letters"),
        ("a=", "expected NAME=DIR"),
        ("a b=x", "expected NAME=DIR"),
        ("a=nowhere", "nowhere is not a directory; expected that of a PEFT adapter"),
    ],
)
def test_a_malformed_adapter_is_an_error_with_the_expected_form(given: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read("--model", "m", "--adapter", given)
    assert words in caught.value.message


def test_two_adapters_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--adapter a: 2 adapters have this name"):
        read("--model", "m", f"--adapter=a={tmp_path}", f"--adapter=a={tmp_path}")


def test_allowed_origins_are_as_browsers_send_them() -> None:
    listen = ("--model", "m", "--http-listen", "127.0.0.1:0")
    flags = ("--http-allow-origin=https://App.example:443", "--http-allow-origin=http://[::1]:3000")
    expected = ("https://app.example", "http://[::1]:3000")
    assert read(*listen, *flags).http_allow_origin == expected
    variable = "https://app.example, http://[::1]:3000"
    assert read(*listen, WHENCE_HTTP_ALLOW_ORIGIN=variable).http_allow_origin == expected
    with pytest.raises(ConfigurationError, match="no effect without --http-listen"):
        read("--model", "m", flags[0])


def test_the_url_of_a_trace_says_where_its_id_goes() -> None:
    listen = ("--model", "m")
    url = "https://traces.example/trace/{trace_id}?a=b"
    assert read(*listen, "--trace-url", url).trace_url == url
    assert read(*listen, WHENCE_TRACE_URL=url).trace_url == url
    for given in ("https://traces.example/", "ftp://x/{trace_id}", "javascript:{trace_id}", "x"):
        with pytest.raises(ConfigurationError, match="trace_id"):
            read(*listen, "--trace-url", given)


@pytest.mark.parametrize(
    "given", ["*", "null", "app.example", "https://app.example/", "ftp://app.example", "https://"]
)
def test_a_malformed_origin_is_an_error_with_the_expected_form(given: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"expected an origin, such as https://app\.example"
    ):
        read("--model", "m", "--http-listen", "127.0.0.1:0", "--http-allow-origin", given)
