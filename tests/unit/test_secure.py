"""Secure aggregation from end to end without a model: sums, absent clients, and what the server sees."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from adapters import resealed
from capfl import adapter as algebra
from capfl.config.privacy import PrivacyConfig
from capfl.config.schema import CodecConfig, FederationConfig, TrainConfig
from capfl.errors import ClientError, WireError
from capfl.packing import pack
from capfl.roles import server
from capfl.roles.door import admit_mean
from capfl.roles.limits import Limits
from capfl.roles.server import Beside
from capfl.types import ClientId, ClientState, Kind, RoundRecord
from capfl.wire.secure import decode_masked
from capfl.wire.summed import Mean
from fake import bits, initial
from masked import DENSE, LEVELS, LIMITS, LYING, TERNARY, Mangle, World, ids, noise, noisy, steps

# -- the sum is exact ------------------------------------------------------------------------------------------------


def summed_without(world: World, lost: int) -> RoundRecord:
    """A round that some leave after the keys were dealt out. Its sum is that of the others, to the last bit."""
    n = len(world.clients)
    gone = ids(n)[1 : 1 + lost]
    world.drop("train", *gone)
    record = world.play()
    present = [client for client in ids(n) if client not in gone]
    assert bits(world.state.everybody.adapter) == bits(algebra.add(initial(), world.plain(present, n)))
    assert record.clients == tuple(present)
    assert [f.client for f in record.failures if f.stage == "train"] == gone
    assert Counter((e.client, e.direction, e.bytes) for e in record.ledger) == Counter(world.crossed)
    assert all(sum(e.parts.values()) == e.bytes for e in record.ledger)
    return record


@pytest.mark.parametrize(
    ("n", "lost", "codec"),
    [
        *((n, lost, codec) for codec in (TERNARY, LEVELS, DENSE) for n, lost in ((3, 0), (7, 1), (7, 2))),
        (30, 2, TERNARY),
    ],
)
def test_the_sum_under_masks_is_the_sum_without(n: int, lost: int, codec: CodecConfig) -> None:
    record = summed_without(World(n, codec), lost)
    losses = [(2.0 + int(client[1:])) / 2 for client in record.clients]
    assert len(record.failures) == lost
    assert record.loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
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


@pytest.mark.parametrize("privacy", [noisy(), noisy(LYING)])
@pytest.mark.parametrize(("n", "lost"), [(3, 0), (7, 2)])
def test_with_noise_too_and_nothing_is_said_beside_it(privacy: PrivacyConfig, n: int, lost: int) -> None:
    world, again = World(n, privacy=privacy), World(n, privacy=privacy)
    record = summed_without(world, lost)
    assert record.losses == record.steps == {}
    summed_without(again, lost)
    assert bits(again.state.everybody.adapter) != bits(world.state.everybody.adapter)


@pytest.mark.parametrize("privacy", [noisy(), noisy(LYING)])
def test_a_sum_that_would_have_too_little_noise_is_opened_by_nobody(privacy: PrivacyConfig) -> None:
    """Five of seven have it. So many are needed of an honest server too, and clients see to that as well."""
    world = World(7, privacy=privacy)
    world.drop("train", "c01", "c02", "c03")
    with pytest.raises(ClientError, match="4 of 7 clients have answered; a sum is of 5"):
        world.play()
    asked = server.ask(world.state, "c00", world.agreement, Beside(gone=("c01", "c02", "c03"))).blob
    with pytest.raises(WireError, match="the sum of 4 of 7 clients would be opened, 5 are the fewest"):
        world.answer("open", "c00", asked)


def test_a_change_that_is_asked_for_again_has_the_same_noise() -> None:
    """Two updates under the same masks would tell what is between them."""
    world = World(3, privacy=noisy())
    world.play()
    before, reply = ClientState("c00"), world.replies["train", "c00"]
    world.memory["c00"] = before
    assert world.answer("train", "c00", world.requests["train", "c00"]) == reply


def test_an_update_that_cannot_be_made_again_is_asked_for_once() -> None:
    """Where items are protected. Done again, the round is of other keys, so a server that lost it can go on."""
    world = World(3)
    world.agreement = replace(world.agreement, items_protected=True)
    lost, memory = world.state, dict(world.memory)
    world.play()
    key = world.replies["keys", "c00"]
    with pytest.raises(WireError, match="has answered in round 1, and its items"):
        world.answer("train", "c00", world.requests["train", "c00"])
    world.state, world.memory = lost, memory
    world.play()
    assert world.replies["keys", "c00"] != key


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


@pytest.mark.parametrize(("max_items", "lets_in"), [(None, True), (8, False)])
def test_steps_that_a_client_invents_lengthen_the_mean_as_far_as_items_let_them(
    max_items: int | None, lets_in: bool
) -> None:
    world = World(3)
    epochs = TrainConfig(epochs=1, batch_size=4, learning_rate=0.01)
    agreement = replace(world.agreement, limits=Limits(epochs, max_items, 2.0, {}))
    far = {name: torch.ones_like(t) for name, t in initial().items()}
    with nullcontext() if lets_in else pytest.raises(WireError, match=r"federation\.max_norm lets in"):
        admit_mean(Mean(far, loss=1.0, steps=1e8), agreement)
    near = {name: 0.01 * t for name, t in far.items()}
    admit_mean(Mean(near, loss=1.0, steps=2.0), agreement)


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


# -- a server that lies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "lost", "silent"), [(3, 0, 0), (4, 1, 0), (7, 0, 2), (7, 2, 0), (30, 5, 4)])
def test_the_sum_is_the_same_with_shares(n: int, lost: int, silent: int) -> None:
    """Some go after the keys were dealt out, and others when they are asked to open the sum."""
    world = World(n, privacy=LYING)
    world.drop("open", *ids(n)[n - silent :])
    summed_without(world, lost)


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
