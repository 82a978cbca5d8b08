"""What every method keeps to, under every codec: laws, each of which is checked on one scripted history.

A new method or codec is tested here by being in its table. The quick tests take each method with two codecs, and every
second codec with one method; the slow ones take all pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from adapters import CODECS, normal, resealed, total
from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.methods import METHODS
from capfl.methods.combine import WeightedMean
from capfl.methods.ranks import Shares
from capfl.packing import pack
from capfl.roles import client as side
from capfl.roles import server
from capfl.round import run_round, validate_round
from capfl.types import EVERYBODY, Adapter, ClientId, ClientState, Exchange, Kind, Request
from capfl.wire import up_codec
from fake import (
    CLIENTS,
    SETTINGS,
    SKIP,
    STEPS,
    Fake,
    History,
    bits,
    initial,
    n_train,
    of,
    play_history,
    steps,
    without_time,
)  # fmt: skip

IN_TURN = [name for name in SETTINGS if name not in METHODS]
REMEMBERING = ("fedit in turns", "ca-pfl", "ca-pfl in turn", "ditto", "flexlora")  # one for each kind of state
TWO_CODECS = ("default", "fp32")  # right in the mean, exact
TRAINED = {"a": range(1, 7), "b": (5, 6), "c": (1, 2, 3, 5, 6), "d": range(3, 7)}


def pairs() -> Iterator[object]:
    for method in [*METHODS, *IN_TURN]:
        for codec in CODECS:
            quick = codec in TWO_CODECS or (method == "fedit" and codec in [*CODECS][::2])
            quick |= (method, codec) in (("ca-pfl", "random"), ("ca-pfl", "ternary"), ("rolora", "ternary"))
            quick &= (method, codec) != ("ca-pfl in turn", "fp32")
            yield pytest.param(method, codec, marks=() if quick else pytest.mark.slow)


# -- laws ------------------------------------------------------------------------------------------------


def the_ledger_is_the_messages(history: History) -> None:
    for round, record in history.records.items():
        charged = Counter((e.client, e.direction, e.bytes) for e in record.ledger)
        assert charged == Counter(history.crossed[round])
        assert all(e.round == round and sum(e.parts.values()) == e.bytes for e in record.ledger)
        clients = [e.client for e in record.ledger]  # sorted: of introductions, of training, and of a validation
        assert sum(one > other for one, other in pairwise(clients)) <= 2


def every_client_trains_once_a_round(history: History) -> None:
    """In as many turns as the largest group has members, or the method allows. One that had lost its state is asked
    again."""
    most, group_of = history.fake.agreement.method.order.turns, history.states[6].group_of
    for round, turns in history.turns.items():
        lost = [failure.client for failure in history.records[round].failures if failure.code == "version"]
        asked = Counter(client for turn in turns for client in turn) - Counter(lost)
        assert set(asked.values()) == {1}
        largest = max(Counter(group_of.get(client, EVERYBODY) for client in asked).values())
        n_turns = len(turns) - len(lost)
        assert n_turns == min(most, largest)
        assert history.states[round].version == n_turns + (history.states[round - 1].version if round > 1 else 0)
        assert "".join(sorted(asked)) == ("abc", "abc", "acd", "ad", "abcd", "abcd")[round - 1]


def who_failed_is_recorded(history: History) -> None:
    """c's reply got lost, b lost its state and was asked again, d lied. Nothing else went wrong."""
    failed = {round: [(f.client, f.code) for f in record.failures] for round, record in history.records.items()}
    assert failed.pop(2) == [("c", "internal")]
    assert failed.pop(5) in ([("b", "version")], [])  # none, if b was sent the whole adapter all the same
    assert failed.pop(6) == [("d", "wire")]
    assert not any(failed.values())
    used = ["".join(record.clients) for record in history.records.values()]
    assert used == ["abc", "ab", "acd", "ad", "abcd", "abc"]
    assert history.states[6].visits == {"a": 6, "b": 4, "c": 4, "d": 3}


def a_round_can_be_repeated_and_a_refused_update_leaves_nothing(history: History) -> None:
    for one, other in history.replayed:
        assert pack(one) == pack(other)


