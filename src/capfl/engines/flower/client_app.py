"""Flower's app at a site: hands every request on to the client's part of the run, which is on this disk."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from capfl.config.load import from_toml
from capfl.config.runtime import DISK
from capfl.engines.flower.allowed import Allowed
from capfl.engines.flower.budget import RUNS, Budget
from capfl.engines.flower.events import Events
from capfl.engines.flower.keys import signer, verifier
from capfl.engines.flower.messages import Reply, pack, read_request
from capfl.engines.flower.processes import tell
from capfl.errors import CapflError, RunError, code_of, printable
from capfl.roles.keyring import Keyring
from capfl.site import Site
from capfl.types import ClientId

log = logging.getLogger(__name__)
app = ClientApp()
_open: dict[Path, Site] = {}  # with their models; those of the last run only
_refused: set[str] = set()  # runs of which the operator has been told


@app.train()  # type: ignore[untyped-decorator]
def answer(message: Message, context: Context) -> Message:
    """Answer a request of any kind, or say the code of what went wrong.

    The error's text goes to this process's log and nowhere else.
    """
    me = str(context.node_config["client"])
    note, began = Events(Path(str(context.node_config["state"]))), time.monotonic()
    asked: dict[str, str | float] = {"client": me}
    try:
        request = read_request(message)
        asked |= {"run": request.run, "kind": request.kind, "method": request.method, "round": request.round}
        asked |= {"bytes_in": len(request.body)}
        site = _site(request.run, me, context)
        reply = Reply(me, body=site.answer(request.kind, request.method, request.body, request.used))
        if (epsilon := site.epsilon) is not None:
            asked |= {"epsilon": round(epsilon, 3)}
    except Exception as error:
        known = isinstance(error, CapflError)
        text = f"{type(error).__name__}: {error}" if known else "".join(traceback.format_exception(error))
        log.error("client %s failed: %s", me, printable(text))
        if isinstance(error, RunError) and asked["run"] not in _refused:
            _refused.add(str(asked["run"]))
            tell(f"node {me}: takes no part in a run: {printable(str(error))}")
        reply = Reply(me, code_of(error))
    seconds = round(time.monotonic() - began, 3)
    note("failed" if reply.code else "answered", **asked, code=reply.code, bytes_out=len(reply.body), seconds=seconds)
    return Message(pack(reply), reply_to=message)


def close() -> None:
    """Close the sites and their models."""
    while _open:
        _open.popitem()[1].__exit__(None, None, None)


def _site(run: str, me: ClientId, context: Context) -> Site:
    """The client in this run, with what it remembers of it."""
    given, state = context.node_config, Path(str(context.node_config["state"]))
    folder = state / RUNS / run
    if folder not in _open:
        own: dict[str, object] = {"runtime.own_metrics": [], "runtime.cache": DISK}  # never what the server says
        own |= json.loads(str(given.get("settings", "{}")))
        config = from_toml(str(context.run_config["config"]), own)
        allowed = Allowed(str(given.get("runs", "")).split(), state)
        allowed.check(run, config.privacy.secure_aggregation == "malicious-server")
        if any(other.name != run for other in _open):  # not before: who asks for a run in vain closes none
            close()
        left = Budget(float(str(given["epsilon"])), state).left(run) if "epsilon" in given else None
        keyring = partial(_keyring, dict(given))
        site = Site(config, me, folder, Path(str(given["data"])), keyring=keyring, max_epsilon=left)
        allowed.remember(run)  # before anything is answered, now or when it is asked again
        _open[folder] = site
        tell(f"node {me}: takes part in a run; its adapter will be in {folder / 'adapter'}")
        for remark in _open[folder].remarks:
            print(printable(remark), flush=True)
    return _open[folder]


def _keyring(given: Mapping[str, object], opened: Path) -> Keyring:
    """Keys of secure aggregation, signed by the node's own, and checked where the site knows the others'."""
    peers = given.get("peers")
    return Keyring(signer(Path(str(given["key"]))), verifier(Path(str(peers))) if peers else None, opened)
