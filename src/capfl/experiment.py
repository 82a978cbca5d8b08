"""The composition root: a config becomes data, model, clients, rounds, and a folder of results."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from capfl import metrics
from capfl.checkpoint import ClientStore, RunFolder, StateReader
from capfl.checks import Dealt, config_of, free_folder
from capfl.config import Config
from capfl.config.load import dated
from capfl.config.methods import check_peers
from capfl.data import deal, digest, remarks
from capfl.data.tasks import check_tasks
from capfl.errors import CheckpointError, ConfigError, number
from capfl.evaluation import Finished, evaluate
from capfl.federation import Federation, check_items, check_passes, tokenised
from capfl.files import locked, new_folder
from capfl.machine import peak_memory
from capfl.methods import Method, build
from capfl.methods.private import private
from capfl.methods.robust import robust
from capfl.methods.secure import refuse_few
from capfl.model.base import load_base, pick_device
from capfl.model.card import Card, card_of
from capfl.model.export import save_adapter
from capfl.model.features import lengths
from capfl.model.hidden import open_cache
from capfl.model.lora import AdaptedModel
from capfl.model.place import remark as place_remark
from capfl.model.remarks import remarks as remarks_on_tokens
from capfl.provenance import RECORD, changes, record
from capfl.report.progress import Callback
from capfl.report.summary import Summary, members_of, read_summary
from capfl.roles.agreement import Agreement, agreements, refuse_pooled
from capfl.roles.client import LocalTrainer
from capfl.roles.limits import Limits
from capfl.round import sample_size
from capfl.rounds import epsilon_in_all, run_method, why_stopped
from capfl.samples import FOLDER, OF_LOCAL, OF_MAIN, Samples
from capfl.types import EVERYBODY, Adapter, ClientId, Exchange
from capfl.vault import Vault, open_vault
from capfl.workers import Workers, check_workers

Engine = Callable[[Callable[[ClientId], LocalTrainer], ClientStore, Agreement, Workers], Exchange]
"""Makes the exchange with clients on this machine: (trainer of a client, states of all, agreement, who works)."""


@dataclass(frozen=True)
class Remote:
    """Clients elsewhere, in place of an engine: who they are, and the exchange with them, for each method of a run."""

    clients: Sequence[ClientId]
    exchange: Callable[[Agreement], Exchange]


def run(
    config: Config,
    engine: Engine | Remote,
    callback: Callback | None = None,
    *,
    data: Dealt | None = None,
    in_memory: bool = False,
    methods: Mapping[str, Method] | None = None,
) -> tuple[Summary, Path]:
    """Run an experiment from the start. Returns its summary and its folder.

    Args:
        data: of the run, where they have been read already, see ``checked_data``.
        in_memory: ``data`` are rows of the caller's, in place of what the config's section ``data`` names.
        methods: methods of the caller's own by name, which ``method.name`` may ask for.

    Raises:
        ConfigError: the folder is in use, or a name in the config is unknown.
        CapflError: anything else that its subclasses name.
    """
    if isinstance(engine, Remote):  # what is wrong is said before anything is loaded
        check_remote(config, engine.clients)
    else:
        _method(config, methods or {})
    config = dated(config)
    folder = RunFolder(free_folder(config))
    return _Run(config, folder, engine, callback or Callback(), data, methods or {}, in_memory).go(True)


def check_remote(config: Config, clients: Sequence[ClientId]) -> None:
    """See that a run over a network can be had, without its base model. Raises ConfigError as ``run``."""
    if config.runtime.workers > 1:
        raise ConfigError("runtime.workers: clients elsewhere work on their own machines; leave it out")
    _method(config, {})
    agreed = agreements(config, {}, "")
    refuse_pooled(agreed)
    _guarded(config, next(iter(agreed.values())), clients, True)


def _method(config: Config, methods: Mapping[str, Method]) -> Method:
    method = build(config.method, config.seed, methods)
    if config.evaluation.patience and not method.has_server_model:
        raise ConfigError(f"evaluation.patience: {method.name} shares no adapter that could be validated; leave it out")
    return method


def _guarded(config: Config, main: Agreement, clients: Sequence[ClientId], remote: bool) -> Method:
    """The method of a run with the server's own robust or private mean. Raises ConfigError: it cannot be had."""
    asked = sample_size(len(clients), config.federation.fraction)
    refuse_few(main.method, clients, asked)
    if main.secure and remote and config.evaluation.every:
        waits = (
            ", leave evaluation.patience out, and say by federation.rounds when the run ends (with evaluation.keep = "
            "best each client keeps the best of its own models all the same)"
        )
        raise ConfigError(
            "privacy.secure_aggregation: validation would show each client's own score after each round; "
            f"set evaluation.every to 0{waits if config.evaluation.patience else ''}"
        )
    if main.secure and config.runtime.workers > 1:
        raise ConfigError(
            "privacy.secure_aggregation: clients' keys are in the memory of one process; set runtime.workers to 1"
        )
    method = robust(main.method, config.federation, main.up)
    return private(method, config.privacy, main.up, len(clients), asked)


