"""A client alone with its data gives the bits that it gives beside the others; so does a run over such clients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from capfl import checkpoint
from capfl.checkpoint import RunFolder
from capfl.config import Config
from capfl.data import clients_of, deal
from capfl.engines.serial import serial
from capfl.errors import CheckpointError, ClientError, ConfigError, DataError, WireError
from capfl.experiment import Remote, resume, run
from capfl.page import write_page
from capfl.report.ledger import read_ledger
from capfl.report.summary import Summary
from capfl.report.tables import client_table
from capfl.roles import Agreement, server
from capfl.site import Client
from capfl.types import ClientId, Exchange, Failure, Item, Kind, Request
from capfl.vault import MAGIC
from support import tiny_config

LABELS = {"north": ("red", "green", "blue"), "south": ("up", "down"), "a b": ("north", "south", "left", "right")}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """One file a client, of different sizes, with labels of their own."""
    paths = []
    for client, labels in LABELS.items():
        n = 20 + 5 * len(labels)
        rows = [{"text": f"{client} call {i * 7 % 13}", "label": labels[i % len(labels)]} for i in range(n)]
        path = tmp_path / "data" / f"{client}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
        paths.append(str(path))
    return paths


def config_of(out: Path, files: list[str], **changes: object) -> Config:
    ours = {
        "data__sets": files,
        "partition__kind": "by_task",
        "evaluation__references": ["local"],
        "evaluation__every": 0,
        "runtime__cache": "memory",
    }
    return tiny_config(out, **ours | changes)


class Sites:
    """Clients that share nothing but a config. Each is asked as it would be over a network, and may be restarted."""

    def __init__(self, config: Config, folder: Path, restarts: bool = False) -> None:
        self.config, self.folder, self.restarts = config, folder, restarts
        self.paths = clients_of(config.data, config.partition)
        self.clients = {client: self.start(client) for client in self.paths}
        self.asked: list[tuple[Kind, str, ClientId]] = []
        self.sizes: list[int] = []
        self.failing: set[tuple[Kind, str, ClientId]] = set()
        self.notice: Callable[[Kind, int], object] = lambda kind, round: None

    def start(self, client: ClientId) -> Client:
        return Client(self.config, client, self.folder / client, Path(self.paths[client]))

    def exchange(self, agreement: Agreement) -> Exchange:
        name = agreement.method.name

        def exchange(
            kind: Kind, round: int, clients: Sequence[ClientId], request: Request
        ) -> Iterator[tuple[ClientId, bytes | Failure]]:
            for client in clients:
                self.asked.append((kind, name, client))
                self.notice(kind, round)
                blob = request(client)
                if (kind, name, client) in self.failing:
                    yield client, Failure(client, "power", "gone")
                    continue
                if self.restarts:
                    self.clients[client] = self.start(client)
                reply = self.clients[client].answer(kind, name, blob)
                if name != "local":
                    self.sizes += [len(blob), len(reply)]
                yield client, reply

        return exchange

    @property
    def remote(self) -> Remote:
        return Remote(list(self.clients), self.exchange)


def states(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def learnt(out: Path, sites: Sites) -> dict[str, object]:
    """What does not depend on who has been told what, and when."""
    (agreement, *_) = next(iter(sites.clients.values())).agreements.values()
    state = RunFolder(out).server(agreement.initial)
    assert state is not None
    records = RunFolder(out).rounds()
    return {
        "adapter": {name: t.tolist() for name, t in state.whole.items()},
        "notes": {name: t.tolist() for name, t in state.notes.items()},
        "rounds": [(r.round, r.clients, r.losses, r.validation_accuracy, r.validation_loss) for r in records],
    }


def accuracies(summary: Summary) -> list[object]:
    return [replace(row, bytes_up=0, bytes_down=0) for row in summary.rows]


def both(tmp_path: Path, files: list[str], restarts: bool = False, **changes: object) -> tuple[Summary, Summary, Sites]:
    one, _ = run(config_of(tmp_path / "serial", files, **changes), serial)
    config = config_of(tmp_path / "apart", files, **changes)
    sites = Sites(config, tmp_path / "sites", restarts)
    two, _ = run(config, sites.remote)
    return one, two, sites


def test_a_run_over_sites_is_the_serial_run_to_the_byte(tmp_path: Path, files: list[str]) -> None:
    one, two, sites = both(tmp_path, files, restarts=True, federation__fraction=0.6, codec__values="ternary")
    assert two.rows == one.rows
    assert [row.local_only is not None for row in two.rows] == [True] * 3
    assert two.ledger == one.ledger
    assert sum(e.bytes for e in two.ledger) == sum(sites.sizes)
    assert (tmp_path / "apart/state/server").read_bytes() == (tmp_path / "serial/state/server").read_bytes()
    assert {kind for kind, _, _ in sites.asked} == {"train", "evaluate"}
    for client in sites.clients:
        for method, place in (("fedit", "serial"), ("local", "serial/references/local")):
            everybodys = states(tmp_path / place / "state/clients")
            own = {name: blob for name, blob in everybodys.items() if name.startswith(client)}
            found = tmp_path / "sites" / client / "state" / method
            assert (states(found) if found.is_dir() else {}) == own
        assert states(tmp_path / "sites" / client / "adapter") == states(tmp_path / "serial/adapters/clients" / client)
    assert not (tmp_path / "apart/adapters/clients").exists()
    assert not (tmp_path / "apart/partition.json").exists()


METHODS = {
    "fedit": {"codec__values": "ternary"},
    "feedback": {
        "codec__values": "bf16", "codec__density": 0.3, "codec__mask": "top",
        "codec__residual_decay": 0.5, "codec__residual_rounds": 2, "codec__step_ahead": 0.5,
    },
    "exact": {},
    "ca-pfl": {"method__name": "ca-pfl", "codec__values": "ternary"},
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_validation_over_the_exchange_changes_no_bit_of_what_is_learnt(
    name: str, tmp_path: Path, files: list[str]
) -> None:
    """Clients are told versions that they would have been told later, and residuals age by rounds all the same."""
    settings = {"federation__rounds": 6, "federation__fraction": 0.4, "evaluation__every": 1}
    one, two, sites = both(tmp_path, files, **settings | METHODS[name], evaluation__references=[])
    assert learnt(tmp_path / "apart", sites) == learnt(tmp_path / "serial", sites)
    assert accuracies(two) == accuracies(one)
    assert sum(kind == "validate" for kind, _, _ in sites.asked) == 6 * 3
    records = RunFolder(tmp_path / "apart").rounds()
    assert all(e.round == r.round for r in records for e in r.ledger)
    assert sum(e.bytes for e in two.ledger) == sum(sites.sizes)
    for record in records[1:]:  # the round before was validated: there is nothing to tell
        ordinary = [e for e in record.ledger if e.direction == "down"][: len(record.clients)]
        assert all(not e.parts.get("values") for e in ordinary)


class Stopping:
    """``write_atomically``, but the n-th write below a folder does not happen: the process ends there."""

    def __init__(self, below: Path, n: int) -> None:
        self.below, self.n, self.write = below, n, checkpoint.write_atomically

    def __call__(self, path: Path, data: bytes) -> None:
        self.n -= self.below in path.parents
        if not self.n and self.below in path.parents:
            raise KeyboardInterrupt
        self.write(path, data)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 8])
def test_a_server_that_is_stopped_at_any_write_goes_on_to_the_same_bits(
    n: int, tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third write commits round 1; the next two add its validation to its record, and to the server's state."""
    settings = {"evaluation__every": 1, "evaluation__references": [], "codec__values": "ternary"}
    _, whole, sites = both(tmp_path, files[:2], **settings)
    out = tmp_path / "run"
    again = Sites(config_of(out, files[:2], **settings), tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", Stopping(out, n))
        with pytest.raises(KeyboardInterrupt):
            run(again.config, again.remote)
    summary, _ = resume(out, again.remote)
    assert learnt(out, again) == learnt(tmp_path / "apart", sites)
    assert accuracies(summary) == accuracies(whole)
    assert (summary.ledger == whole.ledger) is (n not in (5, 8))  # told again what they knew, which is charged


@pytest.mark.parametrize("every", [0, 1])
def test_a_server_that_lost_its_last_round_finds_the_sites_as_they_were_before_it(
    every: int, tmp_path: Path, files: list[str]
) -> None:
    settings = {"federation__rounds": 3, "federation__fraction": 0.6, "evaluation__every": every}
    config = config_of(tmp_path / "run", files, **settings, codec__values="ternary", codec__mask="top")
    sites = Sites(config, tmp_path / "sites")
    before: list[bytes] = []
    place = tmp_path / "run/state/server"
    sites.notice = lambda kind, round: before.append(place.read_bytes()) if (kind, round) == ("train", 3) else None
    first, _ = run(config, sites.remote)
    end = place.read_bytes()
    assert before[0] != end
    place.write_bytes(before[0])
    again, _ = resume(tmp_path / "run", sites.remote)
    assert again.rows == first.rows
    assert again.ledger == first.ledger
    assert place.read_bytes() == end


@pytest.mark.parametrize("policy", ["stop", "skip", "retry"])
@pytest.mark.parametrize("method", ["fedit", "local"])
def test_a_client_that_does_not_answer_in_the_end(policy: str, method: str, tmp_path: Path, files: list[str]) -> None:
    config = config_of(tmp_path / "run", files, federation__on_failure=policy)
    sites = Sites(config, tmp_path / "sites")
    sites.failing = {("evaluate", method, "north")}
    if policy == "stop":
        with pytest.raises(ClientError, match=r"client 'north' failed in round 3 \(power\): gone"):
            run(config, sites.remote)
        sites.failing = set()  # the power is back
        summary, _ = resume(tmp_path / "run", sites.remote)
        assert [row.id for row in summary.rows] == ["a_b", "north", "south"]
        assert summary.evaluation_failures == ()
        return
    summary, _ = run(config, sites.remote)
    rows = {row.id: row for row in summary.rows}
    assert summary.evaluation_failures == (Failure("north", "power", "gone"),) * (2 if policy == "retry" else 1)
    assert summary.to_json()["evaluation_failures"][0]["client"] == "north"
    if method == "fedit":
        assert list(rows) == ["a_b", "south"]
    else:
        assert (rows["north"].local_only, rows["south"].local_only is None) == (None, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation__robust": "median"},
        {"federation__robust": "clip", "method__name": "ca-pfl"},
        {"privacy__clip": 1.0, "privacy__noise_multiplier": 1.0, "privacy__seed": 3},
    ],
)
def test_what_the_server_does_on_its_own_is_the_same_over_sites(
    changes: dict[str, object], tmp_path: Path, files: list[str]
) -> None:
    one, two, sites = both(tmp_path, files, codec__values="ternary", **changes)
    assert accuracies(one) == accuracies(two)
    assert learnt(tmp_path / "serial", sites) == learnt(tmp_path / "apart", sites)
    assert one.epsilon == two.epsilon


