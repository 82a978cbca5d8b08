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
from capfl.types import Adapter, Broadcast, ClientState, ServerState
from capfl.wire import Codec, adding, advance, broadcast, compensate, ranks, receive
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
    importance: np.ndarray | None,
    round: int = 1,
    template: Adapter = SMALL,
    alive: np.ndarray | None = None,
) -> Adapter:
    return codec.decode(memoryview(codec.encode(adapter, template, round, importance, alive)), template, round)


def flat(adapter: Adapter, template: Adapter = SMALL) -> np.ndarray:
    return Layout.of(adapter, template).flatten(adapter)


def sections(body: bytes) -> dict[Section, bytes]:
    return {tag: bytes(data) for tag, data in read(memoryview(body), tuple(Section))}


def tags(body: bytes) -> str:
    return "".join(tag.name[0] for tag in sections(body))


# -- what arrives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(st.data(), paired(), MASKS, st.sampled_from([0.1, 0.5, 1.0]), st.integers(1, 9), st.integers(0, 99))
def test_what_is_encoded_can_be_decoded(kind, data, template, mask, density, round, seed):
    """Of each rank as many elements arrive as it may send, and just those of it that the mask has."""
    importance = data.draw(important(template))
    names = data.draw(st.sets(st.sampled_from(list(template))) | st.just(set(template)))
    sent = {name: t for name, t in normal(seed, template).items() if name in names}
    codec = Codec(VALUES[kind], density, mask, seed=seed)
    got = arrives(sent, codec, importance, round, template)
    assert [(n, t.shape) for n, t in got.items()] == [(n, t.shape) for n, t in sent.items()]
    whole, layout = Layout.of(template, template), Layout.of(sent, template)
    own = Ranks.of(layout, whole)
    arrived = ranks.decode(memoryview(ranks.encode(importance, whole)), whole)
    counts = ranks.shared(arrived, density, layout, whole)
    assert np.bincount(own.owner[flat(got, template) != 0], minlength=len(counts)).tolist() == counts.tolist()
    if kind == "fp32":
        assert ((flat(got, template) == flat(sent, template)) | (flat(got, template) == 0)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mask", "density"), [("random", 0.3), ("random", 1.0), ("top", 0.3), ("top", 1.0)])
def test_a_rank_of_importance_0_is_dropped_whole(kind, mask, density):
    got = arrives(normal(0), Codec(VALUES[kind], density, mask), FOUR)
    assert not got["q.A"][1].any()
    assert not got["q.B"][:, 1].any()
    if density == 1:
        assert [int(t.count_nonzero()) for t in got.values()] == [3, 4, 6, 4]


@given(MASKS, st.floats(0.01, 1), st.integers(1, 99))
def test_equal_importance_is_the_budget_evenly(mask, density, round_):
    got = flat(arrives(normal(1), Codec(VALUES["fp32"], density, mask), np.full(4, 7.0), round_))
    assert np.count_nonzero(got) == round(density * 24)
    counts = np.bincount(OWNER[got != 0], minlength=4)
    assert (np.abs(counts - density * SIZES) < 1.5).all()


def test_more_important_ranks_send_more():
    for codec in (DRAWN, LARGEST):
        got = flat(arrives(normal(1), replace(codec, density=0.5), FOUR))
        assert np.bincount(OWNER[got != 0], minlength=4).tolist() == [7, 0, 3, 2]  # 12: 7 of 7, then 5 as 2 to 1


def test_the_largest_of_a_rank_by_hand():
    adapter = {
        "m.A": torch.tensor([[1.0, -9.0, 2.0], [8.0, 0.5, 0.0]]),
        "m.B": torch.tensor([[3.0, 0.0], [-5.0, 0.25]]),
    }
    got = arrives(adapter, Codec(VALUES["fp32"], 0.5), np.array([1.5, 1.0]), template=adapter)
    assert got["m.A"].tolist() == [[0.0, -9.0, 0.0], [8.0, 0.5, 0.0]]
    assert got["m.B"].tolist() == [[3.0, 0.0], [-5.0, 0.0]]


def test_which_sections():
    assert tags(DRAWN.encode(normal(0), SMALL, 1, FOUR)) == "NRV"
    assert tags(replace(DRAWN, density=1.0).encode(normal(0), SMALL, 1, FOUR)) == "NRV"
    assert tags(Codec(VALUES["ternary"], 0.5, mask="random").encode(normal(0), SMALL, 1, FOUR)) == "NRSV"
    assert tags(LARGEST.encode(normal(0), SMALL, 1, FOUR)) == "NPV"  # positions are told, and all there is to know
    assert tags(Codec(VALUES["fp32"]).encode(normal(0), SMALL, 1, np.ones(4))) == "NV"
    assert tags(DRAWN.encode(normal(0), SMALL, 1)) == "NV"


def test_nothing_is_sent_of_tensors_whose_ranks_are_all_unimportant():
    for codec in (DRAWN, LARGEST):
        part = {"v.B": torch.ones(2, 2)}
        assert tags(codec.encode(part, SMALL, 1, np.array([1.0, 1, 0, 0]))) == "N"
        assert same(arrives(part, codec, np.array([1.0, 1, 0, 0])), {"v.B": torch.zeros(2, 2)})
        assert tags(codec.encode({}, SMALL, 1, FOUR)) == "N"


def test_without_importance_nothing_changes():
    for codec in (DRAWN, LARGEST, Codec(VALUES["2bit"], 0.5)):
        assert codec.encode(normal(0), SMALL, 2) == codec.encode(normal(0), SMALL, 2, None)


# -- right on average --------------------------------------------------------------------------------------


def test_what_is_drawn_is_right_on_average():
    adapter, rounds = normal(4), 4000
    mean = sum(flat(arrives(adapter, DRAWN, FOUR, r)).astype(np.float64) for r in range(1, rounds + 1)) / rounds
    np.testing.assert_allclose(mean, np.where(OWNER == 1, 0, flat(adapter)), atol=0, rtol=0.02)


def test_each_element_is_divided_by_its_own_rank_s_share():
    # 6 elements over 4 * 7, 0, 2 * 5 and 1 * 5 are 3.91, 0, 1.40 and 0.70
    got = flat(arrives(normal(4), DRAWN, FOUR))
    expected = flat(normal(4)) / np.array([4 / 7, 1, 1 / 5, 1 / 5], np.float32)[OWNER]
    assert np.bincount(OWNER[got != 0], minlength=4).tolist() == [4, 0, 1, 1]
    assert ((got == expected) | (got == 0)).all()


def test_what_is_answered_with_the_same_windows_is_not_scaled_again():
    up = arrives(normal(4), DRAWN, FOUR, 3)
    assert same(arrives(up, DRAWN, FOUR, 3), up)
    assert not same(arrives(up, DRAWN, FOUR, 4), up)


def test_what_is_dropped_scales_nothing():
    up = arrives(normal(4), DRAWN, FOUR, 3)
    up["q.A"][1] = 5.0  # of a rank of importance 0
    got = arrives(up, DRAWN, FOUR, 3)
    up["q.A"][1] = 0
    assert same(got, up)


# -- a sender without some ranks ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compensation", ["unbiased", "feedback"])
@settings(max_examples=30)
@given(st.data(), paired(), MASKS, st.sampled_from([0.1, 0.5, 1.0]), st.integers(1, 9), st.integers(0, 99))
def test_it_sends_what_one_with_all_ranks_does_but_for_those(
    kind, compensation, data, template, mask, density, round, seed
):
    importance, alive = data.draw(important(template)), data.draw(living(template))
    names = data.draw(st.sets(st.sampled_from(list(template))) | st.just(set(template)))
    sent = {name: t for name, t in normal(seed, template).items() if name in names}
    layout = Layout.of(sent, template)
    has = alive[Ranks.of(layout, Layout.of(template, template)).owner]
    own = layout.unflatten(np.where(has, flat(sent, template), 0).astype(np.float32))
    codec = Codec(VALUES[kind], density, mask, compensation=compensation, seed=seed)
    got, full = (
        arrives(own, codec, importance, round, template, alive),
        arrives(sent, codec, importance, round, template),
    )
    assert list(got) == list(full)
    expected = np.where(has, flat(full, template), 0)
    if kind in ("fp32", "bf16", "ternary"):
        assert (flat(got, template) == expected).all()
    assert ((flat(got, template) != 0) == (expected != 0)).all()  # levels have a low end for each tensor: others differ
    assert codec.encode(own, template, round, importance, alive) == codec.encode(
        sent, template, round, importance, alive
    )  # whatever stands in a rank that it lacks


def test_the_share_of_a_rank_that_is_lacking_is_not_spent():
    for codec in (DRAWN, LARGEST):
        got = flat(arrives(normal(1), replace(codec, density=0.5), FOUR, alive=LACKS))
        assert np.bincount(OWNER[got != 0], minlength=4).tolist() == [7, 0, 0, 2]  # as above, without the 3


def test_the_shares_of_the_others_scale_them_as_before():
    got = flat(arrives(normal(4), DRAWN, FOUR, alive=LACKS))
    expected = flat(normal(4)) / np.array([4 / 7, 1, 1, 1 / 5], np.float32)[OWNER]
    assert np.bincount(OWNER[got != 0], minlength=4).tolist() == [4, 0, 0, 1]
    assert ((got == expected) | (got == 0)).all()


def test_what_is_lacking_scales_nothing():
    up = arrives(normal(4), DRAWN, FOUR, 3, alive=LACKS)
    up["v.A"][0] = 5.0  # of the rank that is lacking
    got = arrives(up, DRAWN, FOUR, 3, alive=LACKS)
    up["v.A"][0] = 0
    assert same(got, up)


@given(st.data(), paired(), MASKS, st.sampled_from(KINDS), st.sampled_from([0.1, 0.5, 1.0]), st.integers(1, 9))
def test_marks_of_all_ranks_are_no_marks(data, template, mask, kind, density, round):
    importance, codec = data.draw(important(template)), Codec(VALUES[kind], density, mask)
    every = np.ones(len(importance), np.bool_)
    sent = normal(round, template)
    assert codec.encode(sent, template, round, importance, every) == codec.encode(sent, template, round, importance)


def test_which_sections_say_what_is_lacking():
    body = DRAWN.encode(normal(0), SMALL, 1, FOUR, LACKS)
    assert tags(body) == "NRAV"
    assert sections(body)[Section.ALIVE] == b"\xd0"
    assert sections(body)[Section.RANKS] == sections(DRAWN.encode(normal(0), SMALL, 1, FOUR))[Section.RANKS]
    assert tags(replace(DRAWN, density=1.0).encode(normal(0), SMALL, 1, FOUR, LACKS)) == "NRAV"
    assert tags(Codec(VALUES["ternary"], 0.5, mask="random").encode(normal(0), SMALL, 1, FOUR, LACKS)) == "NRASV"
    assert tags(LARGEST.encode(normal(0), SMALL, 1, FOUR, LACKS)) == "NPV"
    for codec in (DRAWN, LARGEST):
        assert tags(codec.encode(normal(0), SMALL, 1, FOUR, np.zeros(4, np.bool_))) == "N"


# -- feedback and the downlink -----------------------------------------------------------------------------


def test_feedback_keeps_what_importance_drops():
    codec = Codec(VALUES["4bit"], 0.3, mask="random")
    body, residual = compensate(normal(5), {}, codec, SMALL, 2, FOUR)
    sent = codec.decode(memoryview(body), SMALL, 2)
    assert torch.equal(residual["q.A"][1], normal(5)["q.A"][1])
    for name, t in normal(5).items():
        torch.testing.assert_close(sent[name] + residual[name], t)


@pytest.mark.parametrize("mask", ["random", "top"])
@pytest.mark.parametrize("kind", KINDS)
def test_feedback_keeps_what_is_lacking(kind, mask):
    codec, residual = Codec(VALUES[kind], 0.6, mask), {"v.A": torch.full((2, 3), 0.5)}
    whole = {name: t + residual.get(name, 0) for name, t in normal(5).items()}
    body, left = compensate(normal(5), residual, codec, SMALL, 2, FOUR, LACKS)
    sent = codec.decode(memoryview(body), SMALL, 2)
    assert torch.equal(left["v.A"][0], whole["v.A"][0])
    assert torch.equal(left["v.B"][:, 0], whole["v.B"][:, 0])
    for name, t in whole.items():
        torch.testing.assert_close(sent[name] + left[name], t)


@pytest.mark.parametrize("mask", ["random", "top"])
def test_a_difference_follows_importance(mask):
    start, codec = normal(99), Codec(VALUES["bf16"], 0.3, mask)
    target = {name: t + normal(1)[name] for name, t in start.items()}
    state = advance(ServerState(1, target, start), target, codec, SMALL, FOUR)
    assert state.log == (codec.encode({n: target[n] - start[n] for n in start}, SMALL, 1, FOUR),)
    assert torch.equal(state.known["q.A"][1], start["q.A"][1])
    memory = receive(broadcast(state, "a", 0, SMALL, start), ClientState("a"), adding(codec, SMALL), SMALL, start)
    assert same(memory.known, state.known)
    assert not same(state.known, start)


def test_the_answer_to_clients_who_all_lack_a_module_is_not_scaled_again():
    """What is drawn depends on which tensors a message has: the answer has those of the clients' messages."""
    codec = Codec(VALUES["fp32"], 0.3, "random", compensation="unbiased", seed=1)
    start, change = normal(99), normal(1)
    importance = np.array([4.0, 4.0, 0.5, 0.5])
    lacking_v = np.array([True, True, False, False])
    body = codec.encode(change, SMALL, 1, importance, lacking_v)
    said = codec.decode(memoryview(body), SMALL, 1)
    assert not said["v.A"].any()
    assert not said["v.B"].any()
    target = {name: t + said[name] for name, t in start.items()}
    known = advance(ServerState(1, target, start), target, codec, SMALL, importance).known
    for name, t in target.items():
        torch.testing.assert_close(known[name], t)


# -- refusals ----------------------------------------------------------------------------------------------

FOUND = {tag: write(tag, data) for tag, data in sections(DRAWN.encode(normal(0), SMALL, 1, FOUR)).items()}
NAMES, RANKS, VALUE = FOUND[Section.NAMES], FOUND[Section.RANKS], FOUND[Section.VALUES]
POSITIONS = write(Section.POSITIONS, sections(LARGEST.encode(normal(0), SMALL, 1))[Section.POSITIONS])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (RANKS + NAMES + VALUE, "NAMES comes twice or in the wrong place"),
        (NAMES + VALUE + RANKS, "RANKS comes twice or in the wrong place"),
        (NAMES + RANKS + RANKS + VALUE, "RANKS comes twice"),
        (NAMES + POSITIONS + RANKS + VALUE, "RANKS comes twice or in the wrong place"),
        (NAMES + RANKS + POSITIONS + VALUE, "positions and the ranks that they would follow from"),
        (NAMES + RANKS, "ranks, positions or scales without values"),
        (NAMES + write(Section.RANKS, b"") + VALUE, "0 bytes for the importance of 4 ranks"),
        (NAMES + write(Section.RANKS, b"\0") + VALUE, "no rank is of any importance"),
        (NAMES + RANKS + VALUE[:-4], "VALUES is cut off"),
        (NAMES + RANKS + write(Section.VALUES, bytes(20)), "20 bytes of values, 6 in fp32 take 24"),
    ],
)
def test_bodies_that_are_none(body, message):
    DRAWN.decode(memoryview(NAMES + RANKS + VALUE), SMALL, 1)
    with pytest.raises(WireError, match=message):
        DRAWN.decode(memoryview(body), SMALL, 1)


