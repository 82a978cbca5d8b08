"""Secure aggregation from end to end without a model: sums, absent clients, and what each side refuses."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from adapters import resealed
from capfl import adapter as algebra
from capfl.config.privacy import PrivacyConfig
from capfl.config.schema import CodecConfig, FederationConfig, MethodConfig, TrainConfig
from capfl.errors import ClientError, ConfigError, WireError
from capfl.maths.masks import expanded
from capfl.methods import METHODS, Method, build
from capfl.methods.secure import SecureMean, refuse_few, secure
from capfl.packing import pack
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import ANSWERS, LocalTrainer
from capfl.roles.door import Limits
from capfl.roles.keyring import Keyring, context_of
from capfl.roles.server import Beside
from capfl.round import run_round
from capfl.types import (
    Adapter,
    Broadcast,
    ClientId,
    ClientState,
    Failure,
    Kind,
    Offer,
    Penalty,
    Request,
    RoundRecord,
    ServerState,
    Trained,
)  # fmt: skip
from capfl.wire import up_codec
from capfl.wire.secure import decode_masked
from fake import bits, initial

ON = PrivacyConfig(secure_aggregation="honest-server")
LYING = PrivacyConfig(secure_aggregation="malicious-server")
LIMITS = Limits(TrainConfig(steps=2, learning_rate=0.01), None, 2.0, {})
EXACTLY = {"down_values": "fp32", "down_density": 1.0}  # so that what the server has summed can be seen
TERNARY = CodecConfig(**EXACTLY)  # type: ignore[arg-type]
LEVELS = CodecConfig(values="4bit", density=0.5, **EXACTLY)  # type: ignore[arg-type]
DENSE = CodecConfig(values="2bit", density=1, compensation="off", **EXACTLY)  # type: ignore[arg-type]
SKIP = FederationConfig(on_failure="skip")


def made(
    method: str = "fedit", privacy: PrivacyConfig = ON, federation: FederationConfig = SKIP, **codec: object
) -> Method:
    config = CodecConfig(**codec)  # type: ignore[arg-type]
    own = MethodConfig(name=method, turns=1 if method == "ca-pfl" else None)
    return secure(build(own), privacy, federation, up_codec(config, 3))


def ids(n: int) -> list[ClientId]:
    return [f"c{i:02d}" for i in range(n)]


def steps(client: ClientId, round: int) -> Adapter:
    generator = torch.Generator().manual_seed(100 * round + int(client[1:]))
    return {name: 0.01 * torch.randn(t.shape, generator=generator) for name, t in initial().items()}


Mangle = Callable[[bytes], bytes | Failure]


class World:
    """A server and n clients in one process.

    Attributes:
        wrong: what becomes of a reply, by kind and client.
        replies: the last ones, as they came.
    """

    def __init__(
        self, n: int, codec: CodecConfig = TERNARY, method: str = "fedit", privacy: PrivacyConfig = ON
    ) -> None:
        row = secure(build(MethodConfig(name=method)), privacy, SKIP, up_codec(codec, 3))
        self.agreement = Agreement(row, codec, initial(), "base", seed=3, limits=LIMITS)
        self.clients = ids(n)
        self.state: ServerState = row.start(initial(), self.clients)
        self.keyrings = {client: Keyring() for client in self.clients}
        self.memory = {client: ClientState(client) for client in self.clients}
        self.wrong: dict[tuple[Kind, ClientId], Mangle] = {}
        self.replies: dict[tuple[Kind, ClientId], bytes] = {}
        self.requests: dict[tuple[Kind, ClientId], bytes] = {}
        self.crossed: list[tuple[ClientId, str, int]] = []

    def trainer(self, client: ClientId) -> LocalTrainer:
        def train(start: Adapter, round: int, first: int, penalty: Penalty | None) -> Trained:
            moved = {name: t + steps(client, round)[name] for name, t in start.items()}
            return Trained(moved, (1.0, 1.0 + int(client[1:])))

        return LocalTrainer(client, 10, train, keyring=self.keyrings[client])

    def answer(self, kind: Kind, client: ClientId, blob: bytes) -> bytes:
        reply, self.memory[client] = ANSWERS[kind](blob, self.memory[client], self.trainer(client), self.agreement)
        return reply

    def exchange(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        for client in clients:
            blob = self.requests[kind, client] = request(client)
            self.crossed.append((client, "down", len(blob)))
            try:
                reply: bytes | Failure = self.answer(kind, client, blob)
            except WireError as error:
                reply = Failure(client, kind, str(error), error.code)
            if isinstance(reply, bytes):
                self.replies[kind, client] = reply
                reply = self.wrong.get((kind, client), lambda same: same)(reply)
            if isinstance(reply, bytes):
                self.crossed.append((client, "up", len(reply)))
            yield client, reply

    def drop(self, kind: Kind, *clients: ClientId) -> None:
        self.wrong |= {(kind, client): lambda reply, c=client: Failure(c, kind, "gone") for client in clients}  # type: ignore[misc]

    def play(self, config: FederationConfig = SKIP) -> RoundRecord:
        self.state, record = run_round(self.state, self.clients, self.agreement, self.exchange, config, seed=0)
        return record

    def plain(self, present: Sequence[ClientId], asked: int, round: int = 1) -> Adapter:
        """The mean of the clients' numbers, added up without any mask."""
        summed = self.agreement.summed(round, round, asked)
        total = None
        for client in present:
            trained = {name: t + steps(client, round)[name] for name, t in initial().items()}
            own = summed.whole(algebra.subtract(trained, initial()), (2.0 + int(client[1:])) / 2, 2)
            total = own if total is None else total.plus(own)
        assert total is not None
        return summed.mean(total, len(present)).change


