"""The methods, on vectors small enough to check by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capfl.config.schema import CodecConfig, FederationConfig, MethodConfig
from capfl.errors import ConfigError
from capfl.methods import METHODS, build
from capfl.methods.fedit import fedit
from capfl.methods.local import local
from capfl.roles import Agreement, server
from capfl.roles.client import Site, handle
from capfl.round import run_round
from capfl.types import Adapter, Broadcast, ClientState, Penalty, ServerState, Trained, Update
from capfl.wire import decode_update, encode_broadcast

START = {"m.A": torch.tensor([[1.0, 2.0, 3.0]]), "m.B": torch.tensor([[0.5]])}
FP32 = CodecConfig(values="fp32")
floats = st.floats(-100, 100, width=32)


def adapter(a: list[float], b: float) -> Adapter:
    return {"m.A": torch.tensor([a]), "m.B": torch.tensor([[b]])}


def update(client: str, change: Adapter, n_train: int = 1) -> Update:
    return Update(1, client, change, n_train, steps=1, loss=1.0)


def equal(a: Adapter, b: Adapter) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# -- FedIT ------------------------------------------------------------------------------------------------


def test_the_server_adds_the_mean_change_weighted_by_items():
    updates = [update("a", adapter([4.0, 0.0, -8.0], 1.0), 1), update("b", adapter([0.0, 8.0, 0.0], 5.0), 3)]
    state = fedit().aggregate(ServerState(0, START), updates)
    # (4, 0, -8) / 4 + 3 (0, 8, 0) / 4 = (1, 6, -2), and 1 / 4 + 15 / 4 = 4
    assert equal(state.adapter, adapter([2.0, 8.0, 1.0], 4.5))


def test_only_the_ratio_of_the_weights_matters():
    def mean(*weights: int) -> Adapter:
        changes = [adapter([1.0, 2.0, 3.0], 4.0), adapter([-8.0, 0.0, 5.0], 7.0)]
        updates = [update(c, change, n) for c, change, n in zip("ab", changes, weights, strict=True)]
        return fedit().aggregate(ServerState(0, START), updates).adapter

    assert equal(mean(1, 3), mean(10, 30))
    assert not equal(mean(1, 3), mean(3, 1))


def test_arguments_are_not_changed():
    start = ServerState(3, {name: t.clone() for name, t in START.items()})
    change = adapter([1.0, 1.0, 1.0], 1.0)
    fedit().aggregate(start, [update("a", change), update("b", change)])
    assert equal(start.adapter, START)
    assert equal(change, adapter([1.0, 1.0, 1.0], 1.0))
    assert start.round == 3


@given(st.lists(floats, min_size=3, max_size=3), floats, st.integers(1, 1000))
def test_a_single_client_becomes_the_global_model(a, b, n_train):
    method, trained = fedit(), adapter(a, b)
    change, _ = method.collect(START, Trained(trained, (1.0,)), ClientState("a"))
    state = method.aggregate(ServerState(0, START), [update("a", change, n_train)])
    for name, t in trained.items():
        torch.testing.assert_close(state.adapter[name], t, rtol=1e-6, atol=1e-6)


@given(st.lists(floats, min_size=3, max_size=3), floats, st.lists(st.integers(1, 1000), min_size=1, max_size=5))
def test_equal_clients_agree_whatever_their_weights(a, b, weights):
    change = adapter(a, b)
    updates = [update(f"{k}", change, n) for k, n in enumerate(weights)]
    state = fedit().aggregate(ServerState(0, START), updates)
    for name, t in START.items():
        torch.testing.assert_close(state.adapter[name], t + change[name], rtol=1e-6, atol=1e-6)


def test_the_mean_of_many_small_changes_keeps_its_digits():
    """Summed in float32, a thousand tenths would be off by more than one unit in the last place."""
    tenth = adapter([0.1, 0.1, 0.1], 0.1)
    state = fedit().aggregate(ServerState(0, adapter([0.0] * 3, 0.0)), (update(f"{k}", tenth) for k in range(1000)))
    assert equal(state.adapter, tenth)


def test_updates_may_come_one_by_one():
    changes = [adapter([float(k)] * 3, k) for k in range(4)]
    listed = [update(f"{k}", change, k + 1) for k, change in enumerate(changes)]
    assert equal(
        fedit().aggregate(ServerState(0, START), listed).adapter,
        fedit().aggregate(ServerState(0, START), iter(listed)).adapter,
    )


def test_closing_a_round_counts_it():
    agreement = Agreement(fedit(), FP32, START)
    state = ServerState(4, START, known=START, versions={"a": 1, "b": 3})
    state, _ = server.close_round(state, ["a"], [update("a", adapter([1.0] * 3, 2.0))], agreement)
    assert state.round == 5
    assert equal(state.adapter, adapter([2.0, 3.0, 4.0], 2.5))
    assert equal(state.known, state.adapter)  # by an exact codec, clients will know the adapter itself
    assert state.versions == {"a": 4, "b": 3}


def test_a_lossy_downlink_leaves_clients_with_less_than_the_server_has():
    """The server's adapter is what it is on the way to; ``known`` is where clients are."""
    agreement = Agreement(fedit(), CodecConfig(values="fp32", density=0.5, mask="top", scope="global"), START)
    state, _ = server.close_round(
        server.start(agreement), ["a"], [update("a", adapter([1.0, 4.0, 3.0], 1.0))], agreement
    )
    assert equal(state.adapter, adapter([2.0, 6.0, 6.0], 1.5))
    assert equal(state.known, adapter([1.0, 6.0, 6.0], 0.5))  # two of the four elements
    state, _ = server.close_round(state, ["a"], [update("a", adapter([0.0, 0.0, 0.0], 0.0))], agreement)
    assert equal(state.known, state.adapter)  # what the first message lost, the second carries


