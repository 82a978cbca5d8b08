"""Rows in the Hub's schema for every data set that a config of the project names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capfl.data.sources import INTENTS

ABCD = {"text": list("wxyz"), "label": list("ABCD")}
ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "openbookqa": lambda i: {"question_stem": f"stem {i}", "choices": ABCD, "answerKey": "B"},
    "arc_easy": lambda i: {"question": f"easy {i}", "choices": ABCD, "answerKey": "C"},
    "arc_challenge": lambda i: {"question": f"hard {i}", "choices": ABCD, "answerKey": "A"},
    "boolq": lambda i: {"question": f"is it {i}", "passage": "it is", "answer": bool(i % 2)},
    "winogrande": lambda i: {"sentence": f"the {i} is _ .", "option1": "red", "option2": "blue", "answer": "1"},
    "clinc150": lambda i: {"text": f"request {i}", "intent": INTENTS[sorted(INTENTS)[i % 10]][i % 15]},
}


def write_sets(folder: Path, rows: int = 150) -> None:
    """So many rows of each, as FOLDER/NAME/train.jsonl."""
    for name, row in ROWS.items():
        path = folder / name / "train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(rows)))
