"""The clients of a run: their data prepared for the model, behind the functions that roles and evaluation call."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from capfl.config.data import DataConfig
from capfl.config.schema import Config
from capfl.data import Split, batches, by_chance, render
from capfl.errors import ConfigError, TrainingError
from capfl.methods import Method
from capfl.methods.peers import Description
from capfl.metrics import of_task, written
from capfl.model.accept import check_positions
from capfl.model.features import describe
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.items import Protection
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.lot import steps_together
from capfl.model.per_row import REMEDY, check_rows
from capfl.model.probe import check_tokens
from capfl.model.score import Scorable, score
from capfl.model.tokens import Example, encode_all, prompt_ids
from capfl.model.train import local_steps, scheduled
from capfl.model.written import Asked, compared, write_answers
from capfl.rng import stream, torch_stream
from capfl.roles.client import LocalTrainer, Lot
from capfl.round import sample_size
from capfl.samples import Samples
from capfl.types import Adapter, ClientId, HeldOut, Item, LocalSteps, Penalty, Score, ServerState, SplitName, Trained
from capfl.workers import Workers

KEPT = 256  # clients whose rows are kept as the model takes them; those of others are made anew for each visit
SAMPLES = 5  # of a client's written answers, that are kept
POOLED = "all clients"  # the one client of a centralised reference; no client id has a space

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


def tokenised(items: Sequence[Item], config: DataConfig, model: AdaptedModel) -> list[Example]:
    """All items as the model reads them.

    Raises:
        ConfigError: ``data.max_length`` is more than the model has positions for.
        DataError: some cannot be used, such as answers that are longer than ``data.max_length``; says which.
        ModelError: some have tokens that the model has no embeddings of.
    """
    check_positions(cast(Any, model.base.module).config, config.max_length, model.base.name)
    prompts = [render(item, config.scoring) for item in items]
    examples = encode_all(
        prompts, config.scoring, model.base.tokenizer, config.max_length,
        too_long=config.too_long, turns=config.assistant_turns, date=config.date,
    )  # fmt: skip
    check_tokens(model.base.module, model.base.tokenizer, model.base.name, examples)
    return examples


def asked_of(items: Sequence[Item], config: DataConfig, model: AdaptedModel) -> list[Asked]:
    """Items to be answered by a model in its own words."""
    tokenizer = model.base.tokenizer
    return [
        Asked(
            prompt_ids(render(item, config.scoring), tokenizer, config.max_length, config.date),
            item.completion,
            1 + len(tokenizer(item.completion, add_special_tokens=False)["input_ids"]),
            item.fields,
            item.question or "\n".join(f"{role}: {content}" for role, content in item.messages),
        )
        for item in items
    ]


def check_passes(config: Config, methods: Iterable[Method], model: AdaptedModel, remote: bool) -> None:
    """See that several clients can train in one pass of the base, where ``runtime.clients_per_pass`` says so.

    Args:
        remote: are clients in processes of their own?

    Raises:
        ConfigError, ModelError: they cannot; says why.
    """
    if config.runtime.clients_per_pass == 1:
        return
    problem = next((f"the base that clients of {m.name} train on has a patch" for m in methods if m.combine.relays), "")
    if config.lora.dropout:
        problem = "lora.dropout draws for one client at a time"
    if config.runtime.compile:
        problem = "runtime.compile makes graphs of one adapter"
    if config.model.quantization == "8bit":
        problem = "8-bit products treat large inputs of all rows together"
    if remote:
        problem = "every site has a process and a base of its own"
    if problem:
        raise ConfigError(f"runtime.clients_per_pass: {problem}; {REMEDY}")
    check_rows(model)


def check_items(config: Config, model: AdaptedModel, sizes: Iterable[int]) -> None:
    """See that clients' items can be protected, where ``privacy.protects`` says so.

    Args:
        sizes: training items of the clients whose data are here.

    Raises:
        ConfigError, ModelError: they cannot; says why.
    """
    if not config.privacy.of_items:
        return
    if config.privacy.delta * (most := max(sizes, default=1)) >= 1:
        raise ConfigError(
            f"privacy.delta: with {config.privacy.delta:g} one of a client's {most} training items could "
            "be revealed; choose less than 1 / items"
        )
    check_rows(model)


class Federation:
    """All clients of a run, with one model between them.

    Args:
        workers: who scores clients that nobody asks.
        examples: the items as ``tokenised`` gives them, if that has been done.

    Raises:
        DataError: as ``tokenised``.
    """

    def __init__(
        self,
        config: Config,
        items: Sequence[Item],
        splits: dict[ClientId, Split],
        model: AdaptedModel,
        cache: HiddenCache,
        workers: Workers | None = None,
        examples: Sequence[Example] | None = None,
    ) -> None:
        self.config, self.items, self.splits, self.model, self.cache = config, items, splits, model, cache
        self.clients = sorted(splits)
        self._workers = workers or Workers()
        self._examples = tokenised(items, config.data, model) if examples is None else examples
        self._rows: dict[ClientId, Rows] = {}
        self._held_out: dict[ClientId, HeldOut] = {}
        self._scorable: dict[tuple[ClientId, SplitName], Scorable] = {}

    def participants(self, method: Method) -> list[ClientId]:
        """Who takes part in the rounds of a method."""
        return [POOLED] if method.pooled else self.clients

    def trainer(
        self,
        client: ClientId,
        method: Method,
        keep: Callable[[Adapter], None] | None = None,
        samples: Samples | None = None,
    ) -> LocalTrainer:
        """A client's data, behind the functions that its side of a round calls.

        Args:
            keep: is given the adapter that the client has in the end.
            samples: where written answers are kept.
        """
        config = self.config

        def train(start: Adapter, round: int, first_step: int, penalty: Penalty | None) -> Trained:
            job = self._job(client, method, LocalSteps(start, round, first_step, penalty))
            with torch_stream(config.seed, "dropout", client, first_step):
                result = local_steps(self.model, self.cache, job, config.train)
            self.cache.end_visit()
            return result

        def together(asked: Sequence[tuple[ClientId, LocalSteps]]) -> list[Trained | TrainingError]:
            jobs = [self._job(member, method, steps) for member, steps in asked]
            results = steps_together(self.model, self.cache, jobs, config.train)
            self.cache.end_visit()
            return results

        def described() -> Description:
            texts = all(self.items[i].task == "completions" for i in self._indices(client, "train"))
            return Description(**describe(self.model, self._train_rows(client).rows, texts))

        def scored(split: SplitName, adapters: Mapping[str, Adapter]) -> dict[str, Score]:
            if split == "test":
                return self.evaluate(client, adapters, samples)
            return {name: self.score(client, split, adapter) for name, adapter in adapters.items()}

        n_train = len(self._indices(client, "train"))
        size = config.runtime.clients_per_pass
        lot = Lot(size, together) if size > 1 else None
        return LocalTrainer(client, n_train, train, described, scored, self.held_out(client), keep, lot=lot)

    @property
    def sizes(self) -> dict[ClientId, int]:
        """The number of training items of every client."""
        return {client: len(split.train) for client, split in self.splits.items()}

    def items_of(self, clients: Sequence[ClientId]) -> list[Item]:
        """All training items of some clients."""
        return [self.items[i] for client in clients for i in self._indices(client, "train")]

    def steps(self, client: ClientId) -> int:
        """The number of optimiser steps of a round. The pooled client takes as many as all that it stands for."""
        config = self.config
        alone = config.train.steps_of(len(self._indices(client, "train")))
        if client != POOLED:
            return alone
        if config.train.steps:
            return alone * sample_size(len(self.clients), config.federation.fraction)
        return max(1, round(alone * config.federation.fraction))

    def score(self, client: ClientId, split: SplitName, adapter: Adapter) -> Score:
        """Score an adapter on one split of one client, by all metrics that cost nothing beside the loss."""
        key = (client, split)
        items = _kept(self._scorable, key, lambda: Scorable([self._examples[i] for i in self._indices(client, split)]))
        result = score(self.model, self.cache, items, adapter, self.config.evaluation.batch_size)
        self.cache.end_visit()
        return result

    def evaluate(
        self, client: ClientId, adapters: Mapping[str, Adapter], samples: Samples | None = None
    ) -> dict[str, Score]:
        """Score adapters on a client's test items by the run's metrics, and keep some of the answers that they write.

        Args:
            adapters: by the names that ``samples`` knows them by.
        """
        config, found = self.config.evaluation, dict[str, Score]()
        names = of_task(config.metrics, self.held_out(client).task)
        asked = self.asked(client)[: None if written(names) else SAMPLES if samples else 0]
        for model, adapter in adapters.items():
            scored = self.score(client, "test", adapter)
            answers = write_answers(self.model, adapter, asked, config.max_new_tokens, config.batch_size, self.cache)
            tallies = {**scored.metrics, **compared(asked, answers, written(names))}
            found[model] = Score(scored.loss, {name: tallies[name] for name in names})
            if samples is not None and asked:
                texts = [(one.text, one.right, answer) for one, answer in zip(asked, answers, strict=True)]
                samples.add(model, texts[:SAMPLES])
        return found

    def asked(self, client: ClientId) -> list[Asked]:
        """The test items to which models write answers: completions, so many of them at random."""
        indices = self._indices(client, "test")
        if self.held_out(client).task == "choices":
            return []
        drawn = stream(self.config.seed, "generated", client).permutation(len(indices))
        chosen = [self.items[indices[k]] for k in drawn[: self.config.evaluation.generated]]
        return asked_of(chosen, self.config.data, self.model)

    def validate(self, state: ServerState) -> list[Score]:
        """Each client's validation score of the adapter that it would be sent. Nobody is asked for it."""

        def of(client: ClientId) -> Score:
            group = state.group(client)
            return self.score(client, "validation", group.adapter | group.known)

        return self._workers.all(of, self.clients)

    def tested(self, adapters: Mapping[str, Adapter], clients: Sequence[ClientId]) -> dict[ClientId, dict[str, Score]]:
        """What ``evaluate`` gives for each client, of adapters that are the same for all."""
        scores = self._workers.all(lambda client: self.evaluate(client, adapters), clients)
        return dict(zip(clients, scores, strict=True))

    def held_out(self, client: ClientId) -> HeldOut:
        """A client's test items."""
        return _kept(self._held_out, client, lambda: self._count_held_out(client))  # trainers are made for each visit

    def _count_held_out(self, client: ClientId) -> HeldOut:
        test = [self.items[i] for i in self._indices(client, "test")]
        number = len(test)
        if not test or not all(item.choices for item in test):
            return HeldOut(number)
        told: SplitName = "test" if self.config.privacy.of_items else "train"  # of training items it would be unnoised
        answers = Counter(self.items[i].answer for i in self._indices(client, told))
        most = max(sorted(answers), key=answers.__getitem__, default=None)
        return HeldOut(
            number,
            chance=float(np.mean([1 / len(item.choices) for item in test])),
            majority=None if most is None else float(np.mean([item.answer == most for item in test])),
        )

    def _indices(self, client: ClientId, split: SplitName) -> list[int]:
        if client == POOLED:
            return [i for member in self.clients for i in getattr(self.splits[member], split)]
        found: list[int] = getattr(self.splits[client], split)
        return found

    def _train_rows(self, client: ClientId) -> Rows:
        return _kept(
            self._rows, client, lambda: Rows([self._examples[i].train for i in self._indices(client, "train")])
        )

    def _job(self, client: ClientId, method: Method, steps: LocalSteps) -> Job:
        """What a client's local steps take."""
        config, data = self.config, self._train_rows(client)
        return Job(
            data,
            self._plan(data, client, steps.first_step, self.steps(client)),
            steps.start,
            first_step=steps.first_step,
            rate=scheduled(config.train.schedule, steps.round, config.federation.rounds),
            trainable=lambda name: method.factors.trains(steps.round, name),
            penalty=steps.penalty,
            protection=self._protection(len(data)),
        )

    def _protection(self, number: int) -> Protection | None:
        """How each of a client's items, so many in all, is protected; None: the config does not ask for it."""
        noise, share = self.config.privacy.of_items, self.config.train.share_of(number)
        return Protection(noise.clip, noise.multiplier, share * number) if noise else None

    def _plan(self, data: Rows, client: ClientId, first_step: int, count: int) -> list[list[int]]:
        """The next ``count`` batches of an endless series of epochs, from step ``first_step`` on.

        Where items are protected, by chance: who is in a batch has to be secret, and what follows from the seed is not.
        """
        if self.config.privacy.of_items:
            share = self.config.train.share_of(len(data))
            return [list(map(int, by_chance(len(data), share, os.urandom))) for _ in range(count)]
        per_epoch = math.ceil(len(data) / self.config.train.batch_size)
        plan: list[list[int]] = []
        while len(plan) < count:
            epoch, at = divmod(first_step + len(plan), per_epoch)
            order = batches(data.lengths, self.config.train.batch_size, self.config.seed, client, epoch)
            plan += [list(map(int, batch)) for batch in order[at : at + count - len(plan)]]
        return plan


def _kept(made: dict[Key, Made], key: Key, make: Callable[[], Made]) -> Made:
    """What has been made for a key, of which the newest ``KEPT`` are kept: memory does not grow with the clients."""
    found = made.pop(key) if key in made else make()
    made[key] = found
    while len(made) > KEPT:
        del made[next(iter(made))]
    return found
