"""The composition root: a config becomes data, model, clients, rounds, and a folder of results."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from capfl.checkpoint import ClientStore, RunFolder
from capfl.config import Config, load_config, to_toml
from capfl.config.schema import MethodConfig
from capfl.data import Split, load_items, partition, relabel, split
from capfl.errors import CheckpointError, ConfigError
from capfl.evaluation import Finished, evaluate
from capfl.federation import Federation
from capfl.files import write_atomically
from capfl.methods import Method, build
from capfl.model.base import load_base
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.model.shared import SharedBlocks
from capfl.report.progress import Reporter, Silent
from capfl.report.summary import Summary
from capfl.roles import Agreement, server
from capfl.roles.client import Site
from capfl.round import run_round, sample_size
from capfl.types import Adapter, ClientId, Exchange, Item

Engine = Callable[[Callable[[ClientId], Site], ClientStore, Agreement], Exchange]

PACKAGES = ("capfl", "torch", "transformers", "peft", "numpy", "safetensors", "datasets")


def run(config: Config, engine: Engine, reporter: Reporter | None = None) -> tuple[Summary, Path]:
    """Run an experiment from the start. Returns its summary and its folder.

    Raises:
        ConfigError: the folder is in use, or a name in the config is unknown.
        CapflError: anything else that its subclasses name.
    """
    method = build(config.method, config.seed)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = Path(config.out or f"runs/{stamp}-{method.name}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"out: {path} is not empty; choose another folder, or go on with: capfl run --resume {path}")
    return _run(config, RunFolder(path), engine, reporter or Silent(), fresh=True)


def resume(path: Path, engine: Engine, reporter: Reporter | None = None) -> tuple[Summary, Path]:
    """Go on with a run that was interrupted, to the same bits as if it had not been.

    Raises:
        CheckpointError: the folder is not a run, or its data have changed since.
    """
    return _run(config_of(path), RunFolder(path), engine, reporter or Silent(), fresh=False)


def config_of(path: Path) -> Config:
    """The config that the run in a folder was started with.

    Raises:
        CheckpointError: the folder is not a run.
    """
    if not (path / "config.toml").is_file():
        raise CheckpointError(f"{path} has no config.toml: not a run folder, or stopped before it began; start it anew")
    return load_config(path / "config.toml")


def _run(config: Config, folder: RunFolder, engine: Engine, reporter: Reporter, fresh: bool) -> tuple[Summary, Path]:
    began = time.monotonic()
    torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
    method = build(config.method, config.seed)

    # data: who holds what
    items = load_items(config.data, config.seed)
    parts = partition(items, config.partition, config.seed)
    items = relabel(items, parts, config.partition, config.seed)
    splits = {client: split(own, config.partition, config.seed, client) for client, own in parts.items()}

    # model: one frozen base for all of them
    reporter.note(f"{folder.path}: {len(items)} items at {len(splits)} clients; loading {config.model.path}")
    model = AdaptedModel(load_base(config.model), config.lora)

    # from here on the run exists: what was wrong with its data or model has been said before
    _record_inputs(config, folder, items, splits, reporter, fresh)
    reporter.begin(folder.path, config)
    limit = int(config.runtime.cache_gib * 2**30)
    shared = SharedBlocks(Path(config.runtime.cache_dir), limit) if config.runtime.cache_dir else None
    with HiddenCache(config.runtime.cache, limit, folder.path, shared) as cache:
        federation = Federation(config, items, splits, model, cache, reporter.client)

        # rounds: the method itself, then the references that its clients could have had instead
        initial = model.initial_adapter(config.seed)
        finished = {method.name: run_method(method, initial, federation, folder, engine, reporter)}
        for name in config.evaluation.references:
            if name != method.name:
                reference = build(MethodConfig(name=name))
                place = RunFolder(folder.path / "references" / name)
                finished[name] = run_method(reference, initial, federation, place, engine, reporter)

        # results: every model on every client's own test items
        reporter.note("evaluating every client")
        summary = replace(evaluate(method, finished, federation, folder.path), seconds=time.monotonic() - began)
    folder.write_json("summary.json", summary.to_json())
    reporter.finish(summary)
    return summary, folder.path


def run_method(
    method: Method,
    initial: Adapter,
    federation: Federation,
    folder: RunFolder,
    engine: Engine,
    reporter: Reporter,
) -> Finished:
    """All rounds of one method, from wherever its folder stands. After each, the whole state is on disk."""
    config = federation.config
    agreement = Agreement(method, config.agreed_codec, initial, federation.model.base.revision, config.seed)
    store = folder.clients(initial, lambda client: method.init_client(client, initial))
    state = folder.server(initial) or server.start(agreement)
    folder.forget_after(state.round)
    participants = federation.participants(method)
    exchange = engine(lambda client: federation.site(client, method), store, agreement)
    n_visits = sample_size(len(participants), config.federation.fraction)
    reporter.start(method.name, config.federation.rounds, state.round, n_visits)
    while state.round < config.federation.rounds:
        state, record = run_round(state, participants, agreement, exchange, config.federation, config.seed)
        due = config.evaluation.every and state.round % config.evaluation.every == 0
        if method.has_global and due and config.partition.validation:
            validated = federation.validate(state.whole)
            record = replace(record, validation_accuracy=validated.accuracy, validation_loss=validated.loss)
        folder.commit(state, record)
        reporter.round(record)
    return Finished(state, store, agreement, folder.rounds())


def _record_inputs(
    config: Config, folder: RunFolder, items: list[Item], splits: dict[ClientId, Split], reporter: Reporter, fresh: bool
) -> None:
    """Save config, versions and partition with the run; on resuming, check that they are still the same.

    Raises:
        CheckpointError: the data are not those that the run began with.
    """
    write_atomically(folder.path / "config.toml", to_toml(config).encode())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        digest.update(repr((item.question, item.choices, item.answer, item.completion, item.messages)).encode())
    digest.update(json.dumps({client: vars(own) for client, own in splits.items()}).encode())
    if not (folder.path / "run.json").is_file():
        folder.write_json("partition.json", {client: vars(own) for client, own in splits.items()})
        folder.write_json("run.json", {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seed": config.seed,
            "data": digest.hexdigest(),
            "versions": versions,
            "python": platform.python_version(),
            "machine": {"system": platform.system(), "architecture": platform.machine(),
                        "threads": torch.get_num_threads()},
        })  # fmt: skip
        return
    begun = folder.read_json("run.json")
    if begun["data"] != digest.hexdigest():
        raise CheckpointError(
            f"{folder.path}: the data or their partition have changed since this run began; "
            "restore them, or start a new run"
        )
    changed = [f"{name} {begun['versions'].get(name)} -> {now}" for name, now in versions.items()
               if begun["versions"].get(name) != now]  # fmt: skip
    if begun["machine"]["threads"] != torch.get_num_threads():
        changed.append(f"threads {begun['machine']['threads']} -> {torch.get_num_threads()}")
    if changed and not fresh:
        reporter.note("WARNING: bits may differ from an uninterrupted run: " + ", ".join(changed))
