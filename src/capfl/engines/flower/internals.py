"""Everything that rests on private interfaces of Flower, for exactly the version in ``FLOWER``.

``server`` is Flower's SuperLink behind a gate, ``node`` its SuperNode, and ``worker`` a process that answers a node's
messages one after the other with the model loaded, where Flower itself would start a process for every message.
``python -m capfl.engines.flower.internals ROLE ARGUMENTS`` runs one of them until its parent ends.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from capfl.engines.flower import check_flower
from capfl.engines.flower.processes import tell

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

NODES = "/v1/fleet/"
OPEN = (NODES, "/health")  # what nodes need of the server
ENTRANCES = (f"{NODES}activate-node", f"{NODES}register-node")
HOUR = 3600.0  # seconds
REFUSED = {  # by status of the answer
    401: "its key is not the registered one, or its clock is more than five seconds ahead of this machine's or "
    "five minutes behind",
    412: "its key is none of those in nodes/ of --keys, or it has shown none, or a node with this key is there "
    "already; after a new key, start the server again",
}
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"  # what a node answers to those alone who know its secret
IDLE = 0.3  # seconds between a worker's questions whether there is work


class Gate:
    """Lets other machines reach what nodes need, and nothing else of the server.

    Whoever reaches the rest may start and stop runs, register nodes, and read or answer messages, without a login: that
    is for the server's own machine.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self._due: dict[tuple[str, str], float] = {}  # (address, reason) -> when it may be said again

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http" and scope["path"].startswith(NODES):
            send = self._noting(scope, send)
        if kind == "lifespan" or (kind == "http" and scope["path"].startswith(OPEN)) or _is_local(scope):
            await self.app(scope, receive, send)
        elif kind == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"only from the server's own machine\n"})

    def _noting(self, scope: Scope, send: Send) -> Send:
        """Says why a node is refused, once an hour for each address and reason."""

        async def noting(message: Any) -> None:
            reason = REFUSED.get(message["status"]) if message["type"] == "http.response.start" else None
            if reason and (scope["path"] in ENTRANCES or message["status"] == 401):
                who = scope["client"][0] if scope["client"] else "an unknown address"
                if time.monotonic() >= self._due.get((who, reason), 0.0):
                    if len(self._due) > 1000:  # strangers do not fill the memory
                        self._due.clear()
                    self._due[who, reason] = time.monotonic() + HOUR
                    tell(f"a node at {who} is not let in: {reason}")
            await send(message)

        return noting


def _is_local(scope: Scope) -> bool:
    """Does a request come from the server's own machine, over whichever of its addresses?"""
    if not scope["client"]:
        return False
    try:
        host = ipaddress.ip_address(scope["client"][0])
    except ValueError:
        return False
    plain = getattr(host, "ipv4_mapped", None) or host
    return bool(plain.is_loopback) or scope["client"][0] == scope["server"][0]


def server() -> None:
    """``flower-superlink`` behind the gate. Reads its arguments from the command line."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    extensions.get_middleware = lambda: (Middleware(Gate),)  # the outermost of the server's own
    flower_superlink()


def node() -> None:
    """``flower-supernode``, which ends when it has lost the server for good.

    Left to itself it would stay, without a word to the server: one of its threads goes on.
    """
    from flwr.supernode import fleet_http_connection
    from flwr.supernode.cli import flower_supernode

    made = fleet_http_connection.make_simple_http_retry_invoker
    fleet_http_connection.make_simple_http_retry_invoker = lambda: patient(made())
    try:
        flower_supernode()
    finally:
        os._exit(1)


def tolerant(grid: Any) -> Any:
    """A run's Grid which neither a server that is away for a while nor a malformed reply puts an end to."""
    from flwr.superlink.grid import http_grid

    patient(grid._retry_invoker)
    http_grid.inflate_object_from_contents = readable(http_grid.inflate_object_from_contents)
    return grid