# -- the sum is exact ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "lost", "codec"),
    [
        *((n, lost, codec) for codec in (TERNARY, LEVELS, DENSE) for n, lost in ((3, 0), (7, 1), (7, 2))),
        (30, 2, TERNARY),
    ],
)
def test_the_sum_under_masks_is_the_sum_without(n: int, lost: int, codec: CodecConfig) -> None:
    """To the last bit, also where some have gone after the keys were dealt out."""
    world = World(n, codec)
    gone = ids(n)[1 : 1 + lost]
    world.drop("train", *gone)
    record = world.play()
    present = [client for client in ids(n) if client not in gone]
    assert bits(world.state.everybody.adapter) == bits(algebra.add(initial(), world.plain(present, n)))
    assert record.clients == tuple(present)
    assert [(failure.client, failure.stage) for failure in record.failures] == [(client, "train") for client in gone]
    assert record.loss == pytest.approx(sum((2.0 + int(client[1:])) / 2 for client in present) / len(present), abs=1e-4)
    assert set(record.steps.values()) == {2}


def test_whoever_gives_no_key_is_left_out_and_costs_no_opening() -> None:
    world = World(4)
    world.drop("keys", "c02")
    record = world.play()
    assert record.clients == ("c00", "c01", "c03")
    assert bits(world.state.everybody.adapter) == bits(algebra.add(initial(), world.plain(record.clients, 3)))
    assert not any(kind == "open" for kind, _ in world.requests)


def test_rounds_follow_each_other_and_every_byte_is_in_the_ledger() -> None:
    world = World(4)
    world.play()
    world.drop("train", "c03")
    world.crossed.clear()
    record = world.play()
    assert Counter((e.client, e.direction, e.bytes) for e in record.ledger) == Counter(world.crossed)
    assert all(sum(e.parts.values()) == e.bytes for e in record.ledger)
    assert {e.parts.get("keys", 0) > 0 for e in record.ledger if e.client == "c00"} == {False, True}
    assert world.state.visits == {"c00": 2, "c01": 2, "c02": 2, "c03": 1}
    assert not world.state.claims  # nobody has said how many items it has
    assert [world.memory[client].steps for client in ("c00", "c03")] == [4, 4]


