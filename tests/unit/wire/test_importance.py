"""Messages that follow the importance of ranks: as many elements as the budget, most where it matters, none for 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import KINDS, SMALL, important, living, normal, paired, same
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import Codec, ranks
from capfl.wire.layout import Layout
from capfl.wire.ranks import Ranks
from capfl.wire.sections import Section, read, write
from capfl.wire.values import VALUES

WHOLE = Layout.of(SMALL, SMALL)
OWNER, SIZES = Ranks.of(WHOLE, WHOLE).owner, Ranks.of(WHOLE, WHOLE).sizes
FOUR = np.array([4.0, 0.0, 2.0, 1.0])  # these arrive as they are
LACKS = np.array([True, True, False, True])  # a sender without the third
DRAWN = Codec(VALUES["fp32"], 0.25, mask="random", compensation="unbiased", seed=3)
LARGEST = Codec(VALUES["fp32"], 0.25)
MASKS = st.sampled_from(["random", "top"])


def arrives(
    adapter: Adapter,
    codec: Codec,
    importance: np.ndarray = FOUR,
    round: int = 1,
    template: Adapter = SMALL,
    alive: np.ndarray | None = None,
) -> Adapter:
    return codec.decode(memoryview(codec.encode(adapter, template, round, importance, alive)), template, round)


def flat(adapter: Adapter, template: Adapter = SMALL) -> np.ndarray:
    return Layout.of(adapter, template).flatten(adapter)


def sections(body: bytes) -> dict[Section, bytes]:
    return {tag: bytes(data) for tag, data in read(memoryview(body), tuple(Section))}


def tags(codec: Codec, alive: np.ndarray | None = None, adapter: Adapter | None = None) -> str:
    body = codec.encode(normal(0) if adapter is None else adapter, SMALL, 1, FOUR, alive)
    return "".join(tag.name[0] for tag in sections(body))


# -- what arrives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(st.data(), paired(), MASKS, st.sampled_from([0.1, 0.5, 1.0]), st.integers(1, 9), st.integers(0, 99))
def test_what_is_sent_of_each_rank(kind, data, template, mask, density, round, seed):
    """As many elements as it may send; and of a sender that lacks ranks, what one with all sends but for those."""
    importance, alive = data.draw(important(template)), data.draw(living(template))
    names = data.draw(st.sets(st.sampled_from(list(template))) | st.just(set(template)))
    sent = {name: t for name, t in normal(seed, template).items() if name in names}
    codec = Codec(VALUES[kind], density, mask, data.draw(st.sampled_from(["unbiased", "feedback"])), seed)
    whole, layout = Layout.of(template, template), Layout.of(sent, template)
    own = Ranks.of(layout, whole)
    full = arrives(sent, codec, importance, round, template)
    assert [(n, t.shape) for n, t in full.items()] == [(n, t.shape) for n, t in sent.items()]
    arrived = ranks.decode(memoryview(ranks.encode(importance, whole)), whole)
    counts = ranks.share_out(arrived, density, layout, whole)
    assert np.bincount(own.owner[flat(full, template) != 0], minlength=len(counts)).tolist() == counts.tolist()

    has = alive[own.owner]
    got, expected = arrives(sent, codec, importance, round, template, alive), np.where(has, flat(full, template), 0)
    assert ((flat(got, template) != 0) == (expected != 0)).all()
    if kind in ("fp32", "bf16", "ternary"):  # levels have a low end for each tensor: others differ
        assert (flat(got, template) == expected).all()
    cleared = layout.unflatten(np.where(has, flat(sent, template), 0).astype(np.float32))
    assert codec.encode(cleared, template, round, importance, alive) == codec.encode(
        sent, template, round, importance, alive
    )  # whatever stands in a rank that it lacks
    every = np.ones(len(alive), np.bool_)
    assert codec.encode(sent, template, round, importance, every) == codec.encode(sent, template, round, importance)


def test_more_important_ranks_send_more():
    """Of 12, 7 of 7, then 5 as 2 to 1; the share of a rank that is lacking is not spent."""
    for codec in (replace(DRAWN, density=0.5), replace(LARGEST, density=0.5)):
        assert np.bincount(OWNER[flat(arrives(normal(1), codec)) != 0], minlength=4).tolist() == [7, 0, 3, 2]
        got = flat(arrives(normal(1), codec, alive=LACKS))
        assert np.bincount(OWNER[got != 0], minlength=4).tolist() == [7, 0, 0, 2]
        equal = np.bincount(OWNER[flat(arrives(normal(1), codec, np.full(4, 7.0))) != 0], minlength=4)
        assert (np.abs(equal - 0.5 * SIZES) < 1.5).all()


def test_the_largest_of_a_rank_by_hand():
    adapter = {
        "m.A": torch.tensor([[1.0, -9.0, 2.0], [8.0, 0.5, 0.0]]),
        "m.B": torch.tensor([[3.0, 0.0], [-5.0, 0.25]]),
    }
    got = arrives(adapter, Codec(VALUES["fp32"], 0.5), np.array([1.5, 1.0]), template=adapter)
    assert got["m.A"].tolist() == [[0.0, -9.0, 0.0], [8.0, 0.5, 0.0]]
    assert got["m.B"].tolist() == [[3.0, 0.0], [-5.0, 0.0]]


def test_which_sections():
    ternary, dense = Codec(VALUES["ternary"], 0.5, mask="random"), replace(DRAWN, density=1.0)
    assert [tags(codec) for codec in (DRAWN, dense, ternary)] == ["NRV", "NRV", "NRSV"]
    assert [tags(codec, LACKS) for codec in (DRAWN, dense, ternary)] == ["NRAV", "NRAV", "NRASV"]
    assert tags(LARGEST) == tags(LARGEST, LACKS) == "NPV"  # positions are told, and all there is to know
    for codec in (DRAWN, LARGEST):
        assert tags(codec, np.zeros(4, np.bool_)) == tags(codec, adapter={}) == "N"
        part = {"v.B": torch.ones(2, 2)}  # of ranks that are all unimportant
        assert same(arrives(part, codec, np.array([1.0, 1, 0, 0])), {"v.B": torch.zeros(2, 2)})
    assert sections(DRAWN.encode(normal(0), SMALL, 1, FOUR, LACKS))[Section.ALIVE] == b"\xd0"


# -- right on average --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alive", "shares", "counts"), [
    (None, [4 / 7, 1, 1 / 5, 1 / 5], [4, 0, 1, 1]),  # 6 elements over 4 * 7, 0, 2 * 5 and 1 * 5: 3.91, 0, 1.40 and 0.70
    (LACKS, [4 / 7, 1, 1, 1 / 5], [4, 0, 0, 1]),
])  # fmt: skip
def test_each_element_is_divided_by_its_own_rank_s_share(alive, shares, counts):
    got = flat(arrives(normal(4), DRAWN, alive=alive))
    assert np.bincount(OWNER[got != 0], minlength=4).tolist() == counts
    assert ((got == flat(normal(4)) / np.array(shares, np.float32)[OWNER]) | (got == 0)).all()
    # what is answered with the same windows is not scaled again, nor for what is dropped or lacking
    up = arrives(normal(4), DRAWN, FOUR, 3, alive=alive)
    more = {name: t.clone() for name, t in up.items()}
    more["q.A"][1] = 5.0
    if alive is not None:
        more["v.A"][0] = 5.0
    assert same(arrives(more, DRAWN, FOUR, 3, alive=alive), up)
    assert not same(arrives(up, DRAWN, FOUR, 4, alive=alive), up)


# -- refusals ----------------------------------------------------------------------------------------------

FOUND = {tag: write(tag, data) for tag, data in sections(DRAWN.encode(normal(0), SMALL, 1, FOUR, LACKS)).items()}
NAMES, RANKS, ALIVE, FEWER = (FOUND[tag] for tag in (Section.NAMES, Section.RANKS, Section.ALIVE, Section.VALUES))
VALUE = write(Section.VALUES, sections(DRAWN.encode(normal(0), SMALL, 1, FOUR))[Section.VALUES])
POSITIONS = write(Section.POSITIONS, sections(LARGEST.encode(normal(0), SMALL, 1))[Section.POSITIONS])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (RANKS + NAMES + VALUE, "NAMES comes twice or in the wrong place"),
        (NAMES + RANKS + POSITIONS + VALUE, "positions and the ranks that they would follow from"),
        (NAMES + RANKS, "ranks, positions or scales without values"),
        (NAMES + write(Section.RANKS, b"\0") + VALUE, "no rank is of any importance"),
        (NAMES + ALIVE + FEWER, "which ranks there are, but not how important"),
        (NAMES + ALIVE + RANKS + FEWER, "RANKS comes twice or in the wrong place"),
        (NAMES + RANKS + FEWER, "20 bytes of values, 6 in fp32 take 24"),
        (NAMES + RANKS + ALIVE + VALUE, "24 bytes of values, 5 in fp32 take 20"),
        (NAMES + RANKS + write(Section.ALIVE, b"\xf0") + VALUE, "more than the adapter has, or all"),
        (NAMES + RANKS + write(Section.ALIVE, b"\xd8") + FEWER, "more than the adapter has, or all"),
        (NAMES + RANKS + write(Section.ALIVE, b"") + FEWER, "0 bytes of marks for 4 ranks"),
    ],
)
def test_bodies_that_are_none(body, message):
    assert same(DRAWN.decode(memoryview(NAMES + RANKS + VALUE), SMALL, 1), arrives(normal(0), DRAWN))
    assert same(
        DRAWN.decode(memoryview(NAMES + RANKS + ALIVE + FEWER), SMALL, 1), arrives(normal(0), DRAWN, alive=LACKS)
    )
    with pytest.raises(WireError, match=message):
        DRAWN.decode(memoryview(body), SMALL, 1)


def test_only_what_is_drawn_says_how_important_ranks_are():
    for body in (NAMES + RANKS + VALUE, NAMES + RANKS + ALIVE + FEWER):
        with pytest.raises(WireError, match="nothing is drawn by that in this codec"):
            LARGEST.decode(memoryview(body), SMALL, 1)


def test_tensors_whose_ranks_have_no_importance():
    template = {**SMALL, "k.A": torch.zeros(1, 2)}
    assert list(arrives(normal(0), DRAWN, template=template)) == list(SMALL)
    with pytest.raises(WireError, match=r"'k.A' is half of a pair"):
        DRAWN.encode(template, template, 1, FOUR)
    with pytest.raises(WireError, match=r"'k.A' is half of a pair"):  # all five tensors in the message
        DRAWN.decode(memoryview(write(Section.NAMES, b"\xf8") + RANKS + VALUE), template, 1)


@pytest.mark.parametrize("codec", [DRAWN, LARGEST, Codec(VALUES["fp32"])])
def test_importance_and_marks_that_are_none(codec):
    for importance in (np.ones(3), np.zeros(4), -np.ones(4), np.full(4, np.nan)):
        with pytest.raises(WireError, match="importance"):
            codec.encode(normal(0), SMALL, 1, importance)
    for shape in ((), (3,), (1, 4)):
        with pytest.raises(WireError, match=r"marks of living ranks have shape .*, the adapter has 4 ranks"):
            codec.encode(normal(0), SMALL, 1, FOUR, np.ones(shape, np.bool_))
