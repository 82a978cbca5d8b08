"""What a client hides and opens with its keys of secure aggregation, and what it refuses."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from capfl.config.schema import MethodConfig
from capfl.errors import CheckpointError, ClientError, ConfigError, WireError
from capfl.methods import build
from capfl.roles import server
from capfl.roles.keyring import Keyring, context_of
from capfl.roles.server import Beside
from capfl.types import (
    Broadcast,
    ClientId,
    Offer,
)  # fmt: skip
from masked import LYING, World, expanded, noisy, steps

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
        ring.open(1, ["c04"], 3)
    world.answer("train", "c00", request_to(world, cohort))
    for gone, reason in [
        ([], "not clients whose masks"), (["c00"], "not clients whose masks"), (["x"], "not clients whose masks"),
        (["c02", "c03", "c04"], "the sum of 2 of 5 clients would be opened, 3 are the fewest"),
    ]:  # fmt: skip
        with pytest.raises(WireError, match=reason):
            ring.open(1, gone, 3)
    secrets = ring.open(1, ["c04"], 3)
    assert ring.open(1, ["c04"], 3) == secrets
    with pytest.raises(WireError, match="not clients whose masks"):
        ring.open(1, ["c03"], 3)
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
        ring.open(1, ["c01", "c02"], 3)
    alive = ring.open(1, [], 3)
    assert ring.open(1, [], 3) == alive
    assert {len(share) for share in alive.values()} == {33}
    for lie in (["c01"], ["c02"]):
        with pytest.raises(WireError, match="not clients whose masks"):
            ring.open(1, lie, 3)
    with pytest.raises(
        WireError, match="has been in the sum of round 1 and takes part in none of round 1; if the server"
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
    assert ring.open(1, ["c01"], 3)["c01"] != ring._shares["c01"][33:]  # of its key, not of its own mask


def test_a_round_is_summed_once_also_by_a_process_that_was_started_again(tmp_path: Path) -> None:
    """A server that lies can have a worker end. The sum of all, less that of all but one, is the update of that one."""
    file, world = tmp_path / "run" / "opened.fedit", World(4, privacy=LYING)
    before, memory = world.state, dict(world.memory)
    world.keyrings["c00"] = Keyring(opened=file)
    world.play()
    assert file.read_text() == "1"
    world.state, world.memory = before, memory
    world.keyrings = {client: Keyring() for client in world.clients} | {"c00": Keyring(opened=file)}
    assert [(one.client, one.code) for one in world.play().failures] == [("c00", "wire")]
    with pytest.raises(WireError, match=f"none of round 1; .*delete {file} and start the node again"):
        world.keyrings["c00"].offer(1, "c00", world.agreement.schema, True)
    world.keyrings["c00"].offer(2, "c00", world.agreement.schema, True)
    file.write_text("half of a number")
    with pytest.raises(CheckpointError, match=str(file)):
        Keyring(opened=file)


def test_an_update_with_noise_is_in_one_sum_of_a_round_also_where_others_have_opened_it(tmp_path: Path) -> None:
    """A sum is opened by two thirds; those who were not asked for it could be in another one, with other noise."""
    file, world = tmp_path / "opened.fedit", World(4, privacy=noisy(LYING))
    before, memory = world.state, dict(world.memory)
    ring = world.keyrings["c00"] = Keyring(opened=file)
    world.drop("train", *world.clients)
    with pytest.raises(ClientError):
        world.play()
    assert file.read_text() == "1"
    world.wrong, world.state, world.memory = {}, before, memory
    assert world.play().failures == ()  # with the same keys it goes on
    assert ring.offer(2, "c00", world.agreement.schema, True)
    world.state, world.memory = before, memory
    world.keyrings["c00"] = Keyring(opened=file)
    with pytest.raises(WireError, match="none of round 1"):
        world.keyrings["c00"].offer(1, "c00", world.agreement.schema, True)


def test_what_cannot_be_written_down_is_not_opened(tmp_path: Path) -> None:
    world = World(3, privacy=LYING)
    world.keyrings["c00"] = Keyring(opened=tmp_path / "file" / "opened")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError):
        world.play()
    assert ("open", "c00") not in world.replies


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