@pytest.mark.parametrize("method", ["ffa-lora", "rolora", "ditto"])
def test_other_methods_that_add_a_mean(method: str) -> None:
    world = World(3, method=method)
    world.play()
    before = world.state.everybody.adapter
    world.play()
    assert bits(world.state.everybody.adapter) != bits(before)


# -- what the server sees --------------------------------------------------------------------------------------------


def test_a_masked_update_alone_says_nothing() -> None:
    """Its numbers are spread evenly, for an update of equal values as for any, and are others under other keys."""
    seen = []
    for _ in range(15):
        world = World(3, DENSE)
        world.play()
        summed = world.agreement.summed(1, 1, 3)
        masked, _ = decode_masked(world.replies["train", "c01"], world.agreement.up, world.agreement.schema, summed)
        seen.append(masked.whole)
    values = np.concatenate([one.values for one in seen])
    assert chisquare(np.bincount(values, minlength=16)).pvalue > 1e-6
    assert abs(np.unpackbits(np.concatenate([one.numbers for one in seen]).view(np.uint8)).mean() - 0.5) < 0.05
    plain = summed.whole(steps("c01", 1), 1.5, 2)
    agree = np.mean([np.mean(one.values == plain.values) for one in seen])
    assert agree == pytest.approx(1 / 16, abs=0.025)
    with pytest.raises(WireError, match="a sum of 1 clients has"):
        summed.mean(seen[-1], 1)
    assert not any(number in (2, 1 << 16) for number in seen[-1].numbers)


def test_the_header_has_no_items_steps_or_loss() -> None:
    world = World(3)
    world.play()
    for kind in ("keys", "train"):
        blob = world.replies[kind, "c00"]  # type: ignore[index]
        assert blob[20:36] == bytes(16)
    schema = world.agreement.schema
    telling = resealed(world.replies["train", "c00"], 20, b"\x07")
    with pytest.raises(WireError, match="what is to be hidden"):
        decode_masked(telling, world.agreement.up, schema, world.agreement.summed(1, 1, 3))


# -- sums that are lost ----------------------------------------------------------------------------------------------


def noise(reply: bytes) -> bytes:
    """Another masked update in the place of one."""
    n = min(40, len(reply) // 4)
    return resealed(reply, len(reply) - 4 - n, b"\x5a" * n)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({("train", "c01"): None, ("train", "c02"): None}, "2 of 4 clients have answered; a sum is of 3"),
        ({("train", "c01"): None, ("open", "c02"): None}, "c02 did not open the masks of c01"),
        ({("train", "c01"): noise}, "a sum of 4 clients has 1. where 12 is the most"),
        ({("train", "c01"): None, ("open", "c02"): noise}, "a sum of 3 clients has 1. where 9 is the most"),
    ],
)
def test_a_sum_that_is_none_moves_nothing(wrong: dict[tuple[Kind, ClientId], Mangle | None], reason: str) -> None:
    world = World(4, DENSE)
    for (kind, client), mangle in wrong.items():
        world.drop(kind, client)
        if mangle:
            world.wrong[kind, client] = mangle
    before = pack(world.state)
    with pytest.raises(ClientError, match=f"there is no sum of updates; .*{reason}"):
        world.play()
    assert pack(world.state) == before
    world.wrong.clear()
    world.play()
    assert bits(world.state.everybody.adapter) == bits(algebra.add(initial(), world.plain(ids(4), 4)))


def test_a_mean_that_is_too_long_is_lost() -> None:
    world = World(3)
    world.agreement = replace(world.agreement, limits=replace(LIMITS, max_norm=1e-3))
    with pytest.raises(ClientError, match=r"the mean update has norm .*federation\.max_norm lets in"):
        world.play()


