"""Clients that attack: replies that are not what they should be, and a task to spoil with them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.experiment import Engine
from capfl.roles.agreement import Agreement
from capfl.types import Adapter, ClientId, Exchange, Failure, Update
from capfl.wire import decode_update, encode_update, round_of, schema_hash
from capfl.wire.body import pack, unpack
from capfl.wire.budget import read_importance
from capfl.wire.layout import Layout
from capfl.wire.sections import Section

Attack = Callable[[bytes, Agreement, bytes], bytes]
"""(a client's honest update, what was agreed on, its first update of the run) -> what it sends in its place."""


def opened(reply: bytes, agreed: Agreement) -> Update:
    """An update of a run without turns, in which round r makes version r."""
    return decode_update(reply, agreed.up, agreed.schema, agreed.initial, round_of(reply), agreed.records_up)[0]


def forged(reply: bytes, agreed: Agreement, change: Adapter | None = None, **claims: Any) -> bytes:
    """An update with other claims, or with another change: NaN and infinity as they are, or as large as can be."""
    said = replace(opened(reply, agreed), **claims)
    if change is None:
        return encode_update(said, said.body, agreed.up, agreed.schema)
    layout, values = Layout.of(change, agreed.initial), agreed.up.values
    coded = unpack(memoryview(said.body), agreed.initial)[1].get(Section.RANKS)
    n_ranks = Layout.of(agreed.initial, agreed.initial).n_ranks
    importance = None if coded is None else read_importance(coded, n_ranks)
    reach = agreed.up.reach(change, agreed.initial, said.round, importance)
    kept = np.flatnonzero(layout.flatten({name: t.float() for name, t in reach.items()}))
    flat = layout.flatten(change)
    if values.name not in ("fp32", "bf16"):
        flat = np.nan_to_num(flat, nan=3e38, posinf=3e38)
    body = pack(
        flat, kept, values, layout, agreed.initial, listed=False, unbiased=agreed.up.scales,
        importance=None if coded is None else bytes(coded),
    )  # fmt: skip
    return encode_update(said, body, agreed.up, agreed.schema)


def claiming(**claims: Any) -> Attack:
    return lambda reply, agreed, first: forged(reply, agreed, **claims)


def filled(value: float) -> Attack:
    def attack(reply: bytes, agreed: Agreement, first: bytes) -> bytes:
        return forged(reply, agreed, {n: torch.full_like(t, value) for n, t in opened(reply, agreed).adapter.items()})

    return attack


def flipped(times: float) -> Attack:
    return lambda reply, agreed, first: forged(reply, agreed, algebra.scaled(opened(reply, agreed).adapter, -times))


def farthest(reply: bytes, agreed: Agreement, first: bytes) -> bytes:
    """Backwards, as far as the door lets in."""
    said = opened(reply, agreed)
    assert agreed.limits is not None
    longest = agreed.limits.longest(said.n_train, algebra.size(said.adapter), agreed.up.gain)
    return flipped(0.9 * longest / max(1e-9, algebra.norm(said.adapter)))(reply, agreed, first)


def heavy(reply: bytes, agreed: Agreement, first: bytes) -> bytes:
    """Backwards, and said to be of a million items."""
    return forged(flipped(1)(reply, agreed, first), agreed, n_train=1_000_000)


def of_another_adapter(wider: int, base: str) -> Attack:
    """An update for an adapter of other ranks, or for another base model."""

    def attack(reply: bytes, agreed: Agreement, first: bytes) -> bytes:
        said = opened(reply, agreed)
        shapes = {n: (t.shape[0] + wider * n.endswith(".A"), t.shape[1] + wider * n.endswith(".B"))
                  for n, t in agreed.initial.items()}  # fmt: skip
        template = {name: torch.zeros(shape) for name, shape in shapes.items()}
        body = agreed.up.encode({n: torch.full_like(t, 1e-3) for n, t in template.items()}, template, said.round)
        return encode_update(said, body, agreed.up, schema_hash(template, base))

    return attack


CLAIMS: dict[str, Attack] = {
    "replayed": lambda reply, agreed, first: first if first != reply else b"",
    "of another client": claiming(client="x"),
    "of a round to come": lambda reply, agreed, first: forged(reply, agreed, round=opened(reply, agreed).round + 1),
    "wrong rank": of_another_adapter(1, "base"),
    "wrong schema": of_another_adapter(0, "another base"),
    "no body": lambda reply, agreed, first: encode_update(
        opened(reply, agreed), b"\xff" * 40, agreed.up, agreed.schema
    ),
    "more steps than items": claiming(steps=2**32 - 1),
    "no items": claiming(n_train=0),
    "loss NaN": claiming(loss=float("nan")),
    "loss below zero": claiming(loss=-1.0),
}
REFUSED: dict[str, Attack] = {
    **CLAIMS,
    "NaN": filled(float("nan")),
    "infinite": filled(float("inf")),
    "huge": filled(1e30),
    "a thousand times too long": flipped(1000.0),
}
"""What no client can have to say."""

ADMITTED: dict[str, Attack] = {"flipped": flipped(1.0), "farthest": farthest, "heavy": heavy}
"""What an honest client might have said: only another mean than the plain one is proof against it."""


def attacked(engine: Engine, attack: Attack, villains: Sequence[ClientId]) -> Engine:
    """The engine, with the updates of some clients replaced. Other messages pass as they are."""

    def make(trainer: Any, store: Any, agreement: Agreement, workers: Any) -> Exchange:
        inner: Any = engine(trainer, store, agreement, workers)
        first: dict[ClientId, bytes] = {}

        def exchange(*asked: Any) -> Iterator[tuple[ClientId, bytes | Failure]]:
            for client, reply in inner(*asked):
                try:
                    is_update = client in villains and isinstance(reply, bytes) and opened(reply, agreement).adapter
                except WireError:  # a score or an introduction
                    is_update = False
                yield client, attack(reply, agreement, first.setdefault(client, reply)) if is_update else reply

        return exchange

    return make


# -- a task that a random model of 50,000 parameters can learn, and unlearn -----------------------------------------

WORDS = {
    "red": ("crimson", "scarlet", "ruby"), "blue": ("navy", "azure", "cobalt"),
    "green": ("olive", "lime", "jade"), "grey": ("ash", "slate", "smoke"),
}  # fmt: skip

LEARNS: dict[str, object] = {
    "model.path": "tiny", "lora.layers": "top:2", "lora.targets": ["q_proj", "v_proj", "up_proj", "down_proj"],
    "method.name": "fedit", "partition.kind": "by:site",
    "federation.rounds": 15, "federation.on_failure": "skip",
    "train.steps": 5, "train.batch_size": 16, "train.learning_rate": 3e-2, "train.schedule": "linear",
    "codec.values": "4bit",
    "evaluation.references": [], "evaluation.personal": False, "evaluation.every": 0,
    "runtime.threads": 1, "runtime.cache": "memory",
}  # fmt: skip
"""Ten clients, four colours; all but perfect after fifteen rounds. Chance is 25 %."""

VILLAINS = ("03", "07")  # two of the ten


def colours(path: Path, n: int = 1000, seed: int = 0, liars: Sequence[ClientId] = ()) -> Path:
    """``n`` items such as "the scarlet hat", labelled by colour, of ten sites; those of liars by the next colour."""
    draw = random.Random(seed)
    rows, names = [], list(WORDS)
    for i in range(n):
        site, label = f"{i % 10:02}", draw.choice(names)
        article, thing = draw.choice(("a", "the", "one")), draw.choice(("hat", "car", "cup", "box"))
        text = f"{article} {draw.choice(WORDS[label])} {thing}"
        said = names[(names.index(label) + 1) % len(names)] if site in liars else label
        rows.append(json.dumps({"text": text, "label": said, "site": site}))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path
