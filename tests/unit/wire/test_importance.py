"""Messages that follow the importance of ranks: as many elements as the budget, most where it matters, none for 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import KINDS, SMALL, important, normal, paired, same
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import Codec
from capfl.wire.budget import Budget, read_importance, write_importance
from capfl.wire.layout import Layout
from capfl.wire.sections import Section, read, write
from capfl.wire.values import VALUES

WHOLE = Layout.of(SMALL, SMALL)
OWNER = np.repeat(WHOLE.owners(WHOLE), WHOLE.rank_sizes)
FOUR = np.array([4.0, 0.0, 2.0, 1.0])  # these arrive as they are
DRAWN = Codec(VALUES["fp32"], 0.25, mask="random", compensation="unbiased", seed=3)
LARGEST = Codec(VALUES["fp32"], 0.25)


def arrives(adapter: Adapter, codec: Codec, importance: np.ndarray = FOUR, template: Adapter = SMALL) -> Adapter:
    return codec.decode(memoryview(codec.encode(adapter, template, 1, importance)), template, 1)


def flat(adapter: Adapter, template: Adapter = SMALL) -> np.ndarray:
    return Layout.of(adapter, template).flatten(adapter)


def counts(adapter: Adapter) -> list[int]:
    return np.bincount(OWNER[flat(adapter) != 0], minlength=4).tolist()


# -- as bytes ----------------------------------------------------------------------------------------------


def test_importance_by_hand():
    # a record: 1 (0x3f8), 1.375 / 4 (0x3eb) and 1.375 / 8 (0x3e3), 13 and 8 steps down are 25 and 15, and with k = 4
    # 01, 1 and 1001, 1111; and the marks 1011
    said = write_importance([3.0, 0.0, 1.0, 0.5], 4)
    assert said.hex() == "0003000500" "f80304609f" "0104000100" "b0"  # fmt: skip
    assert read_importance(memoryview(said), 4).tolist() == [1.0, 0.0, 0.34375, 0.171875]
    assert write_importance(torch.full((4,), 7.5), 4).hex() == "0004000400" "f80300e0"  # fmt: skip


@pytest.mark.parametrize("importance", [np.ones(3), np.ones((1, 4)), np.zeros(4), -np.ones(4), [1, 1, 1, np.inf]])
def test_importance_that_is_none(importance):
    for codec in (DRAWN, LARGEST):
        with pytest.raises(WireError, match="importance"):
            codec.encode(normal(0), SMALL, 1, importance)


# -- what arrives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(st.data(), paired(), st.sampled_from(["random", "top"]), st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 99))
def test_what_is_sent_of_each_rank(kind, data, template, mask, density, seed):
    """As many elements as its share of the budget."""
    importance = data.draw(important(template))
    names = data.draw(st.sets(st.sampled_from(list(template))) | st.just(set(template)))
    sent = {name: t for name, t in normal(seed, template).items() if name in names}
    codec = Codec(VALUES[kind], density, mask, data.draw(st.sampled_from(["unbiased", "feedback"])), seed)
    whole, layout = Layout.of(template, template), Layout.of(sent, template)
    got = arrives(sent, codec, importance, template)
    assert [(n, t.shape) for n, t in got.items()] == [(n, t.shape) for n, t in sent.items()]
    arrived = read_importance(memoryview(write_importance(importance, whole.n_ranks)), whole.n_ranks)
    assert ((arrived > 0) == (importance > 0)).all()  # whatever is not zero stays so
    budget = Budget.by_rank(arrived, density, layout, whole)
    assert budget.counts.sum() == round(density * budget.sizes[importance > 0].sum())
    sent_of_each = np.bincount(
        np.repeat(budget.owner, budget.lengths)[flat(got, template) != 0], minlength=whole.n_ranks
    )
    assert sent_of_each.tolist() == budget.counts.tolist()
    reach = codec.reach(sent, template, 1, importance)
    assert all(bool((t == 0)[~reach[name]].all()) for name, t in got.items())
    assert mask == "top" or sum(int(t.sum()) for t in reach.values()) == budget.counts.sum()


def test_more_important_ranks_send_more_and_what_is_not_sent_of_them_is_made_up_for():
    """Of 17 elements 13: 7 of 7, then 6 as 2 to 1. 8 over 4 * 7, 0, 2 * 5 and 1 * 5: 5.21, 0, 1.86 and 0.93."""
    for codec in (DRAWN, LARGEST):
        assert counts(arrives(normal(1), replace(codec, density=0.75))) == [7, 0, 4, 2]
    got, shares = arrives(normal(4), replace(DRAWN, density=0.5)), np.array([5 / 7, 1, 2 / 5, 1 / 5], np.float32)
    assert counts(got) == [5, 0, 2, 1]
    assert ((flat(got) == flat(normal(4)) / shares[OWNER]) | (flat(got) == 0)).all()
    assert same(arrives(got, replace(DRAWN, density=0.5)), got)  # what has the same elements is not scaled again
    part = {"v.B": torch.ones(2, 2)}  # of ranks that are all unimportant
    assert same(arrives(part, DRAWN, np.array([1.0, 1, 0, 0])), {"v.B": torch.zeros(2, 2)})


# -- which bodies ------------------------------------------------------------------------------------------

FOUND = {tag: bytes(data) for tag, data in read(memoryview(DRAWN.encode(normal(0), SMALL, 1, FOUR)), tuple(Section))}
NAMES, RANKS, VALUE = (write(tag, FOUND[tag]) for tag in (Section.NAMES, Section.RANKS, Section.VALUES))
POSITIONS = write(Section.POSITIONS, b"\0\0\0\0\0")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (NAMES + RANKS + POSITIONS + VALUE, "positions and the ranks that they would follow from"),
        (NAMES + RANKS, "ranks, positions or scales without values"),
        (NAMES + write(Section.RANKS, b"") + VALUE, "_Importance.values is missing"),
        (
            NAMES + write(Section.RANKS, write_importance(np.ones(3), 3)) + VALUE,
            "of 3 ranks, and 4 of 4 are marked; .* has 4",
        ),
        (
            NAMES + write(Section.RANKS, write_importance([1, 0, 1, 1], 4)[:-1] + b"\xf0") + VALUE,
            "of 3 ranks, and 4 of 4",
        ),
        (NAMES + write(Section.RANKS, write_importance([0, 0, 0, 1], 4)) + VALUE, "16 bytes of values, 1 in fp32"),
    ],
)
def test_bodies_that_are_none(body, message):
    assert same(DRAWN.decode(memoryview(NAMES + RANKS + VALUE), SMALL, 1), arrives(normal(0), DRAWN))
    with pytest.raises(WireError, match=message):
        DRAWN.decode(memoryview(body), SMALL, 1)
    with pytest.raises(WireError, match="nothing is drawn by that in this codec"):
        LARGEST.decode(memoryview(NAMES + RANKS + VALUE), SMALL, 1)
