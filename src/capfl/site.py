"""A client's side of a run on its own disk; and a client in a process of its own, with nobody else's data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch

from capfl import metrics
from capfl.checkpoint import ClientStore, RunFolder, StateReader
from capfl.config import Config
from capfl.data import Split, deal_one, digest
from capfl.data.tasks import check_tasks
from capfl.errors import CheckpointError, ConfigError, RunError, WireError
from capfl.federation import Federation, check_items, tokenised
from capfl.methods.items import epsilon_of_items, trainings
from capfl.model.base import load_base
from capfl.model.card import card_of
from capfl.model.export import save_adapter
from capfl.model.hidden import open_cache
from capfl.model.lora import AdaptedModel
from capfl.model.remarks import remarks
from capfl.provenance import run_digest
from capfl.roles.agreement import Agreement, agreements, refuse_pooled
from capfl.roles.client import ANSWERS, LocalTrainer, Training, alone, opened, training
from capfl.roles.keyring import Keyring
from capfl.samples import FOLDER, OF_LOCAL, OF_MAIN, Samples
from capfl.taken import Taken, read_taken, write_taken
from capfl.types import Adapter, ClientId, Item, Kind, Penalty, Trained
from capfl.vault import open_vault

Train = Callable[[Adapter, int, int, Penalty | None], Trained]


def visit(
    kind: Kind, round: int, request: bytes, trainer: LocalTrainer, store: ClientStore, agreement: Agreement
) -> bytes:
    """Answer one request with the memory from before its round, and keep what the client remembers then.

    What it has learnt in a round of training is kept under that round. A validation tells it the version of the round
    before, and is kept under that one; so is that it has introduced itself, before it trains in the same round.

    Raises:
        CheckpointError: the store cannot be read or written.
        WireError, TrainingError: as ``roles.client.train``; the store is untouched then.
    """
    return alone(visiting(kind, round, request, trainer, store, agreement), trainer)


def visiting(
    kind: Kind, round: int, request: bytes, trainer: LocalTrainer, store: ClientStore, agreement: Agreement
) -> Training[bytes]:
    """As ``visit``, and somebody else takes the local steps of a round."""
    memory = store.load(trainer.client, before=round)
    if kind == "train":
        reply, after = yield from training(request, memory, trainer, agreement)
    else:
        reply, after = ANSWERS[kind](request, memory, trainer, agreement)
    if after is not memory:
        store.save(after, round if kind == "train" else round - 1)
    return reply


class Site:
    """One client of a run, alone with its data. Gives the same bits as when it is simulated beside the others.

    Use it as a context manager. In ``folder`` are its states, by method, and in ``folder/adapter`` its own adapter in
    PEFT's format, once the run has ended. A process that is killed and started again goes on from there, and a server
    that lost a round finds it as it was before. A run that is started anew takes a new folder.

    Attributes:
        remarks: what its user should be told of how its rows become tokens.

    Args:
        config: that of the run. ``out``, ``runtime`` and ``data.dir`` may be the site's own.
        client: who it is. Without ``dealt``, one of ``capfl.data.clients_of(config.data, config.partition)``.
        path: its own file, where that is not where ``data.sets`` says.
        dealt: items and split of a client whose part was found by somebody who has everybody's data (``data.deal``).
        keyring: makes the client's keys of secure aggregation, one keyring for each method, which is given the file in
            which it remembers the sums that it has opened.
        max_epsilon: limit on the epsilon of the site's items in this run, whatever the server asks for; None: no limit.

    Raises:
        RunError: the run does not protect items, or would take more than ``max_epsilon``.
        ConfigError: who holds what, or a reference, depends on everybody's data; there is no such client; the key
            of its states is not where ``runtime.state_key`` says; or the run measures by a function that the site has
            not allowed in ``runtime.own_metrics``.
        DataError: the data cannot be used.
        CheckpointError: the folder is another client's or another run's, or its data have changed.
    """

    def __init__(
        self,
        config: Config,
        client: ClientId,
        folder: Path,
        path: Path | None = None,
        dealt: tuple[list[Item], Split] | None = None,
        keyring: Callable[[Path], Keyring] = lambda opened: Keyring(opened=opened),
        max_epsilon: float | None = None,
    ) -> None:
        self._keyrings: dict[str, Keyring] = {}
        self._make_keyring, self._max_epsilon = keyring, max_epsilon
        self.config, self.id, self.folder = config, client, folder
        require_metrics(config)
        if config.runtime.workers > 1:
            raise ConfigError("runtime.workers: a site has one client, so one process is enough; leave it out")
        torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
        if dealt is None:
            items, splits = deal_one(config.data, config.partition, config.seed, client, path)
        else:
            items, splits = dealt[0], {client: dealt[1]}
        check_tasks(items, splits, config.evaluation.metrics)
        self._claim(digest(items, splits))
        model = AdaptedModel(load_base(config.model), config.lora)
        if config.runtime.compile:
            model.compile()
        check_items(config, model, [len(splits[client].train)])
        initial = model.initial_adapter(config.seed)
        self.agreements = agreements(config, initial, model.base.digest)
        refuse_pooled(self.agreements)
        self._sizes = {client: len(splits[client].train)}
        self._check_epsilon()
        self._peft_config = model.peft_config()
        vault = open_vault(config.runtime.state_key, folder)
        self._cache = open_cache(config.runtime, folder / "hidden", vault)  # other runs may use it, too
        self._vault = vault.of_run(f"{folder.name} {run_digest(config)}", folder)
        examples = tokenised(items, config.data, model)
        self.remarks = remarks(items, examples, config.data, model.base.tokenizer)
        self._federation = Federation(config, items, splits, model, self._cache, examples=examples)
        self._main = next(iter(self.agreements))
        self._card = card_of(model.base, config.data, items, method=config.method.name, run=folder.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._cache.__exit__(*raised)

    def answer(self, kind: Kind, method: str, request: bytes, used: int | None = None) -> bytes:
        """The reply to a request of one of the run's methods: the first of ``agreements``, or a reference.

        Args:
            used: the round of the client's last update that the server used, if it says so. Replies get lost or come
                too late; what the client has learnt in later rounds did not happen then.

        Raises:
            ConfigError: the run has no such method.
            WireError: the request does not fit, is for another client, or for a round that the run does not have.
                Nothing is changed then.
            TrainingError: a loss is not finite.
            RunError: training would take more epsilon than ``max_epsilon``. Nothing is trained then.
        """
        if method not in self.agreements:
            raise ConfigError(f"method {method!r} is not one of this run's: {', '.join(self.agreements)}")
        agreement = self.agreements[method]
        reader = StateReader(agreement.method, agreement.initial)
        store = ClientStore(self.folder / "state" / method, reader, self._vault)
        keep = self._keep if method == self._main else None
        names = OF_MAIN if method == self._main else OF_LOCAL
        samples = Samples(self.folder / f"{FOLDER}.jsonl", names, self._vault)
        trainer = self._federation.trainer(self.id, agreement.method, keep, samples)
        round = opened(request, trainer, agreement).round
        self._require_round(kind, round)
        if used is not None and kind != "open":  # which is of the training that the server is about to use
            store.forget(self.id, after=used)
        if agreement.secure:
            if method not in self._keyrings:
                self._keyrings[method] = self._make_keyring(self.folder / f"opened.{method}")
            trainer = replace(trainer, keyring=self._keyrings[method])
        if self.config.privacy.of_items:
            trainer = replace(trainer, train=self._counted(trainer.train))
        return visit(kind, round, request, trainer, store, agreement)

    def _require_round(self, kind: Kind, round: int) -> None:
        """Raises WireError: the run has no such round. What it says beyond its last one, no epsilon counts."""
        rounds = self.config.federation.rounds
        last = rounds if kind in ("introduce", "train") else rounds + 1  # of the scores at the end
        if not 1 <= round <= last:
            raise WireError(f"a request of the kind {kind} is for round {round}, and the run has {rounds} rounds")

    @property
    def epsilon(self) -> float | None:
        """Of (epsilon, delta), for the site's training items, by all steps that were ever taken in this folder.

        It counts what the server may not know of: rounds that were lost and done again, and steps that nobody asked for
        in the server's files. None: items are not protected.
        """
        return self._epsilon_of(read_taken(self.folder).trainings)

    def _epsilon_of(self, taken: int) -> float | None:
        noise = self.config.privacy.of_items
        return epsilon_of_items(noise, self.config.train, {self.id: taken}, self._sizes) if noise else None

    def _counted(self, train: Train) -> Train:
        """Training that is counted before it begins."""

        def counted(start: Adapter, round: int, first_step: int, penalty: Penalty | None) -> Trained:
            taken = read_taken(self.folder).trainings + 1
            self._require_epsilon(epsilon := self._epsilon_of(taken), "another training would make it")
            write_taken(self.folder, Taken(taken, epsilon or 0.0))
            return train(start, round, first_step, penalty)

        return counted

    def _check_epsilon(self) -> None:
        """Raises RunError: the run as it is planned takes more of this site's items than it may."""
        if self._max_epsilon is None:
            return
        if self.config.privacy.of_items is None:
            raise RunError(
                "the run does not protect items, and --max-epsilon allows only runs that do; agree on privacy.protects "
                "= items, or start the node without --max-epsilon"
            )
        rounds = self.config.federation.rounds
        planned = sum(trainings(one.method, rounds, "personal" in one.scored) for one in self.agreements.values())
        self._require_epsilon(self._epsilon_of(planned), "the whole run would make it")

    def _require_epsilon(self, epsilon: float | None, what: str) -> None:
        if self._max_epsilon is not None and epsilon is not None and epsilon > self._max_epsilon:
            raise RunError(
                f"epsilon of this site's items: {what} {epsilon:.4g}, and --max-epsilon leaves {self._max_epsilon:.4g} "
                "to this run; agree on fewer rounds or on more noise (privacy.noise_multiplier), or allow more"
            )

    def _keep(self, adapter: Adapter) -> None:
        save_adapter(adapter, self._peft_config, self.folder / "adapter", card=self._card)

    def _claim(self, data: str) -> None:
        """Mark the folder as this client's in this run, or check that it is."""
        claim = {"client": self.id, "run": run_digest(self.config), "data": data}
        place = RunFolder(self.folder)
        if not (self.folder / "site.json").is_file():
            place.write_json("site.json", claim)
            return
        found = place.read_json("site.json")
        for key, what in (("client", "client"), ("run", "run or config"), ("data", "data")):
            if found.get(key) != claim[key]:
                raise CheckpointError(
                    f"{self.folder} was made with another {what} (site.json); give each client and run a separate "
                    "folder, or restore the old setting"
                )


def require_metrics(config: Config) -> None:
    """A run's config comes from the server, which must not choose what code a site runs on what a model writes.

    Raises:
        ConfigError: a metric is a function that the site has not allowed, or something that metrics need is not here.
    """
    names = config.evaluation.metrics
    if asked := [name for name in names if metrics.is_own(name) and name not in config.runtime.own_metrics]:
        raise ConfigError(
            f"evaluation.metrics: the run wants to call {', '.join(asked)} here; if you trust this code, "
            f"allow it with --set runtime.own_metrics={','.join([*config.runtime.own_metrics, *asked])}"
        )
    metrics.require(names)
