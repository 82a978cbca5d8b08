"""The composition root: a config becomes data, model, clients, rounds, and a folder of results."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from capfl.checkpoint import ClientStore, RunFolder
from capfl.config import Config, load_config, to_toml
from capfl.data import Split, deal, digest
from capfl.errors import CheckpointError, ConfigError
from capfl.evaluation import Finished, evaluate
from capfl.federation import Federation
from capfl.files import write_atomically
from capfl.methods import build
from capfl.methods.private import private
from capfl.methods.robust import robust
from capfl.model.base import load_base
from capfl.model.export import PatchFactors, save_adapter
from capfl.model.features import lengths
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.model.shared import SharedBlocks
from capfl.report.progress import Callback
from capfl.report.summary import Summary
from capfl.roles import Agreement, agreements, refuse_pooled, server
from capfl.roles.client import Site
from capfl.roles.door import Limits
from capfl.round import run_round, sample_size, validate_round
from capfl.types import ClientId, Exchange, RoundRecord, ServerState
from capfl.usage import peak_memory
from capfl.vault import Vault, open_vault

Engine = Callable[[Callable[[ClientId], Site], ClientStore, Agreement], Exchange]
"""Makes the exchange with clients whose data and states are in this process: (site of a client, states, agreement)."""


@dataclass(frozen=True)
class Remote:
    """Clients elsewhere, in place of an engine: who they are, and the exchange with them, for each method of a run."""

    clients: Sequence[ClientId]
    exchange: Callable[[Agreement], Exchange]


PACKAGES = ("capfl", "torch", "transformers", "peft", "numpy", "safetensors", "datasets")


def run(config: Config, engine: Engine | Remote, reporter: Callback | None = None) -> tuple[Summary, Path]:
    """Run an experiment from the start. Returns its summary and its folder.

    Raises:
        ConfigError: the folder is in use, or a name in the config is unknown.
        CapflError: anything else that its subclasses name.
    """
    path = new_folder(config)
    return _run(config, RunFolder(path), engine, reporter or Callback(), fresh=True)


def new_folder(config: Config) -> Path:
    """Where a run goes. Raises ConfigError if something is there, or the method does not exist."""
    method = build(config.method, config.seed)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = Path(config.out or f"runs/{stamp}-{method.name}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"out: {path} is not empty; choose another folder, or go on with: capfl run --resume {path}")
    return path


def resume(path: Path, engine: Engine | Remote, reporter: Callback | None = None) -> tuple[Summary, Path]:
    """Go on with a run that was interrupted, to the same bits as if it had not been.

    Raises:
        CheckpointError: the folder is not a run, or its data have changed since.
    """
    return _run(config_of(path), RunFolder(path), engine, reporter or Callback(), fresh=False)


def config_of(path: Path) -> Config:
    """The config that the run in a folder was started with.

    Raises:
        CheckpointError: the folder is not a run.
    """
    if not (path / "config.toml").is_file():
        raise CheckpointError(f"{path} has no config.toml: not a run folder, or stopped before it began; start it anew")
    return load_config(path / "config.toml")


def _run(
    config: Config, folder: RunFolder, engine: Engine | Remote, reporter: Callback, fresh: bool
) -> tuple[Summary, Path]:
    began = time.monotonic()
    torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
    build(config.method, config.seed)  # a name that is wrong is said before data and model are loaded
    vault = Vault() if isinstance(engine, Remote) else open_vault(config.runtime.state_key, folder.path)

    # data: who holds what, where it is held in this process
    items, splits = ([], {}) if isinstance(engine, Remote) else deal(config.data, config.partition, config.seed)
    clients = sorted(engine.clients if isinstance(engine, Remote) else splits)

    # model: one frozen base for all of them
    held = f"{len(items)} items at " if items else ""
    reporter.on_note(f"{folder.path}: {held}{len(clients)} clients; loading {config.model.path}")
    model = AdaptedModel(load_base(config.model), config.lora)
    agreed = agreements(config, model.initial_adapter(config.seed), model.base.revision)
    if isinstance(engine, Remote):
        refuse_pooled(agreed)
    agreed = _guarded(agreed, config, len(clients), model)

    # from here on the run exists: what was wrong with its data or model has been said before
    _record_inputs(config, folder, digest(items, splits) if items else ",".join(clients), splits, reporter, fresh)
    reporter.on_begin(folder.path, config)
    limit = int(config.runtime.cache_gib * 2**30)
    shared = SharedBlocks(Path(config.runtime.cache_dir), limit) if config.runtime.cache_dir else None
    with HiddenCache(config.runtime.cache, limit, folder.path, shared) as cache:
        federation = Federation(config, items, splits, model, cache, reporter.on_client) if items else None

        factors = PatchFactors()

        # rounds: the method itself, then the references that its clients could have had instead
        finished: dict[str, Finished] = {}
        for name, agreement in agreed.items():
            place = folder if not finished else RunFolder(folder.path / "references" / name)
            if isinstance(engine, Remote):
                exchange, participants = engine.exchange(agreement), clients
            else:
                assert federation is not None
                adapters = folder.path / "adapters" / "clients" if not finished else None
                exchange = _simulated(engine, agreement, federation, place, vault, adapters, factors)
                participants = federation.participants(agreement.method)
            finished[name] = run_method(agreement, participants, exchange, federation, config, place, reporter)

        # results: every model on every client's own test items
        reporter.on_note("evaluating every client")
        main = next(iter(finished.values()))
        if main.agreement.method.has_global:
            save_adapter(main.state.whole, model.peft_config(), folder.path / "adapters" / "global", factors)
        for group, own in main.state.groups.items():
            save_adapter(own.whole, model.peft_config(), folder.path / "adapters" / "groups" / group, factors)
        summary = evaluate(finished, config.federation, federation)
        if epsilon := main.records[-1].epsilon:
            summary = replace(summary, epsilon=epsilon, delta=config.privacy.delta)
        summary = replace(summary, seconds=time.monotonic() - began, peak_memory=peak_memory())
    folder.write_json("summary.json", summary.to_json())
    reporter.on_end(summary)
    return summary, folder.path


def _guarded(
    agreed: Mapping[str, Agreement], config: Config, clients: int, model: AdaptedModel
) -> dict[str, Agreement]:
    """The agreements with what the server does on its own: limits of claims, and another mean of the method's changes.

    Raises:
        ConfigError: robust aggregation or privacy cannot be had with the method.
    """
    guarded: dict[str, Agreement] = {}
    for name, agreement in agreed.items():
        method, federation = agreement.method, config.federation
        told = lengths(model) if method.describes else {}
        limits = None if method.pooled else Limits(config.train, federation.max_items, federation.max_norm, told)
        if not guarded:  # the references are what clients could have had instead
            method = robust(method, federation, agreement.up)
            asked = sample_size(clients, federation.fraction)
            method = private(method, config.privacy, agreement.up, agreement.initial, clients, asked)
        guarded[name] = replace(agreement, method=method, limits=limits)
    return guarded


def _simulated(
    engine: Engine,
    agreement: Agreement,
    federation: Federation,
    folder: RunFolder,
    vault: Vault,
    adapters: Path | None,
    factors: PatchFactors,
) -> Exchange:
    """The exchange with clients of this process, whose states are in the run's folder."""
    method, initial = agreement.method, agreement.initial
    peft_config = federation.model.peft_config()

    def site(client: ClientId) -> Site:
        if adapters is None:
            return federation.site(client, method)
        return federation.site(client, method, lambda own: save_adapter(own, peft_config, adapters / client, factors))

    store = folder.clients(initial, lambda client: method.init_client(client, initial), vault)
    return engine(site, store, agreement)