def test_a_run_that_stops_at_failures_stops_at_the_first() -> None:
    world = World(4)
    world.drop("train", "c01")
    with pytest.raises(ClientError, match="'c01' failed in round 1"):
        world.play(FederationConfig())


@pytest.mark.parametrize("n", [1, 2])
def test_a_sum_of_two_is_made_by_nobody(n: int) -> None:
    world = World(4)
    world.drop("keys", *ids(4)[n:])
    with pytest.raises(ClientError, match="a sum is of 3 at least"):
        world.play()
    assert not any(kind == "train" for kind, _ in world.requests)


# -- what a client refuses -------------------------------------------------------------------------------------------


def request_to(world: World, cohort: tuple[Offer, ...], client: ClientId = "c00", round: int = 1) -> bytes:
    state = replace(world.state, round=round - 1)
    return server.request(state, client, world.agreement, beside=Beside(cohort)).blob


def offers(world: World, round: int = 1) -> dict[ClientId, Offer]:
    schema = world.agreement.schema
    return {client: ring.offer(round, client, schema) for client, ring in world.keyrings.items()}


def test_a_client_hides_nothing_among_too_few_or_under_keys_that_are_not_as_dealt() -> None:
    world = World(4)
    dealt = offers(world)
    a, b, c, d = dealt.values()
    for cohort, reason in [
        ((), "not with this client's own"),
        ((b, c, d), "not with this client's own"),
        ((replace(a, key=b.key), b, c), "not with this client's own"),
        ((a, b), "among 2, 3 are the fewest"),
        ((a, b, replace(c, key=b.key)), "among 2, 3 are the fewest"),
        ((a, b, replace(c, key=bytes(32))), "the key of client 'c02' is none"),
    ]:
        with pytest.raises(WireError, match=reason):
            world.answer("train", "c00", request_to(world, cohort))
        assert world.memory["c00"].steps == 0
    with pytest.raises(WireError, match="key for round 2 is not here"):
        world.answer("train", "c00", request_to(world, (a, b, c), round=2))


def test_a_key_hides_one_update() -> None:
    """Two under the same masks differ by what the updates differ by."""
    world = World(4)
    cohort = tuple(offers(world).values())
    asked = request_to(world, cohort)
    before = world.memory["c00"]
    reply = world.answer("train", "c00", asked)
    world.memory["c00"] = before
    assert world.answer("train", "c00", asked) == reply  # it has come twice
    world.memory["c00"] = before
    assert world.answer("train", "c00", request_to(world, cohort[:3])) != reply  # the same among others
    world.memory["c00"] = before
    world.agreement = replace(world.agreement, seed=4)  # other elements are sent
    with pytest.raises(WireError, match="has hidden another update"):
        world.answer("train", "c00", asked)


def test_a_client_opens_masks_once_and_its_key_is_spent_then() -> None:
    world = World(5)
    cohort = tuple(offers(world).values())
    ring, schema = world.keyrings["c00"], world.agreement.schema
    with pytest.raises(WireError, match="has hidden no update"):
        ring.open(1, ["c04"])
    world.answer("train", "c00", request_to(world, cohort))
    for gone, reason in [
        ([], "not clients whose masks"), (["c00"], "not clients whose masks"), (["x"], "not clients whose masks"),
        (["c02", "c03", "c04"], "the sum of 2 of 5 clients would be opened, 3 are the fewest"),
    ]:  # fmt: skip
        with pytest.raises(WireError, match=reason):
            ring.open(1, gone)
    secrets = ring.open(1, ["c04"])
    assert ring.open(1, ["c04"]) == secrets
    with pytest.raises(WireError, match="not clients whose masks"):
        ring.open(1, ["c03"])
    with pytest.raises(WireError, match="is not here, or is spent"):
        world.answer("train", "c00", request_to(world, cohort))
    assert ring.offer(1, "c00", schema) != cohort[0]  # the round is done again