def clients_have_what_they_are_believed_to_have(history: History) -> None:
    """That they know the newest version whenever they are asked is checked by ``Fake``."""
    state, disk = history.states[6], history.fake.disk
    for client, version in state.versions.items():
        assert disk.newest(client).version == version
        assert history.states[5].version <= version < state.version
    assert set(state.versions) == {"a", "b", "c"}
    for client, rounds in TRAINED.items():
        assert disk.newest(client).steps == STEPS * len(rounds)
        assert disk.newest(client).trained == 6


def whoever_missed_rounds_is_led_to_the_newest_version(history: History) -> None:
    """From any version that it may have; with the whole adapter also if it has nothing."""
    fake, newest = history.fake, history.states[6]
    for client, since in (("a", 1), ("d", 3)):  # d came into a group that there was already
        memory = fake.disk.newest(client)
        for round in (0, *range(since, 7)):
            start, version = ClientState(client), 0
            if round:
                state = history.states[round]
                version, known = state.version, state.group(client).known
                start = replace(memory, version=version, known=known)
            message = server.request(replace(newest, versions={client: version}), client, fake.agreement)
            assert bits(fake.received(client, message.blob, start).known) == bits(newest.group(client).known)
        again = [server.request(newest, client, fake.agreement, again=True) for _ in range(2)]
        assert again[0] == again[1]
        assert bits(fake.received(client, again[0].blob, ClientState(client)).known) == bits(newest.group(client).known)


def groups_are_those_of_the_data(history: History) -> None:
    describes = history.fake.agreement.method.grouping.describes
    expected = {"a": "group-1", "b": "group-1", "c": "group-2", "d": "group-2"} if describes else {}
    assert history.states[6].group_of == history.records[6].groups == expected
    assert history.states[2].group_of == {c: g for c, g in expected.items() if c != "d"}
    assert {name: group.since for name, group in history.states[6].groups.items()} == dict.fromkeys(
        [EVERYBODY, *expected.values()], 0
    )


def means_are_those_of_the_members(history: History) -> None:
    """By hand: weights by items, sums in float64. Of everybody, and of each group of those who are in it.

    A group that was formed in a round begins as everybody's adapter, and every turn goes on from the one before.
    """
    agreed = history.fake.agreement
    if not isinstance(agreed.method.combine, WeightedMean) or agreed.down.scales:
        return  # others are tested beside their folds; the adapter of an unbiased codec is what was sent
    before = agreed.method.start(initial())
    for round, state in history.states.items():
        arrived = {t.client: t.arrived for t in history.fake.trainings if t.round == round}
        for name, group in state.groups.items():
            members = [c for c in history.records[round].clients if name in (EVERYBODY, state.group_of.get(c))]
            expected = before.groups.get(name, before.everybody).adapter
            waiting = set(members)  # whoever had lost its state is asked twice
            for turn in history.turns[round]:
                if present := {c: arrived[c] for c in turn if c in waiting}:
                    expected, waiting = moved(expected, present), waiting - set(turn)
            assert bits(group.adapter) == bits(expected), (round, name)
        before = state


def moved(adapter: Adapter, changes: dict[ClientId, Adapter]) -> Adapter:
    weight = float(sum(map(n_train, changes)))
    after = dict(adapter)
    for name in {name for change in changes.values() for name in change}:
        summed = sum(change[name].double() * float(n_train(c)) for c, change in changes.items() if name in change)
        after[name] = adapter[name] + (summed / weight).float()
    return after


def what_was_sent_and_what_is_left_is_what_changed(history: History) -> None:
    agreed = history.fake.agreement
    for client in "acd":  # b has lost what was left
        own = [t for t in history.fake.trainings if t.client == client]
        left = history.fake.disk.newest(client).residual
        sent, changed = (total([getattr(t, what) for t in own], initial()) for what in ("arrived", "change"))
        assert agreed.up.compensation == "feedback" or not left
        if agreed.up.exact:
            assert all(torch.equal(sent[name], t) for name, t in changed.items())
        elif agreed.up.compensation == "feedback":
            for name, t in total([left], initial()).items():
                torch.testing.assert_close(sent[name] + t, changed[name], rtol=0, atol=1e-6)


