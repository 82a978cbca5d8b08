"""Time of a run on this machine, extrapolated from one visit and some scoring of one client."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from capfl.config import Config
from capfl.config.load import changed
from capfl.config.runtime import OFF
from capfl.config.schema import MethodConfig
from capfl.data import Split
from capfl.federation import Federation, tokenised
from capfl.methods import Method, build
from capfl.methods.take_home import AfterSteps
from capfl.metrics import written
from capfl.model.base import load_base
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.model.written import room, write_answers
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import train
from capfl.round import sample_size
from capfl.types import ClientId, ClientState, Item

STEPS = 6  # of the visit that is timed, at most
SCORED = 16  # items, at most
WRITTEN = 4  # tokens of each of their answers

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        seconds: of the whole run by what they are spent on, references and the final evaluation included.
        visit: seconds in which the client with the most training items takes its steps of a round.
        length: tokens of the longest row.
        answers: tokens of the longest answer.
    """

    seconds: dict[str, float]
    visit: float
    length: int
    answers: int


def weights_are_here(path: str) -> bool:
    """Can the base be loaded without a download?"""
    if path in ("tiny", "smollm2"):
        return True
    folder = Path(path).expanduser()
    return folder.is_dir() and any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir())


def calibrate(config: Config, method: Method, items: Sequence[Item], splits: Mapping[ClientId, Split]) -> Calibration:
    """Load the base, and let the client with the most training items train and score twice.

    The first time it computes hidden states below the adapted layers, too; the second time they are at hand.

    Raises:
        CapflError: the model or the data cannot be used here.
    """
    load, base = _timed(lambda: load_base(config.model))
    model = AdaptedModel(base, config.lora)
    examples = tokenised(items, config.data, model)
    client, own = max(splits.items(), key=lambda pair: len(pair[1].train))
    n_steps = min(STEPS, config.train.steps_of(len(own.train)))
    few = Split(own.train[: n_steps * config.train.batch_size], [], own.test[:SCORED])
    agreed = Agreement(method, config.codec, model.initial_adapter(config.seed), seed=config.seed)
    request = server.request(method.start(agreed.initial, list(splits)), client, agreed).blob
    limit = int(config.runtime.cache_gib * 2**30)
    with HiddenCache(0 if config.runtime.cache == OFF else limit) as cache:
        short = changed(config, {"train.steps": n_steps})
        federation = Federation(short, items, {client: few}, model, cache, examples=examples)
        trainer = federation.trainer(client, method)
        first_visit, (_, memory) = _timed(lambda: train(request, ClientState(client), trainer, agreed))
        visit, _ = _timed(lambda: train(request, replace(memory, steps=0), trainer, agreed))
        first_score, _ = _timed(lambda: federation.score(client, "test", agreed.initial))
        score, _ = _timed(lambda: federation.score(client, "test", agreed.initial))

        whole = Federation(config, items, dict(splits), model, cache, examples=examples)
        steps, scored = _work(whole, method)
        asked = federation.asked(client) if written(config.evaluation.metrics) else []
        batch_size = config.evaluation.batch_size
        write, _ = _timed(lambda: write_answers(model, agreed.initial, asked, WRITTEN, batch_size))
        passes = WRITTEN * math.ceil(len(asked) / batch_size)
    unseen = sum(len(split.train) for split in splits.values()) / len(few.train)
    unscored = sum(len(split.validation) + len(split.test) for split in splits.values()) / len(few.test)
    seconds = {
        "loading": load,
        "training": steps * visit / n_steps,
        "hidden states": unseen * max(0.0, first_visit - visit) + unscored * max(0.0, first_score - score),
        "scoring": scored * score / len(few.test),
    }
    if asked:
        longest_answer = room(asked, config.evaluation.max_new_tokens)
        seconds["writing answers"] = longest_answer * _batches(whole, method) * write / passes
    longest = max(len(example.train.ids) for example in examples)
    answers = max(len(example.train.targets) for example in examples)
    return Calibration(seconds, config.train.steps_of(len(own.train)) * visit / n_steps, longest, answers)


def _work(federation: Federation, method: Method) -> tuple[float, int]:
    """Optimiser steps and items scored in the whole run."""
    config = federation.config
    names = [name for name in config.evaluation.references if name != method.name]
    methods = [method, *(build(MethodConfig(name=name)) for name in names)]
    rounds, every = config.federation.rounds, config.evaluation.every
    steps = 0.0
    for one in methods:
        who = federation.participants(one)
        visits = rounds * sample_size(len(who), config.federation.fraction)
        steps += visits * fmean(federation.steps(client) for client in who)
    own = config.evaluation.personal and not method.pooled
    if own and isinstance(method.takes_home, AfterSteps):  # of the personal model, and of the local one beside it
        steps += (2 if "local" in names else 1) * sum(federation.steps(client) for client in federation.clients)

    n_validation = sum(len(split.validation) for split in federation.splits.values())
    n_test = sum(len(split.test) for split in federation.splits.values())
    validations = (rounds // every if every else 0) * sum(one.has_server_model for one in methods)
    if config.evaluation.keep == "best":
        validations += (rounds + 1) * len(methods)
    return steps, validations * n_validation + _models(federation, method) * n_test


def _models(federation: Federation, method: Method) -> int:
    """How many models are scored on each client's test items, those of references included."""
    config = federation.config.evaluation
    names = [name for name in config.references if name != method.name]
    return 1 + method.has_server_model + (config.personal and not method.pooled) + len(names)


def _batches(federation: Federation, method: Method) -> int:
    """Batches of answers that all models of all clients write in the end."""
    config = federation.config.evaluation
    asked = [min(config.generated, len(split.test)) for split in federation.splits.values()]
    return _models(federation, method) * sum(math.ceil(n / config.batch_size) for n in asked)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result