def patient(invoker: Any) -> Any:
    """Have requests tried again whose connection is cut off before it is secure.

    Flower takes it for a wrong certificate and drops what was to be sent. It is how a server that has just died looks,
    and behind a proxy it looks so until it is back.
    """
    gives_up = invoker.should_giveup
    invoker.should_giveup = lambda error: "UNEXPECTED_EOF" not in str(error) and gives_up(error)
    return invoker


def readable(inflate: Callable[..., Any]) -> Callable[..., Any]:
    """Have an answer to nobody in place of a reply whose objects do not make a message; its sender misses a deadline.

    A node makes these objects, and Flower puts them together without looking: one that raises would lose the replies
    of all the others.
    """
    from flwr.app import Message

    def inflated(name: str, contents: dict[str, bytes]) -> Any:
        try:
            made = inflate(name, contents)
        except Exception as error:
            made = error
        if isinstance(made, Message) and (made.has_error() or made.has_content()):
            return made
        print(f"a reply is not a message of Flower ({type(made).__name__}); it is left out", flush=True)
        return SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=""))

    return inflated


def worker(address: str, secret: str) -> None:
    """Answer the messages of the node at an address, until the process is ended.

    The app that came with a run is not even unpacked: what a message starts is the capfl that is installed here.
    Messages are fetched beside the work, because a SuperNode may announce one that it will never have: of a run that
    ended while it was on its way.

    Args:
        secret: a file with what the node knows its worker by. Nobody else on this machine is given a message.
    """
    import httpx
    from flwr.common.constant import SubStatus
    from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
    from flwr.supercore.constant import TaskType
    from flwr.supercore.heartbeat import HeartbeatSender
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
        SuperExecAuthHttpInterceptor,
    )
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

    from capfl.engines.flower.client_app import app

    fetched: queue.SimpleQueue[tuple[Any, Any, Any, Any]] = queue.SimpleQueue()

    def connect(component: str, *interceptors: Any) -> Any:
        return RuntimeHttpClient.from_server_address(
            address, True, None, [RuntimeVersionHttpInterceptor(component_name=component), *interceptors]
        )

    def fetch(client: Any) -> None:
        def is_told() -> bool:
            try:
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except httpx.TransportError:
                return False  # to be told again soon
            except httpx.HTTPStatusError:
                pass  # nobody waits for this answer any more, which is seen when it is sent
            return True

        heartbeat = HeartbeatSender(is_told)
        heartbeat.start()
        try:
            message, context, _, _ = pull_task_input(client)
        except Exception as error:
            print(f"a message was announced and did not come: {type(error).__name__}: {error}", flush=True)
            heartbeat.stop()
            client.close()
        else:
            fetched.put((client, heartbeat, message, context))

    def answer(client: Any, heartbeat: Any, message: Any, context: Any) -> None:
        try:
            push_message(client, app(message=message, context=context), context)
            push_task_output(client=client, context=context, sub_status=SubStatus.COMPLETED, details="")
        finally:
            heartbeat.stop()
            client.close()

    known = SuperExecAuthHttpInterceptor(master_secret=Path(secret).read_bytes(), protected_methods=[ACQUIRE])
    node = connect("SuperExec", known)
    question = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while True:
        try:
            task = node.AcquireTask(question)
            if task.HasField("task") and task.token:
                client = connect("flwr-clientapp", RuntimeTokenHttpInterceptor(task.token))
                threading.Thread(target=fetch, args=(client,), daemon=True).start()
            with contextlib.suppress(queue.Empty):
                answer(*fetched.get(timeout=IDLE))
        except Exception as error:  # the node is starting, or nobody waits for the answer any more
            print(f"node {address}: {type(error).__name__}: {error}", flush=True)
            time.sleep(1)


def end_with_parent() -> None:
    """Have this process end when its parent has."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: Sequence[str]) -> None:
    check_flower()
    end_with_parent()
    role, *rest = arguments
    sys.argv = [f"capfl-{role}", *rest]
    if role == "worker":
        worker(*rest)
    else:
        {"server": server, "node": node}[role]()


if __name__ == "__main__":
    main(sys.argv[1:])
