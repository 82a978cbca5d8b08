"""Groups that the operator gives: who is in which, who is alone, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capfl.config import Config, load_config, to_toml
from capfl.config.load import load_command
from capfl.config.methods import check_peers
from capfl.config.schema import MethodConfig
from capfl.errors import ConfigError
from capfl.methods import build
from capfl.methods.given import GivenPeers
from capfl.newcomer import Run
from capfl.packing import pack
from capfl.types import ClientState
from fake import Fake, initial, of
from support import unpacked

CLIENTS = ["east", "north", "south", "west"]
PEERS = {"north": "a", "south": "a", "west": "b"}


def given(**settings: Any) -> Config:
    return load_config(None, {"method.name": "ca-pfl", "method.peers": PEERS} | settings)


def test_groups_are_there_before_round_1_and_a_client_without_others_is_alone() -> None:
    method = build(given().method)
    assert isinstance(method.grouping, GivenPeers)
    state = method.start(initial(), CLIENTS)
    assert state.group_of == {"east": "east", "north": "a", "south": "a", "west": "b"}
    assert set(state.groups) == {"everybody", "a", "b", "east"}
    assert method.grouping.unknown(state, CLIENTS) == []
    alone = [client for client in CLIENTS if method.grouping.is_alone(ClientState(client))]
    assert alone == ["east", "west"]
    assert [client for client in CLIENTS if method.grouping.has_peers(ClientState(client))] == ["north", "south"]
    assert state.grouping is method.grouping.announce(state, "north") is None


def test_a_run_is_that_of_found_groups_but_for_what_clients_say_of_their_data() -> None:
    """In turn: the same groups, the same updates, no introduction, and no features for the posterior."""
    agreement = of("ca-pfl in turn", "fp32")
    peers = {"a": "one", "b": "one", "c": "two", "d": "two"}
    own = build(MethodConfig(name="ca-pfl", turns=4, peers=peers))
    found, told = Fake(agreement), Fake(replace(agreement, method=own))
    (first,), (second,) = found.play(1), told.play(1)
    assert second.groups == peers
    called = {"group-1": "one", "group-2": "two"}
    assert {client: called[group] for client, group in first.groups.items()} == peers
    assert len(second.ledger) == len(first.ledger) - 2 * len(peers)  # nobody is asked for a description
    told.play(2)
    assert pack(unpacked(pack(told.state), told.reader)) == pack(told.state)


@pytest.mark.parametrize(
    ("peers", "reason"),
    [
        ({"nord": "a"}, r"no client 'nord'; did you mean north\? The clients are east, north, south, west"),
        ({"zzz": "a"}, r"no client 'zzz'; the clients are"),
        (
            {"north": "east", "south": "east"},
            r"a group has the name 'east' of a client that is in no group.*east = 'east'",
        ),
    ],
)
def test_names_are_those_of_clients(peers: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"^method\.peers: .*{reason}"):
        check_peers(MethodConfig(peers=peers), CLIENTS)


def test_a_group_may_be_called_as_one_of_its_members() -> None:
    for peers in (PEERS, {"north": "north", "south": "north"}, {"east": "b", "north": "east"}, None):
        check_peers(MethodConfig(peers=peers), CLIENTS)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method.peers": {}}, "peers names no client"),
        ({"method.peers": {"north": "everybody"}}, "cannot be called 'everybody'"),
        ({"method.peers": {"north": "../a"}}, r"cannot be called '\.\./a'"),
        ({"method.peers": 0}, "peers"),
        ({"method.rff_output_dim": 8}, "rff_output_dim is about clients' descriptions of their data"),
        ({"method.mlp_hidden_dim": 8}, "mlp_hidden_dim is about"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        given(**settings)


def test_other_methods_have_no_such_setting() -> None:
    with pytest.raises(ConfigError, match=r"method\.peers: fedit does not use it.*ca-pfl"):
        build(MethodConfig(name="fedit", peers=PEERS))


def test_the_table_comes_back_from_a_file_and_from_a_flag(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[method.peers]\nnorth = "a"\nsouth = "a"\nwest = "b"\n')
    assert load_config(tmp_path / "run.toml").method.peers == PEERS
    (tmp_path / "again.toml").write_text(to_toml(given()))
    assert load_config(tmp_path / "again.toml") == given()
    assert load_command(None, [], ["--peers", "north=a,south=a,west=b"]).method.peers == PEERS
    for numbered in ("00=a,1=a", "00 = a, 1 = a", '{"00": "a", "1": "a"}'):  # clients without names of their own
        assert load_command(None, [], ["--peers", numbered]).method.peers == {"00": "a", "1": "a"}
    for number in (["--peers", "0.5"], ["--method.peers=.5"]):
        assert load_command(None, [], number).method.peers == 0.5


def test_a_newcomer_is_told_where_the_adapters_are(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(to_toml(given()))
    with pytest.raises(ConfigError, match="a newcomer is in none; use the adapter of its group"):
        Run(tmp_path)