def test_a_key_with_a_wrong_signature_is_refused_before_a_step_is_taken() -> None:
    world, schema = World(3), b"12345678"

    def sign(client: ClientId, data: bytes) -> bytes:
        return hashlib.sha256(client.encode() + data).digest()

    def verify(offer: Offer, data: bytes) -> None:
        if offer.signature != sign(offer.client, data):
            raise WireError(f"the key of {offer.client} is not signed by its node")

    for client in world.clients:
        world.keyrings[client] = Keyring(partial(sign, client), verify)
    world.play()
    a, b, c = offers(world, 2).values()
    for forged in (replace(c, signature=b""), replace(c, key=b.key[::-1]), Keyring().offer(2, "c02", schema)):
        with pytest.raises(WireError, match="the key of c02 is not signed"):
            world.answer("train", "c00", request_to(world, (a, b, forged), round=2))
    assert world.memory["c00"].steps == 2


def test_a_run_without_it_gives_no_keys() -> None:
    world = World(3)
    world.agreement = replace(world.agreement, method=build(MethodConfig(name="fedit")))
    for kind in ("keys", "open"):
        with pytest.raises(WireError, match="no secure aggregation"):
            world.answer(kind, "c00", request_to(world, ()))


# -- a server that lies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "lost", "silent"), [(3, 0, 0), (4, 1, 0), (7, 0, 2), (7, 2, 0), (30, 5, 4)])
def test_the_sum_is_the_same_with_shares(n: int, lost: int, silent: int) -> None:
    """Some go after the keys were dealt out, and others when they are asked to open the sum."""
    world = World(n, privacy=LYING)
    gone = ids(n)[1 : 1 + lost]
    world.drop("train", *gone)
    world.drop("open", *ids(n)[n - silent :])
    record = world.play()
    present = [client for client in ids(n) if client not in gone]
    assert bits(world.state.everybody.adapter) == bits(algebra.add(initial(), world.plain(present, n)))
    assert record.clients == tuple(present)
    assert Counter((e.client, e.direction, e.bytes) for e in record.ledger) == Counter(world.crossed)
    assert all(sum(e.parts.values()) == e.bytes for e in record.ledger)


@pytest.mark.parametrize(
    ("n", "wrong", "reason"),
    [
        (3, [("train", "c01")], "2 of 3 clients have answered; a sum is of 3"),
        (7, [("train", c) for c in ("c01", "c02", "c03")], "4 of 7 clients have answered; a sum is of 5"),
        (7, [("open", c) for c in ("c01", "c02", "c03")], "c01, c02, c03 did not open"),
        (4, [("shares", "c01")], "0 of 4 clients"),
    ],
)
def test_of_too_few_answers_there_is_no_sum(n: int, wrong: list[tuple[Kind, ClientId]], reason: str) -> None:
    world = World(n, privacy=LYING)
    for kind, client in wrong:
        world.drop(kind, client)
    with pytest.raises(ClientError, match=reason):
        world.play()


def test_a_share_that_is_wrong_is_noticed() -> None:
    world = World(4, DENSE, privacy=LYING)
    world.drop("train", "c01")
    world.wrong["open", "c02"] = noise
    with pytest.raises(ClientError, match=r"the shares of client 'c0.' are wrong|where 9 is the most"):
        world.play()


def dealt(n: int = 4) -> tuple[World, tuple[Offer, ...], dict[ClientId, list[bytes]]]:
    """A world in which shares have been dealt out, and what each client has dealt."""
    world = World(n, privacy=LYING)
    schema = world.agreement.schema
    cohort = tuple(ring.offer(1, client, schema, True) for client, ring in world.keyrings.items())
    said = {client: ring.deal(broadcast(world, cohort), schema) for client, ring in world.keyrings.items()}
    return world, cohort, said


def broadcast(world: World, cohort: tuple[Offer, ...] = (), shares: tuple[bytes, ...] = ()) -> Broadcast:
    return Broadcast(1, "c00", 0, None, (), cohort=cohort, shares=shares)