def factors_that_do_not_travel_stay(history: History) -> None:
    """And ranks that a client does not have are not sent."""
    method = history.fake.agreement.method
    for training in history.fake.trainings:
        assert set(training.arrived) <= set(method.factors.sent(training.round, initial()))
        if isinstance(method.ranks, Shares) and training.client in "bd":
            for down in algebra.factor(training.arrived, "A").values():
                assert not bool(down[1].any())
    for client in CLIENTS:
        own = history.fake.disk.newest(client).adapter
        if not method.grouping.describes and method.name != "ditto":
            assert not any(method.factors.travels(name) for name in own)
        if method.factors.travel in ("", "A"):
            assert set(algebra.factor(own, "B")) == set(algebra.factor(initial(), "B"))


def alone_a_client_has_what_training_alone_gives(history: History) -> None:
    """c has no peers before d comes, whatever it sends and is sent."""
    method = history.fake.agreement.method
    if method.grouping.describes or not method.factors.travel:
        expected = algebra.add(algebra.add(initial(), steps("c", 1)), steps("c", 2))
        assert bits(history.fake.disk.load("c", before=3).adapter) == bits(expected)


def peers_know_of_each_other(history: History) -> None:
    """b as well, which has lost its state."""
    if history.fake.agreement.method.grouping.describes:
        assert [history.fake.disk.newest(client).grouping.n_peers for client in CLIENTS] == [2] * 4
        for client in "acd":
            own = history.fake.disk.newest(client).grouping
            expected = history.fake.agreement.method.grouping.z(history.states[6], client)
            torch.testing.assert_close(own.z, expected, rtol=0.02, atol=0.01)  # told in bfloat16


