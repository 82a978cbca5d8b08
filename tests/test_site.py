"""A site, alone with its data, gives the bits that it gives beside the others; so does a run over sites."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from capfl.checkpoint import ClientStore, RunFolder, StateReader
from capfl.config import Config
from capfl.data import clients_of, deal
from capfl.engines.serial import serial
from capfl.errors import CheckpointError, ClientError, ConfigError, DataError, RunError, WireError
from capfl.experiment import Remote, resume, run
from capfl.maths.privacy import epsilon
from capfl.packing import pack
from capfl.provenance import run_digest
from capfl.report.summary import Summary
from capfl.rng import stream
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.site import Site
from capfl.taken import TAKEN, read_taken
from capfl.types import ClientId, Exchange, Failure, Kind, Request
from capfl.vault import MAGIC, open_vault
from sites import bits, config_for, write_files
from support import tiny_config

NOISE: dict[str, object] = {"privacy__clip": 1.0, "privacy__noise_multiplier": 1.0}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write_files(tmp_path / "data")


class Sites:
    """Clients that share nothing but a config. Each is asked as it would be over a network, and may be restarted."""

    def __init__(self, config: Config, folder: Path, restarts: bool = False) -> None:
        self.config, self.folder, self.restarts = config, folder, restarts
        self.paths = clients_of(config.data, config.partition)
        self.sites = {client: self.start(client) for client in self.paths}
        self.asked: list[tuple[Kind, str, ClientId]] = []
        self.sizes: list[int] = []
        self.used: dict[tuple[str, ClientId], int] = {}  # the round of each client's last update that arrived
        self.failing: Callable[[Kind, str, int, ClientId], bool] = lambda *asked: False  # its reply does not arrive
        self.notice: Callable[[Kind, int], object] = lambda kind, round: None

    def start(self, client: ClientId) -> Site:
        return Site(self.config, client, self.folder / client, Path(self.paths[client]))

    def exchange(self, agreement: Agreement) -> Exchange:
        name = agreement.method.name

        def exchange(
            kind: Kind, round: int, clients: Sequence[ClientId], request: Request
        ) -> Iterator[tuple[ClientId, bytes | Failure]]:
            for client in clients:
                self.asked.append((kind, name, client))
                self.notice(kind, round)
                if self.restarts:
                    self.sites[client] = self.start(client)
                blob = request(client)
                reply = self.sites[client].answer(kind, name, blob, used=self.used.get((name, client), 0))
                if self.failing(kind, name, round, client):
                    yield client, Failure(client, "power", "gone")
                    continue
                if name != "local":
                    self.sizes += [len(blob), len(reply)]
                if kind == "train":
                    self.used[name, client] = round
                yield client, reply

        return exchange

    @property
    def remote(self) -> Remote:
        return Remote(list(self.sites), self.exchange)


def learnt(out: Path, sites: Sites) -> tuple[object, ...]:
    """What does not depend on who has been sent what, and when."""
    agreed = next(iter(sites.sites["south"].agreements.values()))
    state = RunFolder(out).state(StateReader(agreed.method, agreed.initial))
    assert state is not None
    rounds = [(r.round, r.clients, r.losses, r.validation_loss, r.groups) for r in RunFolder(out).rounds()]
    return pack(replace(state, versions={}, own={}, heard={}, lines=())), rounds


def accuracies(summary: Summary) -> list[object]:
    return [replace(row, bytes_up=0, bytes_down=0) for row in summary.rows]


def both(
    tmp_path: Path, files: dict[str, Path], restarts: bool = False, **changes: object
) -> tuple[Summary, Summary, Sites]:
    """One run in this process, and one over sites."""
    with patch("os.urandom", stream(3, "the operating system").bytes):
        one, _ = run(config_for(tmp_path / "serial", files, **changes), serial)
    config = config_for(tmp_path / "apart", files, **changes)
    sites = Sites(config, tmp_path / "sites", restarts)
    with patch("os.urandom", stream(3, "the operating system").bytes):
        two, _ = run(config, sites.remote)
    return one, two, sites


# -- the same bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ca-pfl", pytest.param("fedit", marks=pytest.mark.slow)])
def test_a_run_over_sites_is_the_serial_run_to_the_byte(method: str, tmp_path: Path, files: dict[str, Path]) -> None:
    one, two, sites = both(tmp_path, files, restarts=True, federation__fraction=0.6, method__name=method)
    assert two.rows == one.rows
    assert [row.local_only is not None for row in two.rows] == [True] * 3
    assert two.ledger == one.ledger
    assert sum(e.bytes for e in two.ledger) == sum(sites.sizes)
    assert (tmp_path / "apart/state/server").read_bytes() == (tmp_path / "serial/state/server").read_bytes()
    introduces = {"introduce"} if method == "ca-pfl" else set()
    assert {kind for kind, _, _ in sites.asked} == {"train", "evaluate"} | introduces
    for client in sites.sites:
        site = tmp_path / "sites" / client
        for name, place in ((method, "serial"), ("local", "serial/references/local")):
            assert bits(site / "state" / name / client) == bits(tmp_path / place / "state/clients" / client)
        assert bits(site / "adapter") == bits(tmp_path / "serial/adapters/clients" / client)
    assert not (tmp_path / "apart/adapters/clients").exists()
    assert not (tmp_path / "apart/partition.json").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"method__name": "ca-pfl"},
        pytest.param({"codec__values": "bf16", "codec__mask": "top", "codec__density": 0.3}, marks=pytest.mark.slow),
        pytest.param({"codec__values": "fp32", "federation__robust": "median"}, marks=pytest.mark.slow),
        pytest.param(NOISE, marks=pytest.mark.slow),
        pytest.param(NOISE | {"privacy__protects": "items"}, marks=pytest.mark.slow),
    ],
)
def test_validation_over_the_exchange_changes_no_bit_of_what_is_learnt(
    changes: dict[str, object], tmp_path: Path, files: dict[str, Path]
) -> None:
    """Clients are sent versions that they would have been sent later."""
    settings = {"federation__rounds": 4, "federation__fraction": 0.4, "evaluation__every": 1}
    one, two, sites = both(tmp_path, files, **settings | changes, evaluation__references=[])
    assert learnt(tmp_path / "apart", sites) == learnt(tmp_path / "serial", sites)
    assert accuracies(two) == accuracies(one)
    assert one.epsilon == two.epsilon
    assert sum(kind == "validate" for kind, _, _ in sites.asked) == 4 * 3
    records = RunFolder(tmp_path / "apart").rounds()
    assert all(e.round == r.round for r in records for e in r.ledger)
    assert sum(e.bytes for e in two.ledger) == sum(sites.sizes)
    met = set(records[0].clients)
    for record in records[1:]:  # the round before was validated: there is nothing to send, but to who joins a group
        new = set(record.clients) - met if "method__name" in changes else set()
        first = [e for e in record.ledger if e.direction == "down"][: len(record.clients) + len(new)]
        assert all(not e.parts.get("values") for e in first if e.client not in new)
        met |= set(record.clients)


def test_a_site_counts_the_steps_that_its_items_have_been_in(tmp_path: Path, files: dict[str, Path]) -> None:
    """Those of a round that was lost and done again as well, which the server does not know of."""
    settings = NOISE | {"privacy__protects": "items", "federation__rounds": 1, "evaluation__references": []}
    config = config_for(tmp_path / "apart", files, **settings)
    sites = Sites(config, tmp_path / "sites")
    summary, _ = run(config, sites.remote)
    assert summary.epsilon == max(site.epsilon or 0.0 for site in sites.sites.values())
    agreement = sites.sites["west"].agreements["fedit"]
    asked = server.request(agreement.method.start(agreement.initial, list(sites.sites)), "west", agreement).blob
    again = sites.start("west")
    assert again.epsilon == summary.epsilon  # of the fewest items
    assert len({again.answer("train", "fedit", asked) for _ in range(2)}) == 2  # new noise
    assert again.epsilon == epsilon(1.0, 2 * (2 + 2), 1e-5, 4 / 17) > summary.epsilon
    most = epsilon(1.0, 2 * 5, 1e-5, 4 / 17)
    bounded = Site(sites.config, "west", sites.folder / "west", max_epsilon=most)
    bounded.answer("train", "fedit", asked)
    with pytest.raises(
        RunError, match=rf"another training would make it .*, and --max-epsilon leaves {most:.4g} to th"
    ):
        bounded.answer("train", "fedit", asked)
    assert bounded.epsilon == read_taken(bounded.folder).epsilon == most


def test_a_run_that_takes_more_of_its_items_than_a_site_allows_does_not_begin(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    settings = NOISE | {"privacy__protects": "items", "federation__rounds": 3}  # and training alone beside it
    config, whole = config_for(tmp_path / "run", files, **settings), epsilon(1.0, 2 * 2 * (3 + 1), 1e-5, 4 / 17)
    Site(config, "west", tmp_path / "west", max_epsilon=whole)
    with pytest.raises(RunError, match=f"the whole run would make it {whole:.4g}, .* fewer rounds or on more noise"):
        Site(config, "west", tmp_path / "west", max_epsilon=whole - 1e-6)
    with pytest.raises(RunError, match=r"does not protect items, and --max-epsilon allows only runs that do"):
        Site(config_for(tmp_path / "run", files), "west", tmp_path / "other", max_epsilon=whole)
    assert not (tmp_path / "west" / TAKEN).exists()


# -- killed, lost, locked ------------------------------------------------------------------------------------------


def test_a_server_that_is_stopped_before_a_validation_asks_for_it_when_it_goes_on(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    settings = {"evaluation__every": 1, "evaluation__references": []}
    whole, _ = run(config_for(tmp_path / "serial", files, **settings), serial)
    out = tmp_path / "run"
    sites = Sites(config_for(out, files, **settings), tmp_path / "sites")

    def stop(kind: Kind, round: int) -> None:
        if (kind, round) == ("validate", 2):
            raise KeyboardInterrupt

    sites.notice = stop
    with pytest.raises(KeyboardInterrupt):
        run(sites.config, sites.remote)
    assert [record.validation_loss for record in RunFolder(out).rounds()] == [None]
    sites.notice = lambda kind, round: None
    summary, _ = resume(out, sites.remote)
    assert learnt(out, sites) == learnt(tmp_path / "serial", sites)
    assert accuracies(summary) == accuracies(whole)


def test_a_server_that_lost_its_last_round_finds_the_sites_as_they_were_before_it(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    settings = {"federation__rounds": 3, "federation__fraction": 0.6, "evaluation__every": 1}
    config = config_for(tmp_path / "run", files, **settings, codec__mask="top", method__name="ca-pfl")
    sites = Sites(config, tmp_path / "sites")
    place, copy = tmp_path / "run/state", tmp_path / "copy"

    def saved(kind: str, round: int) -> None:
        if (kind, round) == ("train", 3) and not copy.exists():
            shutil.copytree(place, copy)

    sites.notice = saved
    first, _ = run(config, sites.remote)
    end = (place / "server").read_bytes()
    assert (copy / "server").read_bytes() != end
    shutil.rmtree(place)
    copy.rename(place)
    sites.used |= {key: min(round, 2) for key, round in sites.used.items() if key[0] == "ca-pfl"}
    again, _ = resume(tmp_path / "run", sites.remote)
    assert (again.rows, again.ledger) == (first.rows, first.ledger)
    assert (place / "server").read_bytes() == end


def test_a_site_forgets_what_the_server_never_used_and_may_lock_its_states(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost reply, with a key and without one: the later requests are answered alike."""
    monkeypatch.setenv("SITE_KEY", "5a" * 32)
    settings = {"federation__rounds": 3, "federation__on_failure": "skip", "evaluation__references": []}
    ended = []
    for name, key in (("plain", {}), ("locked", {"runtime__state_key": "env:SITE_KEY"})):
        config = config_for(tmp_path / name, files, codec__mask="top", **settings, **key)
        sites = Sites(config, tmp_path / f"{name}-sites", restarts=True)
        sites.failing = lambda kind, method, round, client: (kind, round, client) == ("train", 2, "south")
        summary, _ = run(config, sites.remote)
        assert summary.failures == 1
        ended.append((accuracies(summary), learnt(tmp_path / name, sites)))
        agreed = sites.sites["south"].agreements["fedit"]
        reader = StateReader(agreed.method, agreed.initial)
        place, key = sites.folder / "south", config.runtime.state_key
        vault = open_vault(key, tmp_path).of_run(f"south {run_digest(config)}", place)
        store = ClientStore(place / "state/fedit", reader, vault)
        assert store.load("south", before=9).steps == 2 * config.train.steps  # of rounds 1 and 3 alone
    assert ended[0] == ended[1]
    kept = list((tmp_path / "locked-sites").glob("*/state/*/*/*"))
    assert len(kept) >= 3
    assert all(path.read_bytes().startswith(MAGIC) for path in kept)
    monkeypatch.setenv("SITE_KEY", "a5" * 32)
    stranger = sites.start("south")
    agreed = stranger.agreements["fedit"]
    request = replace(agreed.method.start(agreed.initial), round=2)
    with pytest.raises(CheckpointError, match=r"south\.\d+ cannot be opened"):
        stranger.answer("train", "fedit", server.request(request, "south", agreed, again=True).blob)


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("method", ["fedit", "local"])
def test_a_client_that_does_not_answer_in_the_end(
    policy: str, method: str, tmp_path: Path, files: dict[str, Path]
) -> None:
    config = config_for(tmp_path / "run", files, federation__on_failure=policy)
    sites = Sites(config, tmp_path / "sites")
    sites.failing = lambda kind, name, round, client: (kind, name, client) == ("evaluate", method, "north")
    if policy == "stop":
        with pytest.raises(ClientError, match=r"client 'north' failed in round 3 \(power\): gone"):
            run(config, sites.remote)
        sites.failing = lambda *asked: False  # the power is back
        summary, _ = resume(tmp_path / "run", sites.remote)
        assert [row.id for row in summary.rows] == ["north", "south", "west"]
        assert summary.evaluation_failures == ()
        return
    summary, _ = run(config, sites.remote)
    rows = {row.id: row for row in summary.rows}
    assert [(f.client, f.reason) for f in summary.evaluation_failures] == [("north", "gone")]
    if method == "fedit":
        assert list(rows) == ["south", "west"]
    else:
        assert (rows["north"].local_only, rows["south"].local_only is None) == (None, False)