def for_first(said: dict[ClientId, list[bytes]]) -> tuple[bytes, ...]:
    """What the others have sealed for c00."""
    return tuple(boxes[0] for client, boxes in said.items() if client != "c00")


def test_a_client_says_one_share_of_each_and_never_both() -> None:
    """So a server that has an update, and says that its client has gone, gets one of its two masks."""
    world, _, said = dealt()
    ring, schema, summed = world.keyrings["c00"], world.agreement.schema, world.agreement.summed(1, 1, 4)
    asked = broadcast(world, shares=for_first(said))
    ring.check(asked, schema)
    ring.hide(summed.whole(steps("c00", 1), 1.0, 2), asked, schema)
    with pytest.raises(WireError, match="the sum of 2 of 4 clients would be opened, 3 are the fewest"):
        ring.open(1, ["c01", "c02"])
    alive = ring.open(1, [])
    assert ring.open(1, []) == alive
    assert {len(share) for share in alive.values()} == {33}
    for lie in (["c01"], ["c02"]):
        with pytest.raises(WireError, match="not clients whose masks"):
            ring.open(1, lie)
    with pytest.raises(
        WireError, match="has opened the sum of round 1 and takes part in none of round 1; if the server"
    ):
        ring.offer(1, "c00", schema, True)
    ring.offer(2, "c00", schema, True)
    with pytest.raises(WireError, match="none of round 1"):  # training of an earlier round can be repeated, too
        ring.offer(1, "c00", schema, True)
    other, _, said = dealt()
    ring = other.keyrings["c00"]
    asked = broadcast(other, shares=for_first(said))
    ring.check(asked, schema)
    ring.hide(summed.whole(steps("c00", 1), 1.0, 2), asked, schema)
    assert ring.open(1, ["c01"])["c01"] != ring._shares["c01"][33:]  # of its key, not of its own mask


def test_an_own_mask_stays_where_the_server_says_that_a_client_has_gone() -> None:
    """All that the server can take away of an update are the masks of pairs."""
    world, cohort, said = dealt()
    ring, schema, summed = world.keyrings["c00"], world.agreement.schema, world.agreement.summed(1, 1, 4)
    asked, plain = broadcast(world, shares=for_first(said)), summed.whole(steps("c00", 1), 1.0, 2)
    ring.check(asked, schema)
    hidden = ring.hide(plain, asked, schema)
    for one in cohort[1:]:  # c00's key, put together from its shares
        mask = expanded(ring._secret(one, context_of(schema, 1, 0)), summed.n_values, summed.width, summed.n_numbers)
        hidden = hidden.plus(mask, -1)
    assert not np.array_equal(hidden.numbers, plain.numbers)
    own = expanded(ring._own_mask, summed.n_values, summed.width, summed.n_numbers)
    assert np.array_equal(hidden.plus(own, -1).numbers, plain.numbers)


def test_shares_are_for_one_client_among_one_cohort() -> None:
    world, cohort, said = dealt()
    ring, schema = world.keyrings["c00"], world.agreement.schema
    good = for_first(said)
    for shares, reason in [
        ((), "shares of 0 clients, of 3 are needed"),
        (good[:2], "shares of 2 clients"),
        ((good[1], good[0], good[2]), "'c01' are not those that it dealt"),
        ((said["c01"][1], *good[1:]), "'c01' are not those that it dealt"),  # for c02
        ((good[0][:-1] + b"x", *good[1:]), "'c01' are not those that it dealt"),
    ]:
        with pytest.raises(WireError, match=reason):
            ring.check(broadcast(world, shares=shares), schema)
    assert ring.deal(broadcast(world, cohort), schema) == ring.deal(broadcast(world, cohort), schema)
    with pytest.raises(WireError, match="dealt out among other clients"):
        ring.deal(broadcast(world, cohort[:3]), schema)
    world, cohort, said = dealt()
    ring = world.keyrings["c00"]
    ring._cohort = ()  # the server has told it of fewer clients than the others
    ring.deal(broadcast(world, cohort[:3]), schema)
    with pytest.raises(WireError, match="'c01' are not those that it dealt"):
        ring.check(broadcast(world, shares=for_first(said)[:2]), schema)
    world, cohort, said = dealt()
    strange = Keyring()
    cohort = (strange.offer(1, "c00", schema, True), *cohort[1:])
    strange.deal(broadcast(world, cohort), schema)  # the others have dealt among c00's other keys
    with pytest.raises(WireError, match="'c01' are not those that it dealt"):
        strange.check(broadcast(world, shares=for_first(said)), schema)