def run_method(
    agreement: Agreement,
    participants: Sequence[ClientId],
    exchange: Exchange,
    federation: Federation | None,
    config: Config,
    folder: RunFolder,
    reporter: Callback,
) -> Finished:
    """All rounds of one method, from wherever its folder stands. After each, the whole state is on disk.

    Args:
        federation: all clients' data, if they are in this process: it is looked at for nothing. Otherwise clients are
            asked to validate the newest version, and have then been told it.
    """
    method, rounds = agreement.method, config.federation.rounds
    state = folder.server(agreement.initial) or server.start(agreement, participants)
    folder.forget_after(state.round)
    n_visits = sample_size(len(participants), config.federation.fraction)
    reporter.on_start(method.name, rounds, state.round, n_visits)
    validated = config.evaluation.every if method.has_global and config.partition.validation else 0
    taken = Counter(client for record in folder.rounds() for client in record.clients)

    def due(record: RoundRecord) -> bool:
        return bool(validated) and record.round % validated == 0 and record.validation_loss is None

    def ask(state: ServerState, record: RoundRecord) -> tuple[ServerState, RoundRecord]:
        state, record = validate_round(state, record, participants, agreement, exchange, config.federation)
        folder.amend(state, record)
        return state, record

    for record in folder.rounds()[-1:]:  # the run was stopped between a round and its validation
        if due(record):
            state, _ = ask(state, record)
    while state.round < rounds:
        state, record = run_round(state, participants, agreement, exchange, config.federation, config.seed)
        taken.update(record.clients)
        record = replace(record, groups=dict(state.group_of))
        if method.epsilon:
            record = replace(record, epsilon=method.epsilon(max(taken.values())))
        if due(record) and federation is not None:
            score = federation.validate(state)
            record = replace(record, validation_accuracy=score.accuracy, validation_loss=score.loss)
        folder.commit(state, record)
        if due(record):
            state, record = ask(state, record)
        reporter.on_round(record)
    return Finished(state, agreement, participants, exchange, folder.rounds())


def _record_inputs(
    config: Config, folder: RunFolder, data: str, splits: Mapping[ClientId, Split], reporter: Callback, fresh: bool
) -> None:
    """Save config, versions and partition with the run; on resuming, check that they are still the same.

    Args:
        data: a name for the data and who holds them; or, where they are elsewhere, for the clients alone.

    Raises:
        CheckpointError: the data are not those that the run began with.
    """
    write_atomically(folder.path / "config.toml", to_toml(config).encode())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    if not (folder.path / "run.json").is_file():
        if splits:
            folder.write_json("partition.json", {client: vars(own) for client, own in splits.items()})
        folder.write_json("run.json", {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seed": config.seed,
            "data": data,
            "versions": versions,
            "python": platform.python_version(),
            "machine": {"system": platform.system(), "architecture": platform.machine(),
                        "threads": torch.get_num_threads()},
        })  # fmt: skip
        return
    begun = folder.read_json("run.json")
    if begun["data"] != data:
        raise CheckpointError(
            f"{folder.path}: the data or their partition have changed since this run began; "
            "restore them, or start a new run"
        )
    changed = [f"{name} {begun['versions'].get(name)} -> {now}" for name, now in versions.items()
               if begun["versions"].get(name) != now]  # fmt: skip
    if begun["machine"]["threads"] != torch.get_num_threads():
        changed.append(f"threads {begun['machine']['threads']} -> {torch.get_num_threads()}")
    if changed and not fresh:
        reporter.on_note("WARNING: bits may differ from an uninterrupted run: " + ", ".join(changed))