@given(st.permutations(["a", "b", "c", "d"]), st.integers(0, 99))
def test_the_order_in_which_clients_are_given_changes_no_bit(order, seed):
    generator = torch.Generator().manual_seed(seed)
    trained = {c: {name: torch.randn(t.shape, generator=generator) for name, t in START.items()} for c in "abcd"}
    agreement = Agreement(fedit(), FP32, START)

    def engine(kind, round, clients, request):
        for client in clients:
            site = Site(client, ord(client), lambda start, round, first, penalty, c=client: Trained(trained[c], (1.0,)))
            yield client, handle(request(client), ClientState(client), site, agreement)[0]

    states = [
        run_round(server.start(agreement), clients, agreement, engine, FederationConfig(), 0)[0]
        for clients in (["a", "b", "c", "d"], order)
    ]
    assert equal(states[0].adapter, states[1].adapter)


def test_what_a_client_sends_is_its_change():
    method = fedit()
    assert method.broadcast(ServerState(0, START)) is START
    assert method.install(START, ClientState("a")) is START
    change, memory = method.collect(START, Trained(adapter([2.0, 2.0, 2.0], 0.0), (1.0,)), ClientState("a", steps=3))
    assert equal(change, adapter([1.0, 0.0, -1.0], -0.5))
    assert memory == ClientState("a", steps=3)
    assert method.trainable(1, "m.A")
    assert method.trainable(1, "m.B")


def test_the_proximal_term_by_hand():
    held = fedit(0.5).penalty(START, ClientState("a"))
    now = {name: t.clone().requires_grad_() for name, t in adapter([2.0, 2.0, 0.0], 1.5).items()}
    value = held.term(now, held.constants)
    assert float(value.detach()) == 0.25 * (1 + 0 + 9 + 1)  # alpha_f / 2 times the squared distance
    value.backward()
    assert now["m.A"].grad.tolist() == [[0.5, 0.0, -1.5]]  # alpha_f times the difference
    assert now["m.B"].grad.tolist() == [[0.5]]
    assert float(held.term(START, held.constants)) == 0.0
    assert fedit(0.0).penalty is None


def test_the_proximal_term_is_about_what_is_trained():
    """Names of the first argument only: factors that are frozen do not count."""
    held = fedit(2.0).penalty(START, ClientState("a"))
    assert float(held.term({"m.B": torch.tensor([[3.5]])}, held.constants)) == 9.0


def test_the_proximal_term_holds_on_to_the_global_adapter_wherever_training_starts():
    """A client that steps ahead starts from the global adapter plus its residual."""
    codec = CodecConfig(values="fp32", density=0.5, mask="top", step_ahead=1.0)
    agreement = Agreement(fedit(1.0), codec, START)
    memory = ClientState("a", residual={"m.B": torch.tensor([[10.0]])})
    seen = []

    def train(start: Adapter, round: int, first: int, penalty: Penalty) -> Trained:
        seen.append((start, float(penalty.term(start, penalty.constants))))
        return Trained(start, (1.0,))

    request = server.request(server.start(agreement), "a", agreement)
    handle(request.blob, memory, Site("a", 1, train), agreement)
    ((start, value),) = seen
    assert equal(start, START | {"m.B": START["m.B"] + 10})
    assert value == 50.0


