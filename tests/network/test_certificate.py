"""How long certificates are valid: what is said of it, once a day, and when nothing is started."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra `flower` is not installed")

from capfl.engines.flower import keys
from capfl.engines.flower.certificate import DAY, certificates, check_certificate, reminder
from capfl.engines.flower.keys import hosts_of, make_keys
from capfl.engines.flower.node import run_node
from capfl.engines.flower.server import run_server
from capfl.engines.flower.setup import Setup
from capfl.errors import ConfigError

NOW = datetime.datetime.now(datetime.UTC)
ONE_DAY = datetime.timedelta(days=1)


def made(folder: Path, days: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate that ends in so many days, and a node's key beside it."""
    monkeypatch.setattr(keys, "DAYS", days)
    make_keys(folder, ["north"], ["server.example.org"])
    return folder / "server.crt"


def test_what_is_said_of_a_certificate_by_its_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path, 100, monkeypatch)
    assert check_certificate(path) == check_certificate(path, NOW + 69 * ONE_DAY) == []
    (said,) = check_certificate(path, NOW + 90 * ONE_DAY)
    ends = f"{NOW + 100 * ONE_DAY:%Y-%m-%d}"
    assert said.startswith(f"WARNING: {path} expires in ")
    assert f" on {ends}; make another with `capfl flower keys`" in said
    with pytest.raises(
        ConfigError, match=rf"server\.crt has expired on {ends}, and here it is .* if the clock is right"
    ):
        check_certificate(path, NOW + 101 * ONE_DAY)
    with pytest.raises(ConfigError, match=r"server\.crt is valid from .* UTC, .*; set the clock"):
        check_certificate(path, NOW - ONE_DAY)


def test_a_site_may_trust_two_while_the_servers_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = made(tmp_path / "old", 10, monkeypatch), made(tmp_path / "new", 100, monkeypatch)
    both = tmp_path / "both.crt"
    both.write_bytes(old.read_bytes() + new.read_bytes())
    assert len(certificates(both)) == 2
    assert check_certificate(both, NOW + 20 * ONE_DAY) == []
    assert hosts_of(both)[0] == "server.example.org"
    for text in ("", "no certificate"):
        both.write_text(text)
        with pytest.raises(
            ConfigError, match=r"both\.crt is no certificate: .*; give server\.crt of `capfl flower keys`"
        ):
            check_certificate(both)


def test_the_end_is_said_once_a_day_and_goes_on_being_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, now = list[str](), [0.0]
    remind = reminder(made(tmp_path, 20, monkeypatch), said.append, lambda: now[0])
    for now[0] in (0.0, 5.0, DAY - 1, DAY, DAY + 5):
        next(remind)
    assert len(said) == 2
    assert all("expires in" in text for text in said)
    (tmp_path / "server.crt").unlink()
    now[0] = 3 * DAY
    next(remind)
    assert said[2].startswith("WARNING: ")
    assert "is no certificate" in said[2]


def test_neither_side_starts_with_a_certificate_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "keys", 0, monkeypatch)
    data = tmp_path / "north.jsonl"
    data.touch()
    for start in (
        lambda: run_server(tmp_path / "home", "127.0.0.1", 8443, path.parent, print),
        lambda: run_node(Setup("north", "x:1", data, tmp_path / "state", path, path.parent / "nodes/north.key"), print),
    ):
        with pytest.raises(ConfigError, match=r"server\.crt has expired on"):
            start()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["keys", "north.jsonl"]
