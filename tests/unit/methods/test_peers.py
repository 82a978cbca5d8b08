"""Peers: who is grouped with whom, what groups learn, and what a client without peers has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import capfl.methods.posterior as posterior_module
from adapters import CODECS, same
from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.methods.combine import WeightedMean
from capfl.methods.grouping import Everybody
from capfl.methods.peers import Description, Peers, PeersMemory, Placement
from capfl.methods.posterior import Posterior
from capfl.types import EVERYBODY, Adapter, ClientId, ClientState, ServerState
from fake import bits, n_train, steps
from parts import CLIENTS, INITIAL, Federation, description, folded, row, update

PEERS = Peers()
METHOD = row(grouping=PEERS)


def told(n_peers: int | None, trained: int = 0, **kept: object) -> ClientState:
    memory = PeersMemory(description("a"), **({} if n_peers is None else {"n_peers": n_peers}))  # type: ignore[arg-type]
    return ClientState("a", trained=trained, grouping=memory, **kept)  # type: ignore[arg-type]


def formed(*rounds: dict[ClientId, Description]) -> ServerState:
    """The server's state after rounds in which these clients described their data."""
    state = METHOD.start(INITIAL, CLIENTS)
    for said in rounds:
        state = replace(state, round=state.round + 1)
        state = PEERS.form(state, {client: update(client, grouping=one) for client, one in said.items()})
    return state


