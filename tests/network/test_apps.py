"""Both of Flower's apps, handing messages to each other in one process: a run over them is the serial run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")


from apps import Place
from capfl import site
from capfl.config import Config
from capfl.engines.flower import client_app
from capfl.engines.flower.keys import make_keys
from capfl.engines.serial import serial
from capfl.errors import CheckpointError, ClientError, ConfigError, public
from capfl.experiment import run
from capfl.report.summary import Summary
from capfl.rng import stream
from capfl.roles.keyring import Keyring
from capfl.types import Failure
from capfl.vault import MAGIC, open_vault
from sites import About, bits, losing

CA_PFL: dict[str, Any] = {"method__name": "ca-pfl"}
FEEDBACK: dict[str, Any] = {"codec__mask": "top", "codec__density": 0.1}
SKIP: dict[str, Any] = {"federation__on_failure": "skip"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, Path]:
    """The serial run with feedback, without accidents."""
    return run(Place(tmp_path_factory.mktemp("serial")).config(**FEEDBACK), serial)


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    """Every test begins with nodes that have just started."""
    yield
    client_app.close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# -- the same bits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(CA_PFL, id="ca-pfl"),
        pytest.param(FEEDBACK | {"evaluation__references": ["local"]}, id="top", marks=pytest.mark.slow),
    ],
)
def test_a_run_over_nodes_is_the_serial_run(
    method: dict[str, Any], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where requests arrive twice, sites encrypt their states, and a reply is lost: its round did not happen."""
    lost: set[About] = {("train", "south", 2), ("train", "south", 3), ("train", "west", 3)}
    accidents = dict.fromkeys(lost, "lost") | {("train", "north", 2): "twice", ("evaluate", "west", 5): "twice"}
    changes = method | SKIP | {"federation__rounds": 4}
    one, whole = run(place.config("serial", **changes), losing(lost))
    monkeypatch.setenv("SITE_KEY", "ab" * 32)
    two = place.run(place.config(**changes, runtime__state_key="env:SITE_KEY"), accidents)

    assert (two.rows, two.ledger) == (one.rows, one.ledger)
    assert one.failures == two.failures == 3
    for name in ("state/server", "adapters/global"):
        assert bits(place.out, name) == bits(whole, name)
    for client in place.files:
        (own,) = (place.sites / client / "runs").iterdir()
        claim = json.loads((own / "site.json").read_text())
        vault = open_vault("env:SITE_KEY", own).of_run(f"{own.name} {claim['run']}", own)
        assert bits(own / "adapter") == bits(whole / "adapters" / "clients" / client)
        for folder in own.joinpath("state").iterdir():
            theirs = whole / "references" / "local" if folder.name == "local" else whole
            newest = max(folder.joinpath(client).iterdir())
            assert newest.read_bytes().startswith(MAGIC)
            plain = theirs / "state" / "clients" / client / newest.name
            assert vault.unlock(newest.read_bytes(), newest) == plain.read_bytes()
    rows = [json.loads(line) for line in (place.out / "network.jsonl").read_text().splitlines()]
    events = [(row["event"], row["client"]) for row in rows]
    assert events[:3] == [("joined", client) for client in place.files]
    assert events[3:5] == [("left", "south"), ("joined", "south")]