def a_damaged_request_changes_nothing(history: History) -> None:
    fake = history.fake
    blob = server.request(history.states[6], "a", fake.agreement).blob
    memory = fake.disk.newest("a")
    before = pack(memory)
    for at in range(45, len(blob) - 4, 1 + len(blob) // 7):
        bad = resealed(blob, at, bytes([blob[at] ^ 0xFF]))
        with suppress(WireError):
            side.train(bad, memory, fake.trainer("a"), fake.agreement)
        assert pack(memory) == before
    with pytest.raises(WireError):
        side.train(blob[:-1], memory, fake.trainer("a"), fake.agreement)


def an_evaluation_is_remembered_by_nobody(history: History) -> None:
    fake, agreed = history.fake, history.fake.agreement
    memory, blob = fake.disk.newest("a"), server.request(history.states[6], "a", agreed).blob
    reply, after = side.evaluate(blob, memory, fake.trainer("a"), agreed)
    said, parts = server.read_evaluation(reply, "a", history.states[6], agreed)
    assert after is memory
    assert tuple(said.scores) == agreed.scored
    assert sum(parts.values()) == len(reply)


def neither_disks_nor_the_order_of_visits_matter(one: History, other: History) -> None:
    """Every state is packed and read again in one; in the other none is, and clients are visited backwards."""
    assert {round: pack(state) for round, state in one.states.items()} == {
        round: pack(state) for round, state in other.states.items()
    }
    assert list(map(without_time, one.records.values())) == list(map(without_time, other.records.values()))
    for client in CLIENTS:
        assert pack(one.fake.disk.newest(client)) == pack(other.fake.disk.newest(client))


LAWS: list[Callable[[History], None]] = [
    the_ledger_is_the_messages,
    every_client_trains_once_a_round,
    who_failed_is_recorded,
    a_round_can_be_repeated_and_a_refused_update_leaves_nothing,
    clients_have_what_they_are_believed_to_have,
    whoever_missed_rounds_is_led_to_the_newest_version,
    groups_are_those_of_the_data,
    means_are_those_of_the_members,
    what_was_sent_and_what_is_left_is_what_changed,
    factors_that_do_not_travel_stay,
    alone_a_client_has_what_training_alone_gives,
    peers_know_of_each_other,
    a_damaged_request_changes_nothing,
    an_evaluation_is_remembered_by_nobody,
]


@pytest.mark.parametrize(("method", "codec"), pairs())
def test_every_method_keeps_the_laws_under_every_codec(method: str, codec: str) -> None:
    history = play_history(Fake(of(method, codec)))
    for law in LAWS:
        law(history)
    if codec == "default" and method in REMEMBERING:  # disks and orders know nothing of codecs
        other = play_history(Fake(of(method, codec), packed=False, backwards=True))
        neither_disks_nor_the_order_of_visits_matter(history, other)


# -- codecs alone, and peers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [name for name in CODECS if up_codec(CODECS[name], 0).scales])
def test_unbiased_messages_are_as_long_as_the_change_in_the_mean(codec: str) -> None:
    """In its direction: over many rounds, whose masks differ."""
    made, change, rounds = up_codec(CODECS[codec], 3), normal(1, initial()), 120
    arrived = [made.decode(memoryview(made.encode(change, initial(), n)), initial(), n) for n in range(1, rounds + 1)]
    along = [sum(float((t * change[name]).sum()) for name, t in one.items()) for one in arrived]
    assert sum(along) / rounds == pytest.approx(algebra.norm(change) ** 2, rel=0.02)


def test_a_client_that_lost_its_state_is_told_its_features_again() -> None:
    history = play_history(Fake(of("ca-pfl", "default")))
    assert history.fake.disk.newest("b").grouping.z is not None


@pytest.mark.parametrize("method", IN_TURN)
@pytest.mark.parametrize("codec", ["default", pytest.param("down", marks=pytest.mark.slow)])
def test_a_server_that_is_killed_between_turns_comes_to_the_same_bits(method: str, codec: str) -> None:
    """After every message that it sends in round 2."""
    whole, killed = Fake(of(method, codec)), Fake(of(method, codec))
    whole.play(3)
    killed.play(1)

    class Killed(Exception):
        pass

    def until(last: int) -> Exchange:
        sent = iter(range(last))

        def exchange(kind: Kind, round: int, clients: list[ClientId], request: Request) -> Iterator[object]:
            for client in clients:
                if next(sent, None) is None:
                    raise Killed
                yield from killed.exchange(kind, round, [client], request)

        return exchange  # type: ignore[return-value]

    for last in range(len(CLIENTS)):
        with pytest.raises(Killed):
            run_round(killed.state, CLIENTS, killed.agreement, until(last), SKIP, seed=0)
    killed.play(2)
    assert pack(killed.state) == pack(whole.state)
    for client in CLIENTS:
        assert pack(killed.disk.newest(client)) == pack(whole.disk.newest(client))


@pytest.mark.parametrize("method", IN_TURN)
def test_a_validation_that_is_asked_for_twice_fails_nobody(method: str) -> None:
    """As by a server that was killed before it had written down who knows what: some know their own update by then."""
    fake = Fake(of(method, "default"))
    (record,) = fake.play(1)
    found = [validate_round(fake.state, record, CLIENTS, fake.agreement, fake.exchange, SKIP) for _ in range(2)]
    assert [longer.failures for _, longer in found] == [(), ()]
    assert pack(found[0][0]) == pack(found[1][0])
    assert found[0][0].own == {}  # from then on they know more than that


@pytest.mark.parametrize("method", ["fedit", "flexlora", "ca-pfl in turn"])
def test_whatever_is_in_a_message_the_server_goes_on(method: str) -> None:
    """Bytes of b's update are changed, and its checksum fits."""
    draw = torch.Generator().manual_seed(0)
    fake = Fake(of(method, "default"))

    def damaged(blob: bytes) -> bytes:
        where, what = torch.randint(10**6, (2,), generator=draw).tolist()
        return resealed(blob, 20 + where % (len(blob) - 24), bytes([what % 256]))

    fake.forged["b"] = damaged
    for _ in range(15):
        (record,) = fake.play(1, ["a", "b"])
        assert "a" in record.clients
        assert {failure.client for failure in record.failures} <= {"b"}
        assert all(bool(t.isfinite().all()) for group in fake.state.groups.values() for t in group.adapter.values())
