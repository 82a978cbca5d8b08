"""Three sites with data of their own, and a tiny run over them, for the tests of the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from capfl.config import Config
from capfl.engines.serial import serial
from capfl.types import Failure
from support import tiny_config

About = tuple[str, str, int]  # kind, client and round of a message
SIZES = {"north": 30, "south": 40, "west": 24}


def write_files(folder: Path, more: int = 0) -> dict[str, Path]:
    """A file for each client, with labels of its own; of so many clients more than there are in ``SIZES``."""
    folder.mkdir(parents=True)
    sizes = SIZES | {f"x{i}": 20 for i in range(more)}
    paths = {client: folder / f"{client}.jsonl" for client in sizes}
    for client, size in sizes.items():
        rows = [
            {"text": f"{client} asks {i * 7 % 13}", "label": "abcd"[i % (2 + len(client) % 3)]} for i in range(size)
        ]
        paths[client].write_text("\n".join(map(json.dumps, rows)))
    return paths


def config_for(out: Path, files: dict[str, Path], **changes: object) -> Config:
    ours: dict[str, object] = {
        "data__sets": [str(path) for path in files.values()],
        "partition__kind": "by_task",
        "evaluation__references": ["local"],
        "evaluation__every": 0,
        "runtime__cache": "memory",
        "codec__values": "ternary",
    }
    return tiny_config(out, **ours | changes)


def bits(folder: Path, name: str = "") -> dict[str, bytes]:
    """Everything below a folder, or a file; of adapters their tensors: the rest names the run, or is in any order."""
    place = folder / name
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix != ".json"}


def losing(lost: set[About]) -> Any:
    """The serial engine, some of whose clients fail, once, after they were asked and before they do anything."""
    left = set(lost)

    def engine(trainer: Any, store: Any, agreement: Any, workers: Any) -> Any:
        whole = serial(trainer, store, agreement)

        def exchange(kind: Any, round: int, clients: Any, request: Any) -> Any:
            for client in clients:
                if (kind, client, round) in left:
                    left.remove((kind, client, round))
                    request(client)
                    yield client, Failure(client, "node", "it has gone", "network")
                else:
                    yield from whole(kind, round, [client], request)

        return exchange

    return engine