def test_without_the_others_keys_a_node_trusts_no_lying_server() -> None:
    with pytest.raises(ConfigError, match="start the node with --peers DIR"):
        Keyring(lambda data: b"signed").offer(1, "c00", b"", True)
    world = World(3, privacy=LYING)
    a, b, c = (ring.offer(1, client, b"", True) for client, ring in world.keyrings.items())
    with pytest.raises(WireError, match="takes the server for another"):
        world.keyrings["c00"].deal(broadcast(world, (a, b, replace(c, box=b""))), b"")


# -- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "ca-pfl": "clients of ca-pfl tell the server what their data are like",
    "flexlora": "more with changes than to add their mean",
    "lora-fair": "more with changes than to add their mean", "fedex-lora": "gets the others' updates as they came",
    "local": "clients send nothing", "centralised": "all data in one place",
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_it_can_be_had_with(method: str) -> None:
    assert not isinstance(made(method, PrivacyConfig()).combine, SecureMean)
    if method not in REFUSED:
        assert isinstance(made(method).combine, SecureMean)
        return
    with pytest.raises(ConfigError, match=rf"^privacy\.secure_aggregation: .*{REFUSED[method]}.*(leave it out|use)"):
        made(method)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"values": "fp32"}, "fp32 are no whole numbers.*use codec.values = ternary, 2bit"),
        ({"values": "bf16"}, "bf16 are no whole numbers"),
        ({"mask": "top", "compensation": "off"}, "every client sends other elements.*use codec.mask = random"),
        ({"compensation": "feedback"}, "no rest to carry over; use codec.compensation"),
        ({"federation": FederationConfig(robust="clip")}, "robust = clip compares single changes.*leave one of them"),
        ({"federation": FederationConfig(max_items=9)}, "max_items has nothing to bound; leave it out"),
        ({"privacy": ON.model_copy(update={"clip": 1.0, "noise_multiplier": 1.0})}, "leave one of them out"),
    ],
)
def test_settings_that_it_cannot_be_had_with(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"^privacy\.secure_aggregation: .*{reason}"):
        made(**settings)  # type: ignore[arg-type]
    made(mask="top", density=1, compensation="off")


def test_in_turn_and_of_two_there_is_nothing_to_hide_among() -> None:
    with pytest.raises(ConfigError, match=r"^privacy\.secure_aggregation: .*train in 2 turns.*set method.turns to 1"):
        secure(build(MethodConfig(name="fedit", turns=2)), ON, SKIP, up_codec(TERNARY, 3))
    refuse_few(made(), ids(3), 3)
    refuse_few(build(MethodConfig(name="fedit")), ids(1), 1)
    with pytest.raises(ConfigError, match=r"2 clients take part in a round.*at least 3 clients"):
        refuse_few(made(), ids(3), 2)


def test_a_servers_step_is_longer_also_for_a_sum() -> None:
    doubled = secure(build(MethodConfig(name="fedit", server_step=2.0)), ON, SKIP, up_codec(TERNARY, 3))
    fold = doubled.combine.start(initial(), 1)
    fold.add(steps("c01", 1), 3)
    for name, t in fold.value().items():
        torch.testing.assert_close(t, initial()[name] + 2 * steps("c01", 1)[name])
