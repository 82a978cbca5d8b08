"""A run that is killed goes on to the same bits, wherever it was killed; one that has been changed does not go on."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from capfl.checkpoint import RunFolder
from capfl.engines.serial import serial
from capfl.errors import CheckpointError
from capfl.experiment import resume
from capfl.report.progress import Callback
from support import Killed, killing, tiny_run

SETTINGS: dict[str, object] = {
    "method__name": "ca-pfl", "codec__values": "ternary", "codec__mask": "top", "codec__density": 0.3,
    "federation__rounds": 3, "federation__fraction": 0.5, "evaluation__references": ["local"],
}  # fmt: skip


def everything(out: Path) -> dict[str, object]:
    """Bits of all states and adapters, and all records and results but their times."""
    found: dict[str, object] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if path.name == "rounds.jsonl":
            found[name] = [replace(record, seconds=0.0) for record in RunFolder(path.parent).rounds()]
        elif path.name == "summary.json":
            saved = RunFolder(path.parent).read_json(path.name)
            found[name] = {key: saved[key] for key in saved if key not in ("seconds", "peak_memory", "cache")}
        elif path.suffix != ".json":
            found[name] = path.read_bytes().replace(str(out).encode(), b"")
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    tiny_run(out, **SETTINGS)
    return out


def test_a_run_of_sums_under_masks_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are never on disk: the round that was begun is done again under others. One of three clients had trained."""
    settings: dict[str, object] = {
        "privacy__secure_aggregation": "honest-server", "codec__values": "ternary", "data__sites": 3,
    }  # fmt: skip
    tiny_run(tmp_path / "whole", **settings)
    monkeypatch.setattr(os, "replace", killing(15, after=True))
    with pytest.raises(Killed):
        tiny_run(tmp_path / "killed", **settings)
    monkeypatch.undo()
    assert len(RunFolder(tmp_path / "killed").rounds()) == 1
    states = sorted(path.suffix for path in (tmp_path / "killed/state/clients").rglob("*.0000*"))
    assert states == [".000001"] * 3 + [".000002"]
    resume(tmp_path / "killed", serial)
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")


@pytest.mark.parametrize("n", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 5, 6, *range(8, 21)))])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    n: int, runs: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", killing(n, after=n % 2 == 0))
    with pytest.raises(Killed):
        tiny_run(runs, **SETTINGS)
    monkeypatch.undo()
    resume(runs, serial)
    assert everything(runs) == everything(finished)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_two_workers_come_to_the_bits_of_one_process_also_when_killed(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups with several clients in a turn, validations, the end, and a reference that is scored for everybody."""
    settings: dict[str, object] = SETTINGS | {
        "federation__fraction": 1.0, "federation__rounds": 2, "data__sites": 4, "data__items": 20, "train__steps": 1,
        "evaluation__references": ["centralised"], "method__turns": 2,
    }  # fmt: skip
    tiny_run(runs / "one", **settings)
    real, here, writes = os.replace, os.getpid(), iter(range(9))

    def dying(source: str, target: str) -> None:
        if os.getpid() != here and str(target).endswith(".000002") and next(writes) == 1:
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(Killed):
        tiny_run(runs / "two", runtime__workers=2, **settings)
    monkeypatch.undo()
    assert len(RunFolder(runs / "two").rounds()) == 1
    resume(runs / "two", serial)
    one, two = everything(runs / "one"), everything(runs / "two")
    assert two.pop("config.toml") == one.pop("config.toml").replace(b"workers = 1", b"workers = 2")  # type: ignore[attr-defined]
    assert two == one
    caches = [RunFolder(runs / name).read_json("summary.json")["cache"] for name in ("one", "two")]
    assert caches[1]["bytes"] == caches[0]["bytes"] > 0


class NoEvaluation(Callback):
    def on_evaluation(self, clients: int) -> None:
        raise AssertionError("clients were asked again")


def test_a_finished_run_resumes_to_the_same_summary_and_asks_nobody(runs: Path, finished: Path) -> None:
    shutil.copytree(finished, runs)
    before = everything(runs)
    summary, _ = resume(runs, serial, NoEvaluation())
    assert everything(runs) == before
    assert json.loads(json.dumps(summary.to_json())) == RunFolder(finished).read_json("summary.json")
    text = (runs / "summary.json").read_text()
    (runs / "summary.json").write_text(text[:-9])  # damaged
    with pytest.raises(AssertionError, match="asked again"):
        resume(runs, serial, NoEvaluation())
    resume(runs, serial)
    assert everything(runs) == before


# -- what has been changed --------------------------------------------------------------------------------------


def flipped(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def newest_client(out: Path) -> Path:
    return max(out.glob("state/clients/*/*"), key=lambda path: (path.suffix, path.name))


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(out: Path) -> None:
        text = (out / name).read_text()
        assert text.count(old) >= 1
        (out / name).write_text(text.replace(old, new, 1))

    return edit


def unfinished(out: Path) -> Path:
    """A run that was killed before it wrote what came out: its clients are asked once more."""
    (out / "summary.json").unlink()
    return out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out: flipped(out / "state/server"), r"state/server: the file is damaged"),
        (lambda out: flipped(newest_client(unfinished(out))), r"state/clients/\w+/\w+\.0000\d+: the file is damaged"),
        (edited("rounds.jsonl", '"losses"', '"loses"'), r"rounds\.jsonl was changed"),
        (lambda out: (out / "run.json").write_text("[]"), r"run\.json is damaged"),
        (edited("config.toml", "steps = 2", "steps = 3"), r"config\.toml changed since this run began"),
        (edited("config.toml", "items = 30", "items = 31"), r"config\.toml changed since this run began"),
        (edited("run.json", '"data": "', '"data": "x'), r"data or their partition changed since this run began"),
        (lambda out: (out / "config.toml").unlink(), r"has no config\.toml"),
        (lambda out: flipped(out / "references/local/state/server"), r"local/state/server: the file is damaged"),
    ],
)
def test_a_run_that_was_changed_does_not_go_on(
    change: Callable[[Path], None], said: str, runs: Path, finished: Path
) -> None:
    shutil.copytree(finished, runs)
    change(runs)
    with pytest.raises(CheckpointError, match=said):
        resume(runs, serial)
