"""What servers make of updates, against the dense weighted mean of the products B A."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl import adapter as algebra
from capfl.config.schema import CodecConfig, MethodConfig
from capfl.maths.products import Products
from capfl.methods import METHODS, build
from capfl.roles import Agreement, server
from capfl.types import Adapter, ClientState, Trained, Update
from fake import Fake, initial, steps

SHAPES = {"q": (5, 4), "v": (3, 6)}  # (d_out, d_in)
RANK = 2
FEDERATED = [
    name for name in METHODS if name not in ("local", "centralised", "ca-pfl")
]  # ca-pfl: test_capfl, its groups have a mean each
EXACT = [name for name in FEDERATED if build(MethodConfig(name=name)).exact]
INEXACT = [name for name in FEDERATED if not build(MethodConfig(name=name)).exact]
WITH_B = [name for name in FEDERATED if name != "fedsa-lora"]  # whose server knows products


def drawn(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    made: Adapter = {}
    for module, (d_out, d_in) in SHAPES.items():
        made[f"{module}.A"] = torch.randn(RANK, d_in, generator=generator)
        made[f"{module}.B"] = torch.randn(d_out, RANK, generator=generator)
    return made


def products(a: Adapter) -> dict[str, torch.Tensor]:
    return {module: up.double() @ down.double() for module, down, up in algebra.factors(a)}


def mean_of(adapters: list[Adapter], weights: list[int]) -> dict[str, torch.Tensor]:
    parts = [(products(a), w / sum(weights)) for a, w in zip(adapters, weights, strict=True)]
    return {module: torch.stack([p * part[module] for part, p in parts]).sum(0) for module in SHAPES}


def played(name: str, seeds: list[int], weights: list[int], order: list[int] | None = None):  # type: ignore[no-untyped-def]
    """One round with clients who move by ``drawn``: the server's state, its reported error and clients' adapters."""
    method, start = build(MethodConfig(name=name)), drawn(1000)
    agreement = Agreement(method, CodecConfig(values="fp32", density=1.0), start)
    state = server.start(agreement)
    updates, ends = [], []
    for at, (seed, weight) in enumerate(zip(seeds, weights, strict=True)):
        memory = method.init_client(f"c{at}", start)
        begun = method.install(state.known, memory)
        moving = {key: t for key, t in drawn(seed).items() if method.trainable(1, key)}
        end = algebra.add(begun, moving)
        change, _ = method.collect(begun, Trained(end, (1.0,)), ClientState(f"c{at}", adapter=memory.adapter))
        updates.append(Update(1, f"c{at}", change, weight, 1, 1.0))
        ends.append(end)
    chosen = [updates[i] for i in order or range(len(updates))]
    new, error = server.close_round(state, [u.client for u in chosen], chosen, agreement)
    return new, error, ends


seeds = st.lists(st.integers(0, 99), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(1, 3), weight=st.integers(1, 50))
@pytest.mark.parametrize("name", WITH_B)
def test_one_client_or_equal_clients_are_the_mean(name: str, seed: int, n: int, weight: int) -> None:
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
    target, got = mean_of(ends, weights), products(state.whole)
    apart = sum(float((target[m] - got[m]).square().sum()) for m in SHAPES)
    whole = sum(float(t.square().sum()) for t in target.values())
    assert error == pytest.approx((apart / whole) ** 0.5, rel=1e-3, abs=1e-4)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(3)))
@pytest.mark.parametrize("name", FEDERATED)
def test_the_order_of_updates_does_not_matter(name: str, order: list[int]) -> None:
    first, _, _ = played(name, [1, 2, 3], [5, 1, 9])
    other, _, _ = played(name, [1, 2, 3], [5, 1, 9], list(order))
    for key, t in first.adapter.items():
        torch.testing.assert_close(other.adapter[key], t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lora-fair", "flexlora"])
def test_what_refines_the_mean_is_nearer_to_it(name: str) -> None:
    _, plain, _ = played("fedit", [1, 2, 3], [5, 1, 9])
    _, refined, _ = played(name, [1, 2, 3], [5, 1, 9])
    assert refined < 0.95 * plain


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
    stacked = Products(drawn(50), changes)
    ends = [algebra.add(drawn(50), change) for change, _ in changes]
    for module, dense in mean_of(ends, [1, 2, 3]).items():
        up, down = stacked.truncated(module, rank)
        assert up.shape == (SHAPES[module][0], rank)
        assert down.shape == (rank, SHAPES[module][1])
        left = np.linalg.svd(dense.numpy(), compute_uv=False)[rank:]
        assert float((dense - up.double() @ down.double()).norm()) == pytest.approx(np.linalg.norm(left), abs=1e-4)


def test_no_products_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no products"):
        Products(drawn(0), [])


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