@pytest.mark.parametrize(
    ("server", "noise"),
    [
        ("malicious", {}),
        pytest.param("honest", {}, marks=pytest.mark.slow),
        pytest.param(
            "honest",
            {"privacy__clip": 1.0, "privacy__noise_multiplier": 1.0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_sums_under_masks_over_nodes_are_those_of_the_serial_run(
    server: str, noise: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests arrive twice, a node goes after the keys were dealt out, and masks are opened after training. One client
    is in no group, but with noise there are none."""
    signing = partial(Keyring, lambda data: bytes(96), lambda offer, data: None)  # as nodes do
    monkeypatch.setattr("capfl.engines.serial.Keyring", signing)
    monkeypatch.setattr(Keyring, "draw", lambda ring: stream(1, ring._offer.client).bytes)  # not its own
    changes: dict[str, Any] = {"privacy__secure_aggregation": f"{server}-server", "evaluation__every": 0} | SKIP
    changes["evaluation__keep"] = "best" if server == "malicious" else "last"  # on a client's own validation items
    place = Place(tmp_path, more=2)
    peers = {client: "a" for client in place.files if client != "x1"}
    changes |= noise or {"method__name": "ca-pfl", "method__turns": 1, "method__peers": peers}
    make_keys(tmp_path / "keys", sorted(place.files), [])
    lost: set[About] = {("train", "south", 1), ("keys", "west", 2)}
    twice = {(kind, "north", 1): "twice" for kind in ("keys", "shares", "train", "open")}
    one, whole = run(place.config("serial", **changes), losing(lost))
    two = place.run(place.config(**changes), dict.fromkeys(lost, "lost") | twice, runs="nodes")
    present = [record.clients for record in place.records()]
    assert present == [("north", "west", "x0", "x1"), ("north", "south", "x0", "x1")]
    assert [row.id for row in two.rows] == ["all clients"]
    assert (two.rows, two.ledger) == (one.rows, one.ledger)
    assert bits(place.out, "state/server") == bits(whole, "state/server")
    for client in place.files:
        (own,) = (place.sites / client / "runs").iterdir()
        assert bits(own / "adapter") == bits(whole / "adapters" / "clients" / client)
        opened = own / "opened.ca-pfl"  # the scores are summed in round 3
        assert opened.read_text() == "3" if server == "malicious" else not opened.exists()


def test_a_site_takes_part_in_one_run_of_a_name_that_it_allows(
    place: Place, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """And goes on with that one. Both sides are told why not, its operator once for each run."""
    short: dict[str, object] = {"federation__rounds": 1}
    place.run(place.config("winter", **short), runs="winter")
    shutil.rmtree(place.sites / "north" / "runs")  # which makes no room for another
    for out, said in [("again/winter", "is not winter-"), ("summer", "does not take part in run")]:
        with pytest.raises(ClientError, match=re.escape(public("run"))):
            place.run(place.config(out, **short, federation__on_failure="retry"), runs="winter")
        (told,) = [line for line in capsys.readouterr().out.splitlines() if "takes no part in a run" in line]
        assert said in told
        assert said in caplog.text
    (whole,) = (place.sites / "north" / "runs.txt").read_text().split()
    assert not list(place.sites.glob("north/runs/*"))
    assert whole.startswith("winter-")


def test_what_a_site_could_not_write_down_is_not_answered_when_it_is_asked_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise CheckpointError("the disk is full")

    monkeypatch.setattr("capfl.engines.flower.allowed.write_atomically", full)
    with pytest.raises(ClientError, match=re.escape(public("checkpoint"))):
        place.run(place.config("winter", federation__rounds=1, federation__on_failure="retry"), runs="winter")


def test_a_site_that_names_no_run_takes_part_in_none_with_a_malicious_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path)
    make_keys(tmp_path / "keys", sorted(place.files), [])
    with pytest.raises(ClientError, match=re.escape(public("run"))):
        place.run(place.config(privacy__secure_aggregation="malicious-server", evaluation__every=0))
    assert "start the node with --run NAME" in caplog.text


def test_a_site_that_bounds_epsilon_takes_part_in_no_run_that_takes_any(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ClientError, match=re.escape(public("run"))):
        place.run(place.config(federation__rounds=1), epsilon="8.0")
    assert "does not protect items, and --max-epsilon allows only runs that do" in caplog.text


def test_a_node_whose_key_another_has_signed_takes_part_in_no_sum(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path)
    make_keys(tmp_path / "keys", sorted(place.files), [])
    shutil.copy(tmp_path / "keys/nodes/south.key", tmp_path / "keys/nodes/west.key")
    with pytest.raises(ClientError, match=public("wire")):
        place.run(place.config(privacy__secure_aggregation="honest-server", evaluation__every=0))
    assert "the key of client 'west' is not signed by its node" in caplog.text


def test_over_nodes_no_client_is_asked_for_a_score_of_its_own(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"own score after each round; set evaluation\.every to 0"):
        place.run(place.config(privacy__secure_aggregation="honest-server", evaluation__every=1))


def test_a_server_cannot_have_a_site_call_what_the_site_has_not_allowed(place: Place) -> None:
    """The server's config has ``runtime``, too; of what is allowed, only the site's own settings count."""
    named = ["os.path:join"]
    config = place.config(evaluation__metrics=["accuracy", *named], runtime__own_metrics=named)
    with pytest.raises(ClientError, match=public("config")):
        place.run(config)
    assert not list(place.sites.rglob("site.json"))


def test_a_server_does_not_say_in_which_folder_a_site_keeps_hidden_states(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def opened(config: Config, *given: object, **more: object) -> None:
        seen.append(config.runtime.cache)
        raise ConfigError("this is enough")

    monkeypatch.setattr(client_app, "Site", opened)
    with pytest.raises(ClientError, match=public("config")):
        place.run(place.config(runtime__cache=f"{place.folder}/theirs/"))
    assert set(seen) == {"disk"}


def test_a_run_that_was_stopped_goes_on_with_the_same_config_only(
    place: Place, uninterrupted: tuple[Summary, Path], caplog: pytest.LogCaptureFixture
) -> None:
    config = place.config(**FEEDBACK)
    with pytest.raises(ClientError, match="it has gone"):
        place.run(config, {("train", "south", 2): "lost"})
    client_app.close()
    with pytest.raises(ClientError, match=public("checkpoint")):
        place.run(config, again=True, theirs=place.config(**FEEDBACK, train__learning_rate=0.5))
    assert "made with another run or config" in caplog.text
    summary = place.run(config, again=True)
    assert len(list((place.sites / "south" / "runs").iterdir())) == 1
    assert summary.rows == uninterrupted[0].rows
    assert bits(place.out, "state/server") == bits(uninterrupted[1], "state/server")


def test_a_reply_of_an_earlier_round_is_refused_counted_and_asked_for_again(
    place: Place, uninterrupted: tuple[Summary, Path]
) -> None:
    """Under the right request, so that only the message's own round gives it away."""
    config = place.config(**FEEDBACK, federation__on_failure="retry")
    summary = place.run(config, {("train", "south", 2): "late"})
    record = place.records()[1]
    reason = "reply of client 'south' is for round 1, this is round 2"
    assert record.failures == (Failure("south", "decode", reason, "wire"),)
    assert [row.personal for row in summary.rows] == [row.personal for row in uninterrupted[0].rows]
    (unread,) = [entry for entry in record.ledger if "unreadable" in entry.parts]
    assert (unread.client, unread.direction) == ("south", "up")  # it has crossed the wire, and is counted


def test_a_site_that_has_lost_its_state_is_sent_the_whole_adapter_under_every_policy(place: Place) -> None:
    def disaster() -> None:
        client_app.close()
        shutil.rmtree(place.sites / "south")

    config = place.config(**FEEDBACK, federation__rounds=3)
    assert config.federation.on_failure == "stop"
    place.run(config, {("train", "south", 3): disaster})
    records = place.records()
    lost = Failure("south", "train", public("version"), "version")
    assert [record.failures for record in records] == [(), (), (lost,)]
    assert all(record.clients == ("north", "south", "west") for record in records)
    first, second = (e for e in records[2].ledger if (e.client, e.direction) == ("south", "down"))
    assert second.bytes > first.bytes  # it is charged for what it is sent again


# -- failures ------------------------------------------------------------------------------------------------

MILLERS = {
    "label": [{"text": f"Patient Miller {i}", "label": "Miller"} for i in range(30)],
    "length": [{"prompt": f"Patient Miller asks {i}", "completion": "Miller " * 300} for i in range(30)],
}


@pytest.mark.parametrize(
    ("rows", "changes", "code"),
    [
        ("label", {"data__labels": ["a", "b", "c", "d"]}, "data"),
        ("length", {"data__scoring": "text", "data__max_length": 64}, "data"),
        ("bug", {}, "internal"),
    ],
)
def test_no_text_of_a_sites_error_reaches_the_server(
    rows: str, changes: dict[str, Any], code: str, place: Place,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Neither a row nor a label nor a path, nor what an error says that is not ours. The site's own log has it."""
    if rows == "bug":
        visit = site.visit

        def crash(*about: Any) -> bytes:
            if about[3].client == "south":
                raise ValueError("Patient Miller\x1b[2J")
            return visit(*about)

        monkeypatch.setattr(site, "visit", crash)
    else:
        place.files["south"].write_text("".join(json.dumps(row) + "\n" for row in MILLERS[rows]))
    place.run(place.config(federation__rounds=1, **SKIP, **changes))
    (record,) = place.records()
    assert record.failures == (Failure("south", "train", public(code), code),)
    assert "Miller" in caplog.text
    assert "\x1b" not in caplog.text
    kept = b"".join(path.read_bytes() for path in place.out.rglob("*") if path.is_file())
    assert b"Miller" not in kept
    events = (place.sites / "south" / "events.jsonl").read_text()
    assert "Miller" not in events
    event, *_ = map(json.loads, events.splitlines())
    assert (event["event"], event["kind"], event["round"], event["code"]) == ("failed", "train", 1, code)


@pytest.mark.parametrize(
    ("theirs", "said", "code"),
    [
        ({"codec__values": "bf16"}, "the sites' codecs differ; align configs", "wire"),
        ({"method__name": "ditto"}, "method 'fedit' is not one of this run's: ditto", "config"),
    ],
    ids=["codec", "method"],
)
def test_a_site_with_another_config_refuses(
    theirs: dict[str, Any], said: str, code: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ClientError, match=rf"client 'north' failed in round 1 \(train\): {public(code)}"):
        place.run(place.config(), theirs=place.config(**theirs))
    assert said in caplog.text
