"""Flower's app at a site: hands every request on to the client's side of the run, which is on this disk."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from capfl.config.load import from_toml
from capfl.engines.flower.records import Ask, Reply, pack, unpack
from capfl.errors import CapflError, WireError
from capfl.site import Client
from capfl.types import ClientId

VERSIONS = ("capfl", "torch", "transformers")

app = ClientApp()
_open: dict[Path, Client] = {}  # with their models; those of the last run only


def hello(message: Message, context: Context) -> Message:
    """Say whose node this is."""
    return Message(pack(introduction(_me(context))), reply_to=message)


def answer(message: Message, context: Context) -> Message:
    """Answer a request of the run. What goes wrong is an answer, too."""
    me = _me(context)

    def said(ask: Ask) -> bytes:
        assert ask.kind != "hello"
        return _client(ask.run, context).answer(ask.kind, ask.method, ask.blob, ask.used)

    try:
        reply = replied(me, unpack(Ask, message.content), said)
    except WireError as error:
        reply = Reply(me, "WireError", str(error))
    return Message(pack(reply), reply_to=message)


def introduction(me: ClientId) -> Reply:
    """Who a client is, and what it runs."""
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    return Reply(me, blob=json.dumps(versions).encode())


def replied(me: ClientId, ask: Ask, answer: Callable[[Ask], bytes]) -> Reply:
    """An answer, or why there is none."""
    try:
        return Reply(me, blob=answer(ask))
    except Exception as error:
        traceback.print_exception(error, limit=0 if isinstance(error, CapflError) else None)
        sys.stderr.flush()
        return Reply(me, type(error).__name__, str(error) or "no reason given")


app.query()(hello)
for kind in (app.train(), app.evaluate("validate"), app.evaluate()):
    kind(answer)


def close() -> None:
    """Let go of the clients and their models."""
    while _open:
        _open.popitem()[1].__exit__(None, None, None)


def _me(context: Context) -> ClientId:
    return str(context.node_config["client"])


def _client(run: str, context: Context) -> Client:
    """The client in this run, with what it remembers of it."""
    if not re.fullmatch(r"\w[\w.-]*", run):
        raise WireError(f"{run!r} is no name of a run")
    given, place = context.node_config, Path(str(context.node_config["state"])) / "runs" / run
    if place not in _open:
        for before in [other for other in _open if other.name != run]:
            _open.pop(before).__exit__(None, None, None)
        own = dict(json.loads(str(given.get("settings", "{}"))))
        config = from_toml(str(context.run_config["config"]), own)
        _open[place] = Client(config, _me(context), place, Path(str(given["data"])))
        print(f"{run}: client {_me(context)}, adapters and memory in {place}", flush=True)
    return _open[place]
