"""Every example config loads, and runs on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capfl.compare.spec import make_plan as make_comparison
from capfl.config import load_config
from capfl.data import deal, remarks
from capfl.data.clinc import INTENTS
from capfl.engines.serial import serial
from capfl.experiment import run
from capfl.plan import make_plan
from support import TINY

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "configs" / "paper" / "llama-3.2-3b.toml"
CONFIGS = [*sorted((ROOT / "configs").glob("*.toml")), PAPER, ROOT / "src" / "capfl" / "demo.toml"]
SITES = ["clinic_north", "clinic_south", "shop_east", "shop_west"]

FEW_ROWS: dict[str, object] = {"partition.alpha": 10.0}  # lest a client have next to none

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
def test_every_config_runs(path: Path, data_dir: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings: dict[str, object] = SMALLER | {"out": str(runs), "data.dir": str(data_dir)}
    settings |= {"data.limit": 30} if path.stem == "commonsense" else {}
    settings |= FEW_ROWS if path == PAPER else {}
    summary, _ = run(load_config(path, settings), serial)
    assert len(summary.rows) >= 2
    assert summary.chance is not None
    assert 0 < summary.chance < 1


def test_the_example_sites_are_two_kinds_of_business_without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "own_sites.toml")
    items, splits = deal(config.data, config.partition, 0)
    assert list(splits) == SITES
    labels = {client: {items[k].choices for k in own.all} for client, own in splits.items()}
    assert labels["clinic_north"] == labels["clinic_south"]
    assert labels["shop_east"] == labels["shop_west"] != labels["clinic_north"]
    assert len({item.question for item in items}) == len(items) == 160
    assert len(remarks(config.data, config.partition, items, splits)) == 1


def test_both_settings_of_the_paper_differ_in_the_model_alone(data_dir: Path) -> None:
    """What they cost is known without weights."""
    configs = [
        load_config(path, {"data.dir": str(data_dir)} | FEW_ROWS) for path in (PAPER, PAPER.with_stem("mistral-7b"))
    ]
    assert configs[0].model_copy(update={"model": configs[1].model}) == configs[1]
    plan = make_plan(configs[0], calibration=False)
    assert 50 < plan.dense_fp32_round_trip / (sum(plan.up.values()) + sum(plan.down.values())) < 150
    assert plan.seconds is None


def test_the_paper_s_table_is_a_comparison() -> None:
    plan = make_comparison(ROOT / "configs" / "paper" / "table.toml")
    assert list(plan.spec.variants) == ["local", "fedit", "fedit-dense", "lora-fair", "lora-fair-dense", "ca-pfl"]
    assert len(plan.cells) == 18
