"""Specs of comparisons: what is crossed with what, and what is said of mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from capfl.compare.run import kept_rows
from capfl.compare.spec import make_plan
from capfl.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
SPEC = """
base = "base.toml"
seeds = [3, 5]
[common]
"train.steps" = 2
train.batch_size = 4
[splits.easy]
about = "two words"
[splits.hard]
data.conflict = 1.0
[variants.local]
method.name = "local"
codecs = []
[variants.fedit]
"method.name" = "fedit"
"train.steps" = 7
codec.density = 0.5
[variants.fedit-once]
codecs = ["dense"]
[codecs.dense]
codec.values = "bf16"
[codecs.bit]
codec.values = "ternary"
codec.density = 0.25
"""


def write(tmp_path: Path, text: str = SPEC) -> Path:
    (tmp_path / "base.toml").write_text("[federation]\nrounds = 4\n[train]\nsteps = 9\n")
    (tmp_path / "spec.toml").write_text(text)
    return tmp_path / "spec.toml"


def test_variants_are_crossed_with_codecs_splits_and_seeds_and_later_tables_win(tmp_path: Path) -> None:
    plan = make_plan(write(tmp_path), data_dir=Path("there"))
    assert plan.labels == ["local", "fedit+dense", "fedit+bit", "fedit-once+dense"]
    assert len(plan.cells) == len({cell.name for cell in plan.cells}) == 4 * 2 * 2
    assert [cell.name for cell in plan.cells[:2]] == ["easy.local.3", "easy.fedit+dense.3"]
    config = plan.configs["hard.fedit+bit.3"]
    assert (config.train.steps, config.train.batch_size, config.federation.rounds) == (7, 4, 4)
    assert (config.codec.values, config.data.conflict, config.data.dir) == ("ternary", 1.0, "there")
    assert plan.configs["easy.local.3"].train.steps == 2
    assert [plan.configs[f"easy.fedit+{codec}.3"].codec.density for codec in ("dense", "bit")] == [0.5, 0.25]
    (only,) = make_plan(write(tmp_path, 'base = "base.toml"\nseeds = [0]\n[variants.a]\n')).cells
    assert only.name == "base.a.0"  # without splits there is one


def test_a_part_can_be_chosen(tmp_path: Path) -> None:
    plan = make_plan(write(tmp_path), ["hard"], ["fedit", "local"], [8], baseline="fedit+bit")
    assert [cell.name for cell in plan.cells] == ["hard.local.8", "hard.fedit+dense.8", "hard.fedit+bit.8"]
    assert plan.baseline == "fedit+bit"
    for words in ({"splits": ["esay"]}, {"only": ["fed"]}, {"baseline": "fedit"}):
        with pytest.raises(ConfigError, match="choose from"):
            make_plan(tmp_path / "spec.toml", **words)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (SPEC + "[variants.x]\nmethod.nam = 'fedit'", "easy.x+dense: method.nam: no such key; did you mean"),
        (SPEC + "[variants.x]\ntrain.steps = 0", "hard.x+bit: train.steps"),
        (SPEC + "[variants.x]\ncodecs = ['bits']", "variants.x.codecs: there is no [codecs.bits]"),
        (SPEC + "[variants.x]\nseed = 3", "seed cannot be changed here"),
        (SPEC + "[variants.'x.y']", "String should match pattern"),
        (SPEC + "[varints.x]", "varints: Extra inputs are not permitted"),
        (SPEC + "[variants.x]\na.b = 1\n[variants.y]\nc.d = 1\n", "easy.y+dense: c.d"),  # beside easy.x+dense: a.b
        (SPEC.replace("seeds", "baseline = 'nobody'\nseeds"), "'nobody' is none of"),
        (SPEC.replace("[3, 5]", "[3, 3]"), "names one twice"),
        (SPEC.replace("base.toml", "base.tml"), "base.tml: there is no such config file"),
    ],
)
def test_mistakes_name_the_place(tmp_path: Path, spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        make_plan(write(tmp_path, spec))
    with pytest.raises(ConfigError, match=r"other\.toml: cannot be read"):
        make_plan(tmp_path / "other.toml")


def test_the_specs_that_come_with_it_are_right(tmp_path: Path) -> None:
    for path in sorted((ROOT / "benchmarks").glob("*.toml")):
        assert len(make_plan(path).cells) >= 3
    text = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(encoding="utf-8"), re.S)[0]
    (tmp_path / "spec.toml").write_text(text.replace("../configs", str(ROOT / "configs")))
    plan = make_plan(tmp_path / "spec.toml")
    assert plan.labels == ["local", "fedit+dense", "fedit+bit", "mine+dense", "mine+bit"]
    assert plan.rows == tmp_path / "own.py"  # which is read when it is needed


def test_a_split_keeps_rows_by_a_field(tmp_path: Path) -> None:
    def keeping(keep: str) -> Path | None:
        text = f'base = "base.toml"\nseeds = [0]\n[splits.few]\n{keep}\ndata.sets = ["clinc150"]\n[variants.a]\n'
        plan = make_plan(write(tmp_path, text), data_dir=tmp_path / "data")
        return kept_rows(plan, "few", tmp_path / "out")

    rows = [{"text": str(i), "domain": "abc"[i % 3]} for i in range(6)]
    place = tmp_path / "data" / "clinc150" / "train.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text("\n".join(map(json.dumps, rows)))
    kept = keeping('keep.domain = ["a", "c"]')
    assert kept
    lines = (kept / "clinc150" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["0", "2", "3", "5"]
    assert keeping("") is None
    with pytest.raises(DataError, match="keeps none of its 6 rows"):
        keeping('keep.domain = ["d"]')
    with pytest.raises(DataError, match="'colour'"):
        keeping('keep.colour = ["red"]')
    place.unlink()
    with pytest.raises(DataError, match="no such file"):
        keeping('keep.domain = ["a"]')
