"""Methods that patch the base: what the server believes and what each client has, under every codec."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters import CODECS, resealed
from capfl import adapter as algebra
from capfl import checkpoint
from capfl.config.schema import FederationConfig, MethodConfig
from capfl.errors import WireError
from capfl.methods import METHODS, build
from capfl.roles import Agreement, client, server
from capfl.types import Adapter, ClientId, ClientState
from fake import CLIENTS, Fake, bits, codec_of, initial, n_train

RELAYS = [name for name in METHODS if build(MethodConfig(name=name)).relay]

every_codec = pytest.mark.parametrize("codec", CODECS)
every_relay = pytest.mark.parametrize("method", RELAYS)
ONE = FederationConfig(fraction=0.3)  # of the three


def added(a: Adapter) -> dict[str, torch.Tensor]:
    """B A + W of every module, in float64."""
    return {m: up.double() @ down.double() + a[f"{m}.W"].double() for m, down, up in algebra.factors(a)}


def unequal(method: str, codec: str) -> Fake:
    """Of the three, a and c have both ranks of each module and b has one, if the method knows such clients."""
    fake = Fake(method, codec)
    config = MethodConfig(name=method, rank_shares=(1.0, 0.5) if "rank_shares" in METHODS[method].settings else None)
    start = initial() | algebra.zeros(algebra.factor(initial(), "B"))  # as runs begin
    fake.agreement = Agreement(build(config), codec_of(method, codec), start, "base", seed=3)
    fake.state = server.start(fake.agreement, CLIENTS)
    return fake


def test_there_are_some() -> None:
    assert RELAYS == ["fedex-lora", "flora"]


@every_codec
@every_relay
@pytest.mark.parametrize("ranks", ["equal", "unequal"])
def test_each_round_is_exact_in_what_arrived(method: str, codec: str, ranks: str) -> None:
    """What is added to the base is the patch before and the dense weighted mean of the clients' products."""
    fake = Fake(method, codec) if ranks == "equal" else unequal(method, codec)
    for _ in range(4):
        before, n = fake.state.whole, {name: len(fake.arrived[name]) for name in CLIENTS}
        fake.play(1, FederationConfig(fraction=0.6))
        heard = [name for name in CLIENTS if len(fake.arrived[name]) > n[name]]
        weight = sum(map(n_train, heard))
        for module, product in added(fake.state.whole).items():
            expected = before[f"{module}.W"].double()
            for name in heard:
                start = without_what_it_lacks(before, fake, name)
                end = algebra.add(start, fake.arrived[name][-1])
                expected = expected + n_train(name) / weight * (
                    end[f"{module}.B"].double() @ end[f"{module}.A"].double()
                )
            torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-6)
    assert all(bool(fake.state.whole[f"{module}.W"].any()) for module in ("q", "v"))


def without_what_it_lacks(adapter: Adapter, fake: Fake, name: ClientId) -> Adapter:
    alive = fake.agreement.method.alive(fake.memory[name].notes)
    return adapter if alive is None else algebra.without(adapter, ~alive)


@every_codec
@every_relay
def test_a_client_that_skipped_rounds_adds_the_same_to_the_base(method: str, codec: str) -> None:
    """Bit for bit, however late it comes, from whatever it had on its disk."""
    fake = unequal(method, codec)
    for _ in range(5):
        fake.play(1, ONE)
        for name in [*CLIENTS, "new"]:
            known = fake.told(name, server.request(fake.state, name, fake.agreement).blob).known
            assert list(known) == list(fake.state.whole)
            assert bits(known) == bits(fake.state.whole)


@every_relay
def test_missed_rounds_are_charged_whole(method: str) -> None:
    """Two rounds missed cost the updates of both, as catch-up; who missed none is sent those of the last alone."""
    fake = Fake(method, "bf16")
    fake.play(3)
    last, before = len(fake.state.log[-1]), len(fake.state.log[-2])
    empty = len(server.request(server.start(fake.agreement), "a", fake.agreement).blob)
    sizes = {}
    for missed in (0, 1, 2):
        state = replace(fake.state, versions={"a": 3 - missed})
        message = server.request(state, "a", fake.agreement)
        sizes[missed] = len(message.blob)
        assert message.parts["catch-up"] == (before if missed == 2 else 0)
        assert sum(message.parts.values()) == len(message.blob)
    assert sizes == {0: empty, 1: empty + 5 + last, 2: empty + 10 + last + before}
    assert last == sum(5 + 4 + len(update_body(fake, name)) for name in CLIENTS)  # as they came up


