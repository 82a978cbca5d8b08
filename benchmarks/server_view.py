"""What a server sees of a round in which clients train on their texts: for benchmarks/inversion.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.config import Config, load_config
from capfl.data import deal
from capfl.federation import tokenised
from capfl.model.base import load_base
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.parts import mean_loss
from capfl.model.tokens import Row
from capfl.model.train import local_steps
from capfl.roles.agreement import Agreement, agreements
from capfl.roles.client import ANSWERS, LocalTrainer
from capfl.round import run_round
from capfl.types import Adapter, ClientId, ClientState, Kind, Request, Trained
from capfl.wire import decode_update

RATE = 2e-3  # the default learning rate
ROWS = 48  # of a client, six steps of eight
CANDIDATES = 128  # for the next token


@dataclass(frozen=True)
class Seen:
    """What the attack has of a change: the values, and which of them were sent (1 or 0)."""

    change: Adapter
    sent: Adapter
    even: bool = True  # are values as AdamW makes them, of a size that does not follow from the inputs'?

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """Of A of q, k and v in a layer: values and marks, (24, d) at rank 8."""
        names = [n for n in self.change if re.search(rf"\.{layer}\.\w+\.[qkv]_proj\.A$", n)]
        return torch.cat([self.change[n] for n in names]), torch.cat([self.sent[n].float() for n in names])


def whole(gradient: Adapter) -> Seen:
    """All of a gradient, as if it were sent."""
    return Seen(gradient, {n: torch.ones_like(t) for n, t in gradient.items()}, even=False)


class Bench:
    """Clients with rows, a model between them, and the adapter that all start from."""

    def __init__(self, model: str, layers: str, data_dir: str) -> None:
        self.given: dict[str, object] = {
            "model.path": model, "lora.layers": layers, "data.sets": ["clinc150"], "data.dir": data_dir,
            "data.limit": 1200, "method.name": "fedit", "train.learning_rate": RATE, "evaluation.references": [],
            "evaluation.personal": False,
        }  # fmt: skip
        config = load_config(None, self.given)
        items, _ = deal(config.data, config.partition, 0)
        self.model = AdaptedModel(load_base(config.model), config.lora)
        self.texts = [item.question for item in items]
        self.rows: list[Row] = [example.train for example in tokenised(items, config.data, self.model)]
        self.template = set.intersection(*(set(map(int, row.ids)) for row in self.rows))
        tokens = [list(map(int, row.ids)) for row in self.rows]
        self.head, self.tail = beginning(tokens), beginning([list(reversed(ids)) for ids in tokens])
        self.train, self.cache = config.train, HiddenCache(2**30)
        self.fresh = self.model.initial_adapter(0)
        self.warm = self.steps(self.fresh, range(len(self.rows) - ROWS, len(self.rows)), 8).adapter

    def steps(self, start: Adapter, rows: Sequence[int], batch: int) -> Trained:
        """Local steps on each of some rows once, as a client takes them."""
        plan = [range(k, k + batch) for k in range(0, len(rows), batch)]
        return local_steps(self.model, self.cache, Job(Rows([self.rows[i] for i in rows]), plan, start), self.train)

    def gradient(self, rows: Sequence[int]) -> Adapter:
        """Of the loss at the warm adapter, which no client sends: what the attack is worth without AdamW."""
        self.model.write(self.warm)
        for p in self.model.parameters.values():
            p.grad = None
        data = Rows([self.rows[i] for i in rows])
        mean_loss(self.model, data.batch(self.model, self.cache, range(len(rows)))).backward()
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in self.model.parameters.items()}

    def agreement(self, start: Adapter, codec: Mapping[str, object], secure: bool) -> tuple[Config, Agreement]:
        wanted = {"privacy.secure_aggregation": "honest-server"} if secure else {}
        config = load_config(None, {**self.given, **codec, **wanted})
        return config, next(iter(agreements(config, start, "base").values()))

    def travelled(self, start: Adapter, trained: Mapping[ClientId, Trained], codec: Mapping[str, object]) -> Seen:
        """What the server learns in a round: one client's update, or the mean of several's, which says their sum."""
        secure, replies = len(trained) > 1, list[bytes]()
        config, agreed = self.agreement(start, codec, secure)
        sides = {client: LocalTrainer(client, 100, lambda *_, t=t: t) for client, t in trained.items()}

        def exchange(
            kind: Kind, round: int, clients: Sequence[ClientId], request: Request
        ) -> Iterator[tuple[ClientId, bytes]]:
            for client in clients:
                replies.append(ANSWERS[kind](request(client), ClientState(client), sides[client], agreed)[0])
                yield client, replies[-1]

        state = agreed.method.start(start, list(trained))
        after, _ = run_round(state, list(trained), agreed, exchange, config.federation, 0)
        if secure:
            change = algebra.subtract(after.everybody.adapter, start)
        else:
            (reply,) = replies
            change = decode_update(reply, agreed.up, agreed.schema, start, 1, agreed.records_up)[0].adapter
        return Seen(change, agreed.up.reach(start, start, 1))

    def nexts(self, row: int) -> Iterator[tuple[Tensor, Tensor]]:
        """At every position of a text, behind the template's beginning: what q, k and v of the lowest adapted layer
        read of the tokens before it, (n, d), and of candidates for the next, (CANDIDATES, d), the true one last."""
        ids, module = torch.from_numpy(self.rows[row].ids.astype("int64")), self.model.base.module
        norm: Any = self.model.layers[self.model.lowest].get_submodule("input_layernorm")
        pool = sorted({int(t) for other in self.rows for t in other.ids} - self.template - set(ids.tolist()))
        draw, read = torch.Generator().manual_seed(row), list[Tensor]()
        handle = norm.register_forward_hook(lambda module, args, output: read.append(output.detach().float()))
        end = len(ids) - len(self.tail)
        try:
            for at in range(len(self.head), end):
                others = torch.tensor(pool)[torch.randperm(len(pool), generator=draw)[: CANDIDATES - 1]]
                choice = torch.cat([others, ids[at : at + 1]])
                with torch.no_grad():
                    past = module(input_ids=ids[None, :at], use_cache=True).past_key_values
                    past.batch_repeat_interleave(len(choice))
                    module(input_ids=choice[:, None], past_key_values=past, use_cache=True)
                yield read[-2][0], read[-1][:, 0]
                read.clear()
        finally:
            handle.remove()

    @torch.no_grad()
    def inputs(self, layer: int, ids: Tensor) -> Tensor:
        """What q, k and v of a layer read of the last token of each row of ids (n, tokens), (n, d)."""
        norm: Any = self.model.layers[layer].get_submodule("input_layernorm")
        return norm(self.model.lower(ids, layer)[:, -1]).float()  # type: ignore[no-any-return]


def beginning(rows: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    columns = list(zip(*rows, strict=False))
    n = next((k for k, column in enumerate(columns) if len(set(column)) > 1), len(columns))
    return list(rows[0][:n])