LESS = {tag: write(tag, data) for tag, data in sections(DRAWN.encode(normal(0), SMALL, 1, FOUR, LACKS)).items()}
ALIVE, FEWER = LESS[Section.ALIVE], LESS[Section.VALUES]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (NAMES + ALIVE + FEWER, "which ranks there are, but not how important"),
        (NAMES + ALIVE + POSITIONS + VALUE, "which ranks there are, but not how important"),
        (NAMES + RANKS + ALIVE + POSITIONS + VALUE, "positions and the ranks that they would follow from"),
        (NAMES + ALIVE + RANKS + FEWER, "RANKS comes twice or in the wrong place"),
        (NAMES + RANKS + ALIVE + ALIVE + FEWER, "ALIVE comes twice"),
        (NAMES + RANKS + FEWER + ALIVE, "ALIVE comes twice or in the wrong place"),
        (NAMES + RANKS + ALIVE, "ranks, positions or scales without values"),
        (NAMES + ALIVE, "ranks, positions or scales without values"),
        (NAMES + RANKS + FEWER, "20 bytes of values, 6 in fp32 take 24"),
        (NAMES + RANKS + ALIVE + VALUE, "24 bytes of values, 5 in fp32 take 20"),
        (NAMES + RANKS + write(Section.ALIVE, b"\xf0") + VALUE, "more than the adapter has, or all"),
        (NAMES + RANKS + write(Section.ALIVE, b"\xd8") + FEWER, "more than the adapter has, or all"),
        (NAMES + RANKS + write(Section.ALIVE, b"\xd1") + FEWER, "more than the adapter has, or all"),
        (NAMES + RANKS + write(Section.ALIVE, b"") + FEWER, "0 bytes of marks for 4 ranks"),
        (NAMES + RANKS + write(Section.ALIVE, b"\xd0\0") + FEWER, "2 bytes of marks for 4 ranks"),
    ],
)
def test_bodies_that_say_wrongly_what_is_lacking(body, message):
    assert same(
        DRAWN.decode(memoryview(NAMES + RANKS + ALIVE + FEWER), SMALL, 1), arrives(normal(0), DRAWN, FOUR, alive=LACKS)
    )
    with pytest.raises(WireError, match=message):
        DRAWN.decode(memoryview(body), SMALL, 1)


