"""Whole runs on text as people have it: what was found is said and kept, and gives the same bits tomorrow."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from capfl import api
from capfl.config import load_config
from capfl.data import deal
from capfl.engines.serial import serial
from capfl.errors import DataError
from capfl.experiment import run
from capfl.model import tiny
from capfl.model.card import load_card
from capfl.plan import make_plan
from capfl.report.progress import Callback
from capfl.scoring import score_adapter
from capfl.site import Site
from support import TINY

QUICK = TINY | {"federation.rounds": 1, "train.steps": 1, "evaluation.every": 0, "evaluation.personal": False}


class Notes(Callback):
    """What is said before the first round."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites' questions in CSV, their chats in JSON, and a model whose template writes the date, and no system."""
    place = tmp_path_factory.mktemp("text")
    for site in ("north", "south"):
        rows = [f'"{site} {k}, please",Yes <s>{k}</s>.' for k in range(20)]
        (place / f"{site}.csv").write_text("\n".join(["Question,Answer", *rows]))
        chats = [
            [{"from": "system", "value": f"At {site}."}]
            + [{"from": who, "value": f"{who} {k} {turn}"} for turn in range(2) for who in ("human", "gpt")]
            for k in range(20)
        ]
        (place / f"{site}.json").write_text(json.dumps([{"conversations": chat} for chat in chats]))
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tiny.CHAT.replace(
        "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
    )
    tiny.model().save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    return place


def test_questions_in_csv_by_their_own_names(folder: Path, tmp_path: Path) -> None:
    out, notes, own = tmp_path / "run", Notes(), {"prompt": "Question", "completion": "Answer"}
    settings = QUICK | {"data.sets": [str(folder / f"{site}.csv") for site in ("north", "south")]}
    settings |= {"data.columns": own, "data.max_length": 30}
    config = load_config(None, settings | {"out": str(out)})
    summary, _ = run(config, serial, notes)
    assert [row.id for row in summary.rows] == ["north", "south"]
    assert "WARNING: 20 of 40 items are longer than data.max_length = 30 tokens and lose" in notes.said[-2]
    assert f"most at {folder}/north.csv:12: 1)" in notes.said[-2]
    assert notes.said[-1].startswith("40 items have the letters of a special token in them, such as '<s>'")
    assert json.loads((out / "run.json").read_text())["remarks"] == notes.said[-2:]
    assert load_config(out / "config.toml").data.columns == own

    # the same rows by other ways
    assert make_plan(config).seconds is not None
    adapter, data = out / "adapters" / "global", {"data.sets": [str(folder / "north.csv")], "data.columns": own}
    found = score_adapter(adapter, load_config(None, data))
    assert (found["items"], "token_accuracy" in found["metrics"]) == (20, True)
    items, splits = deal(config.data, config.partition, config.seed)
    with Site(config, "north", tmp_path / "site") as site:
        assert site.remarks[0].startswith("WARNING: 10 of 20 items are longer than data.max_length = 30 tokens")
    assert {item.place.rpartition("/")[2] for item in items if item.place.endswith(":2")} == {
        "north.csv:2",
        "south.csv:2",
    }
    assert sum(len(split.all) for split in splits.values()) == 40


def test_a_row_that_no_token_fits_is_named_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rows = [{"prompt": f"p {k}", "completion": "c" * (40 if k == 7 else 5)} for k in range(20)]
    path = tmp_path / "own.json"
    path.write_text(json.dumps(rows))
    said = rf"1 of 20 items cannot be used:\n  {path}: row 8: 'c{{40}}': an answer of 41 tokens does not fit into data"
    with pytest.raises(DataError, match=said):
        api.run(clients={"north": path}, out=str(out), model="tiny", max_length=32)
    assert not out.exists()


def tomorrow(*_: Any) -> type[datetime.date]:
    class Tomorrow(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return datetime.date(2031, 1, 2)

    return Tomorrow


def test_the_same_chats_give_the_same_bits_tomorrow(folder: Path, tmp_path: Path) -> None:
    """Also where the model's template writes the date: it is that on which the run began, and stands in its config."""
    settings = QUICK | {"model.path": str(folder / "model"), "data.sets": [str(folder / "north.json")]}
    settings |= {"partition.kind": "iid", "partition.clients": 2}
    bits = {}
    for name, date in (("today", None), ("again", datetime.date.today().isoformat()), ("tomorrow", None)):
        config = load_config(None, settings | {"out": str(tmp_path / name)} | ({"data.date": date} if date else {}))
        notes = Notes()
        with patch("datetime.date", tomorrow() if name != "today" else datetime.date):
            run(config, serial, notes)
        (file,) = (tmp_path / name / "adapters" / "global").glob("*.safetensors")
        bits[name] = file.read_bytes()
        assert notes.said[-1].startswith(
            "the model's chat template has no system role: the system messages of 20 chats"
        )
    assert bits["today"] == bits["again"] != bits["tomorrow"]
    assert load_config(tmp_path / "tomorrow" / "config.toml").data.date == "2031-01-02"
    card = load_card(tmp_path / "tomorrow" / "adapters" / "global")
    assert card is not None
    assert (card.date, card.data_config(load_config(None, {}).data).date) == ("2031-01-02", "2031-01-02")