def resume(
    path: Path,
    engine: Engine | Remote,
    callback: Callback | None = None,
    *,
    data: Dealt | None = None,
    methods: Mapping[str, Method] | None = None,
) -> tuple[Summary, Path]:
    """Go on with a run that was interrupted, to the same bits as if it had not been. Arguments as for ``run``.

    Raises:
        CheckpointError: the folder is not a run, or its config, data or records have changed since.
    """
    given = callback or Callback()
    return _Run(config_of(path), RunFolder(path), engine, given, data, methods or {}, data is not None).go(False)


@dataclass
class _Run:
    """One run of a config in a folder."""

    config: Config
    folder: RunFolder
    engine: Engine | Remote
    callback: Callback
    data: Dealt | None
    methods: Mapping[str, Method]
    in_memory: bool = False

    def go(self, fresh: bool) -> tuple[Summary, Path]:
        """Data, model, rounds, results. Nothing is written before data and model are known to be right."""
        began = time.monotonic()
        config, engine, callback, path = self.config, self.engine, self.callback, self.folder.path
        workers = Workers(config.runtime.workers)
        n_threads = config.runtime.threads or (1 if workers.number > 1 else torch.get_num_threads())
        torch.set_num_threads(n_threads)
        if not isinstance(engine, Remote):  # sites see to their own
            metrics.require(config.evaluation.metrics)
            check_workers(workers.number, pick_device(config.model.device).type)
        with ExitStack() as stack:
            if not fresh:
                stack.enter_context(locked(path))
            vault = Vault() if isinstance(engine, Remote) else open_vault(config.runtime.state_key, path)

            # data: who holds what, where it is held in this process
            items, splits = self._dealt()
            clients = sorted(engine.clients if isinstance(engine, Remote) else splits)
            check_peers(config.method, clients)
            for remark in (
                remarks(None if self.in_memory else config.data, config.partition, items, splits) if items else ()
            ):
                callback.on_note(remark)

            check_tasks(items, splits, config.evaluation.metrics)  # an error now, not after the last round

            if any(item.task == "completions" for item in items) and metrics.written(config.evaluation.metrics):
                callback.on_note(
                    f"in the end every model writes answers to up to {config.evaluation.generated} test items of each "
                    "client; with --metrics perplexity,token_accuracy it takes less time"
                )

            # model: one frozen base for all of them
            who, computed = number(len(clients), "client"), number(n_threads, "thread")
            callback.on_note(f"{path}: {who}; loading {config.model.path}, {computed}")
            if first := place_remark(config.model.path):
                callback.on_note(first)
            model = AdaptedModel(load_base(config.model), config.lora)
            for remark in model.remarks:
                callback.on_note(remark)
            examples = tokenised(items, config.data, model)
            said = remarks_on_tokens(items, examples, config.data, model.base.tokenizer)
            for remark in said:
                callback.on_note(remark)
            agreed = self._agreements(model, clients)
            if config.runtime.compile and not isinstance(engine, Remote):
                callback.on_note("compiling the adapted layers, which can take minutes")
                model.compile()
            check_passes(config, [a.method for a in agreed.values()], model, isinstance(engine, Remote))
            check_items(config, model, [len(split.train) for split in splits.values()])

            # from here on the run exists
            if fresh:
                new_folder(path)
                stack.enter_context(locked(path))
            held = digest(items, splits) if items else ",".join(clients)
            if fresh or not (path / RECORD).is_file():
                record(self.folder, config, held, splits, said)
            elif changed := changes(self.folder, config, held):
                callback.on_note("WARNING: bits may differ from an uninterrupted run: " + ", ".join(changed))
            callback.on_begin(path, config)
            own_vault = vault.of_run(hashlib.blake2b((path / RECORD).read_bytes()).hexdigest(), path)
            cache = stack.enter_context(open_cache(config.runtime, path / "hidden", vault, workers.counts))
            stack.enter_context(workers)  # nobody writes to the cache when it is removed
            federation = Federation(config, items, splits, model, cache, workers, examples) if items else None

            # rounds: the method itself, then the references that its clients could have had instead
            finished: dict[str, Finished] = {}
            for name, agreement in agreed.items():
                place = self.folder if not finished else RunFolder(path / "references" / name)
                participants = federation.participants(agreement.method) if federation else clients
                if isinstance(engine, Remote):
                    exchange = engine.exchange(agreement)
                else:
                    assert federation is not None
                    keep = partial(self._keep, federation, finished) if not finished else None
                    samples = partial(self._samples, own_vault, OF_LOCAL if finished else OF_MAIN)
                    exchange = _simulated(engine, workers, agreement, federation, place, own_vault, keep, samples)
                rounds = next(iter(finished.values())).state.round if finished else config.federation.rounds
                finished[name] = run_method(
                    agreement, participants, exchange, federation, config, place, callback, rounds
                )

            # results: every model on every client's own test items
            main = next(iter(finished.values()))
            if not fresh and (summary := self._summary(main)):
                callback.on_end(summary)
                return summary, path
            self._save_adapters(main, model, federation)
            summary = evaluate(finished, config.federation, federation, callback)
            summary = replace(summary, stopped=why_stopped(main.records, config))
            if epsilon := epsilon_in_all(list(finished.values()), summary, federation, config):
                asked = config.privacy
                summary = replace(summary, epsilon=epsilon, delta=asked.delta, protects=asked.protects)
            summary = replace(summary, seconds=time.monotonic() - began, peak_memory=peak_memory(workers.number > 1))
            self.folder.write_json("summary.json", summary.to_json(iter))
        callback.on_end(summary)
        return summary, path

    def _dealt(self) -> Dealt:
        if isinstance(self.engine, Remote):
            return [], {}
        if self.data is not None:
            return self.data
        return deal(self.config.data, self.config.partition, self.config.seed)

    def _agreements(self, model: AdaptedModel, clients: Sequence[ClientId]) -> dict[str, Agreement]:
        """What is agreed on, with limits of what clients may claim, and with the server's own robust or private mean.

        Raises:
            ConfigError: robust aggregation, privacy or secure aggregation cannot be had with the method or the clients.
        """
        config, federation = self.config, self.config.federation
        initial = model.initial_adapter(config.seed)
        agreed = agreements(config, initial, model.base.digest, self.methods)
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
                method = _guarded(config, agreement, clients, isinstance(self.engine, Remote))
            guarded[name] = replace(agreement, method=method, limits=limits)
        return guarded

    def _save_adapters(self, main: Finished, model: AdaptedModel, federation: Federation | None) -> None:
        """The server's adapters: everybody's, and each group's under its name."""
        if not main.agreement.method.has_server_model:
            return
        members = members_of(main.state.group_of) | {EVERYBODY: tuple(main.participants)}
        for name, group in main.state.groups.items():
            place = self.folder.path / "adapters" / ("global" if name == EVERYBODY else f"groups/{name}")
            card = self._card(model, federation, members.get(name, ()), name)
            save_adapter(group.adapter | group.known, model.peft_config(), place, card)

    def _summary(self, main: Finished) -> Summary | None:
        """The summary of a run that was finished before; None: it was not, or what it has written does not agree."""
        if not (self.folder.path / "summary.json").is_file():
            return None
        try:
            summary = read_summary(self.folder.path)
        except CheckpointError as error:
            self.callback.on_note(f"what came of this run is found and written anew: {error}")
            return None
        return summary if summary.rounds == main.state.round else None

    def _keep(self, federation: Federation, finished: Mapping[str, Finished], client: ClientId, own: Adapter) -> None:
        """Save the adapter that a client has in the end."""
        model, main = federation.model, next(iter(finished.values()))
        card = self._card(model, federation, [client], main.state.group_of.get(client))
        save_adapter(own, model.peft_config(), self.folder.path / "adapters" / "clients" / client, card)

    def _samples(self, vault: Vault, names: Mapping[str, str], client: ClientId) -> Samples:
        return Samples(self.folder.path / FOLDER / f"{client}.jsonl", names, vault)

    def _card(
        self, model: AdaptedModel, federation: Federation | None, clients: Sequence[ClientId], group: str | None
    ) -> Card:
        """What is said of an adapter that these clients have trained."""
        items = federation.items_of(clients) if federation else []
        method, run = self.config.method.name, self.folder.path.name
        return card_of(model.base, self.config.data, items, method=method, group=group, run=run)


def _simulated(
    engine: Engine,
    workers: Workers,
    agreement: Agreement,
    federation: Federation,
    folder: RunFolder,
    vault: Vault,
    keep: Callable[[ClientId, Adapter], None] | None,
    samples: Callable[[ClientId], Samples],
) -> Exchange:
    """The exchange with clients of this process, whose states are in the run's folder.

    Args:
        keep: puts the adapter that a client has in the end where it belongs.
        samples: where a client keeps some written answers.
    """

    def trainer(client: ClientId) -> LocalTrainer:
        own = partial(keep, client) if keep else None
        return federation.trainer(client, agreement.method, own, samples(client))

    store = folder.clients(StateReader(agreement.method, agreement.initial), vault)
    return engine(trainer, store, agreement, workers)