def test_only_what_is_drawn_says_how_important_ranks_are():
    with pytest.raises(WireError, match="nothing is drawn by that in this codec"):
        LARGEST.decode(memoryview(NAMES + RANKS + VALUE), SMALL, 1)
    with pytest.raises(WireError, match="nothing is drawn by that in this codec"):
        LARGEST.decode(memoryview(NAMES + RANKS + ALIVE + FEWER), SMALL, 1)
    for body, message in [
        (RANKS + VALUE, "a whole adapter has ranks"),
        (RANKS + ALIVE + FEWER, "a whole adapter has ranks"),
        (ALIVE + FEWER, "not how important they are"),
    ]:
        with pytest.raises(WireError, match=message):
            receive(Broadcast(2, "a", NAMES + body, ()), ClientState("a"), adding(DRAWN, SMALL), SMALL, normal(9))


def test_tensors_whose_ranks_have_no_importance():
    template = {**SMALL, "k.A": torch.zeros(1, 2)}
    assert list(arrives(normal(0), DRAWN, FOUR, template=template)) == list(SMALL)
    with pytest.raises(WireError, match=r"'k.A' is half of a pair"):
        DRAWN.encode(template, template, 1, FOUR)
    with pytest.raises(WireError, match=r"'k.A' is half of a pair"):  # all five tensors in the message
        DRAWN.decode(memoryview(write(Section.NAMES, b"\xf8") + RANKS + VALUE), template, 1)


def test_a_body_cut_off_is_another_body_only_where_a_section_ends():
    body = Codec(VALUES["4bit"], 0.5, mask="random").encode(normal(5), SMALL, 1, FOUR)
    for length in range(len(body)):
        if length != 6:
            with pytest.raises(WireError):
                Codec(VALUES["4bit"], 0.5, mask="random").decode(memoryview(body[:length]), SMALL, 1)


@pytest.mark.parametrize("importance", [np.ones(3), np.zeros(4), -np.ones(4), np.full(4, np.nan)])
def test_importance_that_is_none(importance):
    for codec in (DRAWN, LARGEST, Codec(VALUES["fp32"])):
        with pytest.raises(WireError, match="importance"):
            codec.encode(normal(0), SMALL, 1, importance)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5,), (1, 4)])
def test_marks_of_another_shape(shape):
    for codec in (DRAWN, LARGEST, Codec(VALUES["fp32"])):
        with pytest.raises(WireError, match=r"marks of living ranks have shape .*, the adapter has 4 ranks"):
            codec.encode(normal(0), SMALL, 1, FOUR, np.ones(shape, np.bool_))
