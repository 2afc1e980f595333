"""nginx and HAProxy in processes of their own, with the configurations of deploy/proxies."""

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backend_process import find_free_port
from required import find_program

CONFIGURATIONS = Path(__file__).parents[2] / "deploy" / "proxies"
LISTEN, UPSTREAM = "127.0.0.1:50050", "127.0.0.1:50051"
"""Addresses in the configurations."""
START_TIMEOUT_S = 60.0
REMEDY = "install it, and put /usr/sbin on the PATH, where Debian has it"

_NGINX_MAIN = """
daemon off;
master_process off;
error_log stderr notice;
pid {directory}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/whence.conf;
}}
"""
"""Main file for a process in the foreground that writes only to its directory."""


@contextmanager
def nginx(directory: Path, upstream: str, **settings: str) -> Iterator[str]:
    """Run nginx before a server; yield its address.

    The test is skipped if nginx is not installed.

    Args:
        directory: directory for its files.
        upstream: HOST:PORT of the server.
        settings: values of directives that the configuration has.
    """
    program = find_program("nginx", REMEDY)
    target = f"127.0.0.1:{find_free_port()}"
    text = _configure("nginx.conf", target, upstream)
    for name, value in settings.items():
        text = _replace(rf"^(\s*{name}) .*;$", rf"\1 {value};", text)
    (directory / "whence.conf").write_text(text, encoding="utf-8")
    main = directory / "nginx.conf"
    main.write_text(_NGINX_MAIN.format(directory=directory), encoding="utf-8")
    command = [program, "-p", str(directory), "-e", "stderr", "-c", str(main)]
    with _run(command, directory / "nginx.log", target):
        yield target


@contextmanager
def haproxy(directory: Path, upstream: str, **settings: str) -> Iterator[str]:
    """Run HAProxy before a server; yield its address.

    The test is skipped if HAProxy is not installed.

    Args:
        directory: directory for its files.
        upstream: HOST:PORT of the server.
        settings: values of its timeouts: `client`, `server`.
    """
    program = find_program("haproxy", REMEDY)
    target = f"127.0.0.1:{find_free_port()}"
    text = _configure("haproxy.cfg", target, upstream)
    for name, value in settings.items():
        text = _replace(rf"^(\s*timeout {name}) .*$", rf"\1 {value}", text)
    path = directory / "haproxy.cfg"
    path.write_text(text, encoding="utf-8")
    with _run([program, "-db", "-f", str(path)], directory / "haproxy.log", target):
        yield target


def _configure(name: str, target: str, upstream: str) -> str:
    text = (CONFIGURATIONS / name).read_text(encoding="utf-8")
    for shown, used in ((LISTEN, target), (UPSTREAM, upstream)):
        text = _replace(re.escape(shown), used, text)
    return text


def _replace(pattern: str, replacement: str, text: str) -> str:
    replaced, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{pattern!r} is {count} times in the configuration, not once")
    return replaced


@contextmanager
def _run(command: list[str], log: Path, target: str) -> Iterator[None]:
    with log.open("w") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:
        try:
            _wait_listening(process, target, log)
            yield
        finally:
            process.terminate()
            process.wait(60)


def _wait_listening(process: subprocess.Popen[bytes], target: str, log: Path) -> None:
    host, _, port = target.rpartition(":")
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError(f"{command_name(process)} does not listen:\n{log.read_text()}")


def command_name(process: subprocess.Popen[bytes]) -> str:
    """Return the first word of a process's command."""
    return str(process.args[0] if isinstance(process.args, list) else process.args)
