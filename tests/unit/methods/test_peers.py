"""Peers: who is grouped with whom, what groups learn, and what a client without peers has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters import CODECS, same
from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.methods.combine import WeightedMean
from capfl.methods.grouping import Everybody
from capfl.methods.peers import Description, Peers, PeersMemory, Placement
from capfl.methods.posterior import Posterior
from capfl.types import EVERYBODY, Adapter, ClientId, ClientState, Introduction, ServerState
from fake import bits, n_train, steps
from parts import CLIENTS, INITIAL, Federation, description, folded, row

PEERS = Peers()
METHOD = row(grouping=PEERS)


def told(n_peers: int | None, trained: int = 0, **kept: object) -> ClientState:
    memory = PeersMemory() if n_peers is None else PeersMemory(n_peers=n_peers)
    return ClientState("a", trained=trained, grouping=memory, **kept)  # type: ignore[arg-type]


def says(client: ClientId, one: Description, n: int | None = None) -> Introduction:
    return Introduction(1, client, n or n_train(client), one)


def formed(*rounds: dict[ClientId, Description]) -> ServerState:
    """The server's state after rounds in which these clients described their data."""
    state = METHOD.start(INITIAL, CLIENTS)
    for said in rounds:
        state = PEERS.form(state, {client: says(client, one) for client, one in said.items()})
        state = replace(state, round=state.round + 1)
    return state


def of(*clients: ClientId) -> dict[ClientId, Description]:
    return {client: description(client) for client in clients}


def writing(client: ClientId, style: int) -> Description:
    """Prompts as everybody's, and answers in a style: both vary from item to item by 0.1."""
    mean, noise = (torch.randn(16, generator=torch.Generator().manual_seed(seed)) for seed in (style, ord(client)))
    texts = torch.cat([mean + 0.1 * noise / n_train(client) ** 0.5, torch.full((16,), 0.1)])
    same = description(client, 0)
    return replace(same, features=same.features.clone().index_fill(0, torch.arange(16, 48), 0.0), texts=texts)


# -- forming groups ------------------------------------------------------------------------------------------


def test_who_writes_alike_shares_a_group_and_who_chooses_is_in_none_of_theirs() -> None:
    state = formed({"a": writing("a", 1), "b": writing("b", 2), "c": writing("c", 1)})
    assert state.group_of == {"a": "group-1", "b": "group-2", "c": "group-1"}
    # the first texts come to a run of options: units of texts are made then
    later = formed({"a": description("a", 0)}, {"b": writing("b", 1), "c": writing("c", 1)})
    assert later.group_of["b"] == later.group_of["c"] != later.group_of["a"]


def test_who_fills_in_templates_does_not_share_a_group_with_who_writes_freely() -> None:
    said = {
        client: replace(writing(client, 1), answers=torch.tensor([n]))
        for client, n in zip("abcd", (5.0, 150.0, 7.0, 140.0), strict=True)
    }
    assert formed(said).group_of == {"a": "group-1", "b": "group-2", "c": "group-1", "d": "group-2"}


def test_clients_with_like_data_share_a_group_and_others_are_alone_in_theirs() -> None:
    for order in ("abc", "cba"):  # introductions come in any order
        state = formed(of(*order))
        assert state.group_of == {"a": "group-1", "b": "group-1", "c": "group-2"}
        for name in ("group-1", "group-2"):  # split off from everybody's
            assert state.groups[name] == replace(state.everybody, since=0)


def test_a_newcomer_joins_its_like_and_nobody_is_moved() -> None:
    before = formed(of("a", "c"))
    state = formed(of("a", "c"), of("b"))
    assert before.group_of == {"a": "group-1", "c": "group-2"}
    assert state.group_of == before.group_of | {"b": "group-1"}
    assert {name: group.since for name, group in state.groups.items()} == {EVERYBODY: 0, "group-1": 0, "group-2": 0}
    third = formed(of("a", "c"), of("b"), {"d": description("d", kind=2)})
    assert third.group_of == state.group_of | {"d": "group-3"}
    assert third.groups["group-3"].since == 2


def test_a_second_description_of_a_client_changes_nothing() -> None:
    state = formed(of("a", "b", "c"))
    again = PEERS.form(state, {"c": says("c", description("c", kind=0))})
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
        met = {c: says(c, everyone[c], 10**6 if c == "z" else 20) for c in said if c not in state.group_of}
        state = replace(PEERS.form(state, met), round=round)
    groups = [state.group_of[client] for client in "abcd"]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert set(state.groups) == {EVERYBODY, *state.group_of.values()}


KINDS = "aaaaccccee"  # of honest clients: a and c have like prompts and answer by two rules, e has other prompts


def honest(i: int) -> Description:
    kind = torch.randn(192, generator=torch.Generator().manual_seed(ord(KINDS[i])))
    if KINDS[i] == "c":
        kind[:64] = torch.randn(192, generator=torch.Generator().manual_seed(ord("a")))[:64]
    noise = 0.05 * torch.randn(192, generator=torch.Generator().manual_seed(100 + i))
    return Description(0.1 * (kind + noise), torch.full((64,), 0.1), torch.tensor([4.0]))


def of_kind(*kinds: str) -> torch.Tensor:
    """The sum of what two kinds have bound to their answers, and the prompts of the first."""
    found = [honest(KINDS.index(kind)).features for kind in kinds]
    return torch.cat([found[0][:64], sum(one[64:] for one in found)])  # type: ignore[arg-type]


