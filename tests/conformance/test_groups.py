"""Groups of clients that share an adapter of their own: split off, joined and left, under every codec."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from adapters import CODECS
from capfl import adapter as algebra
from capfl import checkpoint
from capfl.config.schema import FederationConfig
from capfl.methods import Method
from capfl.methods.fedit import fedit
from capfl.roles import Agreement, server
from capfl.types import ServerState, Update
from fake import CLIENTS, Fake, bits, initial

SPLIT, MOVED = 2, 4  # after which round


def divided(server: ServerState, updates: Iterable[Update]) -> ServerState:
    """FedIT within each group and for the whole; b and c part from a, then c goes over to a."""
    listed = list(updates)

    def add(state: ServerState, members: set[str]) -> ServerState:
        heard = [(u.adapter, u.n_train) for u in listed if u.client in members]
        return replace(state, adapter=algebra.add(state.adapter, algebra.weighted_mean(heard))) if heard else state

    of = server.group_of
    groups = {name: add(group, {c for c in of if of[c] == name}) for name, group in server.groups.items()}
    whole = add(server, set(CLIENTS))
    if server.round + 1 == SPLIT:
        groups, of = {"first": whole, "second": whole}, {"a": "first", "b": "second", "c": "second"}
    if server.round + 1 == MOVED:
        of = {**of, "c": "first"}
    return replace(whole, groups=groups, group_of=of)


def play(codec: str, *configs: FederationConfig) -> Fake:
    fake = Fake("fedit", codec)
    method: Method = replace(fedit(), name="divided", aggregate=divided)
    fake.agreement = Agreement(method, CODECS[codec], initial(), "base", seed=3)
    fake.state = server.start(fake.agreement)
    for config in configs:
        fake.play(1, config)  # the exchange checks that every client knows what the server says that it knows
    return fake


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("fraction", [1.0, 0.6, 0.3])
def test_every_client_knows_the_adapter_of_its_group(codec: str, fraction: float) -> None:
    fake = play(codec, *[FederationConfig(fraction=fraction)] * 7)
    assert fake.state.group_of == {"a": "first", "b": "second", "c": "first"}
    for name in CLIENTS:
        told = fake.told(name, server.request(fake.state, name, fake.agreement).blob)
        assert bits(told.known) == bits(fake.state.groups[fake.state.group_of[name]].known)
        assert told.version == 7
    assert bits(fake.state.groups["first"].known) != bits(fake.state.groups["second"].known)


@pytest.mark.parametrize("codec", ["bf16", "default", "ternary", "unbiased-bf16"])
def test_a_split_costs_nothing_and_a_move_a_whole_adapter(codec: str) -> None:
    fake = play(codec, *[FederationConfig()] * (MOVED - 1))
    fake.state = replace(fake.state, versions=dict(fake.state.versions))
    (before,) = fake.play(1)
    (moved,) = fake.play(1)
    down = [{e.client: e.parts for e in r.ledger if e.direction == "down"} for r in (before, moved)]
    assert all(parts["catch-up"] == 0 for parts in down[0].values())
    late = {client for client, parts in down[1].items() if parts["catch-up"]}
    assert late == (set() if fake.agreement.down.exact else {"c"})


def test_a_state_with_groups_survives_bytes() -> None:
    state = play("bf16", *[FederationConfig()] * 3).state
    blob = checkpoint.server_to_bytes(state)
    back = checkpoint.server_from_bytes(blob, initial())
    assert (back.group_of, list(back.groups)) == (state.group_of, list(state.groups))
    assert [group.log for group in back.groups.values()] == [group.log for group in state.groups.values()]
    assert checkpoint.server_to_bytes(back) == blob
