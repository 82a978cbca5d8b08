"""What a site is told before its node joins: ok, a warning or a failure with its remedy, one line each."""

from __future__ import annotations

import datetime
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from capfl.engines.flower import doctor, keys
from capfl.engines.flower.doctor import clock
from capfl.engines.flower.keys import make_keys
from capfl.engines.flower.processes import free_port
from capfl.files import locked
from commands import command

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys")
    make_keys(made, ["north", "south"], [])
    return made


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of a server that has the certificate and says it is well."""

    class Well(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Well) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def examined(folder: Path, address: str, tmp_path: Path, **changes: object) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code, and by what was checked whether it is well and what was said."""
    data = tmp_path / "north.jsonl"
    data.write_text("".join(json.dumps({"text": f"row {n}", "label": "ab"[n % 2]}) + "\n" for n in range(4)))
    given: dict[str, object] = {
        "server": address, "client": "north", "data": data, "certificate": folder / "server.crt",
        "key": folder / "nodes/north.key", "state": tmp_path / "state", "set": "model.path=tiny",
    }  # fmt: skip
    words = [word for name, value in (given | changes).items() for word in (f"--{name}", value)]
    result = command("flower", "doctor", *words)
    lines = [line.partition(": ") for line in result.stdout.splitlines() if line[0] != " "]
    return result.exit_code, {head.split()[1]: (head.split()[0], said) for head, _, said in lines}


def test_all_is_well_and_nothing_is_written(folder: Path, address: str, tmp_path: Path) -> None:
    code, found = examined(folder, address, tmp_path, peers=folder / "nodes", run="winter")
    checks = ["packages", "client", "certificate", "key", "peers", "runs", "server", "clock", "disk", "model", "data"]
    assert list(found) == checks
    assert {kind for kind, _ in found.values()} == {"ok"}, found
    assert code == 0
    assert found["peers"][1] == "public keys of north, south"
    assert found["runs"][1] == "takes part in winter (not begun), and in no other run"
    assert not (tmp_path / "state").exists()


def test_each_fault_is_said_with_its_remedy_and_the_others_are_looked_at(
    folder: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_keys(tmp_path / "other", [], [])
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "no label"\n')
    nobody = f"127.0.0.1:{free_port()}"
    (tmp_path / "file").touch()
    faults: dict[str, tuple[dict[str, object], str]] = {
        "client": ({"client": "../x"}, "is no client id"),
        "key": ({"key": folder / "nodes/north.pub"}, "is no key of capfl flower keys"),
        "peers": ({"peers": tmp_path}, "get CLIENT.pub from every other site"),
        "runs": ({"run": "runs/winter"}, "give the last part of the folder"),
        "server": ({"server": nobody}, "is the server running there, and is its port open"),
        "disk": ({"state": tmp_path / "file" / "state"}, "cannot be written to; give another --state"),
        "model": ({"set": "model.path=./gone"}, "there is no folder ./gone"),
        "data": ({"data": rows}, "1 of 1 rows of"),
    }
    code, found = examined(folder, address, tmp_path, **{k: v for one, _ in faults.values() for k, v in one.items()})
    assert code == 1
    for what, (_, said) in faults.items():
        assert found[what][0] == "failed", what
        assert said in found[what][1], what
    assert found["clock"][0] == "warning"  # nobody can say what time it is there
    _, found = examined(folder, address, tmp_path, certificate=folder / "server.key")
    for what in ("certificate", "server"):
        assert found[what][0] == "failed"
        assert "is no certificate" in found[what][1]
    _, found = examined(folder, address, tmp_path, certificate=tmp_path / "other/server.crt")
    assert found["server"] == ("failed", f"{address}: {doctor.HINTS['CERTIFICATE_VERIFY_FAILED']}")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**8}))
    assert examined(folder, address, tmp_path)[1]["disk"][0] == "failed"


def test_what_will_be_a_fault_is_a_warning(
    folder: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "DAYS", 20)
    make_keys(tmp_path / "soon", ["north"], [])
    own = tmp_path / "soon/nodes/north.key"
    own.chmod(0o644)
    with locked(tmp_path / "state"):
        _, found = examined(folder, address, tmp_path, certificate=tmp_path / "soon/server.crt", key=own)
    assert {found[what][0] for what in ("certificate", "key", "runs", "disk")} == {"warning"}
    assert "takes part in every run that its server starts, but for those with malicious-server" in found["runs"][1]
    assert "expires in 19 days" in found["certificate"][1]
    assert f"chmod 600 {own}" in found["key"][1]
    assert "a node already uses this folder" in found["disk"][1]
    unnamed = tmp_path / "unnamed.jsonl"
    unnamed.write_text('{"Frage": "a", "Ziel": "b"}\n{"Frage": "c", "Ziel": "d"}\n')
    kind, said = examined(folder, address, tmp_path, data=unnamed)[1]["data"]
    assert (kind, "by --set data.columns=" in said) == ("warning", True)
    named = {"data": unnamed, "set": "data.columns=text=Frage,label=Ziel"}
    assert examined(folder, address, tmp_path, **named)[1]["data"][0] == "ok"
    assert "is called 'south'" in examined(folder, address, tmp_path, key=folder / "nodes/south.key")[1]["key"][1]


@pytest.mark.parametrize(
    ("seconds", "kind"),
    [(0, "ok"), (2, "ok"), (4, "warning"), (7, "failed"), (-30, "ok"), (-100, "warning"), (-301, "failed")],
)
def test_a_clock_that_the_server_would_refuse(seconds: int, kind: str) -> None:
    found = clock(NOW, NOW + datetime.timedelta(seconds=seconds))
    assert found.kind == kind
    assert kind == "ok" or f"{abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} the server's" in found.said