def test_each_site_may_lock_its_states(tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_KEY", "5a" * 32)
    plain, *_ = both(tmp_path / "plain", files)
    _, locked, sites = both(tmp_path / "locked", files, restarts=True, runtime__state_key="env:SITE_KEY")
    assert accuracies(locked) == accuracies(plain)
    kept = [path for client in sites.clients for path in (sites.folder / client / "state").glob("*/*")]
    assert len(kept) >= 3
    assert all(path.read_bytes().startswith(MAGIC) for path in kept)
    monkeypatch.setenv("SITE_KEY", "a5" * 32)
    stranger = sites.start("south")
    with pytest.raises(CheckpointError, match=r"south\.\d+ cannot be opened"):
        stranger.answer("train", "fedit", server_request(sites, tmp_path / "locked" / "apart"))


def server_request(sites: Sites, out: Path) -> bytes:
    agreement = sites.clients["south"].agreements["fedit"]
    state = RunFolder(out).server(agreement.initial)
    assert state is not None
    return server.request(state, "south", agreement).blob


# -- a client alone ---------------------------------------------------------------------------------------


def test_a_client_alone_finds_its_part(tmp_path: Path, files: list[str]) -> None:
    config = config_of(tmp_path, files, data__limit=24)
    items, splits = deal(config.data, config.partition, config.seed)
    elsewhere = tmp_path / "elsewhere.jsonl"
    for client, path in clients_of(config.data, config.partition).items():
        elsewhere.write_bytes(Path(path).read_bytes())
        alone = Client(config, client, tmp_path / "site" / client, elsewhere)
        ours, theirs = alone._federation, splits[client]
        for part in ("train", "validation", "test"):
            mine: list[Item] = [ours.items[i] for i in getattr(ours.splits[client], part)]
            assert mine == [items[i] for i in getattr(theirs, part)]
    assert list(splits) == ["a_b", "north", "south"]
    assert {len(item.choices) for item in items} == {2, 3, 4}  # each has the labels of its own file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition__kind": "iid"}, "partition.kind iid deals out the data of all; use by_task"),
        ({"partition__clients": 6}, "partition.clients 6 cuts up 3 data sets"),
        ({"partition__max_items": 20}, "partition.max_items draws for all clients in turn; use data.limit"),
        ({"evaluation__references": ["centralised"]}, "centralised is trained on everybody's data"),
        ({"method__name": "centralised"}, "centralised is trained on everybody's data"),
        ({"partition__min_items": 31}, "client 'south' has 30 items, fewer than partition.min_items = 31"),
    ],
)
def test_what_a_client_alone_cannot_do(
    changes: dict[str, object], message: str, tmp_path: Path, files: list[str]
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        Client(config_of(tmp_path / "x", files, **changes), "south", tmp_path / "site", Path(files[1]))


def test_a_server_without_data_refuses_what_needs_them(tmp_path: Path, files: list[str]) -> None:
    remote = Remote(["north"], lambda agreement: pytest.fail("nobody is asked"))
    with pytest.raises(ConfigError, match="centralised is trained on everybody's data"):
        run(config_of(tmp_path / "x", files, evaluation__references=["centralised"]), remote)
    assert not (tmp_path / "x").exists()


def test_a_client_whose_part_was_dealt_by_somebody_else(tmp_path: Path) -> None:
    """Any partition, where everybody's data are at hand, as in a simulation over a network."""
    config = tiny_config(tmp_path / "run", partition__kind="iid", partition__clients=3, runtime__cache="memory")
    items, splits = deal(config.data, config.partition, config.seed)
    client = Client(config, "01", tmp_path / "site", dealt=(items, splits["01"]))
    assert client._federation.splits == {"01": splits["01"]}
    with pytest.raises(CheckpointError, match=r"begun by another data"):
        Client(config, "01", tmp_path / "site", dealt=(items, splits["02"]))


def test_a_folder_is_one_clients_in_one_run(tmp_path: Path, files: list[str]) -> None:
    config, place = config_of(tmp_path / "x", files), tmp_path / "site"
    Client(config, "south", place, Path(files[1]))
    Client(config_of(tmp_path / "y", files, runtime__cache="off"), "south", place, Path(files[1]))
    with pytest.raises(CheckpointError, match=r"begun by another client \(site.json\)"):
        Client(config, "north", place, Path(files[0]))
    with pytest.raises(CheckpointError, match="another run or config"):
        Client(config_of(tmp_path / "x", files, seed=1), "south", place, Path(files[1]))
    Path(files[1]).write_text(Path(files[1]).read_text().replace("call 1", "call 9"))
    with pytest.raises(CheckpointError, match="another data"):
        Client(config, "south", place, Path(files[1]))
    with pytest.raises(ConfigError, match="there is no client 'east' in this run; its clients are a_b, north, south"):
        Client(config, "east", tmp_path / "east", Path(files[1]))


def test_what_a_client_does_not_answer(tmp_path: Path, files: list[str]) -> None:
    config = config_of(tmp_path / "x", files)
    client = Client(config, "south", tmp_path / "site", Path(files[1]))
    agreement = client.agreements["fedit"]
    request = server.request(server.start(agreement), "north", agreement).blob
    kinds: tuple[Kind, ...] = ("train", "validate", "evaluate")
    for kind in kinds:
        with pytest.raises(WireError, match="client 'south' received a message for 'north'"):
            client.answer(kind, "fedit", request)
    with pytest.raises(ConfigError, match="method 'ditto' is not one of this run's: fedit, local"):
        client.answer("train", "ditto", request)
    with pytest.raises(WireError, match="shorter than a header"):
        client.answer("train", "fedit", b"")
    assert not (tmp_path / "site/state").exists()


def test_page_ledger_and_table_of_a_run_over_sites(tmp_path: Path, files: list[str]) -> None:
    config = config_of(tmp_path / "run", files, evaluation__every=1)
    summary, out = run(config, Sites(config, tmp_path / "sites").remote)
    ledger = read_ledger(out).to_json()
    assert (ledger["bytes_up"], ledger["bytes_down"]) == (summary.total_bytes("up"), summary.total_bytes("down"))
    assert ledger["messages_up"] == ledger["messages_down"] == 3 * (2 + 2 + 1)
    page = write_page(out, out / "report.html").read_text()
    assert all(client in page for client in ("north", "south"))
    assert summary.cache == {}
    assert len(client_table(summary).rows) == 3
