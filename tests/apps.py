"""The nodes of a run over Flower's apps in one process, and where their files are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from flwr.app import Context, Error, Message, RecordDict

from capfl.checkpoint import RunFolder
from capfl.config import Config, to_toml
from capfl.engines.flower import client_app
from capfl.engines.flower.exchange import Patience
from capfl.engines.flower.messages import Reply, read_reply
from capfl.engines.flower.server_app import serve
from capfl.report.progress import Callback
from capfl.report.summary import Summary
from capfl.types import RoundRecord
from fake_grid import FakeGrid
from sites import About, config_for, write_files


class Apps(FakeGrid):
    """A node for each client, whose messages go to the client's app.

    Args:
        accidents: what happens, once, to a message: its request arrives "twice", its reply is "lost", or in its place
            comes that of the round before ("late"); or a function that is called before the request arrives.
        own: more of what a node hands on to its app, such as ``runs``.
    """

    def __init__(
        self,
        config: Config,
        files: Mapping[str, Path],
        state: Path,
        accidents: Mapping[About, str | Callable[[], object]],
        own: Mapping[str, str],
    ) -> None:
        super().__init__({client: lambda request: None for client in files})
        for client in files:
            (state / client).mkdir(parents=True, exist_ok=True)  # a node does that
        given = {
            client: {"client": client, "data": str(path), "state": str(state / client)}
            | {
                "key": str(state.parent / "keys/nodes" / f"{client}.key"),
                "peers": str(state.parent / "keys/nodes"),
            }
            | dict(own)
            for client, path in files.items()
        }
        self.contexts = {c: Context(1, 1, given[c], RecordDict(), {"config": to_toml(config)}) for c in files}
        self.accidents = dict(accidents)
        self.said: dict[About, Reply] = {}

    def arrive(self, name: str, message: Message) -> None:
        super().arrive(name, message)
        request = self.sent[-1][2]
        about = (request.kind, request.client, request.round)
        accident = self.accidents.pop(about, None)
        if callable(accident):
            accident()
        reply = self.said[about] = self.ask(name, message)
        if accident == "twice":
            assert self.ask(name, message) == reply
        elif accident == "late":
            reply = self.said[request.kind, request.client, request.round - 1]
        self.answer(message, 0.0, Error(5) if accident == "lost" else reply)

    def ask(self, name: str, message: Message) -> Reply:
        return read_reply(client_app.app(message=message, context=self.contexts[name]), 2**30)


class Place:
    """Where the server, three sites and their data are in one test."""

    def __init__(self, folder: Path, more: int = 0) -> None:
        self.folder, self.out, self.sites = folder, folder / "nodes", folder / "sites"
        self.files = write_files(folder / "data", more)

    def config(self, out: str = "nodes", **changes: object) -> Config:
        return config_for(self.folder / out, self.files, **{"evaluation__references": []} | changes)

    def run(
        self,
        config: Config,
        accidents: Mapping[About, str | Callable[[], object]] | None = None,
        again: bool = False,
        theirs: Config | None = None,
        **own: str,
    ) -> Summary:
        """A run over the apps; the sites may be given ``theirs``, another config."""
        grid = Apps(theirs or config, self.files, self.sites, accidents or {}, own)
        return serve(grid, sorted(self.files), config, again, Patience(60, 0), Callback())[0]

    def records(self) -> list[RoundRecord]:
        return RunFolder(self.out).rounds()
