"""What rests on Flower's private interfaces: the gate, the patience, and that this is the version that it is for."""

from __future__ import annotations

import asyncio
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

import flwr
import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.auth import create_superexec_auth_metadata, derive_auth_secret
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.retry import make_simple_http_retry_invoker

from capfl.engines import flower
from capfl.engines.flower import check_flower
from capfl.engines.flower.internals import ACQUIRE, Gate, patient, readable
from capfl.errors import ConfigError
from fake_grid import parts


def asked(path: str, client: str | None, server: str = "10.0.0.5") -> int:
    """The status with which a request is answered through the gate."""
    statuses: list[int] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "path": path, "client": client and (client, 40000), "server": (server, 8443)}
    asyncio.run(Gate(inside)(scope, receive, send))
    (status,) = statuses
    return status


NEEDED = ["/v1/fleet/pull-messages", "/v1/fleet/activate-node", "/health"]
OTHERS = [
    "/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/docs", "/openapi.json", "/",
    "/v1/fleet", "/V1/fleet/x", "/v1/control/../fleet/x", "//v1/fleet/x",
]  # fmt: skip
HERE = [("127.9.9.9", "10.0.0.5"), ("::1", "::1"), ("::ffff:127.0.0.1", "::"), ("10.0.0.5", "10.0.0.5")]
ELSEWHERE = [("::ffff:10.0.0.7", "10.0.0.5"), ("fe80::1", "::1"), ("testclient", "10.0.0.5"), (None, "10.0.0.5")]


def test_other_machines_reach_what_nodes_need_and_nothing_else() -> None:
    for path in NEEDED + OTHERS:
        assert asked(path, "127.0.0.1") == 200
        assert asked(path, "10.0.0.7") == (200 if path in NEEDED else 403), path
    for client, server in HERE + ELSEWHERE:
        assert asked("/v1/control/start-run", client, server) == (200 if (client, server) in HERE else 403)


def test_a_node_that_is_not_let_in_is_said_at_the_server_once_an_hour(capsys: pytest.CaptureFixture[str]) -> None:
    """With the reason, for each address. What nodes do once they are in is not said."""

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": scope["answer"], "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def nowhere(message: Any) -> None:
        pass

    gate = Gate(inside)
    for status, path, client in [
        (412, "activate-node", "10.0.0.7"), (412, "activate-node", "10.0.0.7"), (401, "pull-messages", "10.0.0.7"),
        (412, "activate-node", "10.0.0.8"), (412, "push-messages", "10.0.0.9"), (200, "activate-node", "10.0.0.9"),
    ]:  # fmt: skip
        scope = {"type": "http", "path": f"/v1/fleet/{path}", "client": (client, 1), "server": ("10.0.0.5", 8443)}
        asyncio.run(gate(scope | {"answer": status}, nowhere, nowhere))
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(" is not let in: its ")[0] for line in said] == [
        "capfl: a node at 10.0.0.7", "capfl: a node at 10.0.0.7", "capfl: a node at 10.0.0.8"
    ]  # fmt: skip
    assert "none of those in nodes/" in said[0]
    assert "clock" in said[1]


def test_a_server_that_is_away_is_waited_for_and_a_wrong_one_is_not() -> None:
    cut = httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)")
    wrong = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate")
    away = httpx.ConnectError("[Errno 111] Connection refused")
    invoker = make_simple_http_retry_invoker()
    assert [invoker.should_giveup(error) for error in (cut, wrong, away)] == [True, True, False]  # left to itself
    assert [patient(invoker).should_giveup(error) for error in (cut, wrong, away)] == [False, True, False]


def test_a_reply_whose_objects_make_no_message_answers_nobody() -> None:
    inflate, record = readable(inflate_object_from_contents), ConfigRecord({"capfl": b"x"})
    good = Message(RecordDict({"capfl": record}), dst_node_id=1, message_type="train")
    moved = parts(good)
    lacking = {key: data for key, data in moved.items() if key != record.object_id}
    assert inflate(good.object_id, dict(moved)).content["capfl"]["capfl"] == b"x"
    for name, contents in [
        (good.object_id, {}), (good.object_id, lacking), (good.object_id, {good.object_id: b"[" * 10**5}),
        (record.object_id, dict(moved)),
    ]:  # fmt: skip
        made = inflate(name, contents)
        made.metadata.__dict__["_message_id"] = name  # as Flower does
        assert made.metadata.reply_to_message_id == ""


def test_a_node_gives_a_message_to_whoever_knows_its_secret_alone() -> None:
    """Of all who reach its port on this machine. An older answer is not taken twice."""
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.main import create_app
    from flwr.supernode.nodestate import NodeStateFactory

    app = create_app(NodeStateFactory(objectstore_factory=ObjectStoreFactory()), b"secret")
    question = AcquireTaskRequest(supported_task_types=["flwr-clientapp"])

    def headers(secret: bytes) -> dict[str, str]:
        return create_superexec_auth_metadata(
            auth_secret=derive_auth_secret(secret), method=ACQUIRE, request=question
        )  # fmt: skip

    async def answers() -> list[int]:
        own, plain = headers(b"secret"), {"content-type": "application/protobuf", "accept": "application/protobuf"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as client:
            replies = [
                await client.post(
                    "/v1/runtime/acquire-task", content=question.SerializeToString(), headers=plain | given
                )
                for given in ({}, headers(b"another"), own, own)
            ]
        return [reply.status_code for reply in replies]

    assert asyncio.run(answers()) == [401, 401, 200, 401]


def test_flower_has_the_places_that_are_replaced() -> None:
    """Read, not imported, which would take seconds."""
    place = Path(flwr.__file__).parent
    source = (place / "superlink" / "main.py").read_text()
    assert "from flwr.superlink import extensions\n" in source
    assert source.index("*extensions.get_middleware()") < source.index(" Middleware(")  # the gate is the outermost
    call = "retry_invoker = make_simple_http_retry_invoker()"
    assert call in (place / "supernode" / "fleet_http_connection.py").read_text()
    assert (
        ACQUIRE in (place / "supercore" / "superexec" / "run_superexec.py").read_text()
    )  # and it is all that is signed
    for asks in ("supernode/cli/flower_supernode.py", "superlink/cli/flower_superlink.py"):
        assert "args.superexec_auth_secret_file" in (place / asks).read_text()
    grid = (place / "superlink" / "grid" / "http_grid.py").read_text()
    assert f"self._{call}" in grid
    assert "inflate_object_from_contents(msg_id, all_object_contents)" in grid


def test_another_version_and_no_flower_are_clear_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    check_flower()
    assert importlib.metadata.version("flwr") == flower.FLOWER
    monkeypatch.setattr(flower, "FLOWER", "9.9")
    with pytest.raises(ConfigError, match=r"written for flwr 9\.9.*here is 1\.41\.0"):
        check_flower()

    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    with pytest.raises(ConfigError, match=r"pip install capfl\[flower\]"):
        check_flower()
