"""What `capfl flower run` refuses before it asks the server for anything, and what it shows of a run that fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from capfl.config import to_toml
from capfl.engines.flower import runs
from capfl.engines.flower.runs import Connection, follow
from capfl.errors import ConfigError
from capfl.experiment import check_remote
from commands import refused
from sites import SIZES, config_for

SECURE: dict[str, object] = {"privacy__secure_aggregation": "honest-server"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method__name": "fedsim"}, "there is no method 'fedsim'"),
        ({"method__name": "centralised"}, "which real sites cannot give"),
        ({"model__path": "./gone"}, "there is no folder ./gone"),
        ({"runtime__workers": 2, "runtime__cache": "off"}, "clients elsewhere work on their own machines"),
        (SECURE | {"evaluation__every": 1}, "set evaluation.every to 0\n"),
        (
            SECURE | {"evaluation__every": 1, "evaluation__patience": 1},
            "set evaluation.every to 0, leave evaluation.pat",
        ),
        (
            SECURE | {"method__name": "ca-pfl", "method__turns": 1, "method__peers": {"north": "a", "south": "a"}},
            "method.peers has north and south alone in group 'a'",
        ),
    ],
)
def test_what_cannot_be_run_is_said_before_the_server_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], said: str
) -> None:
    monkeypatch.setattr(runs, "submit", lambda *given: pytest.fail("was submitted"))
    Connection(tmp_path).write("127.0.0.1:1", tmp_path / "server.crt")
    config = config_for(tmp_path / "run", {client: tmp_path / f"{client}.jsonl" for client in SIZES}, **changes)
    (tmp_path / "own.toml").write_text(to_toml(config))
    assert said in refused("flower", "run", tmp_path / "own.toml", "--home", tmp_path)


def test_what_is_said_of_patience_with_secure_aggregation_can_be_done(tmp_path: Path) -> None:
    files = {client: tmp_path / f"{client}.jsonl" for client in SIZES}
    wanted: dict[str, object] = SECURE | {"evaluation__every": 1, "evaluation__patience": 1}
    with pytest.raises(ConfigError, match=r"leave evaluation\.patience out, and say by"):
        check_remote(config_for(tmp_path / "run", files, **wanted), sorted(SIZES))
    instead: dict[str, object] = SECURE | {"evaluation__every": 0, "evaluation__keep": "best"}
    check_remote(config_for(tmp_path / "run", files, **instead), sorted(SIZES))


class Server(Connection):
    """One whose run has failed with this in its log."""

    log = ""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", f"print({self.log!r})"]

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def ask(self, *arguments: str) -> dict[str, Any]:
        return {"runs": [{"status": "finished:failed", "status-details": "ServerApp failed with exception: b"}]}


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        ("error: ConfigError\nb", ["error: ConfigError", "b", "run 7 finished:failed"]),
        (
            "a round",
            ["a round", "ERROR :     ServerApp raised an exception", "Traceback (most recent call last):",
             "run 7 finished:failed: ServerApp failed with exception: b"],
        ),
    ],
)  # fmt: skip
def test_an_error_that_the_run_has_said_is_not_said_again(tmp_path: Path, own: str, shown: list[str]) -> None:
    server, said = Server(tmp_path), list[str]()
    Server.log = (
        f"INFO :     Starting\n{own}\nERROR :     ServerApp raised an exception\nTraceback (most recent call last):"
    )
    assert not follow(server, 7, said.append)
    assert said == shown
