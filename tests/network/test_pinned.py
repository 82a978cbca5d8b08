"""What rests on Flower's private interfaces: the gate, and that this is the version that it is written for."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

import httpx
from flwr.supercore.retry import make_simple_http_retry_invoker

from capfl.engines import flower
from capfl.engines.flower import check_flower
from capfl.engines.flower.pinned import Gate, patient
from capfl.errors import ConfigError


def asked(path: str, client: tuple[str, int] | None, server: str = "10.0.0.5") -> int:
    """The status with which a request is answered through the gate."""
    statuses: list[int] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "path": path, "client": client, "server": (server, 8443)}
    asyncio.run(Gate(inside)(scope, receive, send))
    (status,) = statuses
    return status


ELSEWHERE, HERE = ("10.0.0.7", 40000), ("127.0.0.1", 40000)


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/fleet/activate-node", "/health"])
def test_nodes_of_other_machines_reach_what_they_need(path: str) -> None:
    assert asked(path, ELSEWHERE) == asked(path, HERE) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/v1/runtime/responses",
        "/docs", "/openapi.json", "/", "/v1/fleet", "/V1/fleet/x", "/v1/control/../fleet/x", "//v1/fleet/x",
    ],
)  # fmt: skip
def test_only_its_own_machine_reaches_the_rest(path: str) -> None:
    assert asked(path, HERE) == 200
    assert asked(path, ELSEWHERE) == 403
    assert asked(path, None) == 403


@pytest.mark.parametrize(
    ("client", "server", "status"),
    [
        ("127.0.0.1", "127.0.0.1", 200),
        ("127.9.9.9", "10.0.0.5", 200),
        ("::1", "::1", 200),
        ("::ffff:127.0.0.1", "::", 200),
        ("10.0.0.5", "10.0.0.5", 200),  # from this machine, to its own address
        ("::ffff:10.0.0.7", "10.0.0.5", 403),
        ("10.0.0.7", "10.0.0.5", 403),
        ("fe80::1", "::1", 403),
        ("testclient", "10.0.0.5", 403),
    ],
)
def test_who_is_on_the_links_own_machine(client: str, server: str, status: int) -> None:
    assert asked("/v1/control/start-run", (client, 1), server) == status


def test_flower_puts_the_gate_before_everything_else() -> None:
    """``link`` replaces this function of Flower's."""
    from flwr.superlink import extensions, main

    source = inspect.getsource(main._get_middleware)
    assert source.index("extensions.get_middleware()") < source.index("Middleware(")
    assert main.extensions is extensions


@pytest.mark.parametrize(
    ("said", "given_up"),
    [
        ("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)", False),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate", True),
        ("[Errno 111] Connection refused", False),
    ],
)
def test_a_link_that_is_away_is_waited_for_and_a_wrong_one_is_not(said: str, given_up: bool) -> None:
    invoker = make_simple_http_retry_invoker()
    assert invoker.should_giveup(httpx.ConnectError(said)) is ("SSL" in said)  # left to itself
    assert patient(invoker).should_giveup(httpx.ConnectError(said)) is given_up


def test_flower_asks_where_it_is_replaced_how_patient_it_is_to_be() -> None:
    """``node`` replaces a function of the first module, and a run an attribute of the second one's Grid."""
    from flwr.superlink.grid import http_grid
    from flwr.supernode import fleet_http_connection

    call = "retry_invoker = make_simple_http_retry_invoker()"
    assert call in inspect.getsource(fleet_http_connection)
    assert f"self._{call}" in inspect.getsource(http_grid)


def test_the_version_is_the_one_that_it_is_written_for() -> None:
    assert importlib.metadata.version("flwr") == flower.FLOWER
    check_flower()


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "FLOWER", "9.9")
    with pytest.raises(ConfigError, match=r"written for flwr 9\.9.*here is 1\.41\.0"):
        check_flower()


def test_no_flower_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    with pytest.raises(ConfigError, match=r"pip install capfl\[flower\]"):
        check_flower()
