"""What a run was made with: its config, its data, the versions of packages, and the machine."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence

import torch

from capfl.checkpoint import RunFolder
from capfl.config import Config, to_toml
from capfl.data import Split
from capfl.errors import CheckpointError
from capfl.files import write_atomically
from capfl.types import ClientId

RECORD = "run.json"
PACKAGES = ("capfl", "torch", "transformers", "peft", "numpy", "safetensors", "datasets")


def run_digest(config: Config) -> str:
    """A name for what all sites of a run have in common: another config has another one."""
    common = config.model_dump(mode="json", exclude={"out": True, "runtime": True, "data": {"dir": True}})
    return hashlib.blake2b(json.dumps(common, sort_keys=True).encode(), digest_size=16).hexdigest()


def record(folder: RunFolder, config: Config, data: str, splits: Mapping[ClientId, Split], said: Sequence[str]) -> None:
    """Write what a run begins with: ``config.toml``, ``run.json`` and, where it is known, ``partition.json``.

    Args:
        data: a name for the data and who holds them; or, where they are elsewhere, for the clients alone.
        said: of how rows became tokens.

    Raises:
        CheckpointError: they cannot be written.
    """
    write_atomically(folder.path / "config.toml", to_toml(config).encode())
    if splits:
        folder.write_json("partition.json", {client: vars(own) for client, own in splits.items()})
    machine = {"system": platform.system(), "architecture": platform.machine(), "threads": torch.get_num_threads()}
    folder.write_json(RECORD, {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "config": run_digest(config),
        "data": data,
        "remarks": list(said),
        "versions": _versions(),
        "python": platform.python_version(),
        "machine": machine,
    })  # fmt: skip


def changes(folder: RunFolder, config: Config, data: str) -> list[str]:
    """What has changed since a run began that may change bits: versions and threads.

    Raises:
        CheckpointError: config or data are not those that the run began with.
    """
    begun = folder.read_json(RECORD)
    for key, now, what in (
        ("config", run_digest(config), "config.toml"),
        ("data", data, "data or their partition"),
    ):
        if begun.get(key) != now:
            raise CheckpointError(
                f"{folder.path}: {what} changed since this run began; restore what it began with, or start a new run"
            )
    before, threads = begun.get("versions", {}), begun.get("machine", {}).get("threads")
    found = [f"{name} {before.get(name)} -> {now}" for name, now in _versions().items() if before.get(name) != now]
    if threads != torch.get_num_threads():
        found.append(f"threads {threads} -> {torch.get_num_threads()}")
    return found


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}