# -- local and centralised ------------------------------------------------------------------------------


def test_local_keeps_its_own_adapter_and_sends_no_tensor():
    method = local()
    agreement = Agreement(method, FP32, START)
    memory = method.init_client("a", START)
    assert equal(memory.adapter, START)
    assert method.install({}, memory) is memory.adapter
    assert method.personal is None  # this adapter after a last round of steps, as other methods have it
    starts = []

    def train(start: Adapter, round: int, first: int, penalty: object) -> Trained:
        starts.append((start, first))
        return Trained({name: t + 1 for name, t in start.items()}, (2.0, 4.0))

    state = server.start(agreement)
    names = 5 + 1  # the list of tensors, which is empty
    for n_news in (0, 1):
        request = server.request(state, "a", agreement)
        assert len(request.blob) == 38 + 1 + n_news * (5 + names) + 4  # header, id, checksum: no value
        reply, memory = handle(request.blob, memory, Site("a", 5, train), agreement)
        assert len(reply) == 38 + 1 + names + 4
        got, _ = decode_update(reply, agreement.up, agreement.schema, START)
        assert (got.adapter, got.n_train, got.steps, got.loss) == ({}, 5, 2, 3.0)
        state, _ = server.close_round(state, ["a"], iter([got]), agreement)
    assert equal(memory.adapter, {name: t + 2 for name, t in START.items()})
    assert memory.steps == 4
    assert [first for _, first in starts] == [0, 2]
    assert equal(starts[1][0], {name: t + 1 for name, t in START.items()})
    assert state.round == 2
    assert equal(state.adapter, START)
    assert not method.has_global


def test_local_asks_for_every_update():
    """Updates are made as they are asked for: who asks for none has no round."""
    seen = []

    def coming():
        for client in "ab":
            seen.append(client)
            yield update(client, {})

    local().aggregate(ServerState(0, START), coming())
    assert seen == ["a", "b"]


def test_centralised_is_fedit_with_all_data_in_one_place():
    method = build(MethodConfig(name="centralised"))
    assert (method.pooled, method.has_global, method.personal, method.penalty) == (True, True, None, None)
    assert not any(build(MethodConfig(name=name)).pooled for name in METHODS if name != "centralised")


# -- by name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_own_name_and_a_source(name):
    method = build(MethodConfig(name=name))
    assert method.name == name
    assert method.citation


def test_fedprox_is_cited_when_it_is_used():
    assert "1812.06127" not in build(MethodConfig()).citation
    assert "1812.06127" in build(MethodConfig(alpha_f=0.1)).citation


def test_an_unknown_method_lists_the_choices():
    with pytest.raises(ConfigError, match="unknown method 'fedavg'; choose from ca-pfl, fedit, fedprox, ffa-lora"):
        build(MethodConfig(name="fedavg"))


@pytest.mark.parametrize("name", ["local", "centralised"])
def test_a_proximal_term_where_there_is_none_is_refused(name):
    with pytest.raises(
        ConfigError, match=f"method.alpha_f: {name} does not use it; leave it out or use ca-pfl, fedit, fedprox, ditto"
    ):
        build(MethodConfig(name=name, alpha_f=0.1))


# -- the client's side -------------------------------------------------------------------------------------


def test_a_client_refuses_a_message_for_another(monkeypatch):
    agreement = Agreement(fedit(), FP32, START)
    blob = encode_broadcast(Broadcast(1, "b", None, ()), agreement.down, agreement.schema).blob
    site = Site("a", 1, lambda start, round, first, penalty: pytest.fail("it trained"))
    with pytest.raises(Exception, match="client 'a' received a message for 'b'"):
        handle(blob, ClientState("a"), site, agreement)


def test_the_clients_memory_is_replaced_and_not_changed():
    agreement = Agreement(fedit(), FP32, START)
    memory = ClientState("a", steps=5)
    blob = server.request(server.start(agreement), "a", agreement).blob
    _, after = handle(blob, memory, Site("a", 1, lambda s, r, f, p: Trained(s, (1.0,) * 3)), agreement)
    assert (memory.steps, after.steps) == (5, 8)