# -- a client alone --------------------------------------------------------------------------------------------


def test_a_site_finds_its_part_of_the_data(tmp_path: Path, files: dict[str, Path]) -> None:
    """Or is handed it by somebody who has all, where it is not a file of its own."""
    config = config_for(tmp_path, files, data__limit=20)
    items, splits = deal(config.data, config.partition, config.seed)
    elsewhere = tmp_path / "elsewhere.jsonl"
    for client, path in files.items():
        elsewhere.write_bytes(path.read_bytes())
        ours = Site(config, client, tmp_path / "site" / client, elsewhere)._federation
        for part in ("train", "validation", "test"):
            mine = [ours.items[i] for i in getattr(ours.splits[client], part)]
            assert mine == [items[i] for i in getattr(splits[client], part)]
    config = tiny_config(tmp_path / "run", partition__kind="iid", partition__clients=3, runtime__cache="memory")
    items, splits = deal(config.data, config.partition, config.seed)
    handed = Site(config, "01", tmp_path / "handed", dealt=(list(items), splits["01"]))
    assert handed._federation.splits == {"01": splits["01"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition__kind": "iid"}, "deals out the data of all"),
        ({"partition__clients": 6}, "partition.clients 6 cuts up 3 data sets"),
        ({"evaluation__references": ["centralised"]}, "centralised trains on all data"),
        ({"method__name": "centralised"}, "centralised trains on all data"),
        ({"partition__min_items": 41}, "client 'south' has 40 items, fewer than partition.min_items = 41"),
    ],
)
def test_what_a_client_alone_cannot_do(
    changes: dict[str, object], message: str, tmp_path: Path, files: dict[str, Path]
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        Site(config_for(tmp_path / "x", files, **changes), "south", tmp_path / "site", files["south"])


def test_a_server_without_data_refuses_what_needs_them(tmp_path: Path, files: dict[str, Path]) -> None:
    remote = Remote(["north"], lambda agreement: pytest.fail("nobody is asked"))
    with pytest.raises(ConfigError, match="centralised trains on all data"):
        run(config_for(tmp_path / "x", files, evaluation__references=["centralised"]), remote)
    assert not (tmp_path / "x/config.toml").exists()


def test_a_folder_is_one_clients_in_one_run(tmp_path: Path, files: dict[str, Path]) -> None:
    config, place = config_for(tmp_path / "x", files), tmp_path / "site"
    Site(config, "south", place, files["south"])
    Site(config_for(tmp_path / "y", files, runtime__cache="off"), "south", place, files["south"])
    with pytest.raises(CheckpointError, match=r"made with another client \(site.json\)"):
        Site(config, "north", place, files["north"])
    with pytest.raises(CheckpointError, match="another run or config"):
        Site(config_for(tmp_path / "x", files, seed=1), "south", place, files["south"])
    files["south"].write_text(files["south"].read_text().replace("asks 1", "asks 9"))
    with pytest.raises(CheckpointError, match="another data"):
        Site(config, "south", place, files["south"])
    with pytest.raises(ConfigError, match="there is no client 'east' in this run; its clients are north, south, west"):
        Site(config, "east", tmp_path / "east", files["south"])


def test_what_a_site_does_not_answer(tmp_path: Path, files: dict[str, Path]) -> None:
    site = Site(config_for(tmp_path / "x", files), "south", tmp_path / "site", files["south"])
    agreed = site.agreements["fedit"]
    request = server.request(agreed.method.start(agreed.initial), "north", agreed).blob
    for kind in ("train", "validate", "evaluate"):
        with pytest.raises(WireError, match="client 'south' received a message for 'north'"):
            site.answer(kind, "fedit", request)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="method 'ditto' is not one of this run's: fedit, local"):
        site.answer("train", "ditto", request)
    with pytest.raises(WireError, match="shorter than a header"):
        site.answer("train", "fedit", b"")
    assert not (tmp_path / "site/state").exists()


def test_a_site_takes_part_in_the_rounds_that_the_run_has_and_changes_nothing_for_what_does_not_fit(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    """A server that lies could have any number of noisy answers beyond the last, which no epsilon counts."""
    site = Site(config_for(tmp_path / "x", files, federation__rounds=1), "south", tmp_path / "site", files["south"])
    agreed = site.agreements["fedit"]
    start = agreed.method.start(agreed.initial)
    first, second, third = (server.request(replace(start, round=n), "south", agreed).blob for n in range(3))
    assert site.answer("train", "fedit", first)
    for kind, request in [("train", second), ("introduce", second), ("evaluate", third), ("keys", third)]:
        with pytest.raises(WireError, match=r"is for round [23], and the run has 1 rounds"):
            site.answer(kind, "fedit", request, used=0)  # type: ignore[arg-type]
    with pytest.raises(WireError, match="checksum"):
        site.answer("train", "fedit", first[:-1] + b"!", used=0)
    assert [path.name for path in (tmp_path / "site/state/fedit/south").iterdir()] == ["south.000001"]
    assert site.answer("evaluate", "fedit", second)
