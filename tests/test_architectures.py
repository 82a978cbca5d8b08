"""Small models of many architectures, through all that a run needs; and whole runs on some of them."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from capfl.engines.serial import serial
from capfl.errors import ConfigError
from capfl.experiment import run
from capfl.report.progress import Callback
from support import tiny_config, tiny_run

ROOT = Path(__file__).parents[1]
KINDS = list(tomllib.loads((ROOT / "tests" / "architectures.toml").read_text(encoding="utf-8"))["kinds"])
REFUSED = {"xlnet", "reformer", "whisper", "bert", "roberta", "t5", "bart", "llama_classifier"}
WHOLE = {"gemma3n_text", "gemma4_text"}  # keys and values go from layer to layer, so these cannot be cut
QUICK = ("jamba", "gemma3n_text", "bert")

# a layer that has a faster implementation elsewhere says so once
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def architectures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("architectures")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_an_architecture_is_a_base_or_is_refused(architectures: ModuleType, kind: str) -> None:
    result = architectures.tried(kind)
    assert bool(result.refusal) == (kind in REFUSED), result.refusal
    if result.refusal:
        assert "; give " in result.refusal  # what to do
        return
    assert [column for column, holds in result.holds.items() if not holds] == (["cut"] if kind in WHOLE else [])
    assert any("runs all layers" in remark for remark in result.remarks) == (kind in WHOLE)


def test_the_page_has_every_kind(architectures: ModuleType) -> None:
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    bases, refused = page.split("## Refused")
    for kind in KINDS:
        assert f"(`{kind}`): " in refused if kind in REFUSED else f"| `{kind}` | " in bases
    assert len(KINDS) - len(REFUSED) >= 40
    assert architectures.COLUMNS_SAY.strip() in page


class Notes(Callback):
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_note(self, text: str) -> None:
        self.said.append(text)


def test_a_run_on_shared_keys_and_values_and_several_streams(architectures: ModuleType, tmp_path: Path) -> None:
    """Clients describe their data by a layer's state, of which this model has four; nothing is kept below a cut."""
    base = tmp_path / "base"
    settings = tomllib.loads(architectures.KINDS.read_text(encoding="utf-8"))
    architectures.save("gemma3n_text", settings, {k: v for k, v in settings["kinds"]["gemma3n_text"].items()
                                                  if k != "name"}, base)  # fmt: skip
    notes = Notes()
    changes = {"model__path": str(base), "method__name": "ca-pfl", "data__max_length": 200, "federation__rounds": 1,
               "evaluation__every": 0, "lora__targets": ["q_proj", "k_proj"], "lora__layers": "1,2,3"}  # fmt: skip
    summary, folder = run(tiny_config(tmp_path / "run", **changes), serial, notes)
    assert len(summary.rows) == 2
    remarks = [text for text in notes.said if "left as before" in text or "cannot be cut" in text]
    assert len(remarks) == 2
    assert "layers 2, 3 have no linear layer 'k_proj'" in remarks[0]
    assert not (folder / "hidden").exists()


def test_rows_longer_than_the_models_positions_are_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data.max_length: rows may have 2049 tokens, and tiny has positions for 2048"
    ):
        tiny_run(tmp_path / "run", data__max_length=2049)
    assert not (tmp_path / "run").exists()
