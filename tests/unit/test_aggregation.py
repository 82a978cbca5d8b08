"""What servers make of updates, against the dense weighted mean of the products B A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl import adapter as algebra
from capfl.config.schema import CodecConfig, MethodConfig
from capfl.maths.products import MeanProduct, Products, norm
from capfl.methods import METHODS, Method, build
from capfl.roles import Agreement, server
from capfl.types import Adapter, ClientState, ServerState, Trained, Update
from fake import Fake, initial, steps, without_dead_ranks

SHAPES = {"q": (5, 4), "v": (3, 6)}  # (d_out, d_in)
RANK = 2
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


def drawn(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    made: Adapter = {}
    for module, (d_out, d_in) in SHAPES.items():
        made[f"{module}.A"] = torch.randn(RANK, d_in, generator=generator)
        made[f"{module}.B"] = torch.randn(d_out, RANK, generator=generator)
    return made


def products(a: Adapter) -> dict[str, torch.Tensor]:
    """What an adapter adds to the base, over the scale: B A, and the patch if there is one."""
    nothing = torch.zeros(())
    return {m: up.double() @ down.double() + a.get(f"{m}.W", nothing).double() for m, down, up in algebra.factors(a)}


def mean_of(adapters: list[Adapter], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    parts = [(products(a), w / sum(weights)) for a, w in zip(adapters, weights, strict=True)]
    return {module: torch.stack([p * part[module] for part, p in parts]).sum(0) for module in SHAPES}


def told(method: Method, state: ServerState, client: str, start: Adapter) -> ClientState:
    """What a client remembers when it has been told its first message."""
    memory = method.init_client(client, start)
    return method.heed(method.brief(state, client) if method.brief else {}, memory) if method.heed else memory


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
        change["q.B"][2:] = 0.0  # by a mask that all clients share
    heard = [Update(1, "ab"[k], change, 1, 1, 1.0) for k, change in enumerate(changes)]
    state = method.init_server(start)
    after, mean = method.aggregate(state, heard).adapter, build(MethodConfig(name="fedit")).aggregate(state, heard)
    assert torch.equal(after["q.B"][2:], start["q.B"][2:])
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


# -- hetlora, by hand ------------------------------------------------------------------------------------------

PAIR = {"m.A": torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "m.B": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}


def het(**settings: object) -> tuple[Method, ServerState]:
    method = build(MethodConfig.model_validate({"name": "hetlora", "rank_shares": (1.0, 0.5)} | settings))
    return method, server.start(Agreement(method, CodecConfig(values="fp32"), PAIR), ["a", "b"])


def test_hetlora_cuts_what_a_client_has_no_rank_for() -> None:
    method, state = het()
    assert torch.equal(method.install(PAIR, told(method, state, "a", PAIR))["m.A"], PAIR["m.A"])
    cut = method.install(PAIR, told(method, state, "b", PAIR))
    assert cut["m.A"].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert cut["m.B"].tolist() == [[3.0, 0.0], [0.0, 0.0]]


def test_hetlora_weighs_clients_by_what_their_adapters_do() -> None:
    method, state = het()
    still = algebra.zeros(PAIR)
    heard = [  # a is where it was, of norm sqrt(9 + 4); b has one rank, and moves B from 3 to 5: of norm 5
        Update(1, "a", still, 1, 1, 1.0, {"alive": torch.ones(2)}),
        Update(
            1,
            "b",
            still | {"m.B": torch.tensor([[2.0, 0.0], [0.0, 0.0]])},
            99,
            1,
            1.0,
            {"alive": torch.tensor([1.0, 0.0])},
        ),
    ]
    new = method.aggregate(state, heard)
    a, b = 13**0.5, 5.0
    torch.testing.assert_close(new.adapter["m.B"], torch.tensor([[3 * a + 5 * b, 0], [0, a]]) / (a + b))
    torch.testing.assert_close(new.adapter["m.A"], torch.tensor([[a + b, 0], [0, 2 * a]]) / (a + b))


def test_hetlora_keeps_the_row_of_a_rank_that_nobody_in_the_round_has() -> None:
    method, state = het()
    alone = [Update(1, "b", algebra.zeros(PAIR), 1, 1, 1.0, {"alive": torch.tensor([1.0, 0.0])})]
    new = method.aggregate(state, alone)
    torch.testing.assert_close(new.adapter["m.A"], PAIR["m.A"])
    torch.testing.assert_close(new.adapter["m.B"], torch.tensor([[3.0, 0.0], [0.0, 0.0]]))


def test_hetlora_holds_down_the_ranks_that_it_may_prune() -> None:
    method, state = het(prune_weight=0.5)
    assert method.penalty is not None
    term = method.penalty(PAIR, told(method, state, "a", PAIR))
    live = {key: t.clone().requires_grad_() for key, t in PAIR.items()}
    value = term.term(live, term.constants)
    assert float(value.detach()) == 0.5 * 1.0 * 2.0  # ||b_2|| ||a_2||: of two ranks the first is kept
    value.backward()
    assert live["m.B"].grad is not None
    assert live["m.B"].grad.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    one = method.penalty(PAIR, told(method, state, "b", PAIR))
    assert float(one.term(PAIR, one.constants)) == 0.0  # a single rank is never pruned


@pytest.mark.parametrize("nothing", [False, True])
def test_hetlora_has_a_gradient_where_b_is_zero(nothing: bool) -> None:
    method, state = het()
    start = PAIR | {"m.B": torch.zeros(2, 2)} if nothing else PAIR
    assert method.penalty is not None
    term = method.penalty(start, told(method, state, "a", PAIR))
    live = {key: t.clone().requires_grad_() for key, t in start.items()}
    term.term(live, term.constants).backward()
    assert all(t.grad is not None and bool(t.grad.isfinite().all()) for t in live.values())


@pytest.mark.parametrize(("end", "ranks"), [(0.5, [1, 0]), (1.0, [1, 1]), (1.5, [1, 1])])
def test_hetlora_prunes_what_has_become_smaller(end: float, ranks: list[int]) -> None:
    method, state = het()
    memory = told(method, state, "a", PAIR)
    trained = PAIR | {"m.B": torch.tensor([[7.0, 0.0], [0.0, end]])}
    change, memory = method.collect(PAIR, Trained(trained, (1.0,)), memory)
    assert memory.notes["alive"].tolist() == ranks
    assert change["m.B"].tolist() == [[4.0, 0.0], [0.0, (end - 1) * ranks[1]]]
    assert method.report is not None
    assert method.report(memory)["alive"].tolist() == ranks
    assert method.heed is not None
    assert method.heed({"alive": torch.ones(2)}, memory).notes["alive"].tolist() == ranks  # it does not come back


# -- flasc, by hand ----------------------------------------------------------------------------------------------


def test_flasc_starts_from_the_largest_values_of_all() -> None:
    method = build(MethodConfig(name="flasc", start_density=0.4))
    start = {"m.A": torch.tensor([[1.0, -4.0, 2.0]]), "m.B": torch.tensor([[3.0], [0.5]])}
    masked = method.broadcast(method.init_server(start))
    assert (masked["m.A"].tolist(), masked["m.B"].tolist()) == ([[0.0, -4.0, 0.0]], [[3.0], [0.0]])


def test_flasc_steps_like_adamw_on_minus_the_mean_change() -> None:
    method, start = build(MethodConfig(name="flasc", server_learning_rate=0.01)), drawn(0)
    state = method.init_server(start)
    live = {key: torch.nn.Parameter(t.clone()) for key, t in start.items()}
    optimiser = torch.optim.AdamW(live.values(), lr=0.01, weight_decay=0.0)
    for round in range(3):
        changes = [(drawn(10 * round + k), k + 1) for k in range(2)]
        updates = [Update(round + 1, "ab"[k], change, n, 1, 1.0) for k, (change, n) in enumerate(changes)]
        state = replace(method.aggregate(state, updates), round=round + 1)
        for key, p in live.items():
            p.grad = -sum(n * change[key] for change, n in changes) / 3
        optimiser.step()
        for key, p in live.items():
            torch.testing.assert_close(state.adapter[key], p.detach(), rtol=1e-4, atol=1e-6)
    assert state.notes["m/q.A"].shape == state.notes["v/q.A"].shape == (RANK * 4,)