def of(*clients: ClientId) -> dict[ClientId, Description]:
    return {client: description(client) for client in clients}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many posteriors are fitted, and none has to be fitted well."""
    monkeypatch.setattr(posterior_module, "FIT_STEPS", 2)


# -- forming groups ------------------------------------------------------------------------------------------


def test_clients_with_like_data_share_a_group_and_others_are_alone_in_theirs() -> None:
    for order in ("abc", "cba"):  # updates come in any order
        state = formed(of(*order))
        assert state.group_of == {"a": "group-1", "b": "group-1", "c": "group-2"}
        for name in ("group-1", "group-2"):  # split off from everybody's
            assert state.groups[name] == replace(state.everybody, since=1)


def test_a_newcomer_joins_its_like_and_nobody_is_moved() -> None:
    before = formed(of("a", "c"))
    state = formed(of("a", "c"), of("b"))
    assert before.group_of == {"a": "group-1", "c": "group-2"}
    assert state.group_of == before.group_of | {"b": "group-1"}
    assert {name: group.since for name, group in state.groups.items()} == {EVERYBODY: 0, "group-1": 1, "group-2": 1}
    third = formed(of("a", "c"), of("b"), {"d": description("d", kind=2)})
    assert third.group_of == state.group_of | {"d": "group-3"}
    assert third.groups["group-3"].since == 3


def test_a_second_description_of_a_client_changes_nothing() -> None:
    state = formed(of("a", "b", "c"))
    again = PEERS.form(state, {"c": update("c", grouping=description("c", kind=0))})
    assert again.grouping == state.grouping
    assert again.group_of == state.group_of


def test_answers_part_clients_of_like_prompts() -> None:
    """What is bound to answers differs, prompts do not."""
    other = description("c", kind=0)
    features = torch.cat([other.features[:16], description("c", kind=5).features[16:]])
    assert formed(of("a", "b") | {"c": other}).group_of["c"] == "group-1"
    assert formed(of("a", "b") | {"c": replace(other, features=features)}).group_of["c"] == "group-2"


def test_everybody_forms_no_group() -> None:
    played = Federation(row(grouping=Everybody()))
    played.rounds(1)
    assert (dict(played.state.groups).keys(), played.state.group_of, played.state.grouping) == ({EVERYBODY}, {}, None)


@pytest.mark.parametrize("deviation", [1e6, 0.0])
@pytest.mark.parametrize("first", ["z", "zabc"])
def test_a_lie_about_deviations_parts_nobody_for_good(deviation: float, first: str) -> None:
    """One that comes first, or with the others, is of as many items as it likes."""
    honest = {client: description(client, kind=int(client > "b")) for client in "abcd"}
    lie = replace(description("z", kind=7), deviation=torch.full((16,), deviation))
    everyone = {"z": lie} | honest
    state = METHOD.start(INITIAL, CLIENTS)
    for round, said in enumerate([first, *"abcd"], 1):
        state = replace(state, round=round)
        updates = {c: update(c, n=10**6 if c == "z" else 20, grouping=everyone[c]) for c in said}
        state = PEERS.form(state, {c: one for c, one in updates.items() if c not in state.group_of})
    groups = [state.group_of[client] for client in "abcd"]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert set(state.groups) == {EVERYBODY, *state.group_of.values()}


# -- what groups learn -----------------------------------------------------------------------------------------


def test_a_group_learns_from_its_members_alone_and_everybody_from_all() -> None:
    played = Federation(METHOD)
    first = played.rounds(1)
    before = played.state
    second = played.rounds(1)
    assert first.groups == second.groups == before.group_of == {"a": "group-1", "b": "group-1", "c": "group-2"}
    for name, members in (("group-1", "ab"), ("group-2", "c"), (EVERYBODY, "abc")):
        changes = [(played.changes(client)[1], 10.0 * (ord(client) - 96)) for client in members]
        assert same(played.state.groups[name].adapter, folded(WeightedMean(), changes, before.groups[name].adapter))


def test_a_newcomers_first_change_goes_to_everybody_and_it_is_sent_its_groups_whole_adapter() -> None:
    played = Federation(METHOD, "bf16")
    played.clients = ("a", "c")
    played.rounds(2)
    before, played.clients = played.state, CLIENTS
    played.rounds(1)
    changes = [(played.changes("a")[2], 10.0)]
    after = played.state.groups["group-1"]
    torch.testing.assert_close(
        after.adapter["q.B"],
        folded(WeightedMean(), changes, before.groups["group-1"].adapter)["q.B"],
        atol=1e-3,
        rtol=0,
    )
    assert "b" not in played.state.versions
    record = played.rounds(1)
    catch_up = {entry.client: entry.parts["catch-up"] for entry in record.ledger if entry.direction == "down"}
    assert {client for client, n in catch_up.items() if n} == {"b"}
    assert bits(played.memory("b").known) == bits(after.known)


def averaged(clients: str, rounds: int) -> Adapter:
    """FedAvg as McMahan et al. write it, arXiv:1602.05629, on the changes: weights by items, sums in float64."""
    theta = dict(INITIAL)
    for round in range(1, rounds + 1):
        changes = {client: algebra.subtract(algebra.add(theta, steps(client, round)), theta) for client in clients}
        for name in theta:
            weighted = sum(changes[client][name].double() * n_train(client) for client in clients)
            theta[name] = theta[name] + (weighted / sum(map(n_train, clients))).float()
    return theta


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("grouping", [Everybody(), Peers()])
@pytest.mark.parametrize("clients", ["a", "ab", "abc"])
def test_dense_in_one_group_it_is_federated_averaging_bit_for_bit(
    grouping: Everybody | Peers, clients: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake.described", lambda client: description(client, kind=0))
    played = Federation(row(grouping=grouping, ranks=Posterior(alpha_s=0.0)), clients=tuple(clients))
    played.rounds(4)
    assert len(set(played.state.group_of.values())) <= 1
    assert bits(played.state.group("a").adapter) == bits(played.state.everybody.adapter) == bits(averaged(clients, 4))


# -- without peers ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("codec", CODECS)
def test_a_client_without_peers_has_what_training_alone_gives(codec: str) -> None:
    """Whenever it is asked: c is like nobody. What its messages could not carry is in its adapter all the same."""
    played = Federation(row(grouping=Peers(dim=8), ranks=Posterior(hidden=2)), codec)
    asked = [n for n in range(1, 6) if "c" in played.rounds(1, fraction=0.6).clients]
    assert 1 < len(asked) < 5
    alone = INITIAL
    for n in asked:
        alone = algebra.add(alone, steps("c", n))
    assert bits(played.memory("c").adapter) == bits(alone)


@pytest.mark.parametrize(
    ("n_peers", "trained", "is_alone", "has_peers"),
    [(None, 0, True, False), (1, 3, True, False), (1, 0, False, False), (2, 3, False, True)],
)
def test_a_client_that_has_no_peers_or_does_not_know_goes_on_by_itself(
    n_peers: int | None, trained: int, is_alone: bool, has_peers: bool
) -> None:
    """One that never trained, and was told that it has no peers, has nothing of its own to go on from."""
    own, known = algebra.add(INITIAL, steps("a", 1)), algebra.add(INITIAL, steps("b", 1))
    memory = told(n_peers, trained, adapter=own, known=known)
    assert (PEERS.is_alone(memory), PEERS.has_peers(memory)) == (is_alone, has_peers)
    method = row(grouping=PEERS, alpha_f=0.5)
    assert same(method.starting_point(memory, INITIAL), own if is_alone else known)
    assert (method.penalty(memory, 10) is not None) == has_peers


# -- what is said ----------------------------------------------------------------------------------------------


def test_a_description_is_sent_until_the_client_is_told_its_place() -> None:
    memory = told(None)
    assert PEERS.report(memory) == memory.grouping.description  # type: ignore[union-attr]
    placed = replace(memory, grouping=PEERS.remember(Placement(z=torch.ones(2)), memory))
    assert PEERS.report(placed) is None
    later = PEERS.remember(Placement(n_peers=torch.tensor([3.0])), placed)
    assert isinstance(later, PeersMemory)
    assert (later.n_peers, later.z.tolist()) == (3, [1.0, 1.0])  # type: ignore[union-attr]
    assert PEERS.remember(None, replace(memory, grouping=later)) is later


def test_z_is_told_until_the_client_must_know_it_and_the_number_of_peers_always() -> None:
    assert PEERS.announce(METHOD.start(INITIAL, CLIENTS), "a") is None
    state = replace(formed(of("a", "b", "c")), versions={"a": 0, "b": 1})
    said = {client: PEERS.announce(state, client) for client in CLIENTS}
    assert [one.n_peers.tolist() for one in said.values()] == [[2.0], [2.0], [1.0]]  # type: ignore[union-attr]
    assert [one.z is not None for one in said.values()] == [True, False, True]  # type: ignore[union-attr]
    assert float(said["a"].z.norm()) == pytest.approx(1, abs=1e-6)  # type: ignore[union-attr]


def test_z_does_not_depend_on_answers() -> None:
    one = description("a")
    bound = torch.cat([one.features[:16], torch.full((32,), 7.0)])
    prompts = one.features + torch.cat([torch.ones(16), torch.zeros(32)])
    z = [
        PEERS.z(formed({"a": replace(one, features=features, answers=answers)} | of("b", "c")), "a")
        for features, answers in ((one.features, one.answers), (bound, torch.tensor([9.0])), (prompts, one.answers))
    ]
    assert torch.equal(z[0], z[1])
    assert not torch.equal(z[0], z[2])


def test_a_newcomer_is_like_its_group_or_if_it_has_none_there_like_all() -> None:
    state = formed(of("a", "b", "c"))
    z = {client: PEERS.z(state, client) for client in CLIENTS}
    assert PEERS.alike(state, "a") == {"b": pytest.approx(20 * float(z["a"] @ z["b"]))}
    others = {client: n * float(z["c"] @ z[client]) for client, n in (("a", 10), ("b", 20))}
    assert PEERS.alike(state, "c") == {client: pytest.approx(w) for client, w in others.items() if w > 0}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("features", 2e6),
        ("features", -2e6),
        ("deviation", -0.1),
        ("deviation", 2e6),
        ("answers", 0.5),
        ("answers", 2e6),
    ],
)
def test_numbers_that_no_model_and_no_data_give_are_refused(field: str, value: float) -> None:
    state, honest = METHOD.start(INITIAL, CLIENTS), description("a")
    PEERS.check(state, update("a", grouping=honest))
    PEERS.check(state, update("a"))
    lie = replace(honest, **{field: getattr(honest, field).index_fill(0, torch.tensor(0), value)})
    with pytest.raises(WireError, match=rf"Description\.{field} has numbers that are not between"):
        PEERS.check(state, update("a", grouping=lie))
