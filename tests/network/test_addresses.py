"""Hosts, ports and proxies: IPv6 is written in brackets, and what stays on this machine goes past a proxy."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

import httpx

from capfl.engines.flower.addresses import bare, check_port, direct, joined, parted
from capfl.engines.flower.keys import make_keys
from capfl.engines.flower.processes import environment
from capfl.engines.flower.runs import Connection
from capfl.engines.flower.server import run_server
from capfl.errors import ConfigError

DEAD = "http://127.0.0.1:1"  # a proxy that does not answer


@pytest.mark.parametrize(
    ("host", "plain", "address"),
    [
        ("server.example.org", "server.example.org", "server.example.org:8443"),
        ("10.0.0.5", "10.0.0.5", "10.0.0.5:8443"),
        ("::1", "::1", "[::1]:8443"),
        ("[FD00:0::7]", "fd00::7", "[fd00::7]:8443"),
    ],
)
def test_an_ipv6_address_has_brackets_before_a_port_and_nowhere_else(host: str, plain: str, address: str) -> None:
    assert bare(host) == plain
    assert joined(host, 8443) == address
    assert parted(address) == (plain, 8443)


@pytest.mark.parametrize("text", ["server", "host:port", ":8443", "host:99999", "https://host:8443", "[::1]"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--server: .* (is no address; give HOST:PORT|is ambiguous)"):
        parted(text)
    with pytest.raises(ConfigError, match=r"ambiguous; write the IPv6 address in brackets: \[fd00::7\]:8443"):
        parted("fd00::7:8443")


@pytest.fixture
def local() -> Iterator[str]:
    """A web server on the loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_loopback_is_never_reached_through_a_proxy(
    local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the client that Flower's processes have; what goes elsewhere still goes through the proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, DEAD)
    with pytest.raises(httpx.ConnectError):
        httpx.get(local)
    monkeypatch.setattr(os, "environ", environment(tmp_path, "fd00::7"))
    assert httpx.get(local).status_code == 204
    routes = {str(pattern.pattern): route for pattern, route in httpx.Client()._mounts.items()}
    assert routes["all://[::1]"] is routes["all://[fd00::7]"] is routes["all://localhost"] is None
    assert routes["https://"] is not None


def test_hosts_that_a_user_has_excepted_stay_excepted() -> None:
    found = direct({"no_proxy": "a.example, 10.0.0.0/8", "NO_PROXY": "b.example"}, "[fd00::7]")
    assert found["no_proxy"] == found["NO_PROXY"]
    expected = ["a.example", "10.0.0.0/8", "b.example", "localhost", "127.0.0.1", "::1", "fd00::7"]
    assert found["no_proxy"].split(",") == expected


def test_commands_go_to_the_server_past_a_proxy(tmp_path: Path) -> None:
    server = Connection(tmp_path)
    server.write("[fd00::7]:8443", tmp_path / "server.crt")
    assert server.environment()["no_proxy"].split(",")[-1] == "fd00::7"


def test_a_port_that_is_in_use_is_said_before_anything_is_started() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: .*; end what listens there, or choose another"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
    with pytest.raises(ConfigError, match="give an address of this machine as --host"):
        check_port("192.0.2.1", port)


def test_a_server_whose_certificate_is_for_other_hosts_does_not_start(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", [], ["10.0.0.5"])
    with pytest.raises(ConfigError, match=r"server\.crt is not for fd00::7.*capfl flower keys .* --host fd00::7"):
        run_server(tmp_path / "home", "[fd00::7]", 8443, tmp_path / "keys", print)
    assert not (tmp_path / "home").exists()
