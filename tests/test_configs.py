"""Every example config loads, and its data, clients, method and messages go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from capfl.compare.spec import make_plan as make_comparison
from capfl.config import load_config
from capfl.data import deal, remarks
from capfl.plan import make_plan
from sets import write_sets

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "configs" / "paper" / "llama-3.2-3b.toml"
CONFIGS = {
    **dict.fromkeys([ROOT / "src" / "capfl" / "demo.toml", ROOT / "configs" / "own_sites.toml"], 4),
    ROOT / "configs" / "commonsense.toml": 5,
    ROOT / "configs" / "clinc150.toml": 10,
    PAPER: 10,
}
"""The number of clients of each."""


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    write_sets(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_goes_together(path: Path, data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = {"model.path": "tiny", "lora.layers": "top:2", "runtime.threads": 1, "data.dir": data_dir}
    config = load_config(path, settings | {"partition.alpha": 10.0})  # lest a client have next to none
    plan = make_plan(config, calibration=False)
    assert (plan.clients, plan.clients_from) == (CONFIGS[path], "the data")
    assert plan.bytes_round_trip < plan.dense_fp32_round_trip / 10


def test_all_configs_are_tried() -> None:
    found = {*(ROOT / "configs").glob("*.toml"), *(ROOT / "src").rglob("demo.toml"), PAPER}
    assert found == set(CONFIGS)


def test_the_example_sites_are_two_kinds_of_business_without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "own_sites.toml")
    items, splits = deal(config.data, config.partition, 0)
    assert list(splits) == ["clinic_north", "clinic_south", "shop_east", "shop_west"]
    clinics, shops = ([{items[k].choices for k in splits[c].all} for c in list(splits)[n : n + 2]] for n in (0, 2))
    assert clinics[0] == clinics[1] != shops[0] == shops[1]
    assert len({item.question for item in items}) == len(items) == 160
    assert len(remarks(config.data, config.partition, items, splits)) == 1


def test_the_paper_s_settings_differ_in_the_model_alone_and_its_table_is_a_comparison() -> None:
    llama, mistral = load_config(PAPER), load_config(PAPER.with_stem("mistral-7b"))
    assert llama.model.path != mistral.model.path
    assert llama.model_copy(update={"model": mistral.model}) == mistral
    plan = make_comparison(ROOT / "configs" / "paper" / "table.toml")
    assert list(plan.spec.variants) == ["local", "fedit", "fedit-dense", "lora-fair", "lora-fair-dense", "ca-pfl"]
    assert len(plan.cells) == 18
