"""The Dockerfile keeps its promises: pinned, from what is there, as nobody, on what is mounted."""

import argparse
import re
from pathlib import Path, PurePosixPath

from whence_server.cli import main
from whence_server.config import ServeConfig, add_arguments, make_serve_config

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
BUILD, RUN = "build", "run"


def instructions() -> list[tuple[str, str, str]]:
    """(stage, instruction, its text on one line), comments left out."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stage, found = "", []
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, text = line.partition(" ")
        if word == "FROM":
            stage = text.rpartition(" AS ")[2]
        found.append((stage, word, text.strip()))
    return found


def of(stage: str, word: str) -> list[str]:
    return [text for where, what, text in instructions() if (where, what) == (stage, word)]


def environment() -> dict[str, str]:
    return dict(re.findall(r"([A-Z_]+)=(\S+)", " ".join(of(RUN, "ENV"))))


def read(variables: dict[str, str], *flags: str) -> ServeConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return make_serve_config(parser.parse_args(flags), variables)


def test_both_stages_are_built_from_one_pinned_image() -> None:
    assert [stage for stage, word, _ in instructions() if word == "FROM"] == [BUILD, RUN]
    images = {text.partition(" AS ")[0] for _, word, text in instructions() if word == "FROM"}
    assert images == {"${BASE}"}
    (default,) = of("", "ARG")
    assert re.fullmatch(r"BASE=python:3\.11\.[0-9]+-slim-[a-z]+", default)


def test_what_is_copied_is_there_and_is_let_through() -> None:
    let_through = {line[1:] for line in IGNORED if line.startswith("!")}
    assert IGNORED[1] == "*"
    copied: set[str] = set()
    for _, word, text in instructions():
        if word == "COPY" and "--from" not in text:
            copied |= set(text.split()[:-1])
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


def test_everything_is_installed_by_the_constraints() -> None:
    installs = [text for text in of(BUILD, "RUN") if "pip install" in text]
    assert len(installs) == 2
    assert all("-c constraints.txt" in text for text in installs)
    torch, rest = installs
    assert "--no-deps" in torch
    assert '--index-url "${TORCH_INDEX}"' in torch
    assert of(BUILD, "ARG") == [
        "TORCH_VARIANT=cpu",
        "TORCH_INDEX=https://download.pytorch.org/whl/${TORCH_VARIANT}",
    ]
    assert "--index-url" not in rest
    assert "'.[server,postgres]'" in rest
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)


def test_the_image_runs_as_any_user_but_root() -> None:
    (user,) = of(RUN, "USER")
    uid, gid = map(int, user.split(":"))
    assert uid > 0 < gid
    (made,) = of(RUN, "RUN")
    assert f"--uid {uid}" in made
    assert f"--gid {gid}" in made


def test_whatever_writes_writes_to_what_can_be_mounted() -> None:
    mounted = [PurePosixPath(it) for it in ("/data", "/cache", "/tmp")]
    assert of(RUN, "VOLUME") == ['["/data", "/cache"]']
    written = {name: value for name, value in environment().items() if value.startswith("/")}
    del written["PATH"]
    assert written.keys() >= {"HOME", "HF_HOME", "NUMBA_CACHE_DIR", "WHENCE_DATA_DIR"}
    for value in written.values():
        assert any(PurePosixPath(value).is_relative_to(place) for place in mounted), value


def test_the_command_and_the_settings_are_the_servers() -> None:
    assert (of(RUN, "ENTRYPOINT"), of(RUN, "CMD")) == (['["whence-server"]'], ['["serve"]'])
    scripts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'whence-server = "{main.__module__}:{main.__name__}"' in scripts
    ours = {name: it for name, it in environment().items() if name.startswith("WHENCE_")}
    assert str(read(ours, "--model", "m").data_dir) == "/data"


def test_the_image_declares_its_stop_signal_and_health_check() -> None:
    assert of(RUN, "STOPSIGNAL") == ["SIGTERM"]
    default = read({}, "--model", "m").listen[0].rpartition(":")[2]
    assert default in of(RUN, "EXPOSE")[0].split()
    (check,) = of(RUN, "HEALTHCHECK")
    script = re.findall(r"/opt/\S+\.py", check)
    copied = [text.split() for text in of(RUN, "COPY")]
    assert [["deploy/healthcheck.py", *script]] == [it for it in copied if it[-1] in script]
    assert default in (ROOT / "deploy" / "healthcheck.py").read_text(encoding="utf-8")


def test_the_image_has_its_descriptive_labels() -> None:
    labels = " ".join(of(RUN, "LABEL"))
    for name in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{name}=" in labels
