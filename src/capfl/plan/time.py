"""Time of a run on this machine, extrapolated from a few steps of one client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from capfl.config import Config
from capfl.config.schema import MethodConfig
from capfl.data import batches
from capfl.federation import Federation, tokenised
from capfl.methods import Method, build
from capfl.methods.take_home import AfterSteps
from capfl.model.base import load_base
from capfl.model.hidden import BLOCK, HiddenCache, Rows
from capfl.model.lora import AdaptedModel
from capfl.model.score import Scorable, score
from capfl.model.train import local_steps
from capfl.plan.clients import Clients
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import described, opened, received
from capfl.round import sample_size
from capfl.types import Adapter, ClientId, ClientState, Penalty

STEPS = 3  # timed, after one to warm up
SCORED = 16  # items

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """Seconds, measured on one client; and the longest of its rows and answers, in tokens."""

    load: float  # of the base model
    step: float  # one step of local training, hidden states at hand
    row: float  # hidden states of one row; 0 if no layer lies below the adapted ones
    item: float  # one item scored, hidden states at hand
    rows_per_item: float  # in scoring: one, or one for each option
    length: int
    answers: int


def weights_are_here(path: str) -> bool:
    """Can the base be loaded without a download?"""
    return path in ("tiny", "smollm2") or Path(path).expanduser().is_dir()


def calibrate(config: Config, method: Method, clients: Clients) -> tuple[Calibration, Federation]:
    """Load the base, and time a few steps and some scoring of the client with the most training items.

    Raises:
        CapflError: the model or the data cannot be used here.
    """
    load, base = _timed(lambda: load_base(config.model))
    model = AdaptedModel(base, config.lora)
    client, own = max(clients.splits.items(), key=lambda pair: len(pair[1].train))
    examples = tokenised([clients.items[i] for i in own.train], config.data, model)
    rows = Rows([example.train for example in examples])
    order = batches(rows.lengths, config.train.batch_size, config.seed, client, 0)
    plan = [list(map(int, order[n % len(order)])) for n in range(1 + STEPS)]
    scorable = Scorable(examples[:SCORED])
    start = model.initial_adapter(config.seed)

    with HiddenCache(int(config.runtime.cache_gib * 2**30)) as cache:
        federation = Federation(config, clients.items, dict(clients.splits), model, cache)
        term = _penalty(federation, client, method, start)

        def train(steps: Sequence[Sequence[int]]) -> None:
            local_steps(
                model, cache, rows, steps, start, config.train,
                trainable=lambda name: method.factors.trains(1, name), penalty=term,
            )  # fmt: skip

        hidden, _ = _timed(lambda: [rows.batch(model, cache, batch) for batch in plan])
        n_hidden = min(len(rows), cache.computed * BLOCK)
        train(plan[:1])
        step, _ = _timed(lambda: train(plan[1:]))
        score(model, cache, scorable, start, config.evaluation.batch_size)  # fills the cache
        item, _ = _timed(lambda: score(model, cache, scorable, start, config.evaluation.batch_size))
    return Calibration(
        load=load,
        step=step / STEPS,
        row=hidden / n_hidden if n_hidden else 0.0,
        item=item / len(scorable.examples),
        rows_per_item=len(scorable.rows) / len(scorable.examples),
        length=max(rows.lengths),
        answers=max(len(row.targets) for row in rows.rows),
    ), federation


def _penalty(federation: Federation, client: ClientId, method: Method, start: Adapter) -> Penalty | None:
    """What the method adds to the loss of a client that has been told its first message."""
    agreed = Agreement(method, federation.config.codec, start, seed=federation.config.seed)
    asked = server.request(method.start(start, federation.participants(method)), client, agreed)
    trainer = federation.trainer(client, method)
    memory = received(opened(asked.blob, trainer, agreed), ClientState(client), agreed)
    return method.penalty(described(memory, trainer, agreed), trainer.n_train)


def extrapolate(federation: Federation, method: Method, measured: Calibration, visit: float) -> dict[str, float]:
    """Seconds of the whole run by what they are spent on: references, validation and the final evaluation included.

    Args:
        visit: seconds that the messages of one visit take, both ways.
    """
    config = federation.config
    names = [name for name in config.evaluation.references if name != method.name]
    methods = [method, *(build(MethodConfig(name=name)) for name in names)]
    rounds, every = config.federation.rounds, config.evaluation.every
    visits, steps = [], 0.0
    for m in methods:
        who = federation.participants(m)
        visits.append(rounds * sample_size(len(who), config.federation.fraction))
        steps += visits[-1] * fmean(federation.steps(client) for client in who)
    own = config.evaluation.personal and not method.pooled
    if own and isinstance(
        method.takes_home, AfterSteps
    ):  # the personal model, and the local one that it is compared with
        steps += (2 if "local" in names else 1) * sum(federation.steps(client) for client in federation.clients)

    splits = federation.splits.values()
    n_validation = sum(len(split.validation) for split in splits)
    n_test = sum(len(split.test) for split in splits)
    validations = (rounds // every if every else 0) * sum(m.has_server_model for m in methods)
    scored = validations * n_validation + (1 + method.has_server_model + own + len(names)) * n_test
    if config.runtime.cache == "off":
        hidden = steps * config.train.batch_size + scored * measured.rows_per_item
    else:
        hidden = sum(len(split.train) for split in splits) + (n_validation + n_test) * measured.rows_per_item
    return {
        "loading": measured.load,
        "training": steps * measured.step,
        "hidden states": hidden * measured.row,
        "scoring": scored * measured.item,
        "messages": visits[0] * visit,
    }


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result