LIES = {
    "of huge deviation": lambda: (10**6, replace(honest(0), deviation=torch.full((64,), 1e6))),
    "of no deviation": lambda: (10**6, replace(honest(0), deviation=torch.zeros(64))),
    "of huge features": lambda: (10**6, replace(honest(0), features=1e6 * torch.ones(192))),
    "that shares much with itself": lambda: (10**6, replace(honest(0), features=100 * honest(0).features)),
    "that shares nothing with itself": lambda: (1, replace(honest(0), features=0 * honest(0).features)),
    "of a million answers": lambda: (1, replace(honest(0), answers=torch.tensor([1e6]))),
    "between two rules": lambda: (40, replace(honest(0), features=of_kind("a", "c"))),
    "of one item between two rules": lambda: (1, replace(honest(0), features=of_kind("a", "c"))),
    "near to all": lambda: (1, replace(honest(0), features=5 * of_kind("a", "c", "e"))),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("first", [0, 3, 10])
def test_a_lie_leaves_honest_clients_where_they_are(lie: str, alone: bool, first: int) -> None:
    """The liar comes after so many others, in a round of its own or together with all that follow."""
    n, said = LIES[lie]()
    everyone = {f"{i}": says(f"{i}", honest(i), 40) for i in range(len(KINDS))}
    names = list(everyone)
    rounds = [names[:first], ["liar"], names[first:]] if alone else [names[:first], ["liar", *names[first:]]]
    state = METHOD.start(INITIAL, CLIENTS)
    for round in rounds:
        state = replace(PEERS.form(state, {c: (everyone | {"liar": says("liar", said, n)})[c] for c in round}), round=1)
    together = {frozenset(c for c in names if state.group_of[c] == name) for name in state.group_of.values()}
    assert together - {frozenset()} == {frozenset("0123"), frozenset("4567"), frozenset("89")}


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


def test_a_newcomer_is_sent_its_groups_whole_adapter_and_its_first_change_goes_there() -> None:
    played = Federation(METHOD, "bf16")
    played.clients = ("a", "c")
    played.rounds(2)
    before, played.clients = played.state, CLIENTS
    record = played.rounds(1)
    catch_up = {entry.client: entry.parts.get("catch-up") for entry in record.ledger if entry.direction == "down"}
    assert {client for client, n in catch_up.items() if n} == {"b"}
    assert bits(played.memory("b").known) == bits(before.groups["group-1"].known)
    changes = [(played.changes(client)[-1], float(n_train(client))) for client in "ab"]
    expected = folded(WeightedMean(), changes, before.groups["group-1"].adapter)
    torch.testing.assert_close(played.state.groups["group-1"].adapter["q.B"], expected["q.B"], atol=1e-3, rtol=0)


def averaged(clients: str, rounds: int) -> Adapter:
    """FedAvg as McMahan et al. write it, arXiv:1602.05629, on the changes: weights by items, sums in float64."""
    theta = dict(INITIAL)
    for round in range(1, rounds + 1):
        changes = {client: algebra.subtract(algebra.add(theta, steps(client, round)), theta) for client in clients}
        for name in theta:
            weighted = sum(changes[client][name].double() * n_train(client) for client in clients)
            theta[name] = theta[name] + (weighted / sum(map(n_train, clients))).float()
    return theta


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


@pytest.mark.parametrize("codec", CODECS)
def test_a_client_without_peers_has_what_training_alone_gives(codec: str) -> None:
    """From what all have when it comes, and whenever it is asked: c is like nobody.

    What its messages could not carry is in its adapter all the same.
    """
    played = Federation(row(grouping=Peers(dim=8), ranks=Posterior(hidden=2)), codec)
    asked, alone = 0, INITIAL
    for n in range(1, 6):
        known = played.state.everybody.known
        if "c" in played.rounds(1, fraction=0.6).clients:
            alone = algebra.add(alone if asked else INITIAL | known, steps("c", n))
            asked += 1
    assert 1 < asked < 5
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


def test_a_client_remembers_what_it_was_told_last() -> None:
    memory = told(None)
    assert memory.grouping == PEERS.described(description("a")) == PeersMemory()
    placed = PEERS.remember(Placement(z=torch.ones(2)), memory)
    later = PEERS.remember(Placement(n_peers=torch.tensor([3.0])), replace(memory, grouping=placed))
    assert isinstance(later, PeersMemory)
    assert (later.n_peers, later.z.tolist()) == (3, [1.0, 1.0])  # type: ignore[union-attr]
    assert PEERS.remember(None, replace(memory, grouping=later)) is later


def test_clients_are_asked_to_introduce_themselves_once() -> None:
    start = METHOD.start(INITIAL, CLIENTS)
    assert PEERS.unknown(start, CLIENTS) == ["a", "b", "c"]
    assert PEERS.unknown(formed(of("b")), CLIENTS) == ["a", "c"]
    with pytest.raises(WireError, match="does not describe"):
        PEERS.check(Introduction(1, "a", 10, None))


def test_z_is_told_until_the_client_must_know_it_and_the_number_of_peers_always() -> None:
    assert PEERS.announce(METHOD.start(INITIAL, CLIENTS), "a") is None
    state = replace(formed(of("a", "b", "c")), heard={"b": 1})
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
        ("texts", 2e6),
        ("texts", -0.1),
    ],
)
def test_numbers_that_no_model_and_no_data_give_are_refused(field: str, value: float) -> None:
    honest = replace(description("a"), texts=torch.full((32,), 0.1))
    PEERS.check(says("a", honest))
    at = torch.tensor(-1 if value == -0.1 else 0)  # the second half of texts are deviations
    lie = replace(honest, **{field: getattr(honest, field).index_fill(0, at, value)})
    with pytest.raises(WireError, match=rf"Description\.{field} has numbers that are not between"):
        PEERS.check(says("a", lie))
