"""Every example config loads, and runs on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capfl.config import load_config
from capfl.data.clinc import INTENTS
from capfl.engines import serial
from capfl.experiment import run
from support import TINY

ROOT = Path(__file__).parent.parent
CONFIGS = [*sorted((ROOT / "configs").glob("*.toml")), ROOT / "src" / "capfl" / "demo.toml"]

SMALLER = {key: TINY[key] for key in ("model.path", "lora.layers", "train.steps", "runtime.threads")} | {
    "federation.rounds": 1,
    "data.items": 24,
}


def _choices(i: int, labels: str = "ABCD") -> dict[str, list[str]]:
    return {"text": [f"option {label} {i}" for label in labels], "label": list(labels)}


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "openbookqa": lambda i: {"id": str(i), "question_stem": f"stem {i}", "choices": _choices(i), "answerKey": "B"},
    "arc_easy": lambda i: {"id": str(i), "question": f"easy {i}", "choices": _choices(i), "answerKey": "C"},
    "arc_challenge": lambda i: {"id": str(i), "question": f"hard {i}", "choices": _choices(i), "answerKey": "A"},
    "boolq": lambda i: {"question": f"is it {i}", "passage": "it is", "answer": bool(i % 2)},
    "winogrande": lambda i: {"sentence": f"the {i} is _ .", "option1": "red", "option2": "blue", "answer": "1"},
    "clinc150": lambda i: {
        "text": f"request {i}",
        "intent": INTENTS[sorted(INTENTS)[i % 10]][i % 15],
        "domain": sorted(INTENTS)[i % 10],
    },
}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Rows in the Hub's schema for every set that a config names."""
    for name, row in ROWS.items():
        path = tmp_path / "data" / name / "train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(150)))
    return tmp_path / "data"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("scoring", ["letter", "text"])
def test_every_config_runs(
    path: Path, scoring: str, data_dir: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    settings: dict[str, object] = SMALLER | {"out": str(runs), "data.scoring": scoring, "data.dir": str(data_dir)}
    settings |= {"data.limit": 30} if path.stem == "commonsense" else {}
    summary, _ = run(load_config(path, settings), serial)
    assert len(summary.rows) >= 2
    assert summary.chance is not None
    assert 0 < summary.chance < 1
