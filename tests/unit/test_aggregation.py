"""What servers make of updates, against the dense weighted mean of the products B A."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl import adapter as algebra
from capfl.config.schema import CodecConfig, MethodConfig
from capfl.maths.products import MeanProduct, Products, norm
from capfl.methods import METHODS, build
from capfl.roles import Agreement, server
from capfl.types import Adapter, ClientState, ServerState, Trained, Update
from fake import Fake, initial, steps, without_dead_ranks
from updates import RANK, SHAPES, drawn, told

UNEQUAL = {"rank_shares": (1.0, 0.5)}  # of rank 2: clients of rank 2 and 1, in turn
EQUAL = {"rank_shares": (1.0,)}
VARIANTS = {name: MethodConfig(name=name) for name in METHODS} | {
    "hetlora, equal": MethodConfig(name="hetlora", **EQUAL),
    "flexlora, unequal": MethodConfig(name="flexlora", **UNEQUAL),
    "flora, unequal": MethodConfig(name="flora", **UNEQUAL),
}
FEDERATED = [
    name for name in VARIANTS if name not in ("local", "centralised", "ca-pfl")
]  # ca-pfl: test_capfl, its groups have a mean each
EXACT = [name for name in FEDERATED if build(VARIANTS[name]).exact]
INEXACT = [name for name in FEDERATED if build(VARIANTS[name]).exact is False]  # flasc is neither: test_flasc
WITH_B = [name for name in [*EXACT, *INEXACT] if name != "fedsa-lora"]  # whose server knows products


def products(a: Adapter) -> dict[str, torch.Tensor]:
    """What an adapter adds to the base, over the scale: B A, and the patch if there is one."""
    nothing = torch.zeros(())
    return {m: up.double() @ down.double() + a.get(f"{m}.W", nothing).double() for m, down, up in algebra.factors(a)}


def mean_of(adapters: list[Adapter], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    parts = [(products(a), w / sum(weights)) for a, w in zip(adapters, weights, strict=True)]
    return {module: torch.stack([p * part[module] for part, p in parts]).sum(0) for module in SHAPES}


def played(name: str, seeds: list[int], weights: list[int], order: list[int] | None = None):  # type: ignore[no-untyped-def]
    """One round with clients who move by ``drawn``: the server's state, its reported error and clients' adapters."""
    method, start = build(VARIANTS[name]), drawn(1000)
    if method.name == "flora":  # whose rounds begin so
        start |= algebra.zeros(algebra.factor(start, "B"))
    agreement = Agreement(method, CodecConfig(values="fp32", density=1.0), start)
    state = server.start(agreement, [f"c{at}" for at in range(len(seeds))])
    updates, ends = [], []
    for at, (seed, weight) in enumerate(zip(seeds, weights, strict=True)):
        memory = told(method, state, f"c{at}", start)
        begun = method.install(state.known, memory)
        moved = without_dead_ranks(drawn(seed), begun)
        end = algebra.add(begun, {key: t for key, t in moved.items() if method.trainable(1, key)})
        change, memory = method.collect(begun, Trained(end, (1.0,)), memory)
        notes = method.report(memory) if method.report else {}
        updates.append(Update(1, f"c{at}", change, weight, 1, 1.0, notes))
        alive = method.alive(notes)
        ends.append(end if alive is None else algebra.without(end, ~alive))  # hetlora may have dropped some
    chosen = [updates[i] for i in order or range(len(updates))]
    new, error = server.close_round(state, [u.client for u in chosen], chosen, agreement)
    return new, error, ends


seeds = st.lists(st.integers(0, 99), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(1, 3), weight=st.integers(1, 50))
@pytest.mark.parametrize("name", WITH_B)
def test_one_client_or_equal_clients_are_the_mean(name: str, seed: int, n: int, weight: int) -> None:
    if build(VARIANTS[name]).enrol and "equal" not in name.split(", ")[1:]:
        n = 1  # two are not equal
    state, error, ends = played(name, [seed] * n, [weight] * n)
    for module, expected in products(ends[0]).items():
        # lora-fair's ridge pulls B towards the mean, which is right already
        torch.testing.assert_close(products(state.whole)[module], expected, rtol=1e-4, atol=1e-4)
    assert error is None or error < 1e-3


@settings(max_examples=20, deadline=None)
@given(seeds=seeds, data=st.data())
@pytest.mark.parametrize("name", [name for name in EXACT if name in WITH_B])
def test_exact_methods_are_exact(name: str, seeds: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 50), min_size=len(seeds), max_size=len(seeds)))
    state, error, ends = played(name, seeds, weights)
    assert error is None
    for module, expected in mean_of(ends, weights).items():
        torch.testing.assert_close(products(state.whole)[module], expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seeds=seeds, data=st.data())
@pytest.mark.parametrize("name", INEXACT)
def test_inexact_methods_report_how_far_they_are(name: str, seeds: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 50), min_size=len(seeds), max_size=len(seeds)))
    state, error, ends = played(name, seeds, weights)
    if name.startswith("hetlora"):
        weights = [norm(end) for end in ends]
    target, got = mean_of(ends, weights), products(state.whole)
    apart = sum(float((target[m] - got[m]).square().sum()) for m in SHAPES)
    whole = sum(float(t.square().sum()) for t in target.values())
    assert error == pytest.approx((apart / whole) ** 0.5, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("alpha_over", ["rank", "root of the rank"])
@settings(max_examples=10, deadline=None)
@given(seeds=seeds, alpha=st.floats(0.5, 64))
@pytest.mark.parametrize("name", [name for name in EXACT if name in WITH_B])
def test_exactness_does_not_depend_on_the_scale(name: str, seeds: list[int], alpha: float, alpha_over: str) -> None:
    """LoRA's alpha / r and rsLoRA's alpha / sqrt(r) are one number for all clients, whatever their ranks."""
    weights = list(range(1, len(seeds) + 1))
    state, _, ends = played(name, seeds, weights)
    s = alpha / (RANK if alpha_over == "rank" else RANK**0.5)
    added = [{module: s * product for module, product in products(end).items()} for end in ends]
    for module, got in products(state.whole).items():
        expected = sum(w / sum(weights) * each[module] for w, each in zip(weights, added, strict=True))
        torch.testing.assert_close(s * got, expected, rtol=1e-4, atol=1e-4 * s)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(3)))
@pytest.mark.parametrize("name", FEDERATED)
def test_the_order_of_updates_does_not_matter(name: str, order: list[int]) -> None:
    first, _, _ = played(name, [1, 2, 3], [5, 1, 9])
    other, _, _ = played(name, [1, 2, 3], [5, 1, 9], list(order))
    assert list(first.groups) == list(other.groups)
    for one, two in [(first, other), *zip(first.groups.values(), other.groups.values(), strict=True)]:
        for key, t in one.adapter.items():
            torch.testing.assert_close(two.adapter[key], t, rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seeds=seeds, data=st.data())
@pytest.mark.parametrize("name", ["hetlora", "flexlora, unequal"])
def test_clients_of_a_lower_rank_are_told_the_first_ranks(name: str, seeds: list[int], data: st.DataObject) -> None:
    """And nothing of the others, which stay what everybody starts with."""
    state, _, _ = played(name, seeds, data.draw(st.lists(st.integers(1, 50), min_size=len(seeds), max_size=len(seeds))))
    lower = state.groups["0.5"]
    for module in SHAPES:
        for adapter in (lower.adapter, lower.known):
            assert torch.equal(adapter[f"{module}.A"][0], state.adapter[f"{module}.A"][0])
            assert torch.equal(adapter[f"{module}.B"][:, 0], state.adapter[f"{module}.B"][:, 0])
            assert torch.equal(adapter[f"{module}.A"][1], drawn(1000)[f"{module}.A"][1])
    assert all(torch.equal(t, state.groups["1"].adapter[key]) for key, t in state.adapter.items())


@pytest.mark.parametrize("name", ["lora-fair", "flexlora"])
def test_what_refines_the_mean_is_nearer_to_it(name: str) -> None:
    _, plain, _ = played("fedit", [1, 2, 3], [5, 1, 9])
    _, refined, _ = played(name, [1, 2, 3], [5, 1, 9])
    assert refined < 0.95 * plain


@pytest.mark.parametrize("name", ["lora-fair", "flexlora"])
def test_what_the_downlink_has_not_carried_yet_is_not_lost(name: str) -> None:
    """With error feedback, clients know less than the server means; one who moves nowhere must not undo the rest."""
    method, meant = build(MethodConfig(name=name)), drawn(1)
    state = ServerState(3, meant, known=drawn(0))
    still = Update(4, "c", algebra.zeros(meant), 1, 1, 1.0)
    after = method.aggregate(state, [still]).adapter
    for module, expected in products(meant).items():
        torch.testing.assert_close(products(after)[module], expected, rtol=1e-4, atol=1e-4)


def test_lora_fair_corrects_what_somebody_has_sent() -> None:
    method, start = build(MethodConfig(name="lora-fair")), drawn(0)
    changes = [drawn(1), drawn(2)]
    for change in changes:
        change["q.B"][2:, 1] = 0.0  # by a mask that all clients share
    heard = [Update(1, "ab"[k], change, 1, 1, 1.0) for k, change in enumerate(changes)]
    state = method.init_server(start)
    after, mean = method.aggregate(state, heard).adapter, build(MethodConfig(name="fedit")).aggregate(state, heard)
    assert torch.equal(after["q.B"][2:, 1], start["q.B"][2:, 1])
    assert not torch.isclose(after["q.B"][:2], mean.adapter["q.B"][:2], atol=1e-3).any()
    assert not torch.isclose(after["v.B"], mean.adapter["v.B"], atol=1e-3).any()


def test_fedsa_keeps_b_at_home() -> None:
    method, start = build(MethodConfig(name="fedsa-lora")), drawn(0)
    memory = method.init_client("c", start)
    trained = drawn(5)
    change, memory = method.collect(start, Trained(trained, (1.0,)), memory)
    assert set(change) == {"q.A", "v.A"}
    received = algebra.factor(drawn(7), "A")
    again = method.install(received, memory)
    assert list(again) == list(start)
    for module in SHAPES:
        assert torch.equal(again[f"{module}.B"], trained[f"{module}.B"])
        assert torch.equal(again[f"{module}.A"], received[f"{module}.A"])


def test_ffa_never_moves_a() -> None:
    state, _, ends = played("ffa-lora", [1, 2], [1, 1])
    for a in [state.whole, *ends]:
        for module in SHAPES:
            assert torch.equal(a[f"{module}.A"], drawn(1000)[f"{module}.A"])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), rank=st.integers(1, 5))
def test_a_truncation_is_the_nearest_of_its_rank(seed: int, rank: int) -> None:
    changes = [(drawn(seed + k), k + 1.0) for k in range(3)]
    ends = [algebra.add(drawn(50), change) for change, _ in changes]
    stacked = Products([(end, weight) for end, (_, weight) in zip(ends, changes, strict=True)])
    for module, dense in mean_of(ends, [1, 2, 3]).items():
        up, down = stacked.truncated(module, rank)
        assert up.shape == (SHAPES[module][0], rank)
        assert down.shape == (rank, SHAPES[module][1])
        left = np.linalg.svd(dense.numpy(), compute_uv=False)[rank:]
        assert float((dense - up.double() @ down.double()).norm()) == pytest.approx(np.linalg.norm(left), abs=1e-4)


def test_no_products_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no products"):
        Products([])
    with pytest.raises(ValueError, match="no products"):
        MeanProduct().value()


def test_ditto_trains_an_adapter_of_its_own_that_never_travels() -> None:
    fake = Fake("ditto", "fp32")
    fake.play(3)
    own = fake.memory["a"].adapter
    expected = algebra.add(algebra.add(algebra.add(initial(), steps("a", 1)), steps("a", 2)), steps("a", 3))
    for key, t in expected.items():
        torch.testing.assert_close(own[key], t)
    assert fake.memory["a"].steps == 6  # as those of other methods: the second training has the same items


def test_ditto_is_held_near_the_global_adapter() -> None:
    method, received = build(MethodConfig(name="ditto", alpha_f=0.5)), drawn(3)
    assert method.private is not None
    own, near = method.private(received, ClientState("c", adapter=drawn(4)))
    assert own is not received
    distance = sum(float((own[key] - t).square().sum()) for key, t in received.items())
    assert float(near.term(own, near.constants)) == pytest.approx(0.25 * distance, rel=1e-5)


# -- the base is patched -----------------------------------------------------------------------------------


def test_fedex_keeps_the_means_and_patches_what_they_miss() -> None:
    state, _, ends = played("fedex-lora", [1, 2, 3], [5, 1, 9])
    plain, _, _ = played("fedit", [1, 2, 3], [5, 1, 9])
    for key, t in plain.adapter.items():
        torch.testing.assert_close(state.adapter[key], t)
    for module, expected in mean_of(ends, [5, 1, 9]).items():
        missed = expected - products(plain.adapter)[module]
        torch.testing.assert_close(state.adapter[f"{module}.W"].double(), missed, rtol=1e-4, atol=1e-4)
        assert missed.abs().max() > 0.1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(1, 3))
def test_fedex_leaves_the_base_as_it_is_where_clients_agree(seed: int, n: int) -> None:
    state, _, _ = played("fedex-lora", [seed] * n, [7] * n)
    assert not any(bool(state.adapter[f"{module}.W"].any()) for module in SHAPES)


def test_flora_merges_all_and_starts_anew() -> None:
    state, _, ends = played("flora", [1, 2, 3], [5, 1, 9])
    for module, expected in mean_of(ends, [5, 1, 9]).items():
        torch.testing.assert_close(state.adapter[f"{module}.W"].double(), expected, rtol=1e-4, atol=1e-4)
        assert not state.adapter[f"{module}.B"].any()
        bound = SHAPES[module][1] ** -0.5
        a = state.adapter[f"{module}.A"]
        assert 0.5 * bound < float(a.abs().max()) <= bound
        assert not torch.equal(a, drawn(1000)[f"{module}.A"])


def test_flora_draws_another_a_each_round_and_under_each_seed() -> None:
    def after(rounds: int, seed: int) -> torch.Tensor:
        method = build(MethodConfig(name="flora"), seed)
        assert method.relay is not None
        version = drawn(0) | algebra.blank(drawn(0))
        for round in range(1, rounds + 1):
            version = method.relay(version, round, [(drawn(round), 1.0)])
        return version["q.A"]

    assert torch.equal(after(2, 0), after(2, 0))
    assert not torch.equal(after(1, 0), after(2, 0))
    assert not torch.equal(after(1, 0), after(1, 1))
