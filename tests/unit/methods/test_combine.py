"""How updates become a group's next adapter: by hand, and what every fold keeps to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import normal, same
from capfl import adapter as algebra
from capfl.maths.products import Products
from capfl.methods.combine import Combine, CorrectedB, ExactProduct, TruncatedProduct, WeightedMean
from capfl.methods.robust import Clipped, Middle
from capfl.types import Adapter
from fake import bits, n_train
from parts import CLIENTS, INITIAL, Federation, folded, pair, products, row

COMBINES: dict[str, Combine] = {
    "mean": WeightedMean(), "corrected": CorrectedB(), "truncated": TruncatedProduct(), "exact": ExactProduct(),
    "clipped": Clipped(WeightedMean()), "median": Middle(0.5), "trimmed": Middle(0.25),
}  # fmt: skip
every = pytest.mark.parametrize("combine", COMBINES.values(), ids=COMBINES)
CLIP = (1 + 13**0.5) / 2 / 13**0.5  # the median of two lengths, 1 and the root of 13, over the longer one
CHANGES = [(normal(k, INITIAL), float(k)) for k in (1, 2, 3)]


def mean_of_products(parts: list[tuple[Adapter, float]], start: Adapter = INITIAL) -> dict[str, torch.Tensor]:
    total = sum(weight for _, weight in parts)
    ends = [(products(algebra.add(start, change)), weight / total) for change, weight in parts]
    return {module: torch.stack([p * end[module] for end, p in ends]).sum(0) for module in ("q", "v")}


def near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-4) -> None:
    for module, t in expected.items():
        torch.testing.assert_close(found[module], t, rtol=tolerance, atol=tolerance)


# -- by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("combine", "a", "b", "patch"),
    [
        (WeightedMean(), 3.5, 2.5, None),
        (CorrectedB(strength=0.0), 3.5, 9.5 / 3.5, None),
        (CorrectedB(strength=0.1), 3.5, 2.5 + (9.5 - 8.75) / 3.5 / 1.1, None),
        (TruncatedProduct(), 1.0, 9.5, None),
        (ExactProduct(), 3.5, 2.5, 0.75),
        (Clipped(WeightedMean()), 2 + 2 * 2 * CLIP / 3, (1 + 2 * 3 * CLIP) / 3, None),
        (Middle(0.5), 3.0, 2.0, None),
    ],
)
def test_two_clients_by_hand(combine: Combine, a: float, b: float, patch: float | None) -> None:
    """One of one item ends at A = 2, B = 1, one of three at A = 4, B = 3: the mean of the products is 38 / 4 = 9.5."""
    value = folded(combine, [(pair([0.0], 1.0), 1), (pair([2.0], 3.0), 3)], pair([2.0], 0.0))
    torch.testing.assert_close(value["m.A"], torch.tensor([[a]]))
    torch.testing.assert_close(value["m.B"], torch.tensor([[b]]))
    assert (value["m.W"].item() if patch else value.get("m.W")) == patch


def test_the_mean_of_many_small_changes_keeps_its_digits() -> None:
    """Summed in float32, a thousand tenths would be off by more than one unit in the last place."""
    tenth = pair([0.1, 0.1], 0.1)
    assert same(folded(WeightedMean(), [(tenth, 1.0)] * 1000, pair([0.0, 0.0], 0.0)), tenth)


# -- every fold --------------------------------------------------------------------------------------------


@every
def test_without_updates_the_adapter_stays(combine: Combine) -> None:
    assert same(folded(combine, []), combine.first(INITIAL))


@every
@pytest.mark.parametrize("n", [1, 3])
def test_one_client_or_equal_clients_are_the_mean(combine: Combine, n: int) -> None:
    for change, weight in [*CHANGES, (algebra.zeros(INITIAL), 2.0)]:
        value, end = folded(combine, [(change, weight)] * n), algebra.add(INITIAL, change)
        near(products(value), products(end))
        assert not combine.adds_mean or same(value, end) or n > 1  # one client: bit for bit
        assert not combine.relays or not any(bool(value[f"{module}.W"].any()) for module in "qv")


@every
def test_every_update_counts(combine: Combine) -> None:
    value = folded(combine, CHANGES)
    for left_out in range(3):
        others = [part for k, part in enumerate(CHANGES) if k != left_out]
        assert not same(folded(combine, others), value)


@every
def test_the_order_of_updates_and_the_unit_of_weights_do_not_matter(combine: Combine) -> None:
    value = products(folded(combine, CHANGES))
    near(products(folded(combine, CHANGES[::-1])), value)
    near(products(folded(combine, [(change, 7 * weight) for change, weight in CHANGES])), value)


@every
def test_arguments_are_not_changed(combine: Combine) -> None:
    start, parts = algebra.copy(INITIAL), [(algebra.copy(change), weight) for change, weight in CHANGES]
    folded(combine, parts, start)
    assert same(start, INITIAL)
    assert all(same(part, change) for (part, _), (change, _) in zip(parts, CHANGES, strict=True))


# -- means of products -------------------------------------------------------------------------------------

parts = st.lists(
    st.tuples(st.integers(0, 99).map(lambda s: normal(s, INITIAL)), st.integers(1, 50)), min_size=1, max_size=4
)


@settings(max_examples=10)
@given(parts)
def test_the_exact_product_is_exact_and_has_the_means_of_the_factors(parts: list[tuple[Adapter, float]]) -> None:
    value = folded(ExactProduct(), parts)
    near(products(value), mean_of_products(parts), 1e-3)
    for name, t in folded(WeightedMean(), parts).items():
        torch.testing.assert_close(value[name], t, rtol=1e-4, atol=1e-5)


def test_what_corrects_the_mean_is_nearer_to_the_mean_of_products() -> None:
    target = mean_of_products(CHANGES)

    def error(combine: Combine) -> float:
        got = products(folded(combine, CHANGES))
        return sum(float((target[module] - got[module]).square().sum()) for module in target)

    assert error(CorrectedB()) < 0.95 * error(WeightedMean())
    assert error(TruncatedProduct()) < 0.9 * error(CorrectedB())


def test_b_is_corrected_where_somebody_has_sent_something() -> None:
    changes = [(algebra.copy(normal(seed, INITIAL)), 1.0) for seed in (1, 2)]
    for change, _ in changes:
        change["q.B"][2:, 1] = 0.0  # by a mask that all clients share
    value, mean = folded(CorrectedB(), changes), folded(WeightedMean(), changes)
    assert torch.equal(value["q.B"][2:, 1], INITIAL["q.B"][2:, 1])
    for name, of in (("q.B", slice(0, 2)), ("v.B", slice(None))):
        assert not torch.isclose(value[name][of], mean[name][of], atol=1e-4).any()


@settings(max_examples=10)
@given(parts, st.integers(1, 5))
def test_a_truncation_is_the_nearest_of_its_rank(parts: list[tuple[Adapter, float]], rank: int) -> None:
    stacked = Products([(algebra.add(INITIAL, change), weight) for change, weight in parts])
    for module, dense in mean_of_products(parts).items():
        up, down = stacked.truncated(module, rank)
        assert (up.shape, down.shape) == ((20, rank), (rank, 25))
        left = np.linalg.svd(dense.numpy(), compute_uv=False)[rank:]
        assert float((dense - up.double() @ down.double()).norm()) == pytest.approx(np.linalg.norm(left), abs=1e-3)


def test_clients_of_unequal_ranks_count_with_the_ranks_that_they_have() -> None:
    start = {"m.A": torch.tensor([[2.0], [1.0]]), "m.B": torch.tensor([[0.0, 5.0]])}
    fold = TruncatedProduct().start(start, 1)
    fold.add(algebra.zeros(start), 1.0)  # both ranks: 0 * 2 + 5 * 1
    fold.add({"m.B": torch.tensor([[1.0, 0.0]])}, 1.0, torch.tensor([True, False]))  # the first alone: 1 * 2
    value = fold.value()
    torch.testing.assert_close(value["m.B"] @ value["m.A"], torch.tensor([[3.5]]))
    assert torch.equal(value["m.A"][1], start["m.A"][1])  # the sum has one rank: the other can be trained again
    assert not value["m.B"][:, 1].any()


# -- relayed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["fp32", "default", "bf16"])
def test_clients_that_fold_relayed_updates_have_the_servers_bits(codec: str) -> None:
    """However many rounds they have missed; each is exact in what arrived."""
    played = Federation(row(combine=ExactProduct()), codec)
    for _ in range(3):
        before = played.state.everybody.adapter
        played.rounds(1, fraction=0.6)  # two of the three
        after = played.state.everybody
        assert bits(after.adapter) == bits(after.known)
        arrived = [(change, float(n_train(client))) for client, change in played.arrived().items()]
        patch = {module: before[f"{module}.W"].double() for module in "qv"}
        expected = mean_of_products(arrived, algebra.unpatched(before))
        near(products(after.adapter), {module: t + patch[module] for module, t in expected.items()}, 1e-5)
    played.rounds(1)
    for client in CLIENTS:  # each of them knows what was before the round
        assert bits(played.memory(client).known) == bits(after.adapter)
