"""Clients that attack: an engine whose replies from some of them are not what they should be, and a task to spoil."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capfl import adapter as algebra
from capfl.checkpoint import ClientStore
from capfl.errors import WireError
from capfl.experiment import Engine
from capfl.roles import Agreement
from capfl.roles.client import Site
from capfl.types import Adapter, ClientId, Exchange, Failure, Update
from capfl.wire import decode_update, encode_update, schema_hash
from capfl.wire.body import pack
from capfl.wire.header import unseal
from capfl.wire.layout import Layout
from capfl.wire.message import UPDATE, split_notes


@dataclass(frozen=True)
class Message:
    """An honest update, taken apart: ``said`` has its decoded change, ``body`` that change as it was encoded."""

    said: Update
    body: bytes
    agreement: Agreement

    @staticmethod
    def of(blob: bytes, agreed: Agreement) -> Message:
        said, _ = decode_update(blob, agreed.up, agreed.schema, agreed.initial, agreed.method.kinds)
        _, body = unseal(blob, UPDATE, agreed.up.values.tag, agreed.schema)
        return Message(said, bytes(split_notes(body)[1]), agreed)

    def claiming(self, **claims: Any) -> bytes:
        """The same update, but for what its header or its notes say."""
        agreed = self.agreement
        return encode_update(replace(self.said, **claims), self.body, agreed.up, agreed.schema, agreed.method.kinds)

    def changed(self, change: Adapter) -> bytes:
        """The same update with another change: NaN and infinity as they are, or as the largest that can be written."""
        agreed = self.agreement
        layout = Layout.of(change, agreed.initial)
        reach = agreed.up.reach(change, agreed.initial, self.said.round)
        kept = np.flatnonzero(layout.flatten({name: t.float() for name, t in reach.items()}))
        flat, values = layout.flatten(change), agreed.up.values
        if values.name not in ("fp32", "bf16"):
            flat = np.nan_to_num(flat, nan=3e38, posinf=3e38)
        body = pack(flat, kept, False, values, layout, agreed.initial, agreed.up.unbiased)
        return replace(self, body=body).claiming()

    def under(self, template: Adapter, base: str) -> bytes:
        """An update of the same client for another adapter or another base model."""
        agreed = self.agreement
        change = {name: torch.full_like(t, 1e-3) for name, t in template.items()}
        body = agreed.up.encode(change, template, self.said.round)
        return encode_update(self.said, body, agreed.up, schema_hash(template, base), agreed.method.kinds)


Attack = Callable[[Message, bytes], bytes]
"""(the honest update, the client's first one of the run) -> what is sent in its place."""


def filled(value: float) -> Attack:
    return lambda honest, first: honest.changed({n: torch.full_like(t, value) for n, t in honest.said.adapter.items()})


def flipped(times: float) -> Attack:
    return lambda honest, first: honest.changed(algebra.scaled(honest.said.adapter, -times))


def farthest(honest: Message, first: bytes) -> bytes:
    """Backwards, as far as the door lets in."""
    said, agreed = honest.said, honest.agreement
    assert agreed.limits is not None
    longest = agreed.limits.longest(said.n_train, algebra.size(said.adapter), agreed.up.density_in(said.round))
    return flipped(0.9 * longest / max(1e-9, algebra.norm(said.adapter)))(honest, first)


def noise(honest: Message, first: bytes) -> bytes:
    """Ten times as long as the honest change, in a direction of chance."""
    change, draw = honest.said.adapter, torch.Generator().manual_seed(honest.said.round)
    drawn = {name: torch.randn(t.shape, generator=draw) for name, t in change.items()}
    return honest.changed(algebra.scaled(drawn, 10 * algebra.norm(change) / algebra.norm(drawn)))


def heavy(honest: Message, first: bytes) -> bytes:
    """Backwards, for as many items as the door lets in."""
    assert honest.agreement.limits is not None
    turned = replace(honest, said=replace(honest.said, n_train=honest.agreement.limits.max_items))
    return flipped(1)(turned, first)


def stale(honest: Message, first: bytes) -> bytes:
    """The change of the first round again, said to be this round's."""
    old = Message.of(first, honest.agreement)
    return replace(honest, body=old.body).claiming()


def wrong_rank(honest: Message, first: bytes) -> bytes:
    template = {
        name: torch.zeros((t.shape[0] + 1, t.shape[1]) if name.endswith(".A") else (t.shape[0], t.shape[1] + 1))
        for name, t in honest.agreement.initial.items()
    }
    return honest.under(template, honest.agreement.base)


def wrong_rank_in_disguise(honest: Message, first: bytes) -> bytes:
    """Of another rank, under the hash of the right one."""
    blob = wrong_rank(honest, first)
    return forged(blob, 12, honest.agreement.schema)


def forged(blob: bytes, at: int, new: bytes) -> bytes:
    """Some bytes replaced, and a checksum that fits."""
    body = blob[:at] + new + blob[at + len(new) : -4]
    return body + struct.pack("<I", zlib.crc32(body))


def without_body(honest: Message, first: bytes) -> bytes:
    return replace(honest, body=b"\xff" * 40).claiming()


CLAIMS: dict[str, Attack] = {
    "replayed": lambda honest, first: b"" if honest.said.round == 1 else first,
    "of another client": lambda honest, first: honest.claiming(client=f"{honest.said.client}x"),
    "wrong rank": wrong_rank,
    "wrong rank, right hash": wrong_rank_in_disguise,
    "wrong schema": lambda honest, first: honest.under(honest.agreement.initial, "another base"),
    "no body": without_body,
    "all items of the world": lambda honest, first: honest.claiming(n_train=2**32 - 1),
    "more steps than items": lambda honest, first: honest.claiming(steps=2**32 - 1),
    "no items": lambda honest, first: honest.claiming(n_train=0),
    "loss NaN": lambda honest, first: honest.claiming(loss=float("nan")),
    "loss 1e300": lambda honest, first: honest.claiming(loss=1e300),
    "loss below zero": lambda honest, first: honest.claiming(loss=-1.0),
    "of a round to come": lambda honest, first: honest.claiming(round=honest.said.round + 1),
}
REFUSED: dict[str, Attack] = {
    **CLAIMS,
    "NaN": filled(float("nan")),
    "infinite": filled(float("inf")),
    "huge": filled(1e30),
    "a thousand times too long": flipped(1000.0),
}
"""What no client can have to say: the door keeps it out."""

ADMITTED: dict[str, Attack] = {
    "flipped": flipped(1.0),
    "farthest": farthest,
    "heavy": heavy,
    "stale": stale,
}
"""What an honest client might have said: only another mean than the plain one is proof against it."""

MILD: dict[str, Attack] = {"noise": noise, "free rider": flipped(0.0)}
"""What spoils little, by any mean."""


def saying(**notes: Callable[[torch.Tensor], torch.Tensor | None]) -> Attack:
    """Notes changed, by name; None: not said."""

    def attack(honest: Message, first: bytes) -> bytes:
        changed = {name: f(honest.said.notes.get(name, torch.ones(4))) for name, f in notes.items()}
        return honest.claiming(notes={k: t for k, t in (honest.said.notes | changed).items() if t is not None})

    return attack


LIES: dict[str, Attack] = {
    "no alpha": saying(alpha=lambda t: None),
    "no beta": saying(beta=lambda t: None),
    "a rank too many": saying(alpha=lambda t: torch.cat([t, t[:1]])),
    "a rank less": saying(beta=lambda t: t[1:]),
    "huge alpha": saying(alpha=lambda t: 0 * t + 1e38),
    "tiny beta": saying(beta=lambda t: 0 * t + 1e-38),
    "huge beta": saying(beta=lambda t: 0 * t + 1e38),
    "half a description": saying(deviation=lambda t: None),
    "no answers": saying(answers=lambda t: None),
    "features of another model": saying(features=lambda t: t[:-1]),
    "long features": saying(features=lambda t: t.repeat(500)),
    "deviation of another model": saying(deviation=lambda t: torch.cat([t, t])),
    "negative deviation": saying(deviation=lambda t: -t),
    "huge features": saying(features=lambda t: 0 * t + 1e30),
    "huge deviation": saying(deviation=lambda t: 0 * t + 1e30),
    "less than one answer": saying(answers=lambda t: 0 * t + 1e-30),
    "what the server says": saying(alpha=lambda t: t, z=lambda t: t),
}
"""What no client of CA-PFL can have to say of its data and its ranks."""

RANKS: dict[str, Attack] = {
    "no marks": saying(alive=lambda t: None),
    "a rank too many": saying(alive=lambda t: torch.cat([t, t[:1]])),
    "a rank less": saying(alive=lambda t: t[1:]),
    "ranks that it was not told to have": saying(alive=lambda t: 0 * t + 1),
    "no rank of the last module": saying(alive=lambda t: torch.cat([t[:-2], 0 * t[-2:]])),
}
"""What no client of a method with unequal ranks can have to say of them: here, of two in every module."""


def attacked(engine: Engine, attack: Attack, villains: Sequence[ClientId]) -> Engine:
    """The engine, with the updates of some clients replaced. Other messages pass as they are."""

    def make(site: Callable[[ClientId], Site], store: ClientStore, agreement: Agreement) -> Exchange:
        inner: Any = engine(site, store, agreement)
        first: dict[ClientId, bytes] = {}

        def exchange(*asked: Any) -> Iterator[tuple[ClientId, bytes | Failure]]:
            for client, reply in inner(*asked):
                if client not in villains or isinstance(reply, Failure) or agreement.method.travels == "nothing":
                    yield client, reply
                    continue
                try:
                    honest = Message.of(reply, agreement)
                except WireError:  # a score, say
                    yield client, reply
                    continue
                yield client, attack(honest, first.setdefault(client, reply))

        return exchange

    return make


# -- a task that a random model of 50,000 parameters can learn, and unlearn -------------------------------------

WORDS = {
    "red": ("crimson", "scarlet", "ruby"),
    "blue": ("navy", "azure", "cobalt"),
    "green": ("olive", "lime", "jade"),
    "grey": ("ash", "slate", "smoke"),
}

LEARNS: dict[str, object] = {
    "model.path": "tiny", "lora.layers": "top:2", "lora.targets": ["q_proj", "v_proj", "up_proj", "down_proj"],
    "partition.kind": "iid", "partition.clients": 10, "federation.rounds": 15, "federation.on_failure": "skip",
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
        site = f"{i % 10:02}"
        label = draw.choice(names)
        article, thing = draw.choice(("a", "the", "one")), draw.choice(("hat", "car", "cup", "box"))
        text = f"{article} {draw.choice(WORDS[label])} {thing}"
        said = names[(names.index(label) + 1) % len(names)] if site in liars else label
        rows.append(json.dumps({"text": text, "label": said, "site": site}))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path