def update_body(fake: Fake, name: ClientId) -> bytes:
    return fake.agreement.up.encode(fake.changes[name][-1], initial(), 3)


@every_relay
def test_a_client_too_far_behind_is_sent_the_whole_with_the_patch(method: str) -> None:
    fake = Fake(method, "fp32")
    fake.play(6)
    assert len(fake.state.log) < 6  # the oldest are gone: together they would be longer than the whole
    assert sum(map(len, fake.state.log)) <= 4 * algebra.size(fake.state.known)
    message = server.request(fake.state, "new", fake.agreement)
    assert 4 * algebra.size(fake.state.known) < len(message.blob) < 4 * algebra.size(fake.state.known) + 200
    assert message.parts["catch-up"] > 0
    assert bits(fake.told("new", message.blob).known) == bits(fake.state.known)


@every_relay
def test_a_damaged_relay_changes_nothing(method: str) -> None:
    fake = Fake(method, "bf16")
    fake.play(2)
    message = server.request(fake.state, "a", fake.agreement).blob
    memory = fake.remembered("a")
    before = checkpoint.client_to_bytes(memory)
    start = message.index(fake.state.log[-1])
    weight, names = start + 5, start + 5 + 4 + 5
    for bad in (
        resealed(message, weight, bytes(4)),
        resealed(message, names, b"\xff"),
        resealed(message, message.rindex(fake.state.log[-1][-20:]), b"\xff" * 20),  # of the last client's values
    ):
        with pytest.raises(WireError):
            client.handle(bad, memory, fake.site("a"), fake.agreement)
    assert checkpoint.client_to_bytes(memory) == before


@every_relay
def test_states_have_the_patch_on_disk(method: str) -> None:
    fake = Fake(method, "default")
    fake.play(2)
    patch = [f"{module}.W" for module in ("q", "v")]
    memory = fake.memory["b"]
    assert [name for name in memory.known if name in patch] == patch
    for back, state in (
        (checkpoint.client_from_bytes(checkpoint.client_to_bytes(memory), initial()), memory),
        (checkpoint.server_from_bytes(checkpoint.server_to_bytes(fake.state), initial()), fake.state),
    ):
        assert list(back.known) == list(state.known)
        assert bits(back.known) == bits(state.known)
    damaged = replace(memory, known=memory.known | {"q.W": torch.zeros(3, 3)})
    with pytest.raises(checkpoint.CheckpointError, match=r"'q.W' of shape \(3, 3\) that does not fit"):
        checkpoint.client_from_bytes(checkpoint.client_to_bytes(damaged), initial())


def test_methods_without_a_patch_have_none_anywhere() -> None:
    for name in METHODS:
        if name not in RELAYS:
            fake = Fake(name, "default")
            fake.play(2)
            assert not any(key.endswith(".W") for key in [*fake.state.whole, *fake.agreement.template])


@every_codec
def test_clients_of_unequal_rank_send_their_ranks_alone(codec: str) -> None:
    """a has both ranks of each module, b one: half the elements, and the server hears what b has."""
    for method in ("hetlora", "flexlora", "flora"):
        fake = unequal(method, codec)
        records = fake.play(3)
        assert all(record.ranks["b"] == [1, 1] for record in records)
        for change in fake.arrived["b"]:
            for module in ("q", "v"):
                assert not change[f"{module}.A"][1].any()
                assert not change[f"{module}.B"][:, 1].any()
        values = {e.client: e.parts["values"] for e in records[0].ledger if e.direction == "up"}
        assert values["b"] < 0.75 * values["c"]


def test_a_client_of_half_the_rank_is_told_half() -> None:
    fake = unequal("flexlora", "bf16")
    record = fake.play(3)[-1]
    values = {e.client: e.parts["values"] for e in record.ledger if e.direction == "down"}
    assert values == {"a": 2 * algebra.size(initial()), "b": algebra.size(initial()), "c": 2 * algebra.size(initial())}


def test_a_client_that_was_not_there_at_the_start_has_all_ranks() -> None:
    fake = Fake("hetlora", "bf16")
    fake.play(2)
    memory: ClientState = fake.told("new", server.request(fake.state, "new", fake.agreement).blob)
    assert memory.notes["alive"].tolist() == [1.0] * 4
    assert bits(memory.known) == bits(fake.state.known)
