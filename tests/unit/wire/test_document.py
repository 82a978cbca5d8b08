"""docs/wire.md is enough to read a message: a reader written from it alone, in plain Python, agrees with ours."""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import CODECS, SMALL, filled, important, normal, paired, same
from capfl.errors import WireError
from capfl.types import Adapter, Update
from capfl.wire import Codec, decode_update, encode_update, schema_hash, up_codec
from capfl.wire.values import VALUES

DOCUMENT = Path(__file__).parents[3] / "docs" / "wire.md"
LEVELS = {4: 8, 5: 4, 6: 3, 7: 2}  # bits of a value by kind


def bits_of(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def fold(number: int) -> int:
    return -(number + 1) // 2 if number % 2 else number // 2


def rice(data: bytes, n: int) -> list[int]:
    """The n numbers of a list."""
    k = data[0]
    n_low = (k * n + 7) // 8
    unary, low = bits_of(data[1 : len(data) - n_low]), bits_of(data[len(data) - n_low :])
    quotients = [len(zeros) for zeros in re.findall("(0*)1", unary)]
    assert len(quotients) == n
    return [(q << k) + int(low[i * k : (i + 1) * k] or "0", 2) for i, q in enumerate(quotients)]


def sections_of(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data:
        length = struct.unpack_from("<I", data, 1)[0]
        found[data[0]], data = data[5 : 5 + length], data[5 + length :]
    return found


def positions_of(data: bytes, size: int) -> list[int]:
    total = struct.unpack_from("<I", data)[0]
    place, listed = -1, set()
    for gap in rice(data[4:], min(total, size - total)):
        place += gap + 1
        listed.add(place)
    return [p for p in range(size) if (p in listed) == (2 * total <= size)]


def places_of(seed: int, template: Adapter) -> list[int]:
    text = "\x1f".join([str(seed), "mask"])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    size = sum(t.numel() for t in template.values())
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    found: list[int] = generator.integers(0, 2**32, size, np.uint32).tolist()
    return found


def drawn(seed: int, number: int, density: float, there: list[str], template: Adapter) -> list[int]:
    places = iter(places_of(seed, template))
    named = [place for name, t in template.items() for place in itertools.islice(places, t.numel()) if name in there]
    width = min(2**32 - 1, round(density * 2**32))
    return [p for p, place in enumerate(named) if (place - number * width) % 2**32 < width]


def record_of(data: bytes) -> dict[int, tuple[int, bytes]]:
    """The number of elements and the data of each field, by its place."""
    found = {}
    while data:
        n, length = struct.unpack_from("<HH", data, 1)
        found[data[0]], data = (n, data[5 : 5 + length]), data[5 + length :]
    return found


def by_importance(data: bytes, codec: Codec, number: int, there: list[str], template: Adapter) -> list[int]:
    ranks_ = [(name[:-2], row) for name, t in template.items() if name.endswith(".A") and name[:-2] + ".B" in template
              for row in range(t.shape[0])]  # fmt: skip
    said = record_of(data)
    marks = bits_of(said[1][1]) if 1 in said else "1" * len(ranks_)
    marked = [rank for rank, bit in zip(ranks_, marks, strict=False) if bit == "1"]
    importance = dict(zip(marked, scales_of(said[0][1], said[0][0], 20), strict=True))
    places = iter(places_of(codec.seed, template))
    elements: dict[tuple[str, int], list[tuple[int, int]]] = {rank: [] for rank in ranks_}  # by place, then position
    position = 0
    for name, t in template.items():
        run = t.numel() // t.shape[int(name.endswith(".B"))]
        for e, place in enumerate(itertools.islice(places, t.numel())):
            if name in there:
                elements[name[:-2], e // run].append((place, position))
                position += 1
    counts = counts_of(
        [importance.get(rank, 0.0) for rank in ranks_],
        [len(elements[rank]) for rank in ranks_],
        round(codec.density * sum(len(elements[rank]) for rank in marked)),
    )
    found = []
    for rank, n in zip(ranks_, counts, strict=True):
        s, own = len(elements[rank]), sorted(elements[rank])
        p = (number * 2654435769 % 2**32) * s // 2**32
        found += [own[(p + k) % s][1] for k in range(n)]
    return sorted(found)


def counts_of(importance: list[float], sizes: list[int], b: int) -> list[int]:
    w = [x / max(importance) for x in importance]
    left = [g for g in range(len(w)) if w[g] and sizes[g]]
    if sum(sizes[g] for g in left) <= b:
        return [size if w[g] else 0 for g, size in enumerate(sizes)]
    falling = sorted(left, key=lambda g: -w[g])
    for i, first in enumerate(falling):
        mass = 0.0
        for g in reversed(falling[i:]):
            mass += sizes[g] * w[g]
        t = (b - sum(sizes[g] for g in falling[:i])) / mass
        if t * w[first] <= 1:
            break
    full = falling[:i]
    f = {g: round(sizes[g] * (1.0 if g in full else min(1.0, t * w[g])) * 2**24) for g in left}
    missing = b - sum(f[g] // 2**24 for g in left)
    more = sorted(left, key=lambda g: -(f[g] % 2**24))[:missing]
    return [f[g] // 2**24 + (g in more) if g in f else 0 for g in range(len(w))]


def scales_of(data: bytes, n: int, cut: int) -> list[float]:
    codes = [struct.unpack_from("<H", data)[0]]
    for step in rice(data[2:], n - 1):
        codes.append(codes[-1] + fold(step))
    return [struct.unpack("<f", struct.pack("<I", code << cut))[0] for code in codes]


def read(blob: bytes, template: Adapter, codec: Codec, number: int) -> dict[str, object]:
    magic, version, kind, values, zero, round, schema, items, steps, loss, n = struct.unpack_from(
        "<4sBBBBI8sIIdH", blob
    )
    assert (magic, version, kind, zero) == (b"CPFL", 4, 2, 0)
    lines = ["base", *(f"{name} ({t.shape[0]}, {t.shape[1]})" for name, t in template.items())]
    assert schema == hashlib.blake2b("\n".join(lines).encode(), digest_size=8).digest()
    assert struct.unpack("<I", blob[-4:])[0] == zlib.crc32(blob[:-4])
    client = blob[38 : 38 + n].decode()
    body = sections_of(blob[38 + n : -4])
    there = [name for name, bit in zip(template, bits_of(body[1]), strict=False) if bit == "1"]
    sizes = [template[name].numel() for name in there]
    vector = [0.0] * sum(sizes)
    if 4 in body:
        kept = list(range(sum(sizes)))
        if 2 in body:
            kept = positions_of(body[2], sum(sizes))
        elif 6 in body:
            kept = by_importance(body[6], codec, number, there, template)
        elif codec.mask == "random" and codec.density < 1:
            kept = drawn(codec.seed, number, codec.density, there, template)
        # for each element of the vector its tensor and its rank
        runs = [size // rank for size, rank in zip(sizes, ranks(there, template), strict=True)]
        owner = [(i, (i, e // run)) for i, (size, run) in enumerate(zip(sizes, runs, strict=True)) for e in range(size)]
        found = values_of(values, body.get(3, b""), body[4], [owner[p] for p in kept])
        for position, value in zip(kept, found, strict=True):
            vector[position] = value
    return {"round": round, "client": client, "items": items, "steps": steps, "loss": loss, "names": there,
            "vector": vector}  # fmt: skip


def ranks(names: list[str], template: Adapter) -> list[int]:
    return [template[name].shape[int(name.endswith(".B"))] for name in names]


def values_of(kind: int, scales: bytes, data: bytes, owners: list[tuple[int, tuple[int, int]]]) -> list[float]:
    n = len(owners)
    if kind == 1:
        return list(struct.unpack(f"<{n}f", data))
    if kind == 2:
        return [struct.unpack("<f", b"\0\0" + data[2 * i : 2 * i + 2])[0] for i in range(n)]
    signs = [-1.0 if bit == "1" else 1.0 for bit in bits_of(data[: (n + 7) // 8])[:n]]
    tensors, own_ranks = list(dict.fromkeys(t for t, _ in owners)), list(dict.fromkeys(r for _, r in owners))
    if kind == 3:
        scale = dict(zip(own_ranks, scales_of(scales, len(own_ranks), 21), strict=True))
        return [sign * scale[rank] for sign, (_, rank) in zip(signs, owners, strict=True)]
    bits, found = LEVELS[kind], scales_of(scales, len(tensors) + len(own_ranks), 20)
    low = dict(zip(tensors, found[: len(tensors)], strict=True))
    high = dict(zip(own_ranks, found[len(tensors) :], strict=True))
    coded = data[(n + 7) // 8 :]
    fixed = bits_of(coded[1:])
    levels = (
        [int(fixed[i * (bits - 1) : (i + 1) * (bits - 1)], 2) for i in range(n)] if coded[0] == 255 else rice(coded, n)
    )
    return [
        float(np.float32(sign * (low[t] + (j + 0.5) * (max(0.0, high[r] - low[t]) / 2 ** (bits - 1)))))
        for sign, j, (t, r) in zip(signs, levels, owners, strict=True)
    ]


def vector_of(adapter: Adapter) -> list[float]:
    return [x for name, t in adapter.items() for x in (t.T if name.endswith(".B") else t).reshape(-1).tolist()]


EVERY = {name: up_codec(config, 5) for name, config in CODECS.items()} | {
    f"{name}, {density}": Codec(kind, density) for name, kind in VALUES.items() for density in (0.1, 0.6)
}
RANDOM = {name: codec for name, codec in EVERY.items() if codec.mask == "random"} | {
    f"random, {density}": Codec(VALUES["fp32"], density, mask="random", compensation="unbiased", seed=3)
    for density in (0.03, 1.0)
}


def both_read(sent: Adapter, template: Adapter, codec: Codec, number: int, client: str, *importance: object) -> Adapter:
    """What arrives, in which our reader and the one above agree."""
    schema = schema_hash(template, "base")
    body = codec.encode(sent, template, number, *importance)  # type: ignore[arg-type]
    blob = encode_update(Update(9, client, {}, 12, 7, 1.25), body, codec, schema)
    ours, _ = decode_update(blob, codec, schema, template, number)
    assert read(blob, template, codec, number) == {
        "round": 9, "client": client, "items": 12, "steps": 7, "loss": 1.25,
        "names": list(ours.adapter), "vector": vector_of(ours.adapter),
    }  # fmt: skip
    return ours.adapter


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=8)
@given(adapter=filled(st.floats(-(2.0**40), 2.0**40, width=32)), number=st.integers(1, 5), client=st.text(max_size=4))
def test_a_reader_that_knows_the_document_alone(name, adapter, number, client):
    for sent in (adapter, dict(list(adapter.items())[1:])):
        arrived = both_read(sent, adapter, EVERY[name], number, client)
        assert list(arrived) == list(sent)
        assert same(arrived, sent) or not EVERY[name].exact


@pytest.mark.parametrize("name", RANDOM)
@settings(max_examples=12)
@given(data=st.data(), template=paired(), number=st.integers(1, 2**32 - 1))
def test_a_reader_of_what_is_drawn_by_importance(name, data, template, number):
    importance = data.draw(important(template))
    names = data.draw(st.sets(st.sampled_from(list(template))))
    for there in (set(template), names):
        sent = {n: t for n, t in normal(0, template).items() if n in there}
        both_read(sent, template, RANDOM[name], number, "site", importance)


def test_the_example_of_the_document():
    section = DOCUMENT.read_text().split("## A message read by hand")[1].split("## What is checked")[0]
    blob = bytes.fromhex("".join(line[4:28] for line in section.splitlines() if line.startswith("    ")))
    template = {"q.A": torch.zeros(1, 4), "q.B": torch.zeros(2, 1)}
    codec = Codec(VALUES["ternary"], 0.5)
    got = read(blob, template, codec, 3)
    assert (got["client"], got["round"], got["loss"]) == ("site", 3, 1.25)
    assert got["vector"] == [0, 0, -4, 4, 0.5, 0]
    change = {"q.A": torch.tensor([[1.0, 2.0, -3.0, 5.0]]), "q.B": torch.tensor([[0.5], [-0.25]])}
    body = codec.encode(change, template, 3)
    assert encode_update(Update(3, "site", {}, 12, 7, 1.25), body, codec, schema_hash(template, "base")) == blob


def test_the_limit_of_a_body_is_the_documented_one():
    assert "64 + 5 · elements + 8 · (sum of all rows and columns)" in DOCUMENT.read_text()
    n = 64 + 5 * 24 + 8 * sum(sum(t.shape) for t in SMALL.values())
    with pytest.raises(WireError, match=f"body of {n + 1} bytes, an adapter of this shape takes {n} at most"):
        Codec(VALUES["fp32"]).decode(memoryview(bytes(n + 1)), SMALL, 1)
