"""The composition root: a config becomes data, model, clients, rounds, and a folder of results."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from capfl.checkpoint import ClientStore, RunFolder, StateReader
from capfl.config import Config, load_config, to_toml
from capfl.data import Split, deal, digest
from capfl.errors import CheckpointError, ConfigError
from capfl.evaluation import Finished, evaluate
from capfl.federation import Federation
from capfl.files import write_atomically
from capfl.methods import Method, build
from capfl.methods.private import Noisy, private
from capfl.methods.robust import robust
from capfl.model.base import load_base
from capfl.model.export import PatchFactors, save_adapter
from capfl.model.features import lengths
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.model.shared import SharedBlocks
from capfl.report.progress import Reporter, Silent
from capfl.report.summary import Summary
from capfl.roles.agreement import Agreement, agreements, refuse_pooled
from capfl.roles.client import LocalTrainer
from capfl.roles.door import Limits
from capfl.round import run_round, sample_size, validate_round
from capfl.site import run_digest
from capfl.types import EVERYBODY, ClientId, Exchange, Item, RoundRecord, ServerState
from capfl.usage import peak_memory
from capfl.vault import Vault, open_vault

Engine = Callable[[Callable[[ClientId], LocalTrainer], ClientStore, Agreement], Exchange]
"""Makes the exchange with clients in this process: (trainer of a client, clients' states, agreement) -> exchange."""


@dataclass(frozen=True)
class Remote:
    """Clients elsewhere, in place of an engine: who they are, and the exchange with them, for each method of a run."""

    clients: Sequence[ClientId]
    exchange: Callable[[Agreement], Exchange]


@dataclass(frozen=True)
class Inputs:
    """What a run may be given beside its config.

    Attributes:
        data: items, and each client's split of them, in place of what the config's section ``data`` names.
        methods: methods of the caller's own by name, which ``method.name`` may ask for.
    """

    data: tuple[Sequence[Item], dict[ClientId, Split]] | None = None
    methods: Mapping[str, Method] = field(default_factory=dict)


PACKAGES = ("capfl", "torch", "transformers", "peft", "numpy", "safetensors", "datasets")


def run(
    config: Config, engine: Engine | Remote, reporter: Reporter | None = None, inputs: Inputs | None = None
) -> tuple[Summary, Path]:
    """Run an experiment from the start. Returns its summary and its folder.

    Raises:
        ConfigError: the folder is in use, or a name in the config is unknown.
        CapflError: anything else that its subclasses name.
    """
    given = inputs or Inputs()
    build(config.method, config.seed, given.methods)  # a name that is wrong is said before anything is loaded
    return _Run(config, RunFolder(free_folder(config)), engine, reporter or Silent(), given).go(fresh=True)


def resume(
    path: Path, engine: Engine | Remote, reporter: Reporter | None = None, inputs: Inputs | None = None
) -> tuple[Summary, Path]:
    """Go on with a run that was interrupted, to the same bits as if it had not been.

    Raises:
        CheckpointError: the folder is not a run, or its config, data or records have changed since.
    """
    config = config_of(path)
    return _Run(config, RunFolder(path), engine, reporter or Silent(), inputs or Inputs()).go(fresh=False)


def free_folder(config: Config) -> Path:
    """Where a run goes. Raises ConfigError: something is there."""
    if config.out is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        path, n = Path(f"runs/{stamp}-{config.method.name}"), 1
        while path.exists():
            path, n = Path(f"runs/{stamp}-{config.method.name}-{n + 1}"), n + 1
        return path
    path = Path(config.out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"out: {path} is not empty; choose another folder, or go on with: capfl run --resume {path}")
    return path


def config_of(path: Path) -> Config:
    """The config that the run in a folder was started with.

    Raises:
        CheckpointError: the folder is not a run.
    """
    if not (path / "config.toml").is_file():
        raise CheckpointError(f"{path} has no config.toml: not a run folder, or stopped before it began; start it anew")
    return load_config(path / "config.toml")


@dataclass
class _Run:
    """One run of a config in a folder."""

    config: Config
    folder: RunFolder
    engine: Engine | Remote
    reporter: Reporter
    given: Inputs

    def go(self, fresh: bool) -> tuple[Summary, Path]:
        """All of it: data, model, rounds, results."""
        began = time.monotonic()
        config, folder, engine, reporter = self.config, self.folder, self.engine, self.reporter
        torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
        vault = Vault() if isinstance(engine, Remote) else open_vault(config.runtime.state_key, folder.path)

        # data: who holds what, where it is held in this process
        items, splits = self._data()
        clients = sorted(engine.clients if isinstance(engine, Remote) else splits)

        # model: one frozen base for all of them
        held = f"{len(items)} items at " if items else ""
        reporter.note(f"{folder.path}: {held}{len(clients)} clients; loading {config.model.path}")
        model = AdaptedModel(load_base(config.model), config.lora)
        agreed = self._agreements(model, len(clients))

        # from here on the run exists: what was wrong with its data or model has been said before
        self._record(digest(items, splits) if items else ",".join(clients), splits, fresh)
        reporter.begin(folder.path, config)
        limit = int(config.runtime.cache_gib * 2**30)
        shared = SharedBlocks(Path(config.runtime.cache_dir), limit) if config.runtime.cache_dir else None
        with HiddenCache(config.runtime.cache, limit, folder.path, shared) as cache:
            federation = Federation(config, items, splits, model, cache, reporter.client) if items else None

            # rounds: the method itself, then the references that its clients could have had instead
            factors = PatchFactors()
            finished: dict[str, Finished] = {}
            for name, agreement in agreed.items():
                place = folder if not finished else RunFolder(folder.path / "references" / name)
                participants = federation.participants(agreement.method) if federation else clients
                if isinstance(engine, Remote):
                    exchange = engine.exchange(agreement)
                else:
                    assert federation is not None
                    keep = folder.path / "adapters" / "clients" if not finished else None
                    exchange = _simulated(engine, agreement, federation, place, vault, keep, factors)
                finished[name] = run_method(agreement, participants, exchange, federation, config, place, reporter)

            # results: every model on every client's own test items
            main = next(iter(finished.values()))
            self._save_adapters(main, model, factors)
            summary = evaluate(finished, config.federation, federation)
            if epsilon := main.records[-1].epsilon:
                summary = replace(summary, epsilon=epsilon, delta=config.privacy.delta)
            summary = replace(summary, seconds=time.monotonic() - began, peak_memory=peak_memory())
        folder.write_json("summary.json", summary.to_json())
        reporter.finish(summary)
        return summary, folder.path

    def _data(self) -> tuple[Sequence[Item], dict[ClientId, Split]]:
        if isinstance(self.engine, Remote):
            return [], {}
        if self.given.data is not None:
            return self.given.data
        return deal(self.config.data, self.config.partition, self.config.seed)

    def _agreements(self, model: AdaptedModel, clients: int) -> dict[str, Agreement]:
        """What is agreed on, with limits of what clients may claim, and for the method what the server adds to it.

        Raises:
            ConfigError: robust aggregation or privacy cannot be had with the method.
        """
        config, federation = self.config, self.config.federation
        initial = model.initial_adapter(config.seed)
        agreed = agreements(config, initial, model.base.revision, self.given.methods)
        if isinstance(self.engine, Remote):
            refuse_pooled(agreed)
        guarded: dict[str, Agreement] = {}
        for name, agreement in agreed.items():
            method = agreement.method
            described = lengths(model) if method.grouping.describes else {}
            limits = None if method.pooled else Limits(
                config.train, federation.max_items, federation.max_norm, described
            )  # fmt: skip
            if not guarded:  # the references are what clients could have had instead
                method = robust(method, federation, agreement.up)
                asked = sample_size(clients, federation.fraction)
                method = private(method, config.privacy, agreement.up, clients, asked)
            guarded[name] = replace(agreement, method=method, limits=limits)
        return guarded

    def _save_adapters(self, main: Finished, model: AdaptedModel, factors: PatchFactors) -> None:
        """The server's adapters: everybody's, and each group's under its name."""
        if not main.agreement.method.has_server_model:
            return
        for name, group in main.state.groups.items():
            place = Path("global") if name == EVERYBODY else Path("groups") / name
            whole = group.adapter | group.known
            save_adapter(whole, model.peft_config(), self.folder.path / "adapters" / place, factors)

    def _record(self, data: str, splits: Mapping[ClientId, Split], fresh: bool) -> None:
        """Save config, versions and partition with the run; on resuming, check that they are still the same.

        Args:
            data: a name for the data and who holds them; or, where they are elsewhere, for the clients alone.

        Raises:
            CheckpointError: config or data are not those that the run began with.
        """
        config, folder = self.config, self.folder
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        if fresh or not (folder.path / "run.json").is_file():
            write_atomically(folder.path / "config.toml", to_toml(config).encode())
            if splits:
                folder.write_json("partition.json", {client: vars(own) for client, own in splits.items()})
            folder.write_json("run.json", {
                "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "seed": config.seed,
                "config": run_digest(config),
                "data": data,
                "versions": versions,
                "python": platform.python_version(),
                "machine": {"system": platform.system(), "architecture": platform.machine(),
                            "threads": torch.get_num_threads()},
            })  # fmt: skip
            return
        begun = folder.read_json("run.json")
        agreed = {"config.toml": ("config", run_digest(config)), "data or their partition": ("data", data)}
        for what, (key, now) in agreed.items():
            if begun.get(key) != now:
                raise CheckpointError(
                    f"{folder.path}: {what} changed since this run began; restore what it began with, or start a new "
                    "run"
                )
        before, machine = begun.get("versions", {}), begun.get("machine", {})
        changed = [f"{name} {before.get(name)} -> {now}" for name, now in versions.items() if before.get(name) != now]
        if machine.get("threads") != torch.get_num_threads():
            changed.append(f"threads {machine.get('threads')} -> {torch.get_num_threads()}")
        if changed:
            self.reporter.note("WARNING: bits may differ from an uninterrupted run: " + ", ".join(changed))


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
    peft_config = federation.model.peft_config()

    def trainer(client: ClientId) -> LocalTrainer:
        if adapters is None:
            return federation.trainer(client, agreement.method)
        return federation.trainer(
            client, agreement.method, lambda own: save_adapter(own, peft_config, adapters / client, factors)
        )

    store = folder.clients(StateReader(agreement.method, agreement.initial), vault)
    return engine(trainer, store, agreement)


def run_method(
    agreement: Agreement,
    participants: Sequence[ClientId],
    exchange: Exchange,
    federation: Federation | None,
    config: Config,
    folder: RunFolder,
    reporter: Reporter,
) -> Finished:
    """All rounds of one method, from wherever its folder stands. After each, the whole state is on disk.

    Args:
        federation: all clients' data, if they are in this process: then nobody is asked to validate. Otherwise clients
            are asked to validate the newest version, and have then been sent it.
    """
    method, rounds = agreement.method, config.federation.rounds
    state = folder.resumed(StateReader(method, agreement.initial))
    state = state or method.start(agreement.initial, participants)
    reporter.start(method.name, rounds, state.round, sample_size(len(participants), config.federation.fraction))
    validated = config.evaluation.every if method.has_server_model and config.partition.validation else 0

    def due(record: RoundRecord) -> bool:
        return bool(validated) and record.round % validated == 0 and record.validation_loss is None

    def ask(state: ServerState, record: RoundRecord) -> tuple[ServerState, RoundRecord]:
        after, record = validate_round(state, record, participants, agreement, exchange, config.federation)
        return folder.amend(state, after, record), record

    for record in folder.rounds()[-1:]:  # the run was stopped between a round and its validation
        if due(record):
            state, _ = ask(state, record)
    while state.round < rounds:
        state, record = run_round(state, participants, agreement, exchange, config.federation, config.seed)
        if isinstance(method.combine, Noisy):
            record = replace(record, epsilon=method.combine.epsilon(max(state.visits.values())))
        if due(record) and federation is not None:
            score = federation.validate(state)
            record = replace(record, validation_accuracy=score.accuracy, validation_loss=score.loss)
        state = folder.commit(state, record)
        if due(record):
            state, record = ask(state, record)
        reporter.round(record)
    return Finished(state, agreement, participants, exchange, folder.rounds())
