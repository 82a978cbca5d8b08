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


def mistakes(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as found:
        make_plan(write(tmp_path, text))
    return str(found.value)


def test_variants_are_crossed_with_their_codecs_splits_and_seeds(tmp_path: Path) -> None:
    plan = make_plan(write(tmp_path))
    assert plan.labels == ["local", "fedit+dense", "fedit+bit", "fedit-once+dense"]
    assert len(plan.cells) == len({cell.name for cell in plan.cells}) == 4 * 2 * 2
    assert [cell.name for cell in plan.cells[:5]] == [
        "easy.local.3", "easy.fedit+dense.3", "easy.fedit+bit.3", "easy.fedit-once+dense.3", "hard.local.3",
    ]  # fmt: skip
    assert plan.baseline == "local"


def test_later_changes_win_over_earlier_ones_and_both_spellings_count(tmp_path: Path) -> None:
    configs = make_plan(write(tmp_path), data_dir=Path("there")).configs
    config = configs["hard.fedit+bit.5"]
    assert (config.train.steps, config.train.batch_size, config.federation.rounds) == (7, 4, 4)
    assert (config.codec.values, config.data.conflict, config.data.dir) == ("ternary", 1.0, "there")
    assert configs["easy.local.3"].train.steps == 2
    assert [configs[f"easy.fedit+{codec}.3"].codec.density for codec in ("dense", "bit")] == [0.5, 0.25]


def test_a_part_can_be_chosen(tmp_path: Path) -> None:
    plan = make_plan(write(tmp_path), ["hard"], ["fedit", "local"], [8], baseline="fedit+bit")
    assert [cell.name for cell in plan.cells] == ["hard.local.8", "hard.fedit+dense.8", "hard.fedit+bit.8"]
    assert plan.baseline == "fedit+bit"
    for words in ({"splits": ["esay"]}, {"only": ["fed"]}, {"baseline": "fedit"}):
        with pytest.raises(ConfigError, match="choose from"):
            make_plan(tmp_path / "spec.toml", **words)


def test_a_spec_without_splits_has_one(tmp_path: Path) -> None:
    plan = make_plan(write(tmp_path, 'base = "base.toml"\nseeds = [0]\n[variants.a]\n'))
    assert [cell.name for cell in plan.cells] == ["base.a.0"]


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("[variants.x]\nmethod.nam = 'fedit'", "easy.x+dense: method.nam: no such key; did you mean"),
        ("[variants.x]\ntrain.steps = 0", "hard.x+bit: train.steps"),
        ("[variants.x]\ncodecs = ['bits']", "variants.x.codecs: there is no [codecs.bits]"),
        ("[variants.x]\nseed = 3", "seed cannot be changed here"),
        ("[variants.x]\nout = 'runs'", "out cannot be changed here"),
        ("[variants.'x.y']", "String should match pattern"),
        ("[varints.x]", "varints: Extra inputs are not permitted"),
    ],
)
def test_mistakes_name_the_place(tmp_path: Path, added: str, said: str) -> None:
    assert said in mistakes(tmp_path, SPEC + added)


def test_every_mistake_is_listed_and_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    text = mistakes(tmp_path, SPEC + "[variants.x]\na.b = 1\n[variants.y]\nc.d = 1\n")
    assert "a.b" in text
    assert "c.d" in text
    assert "nobody" in mistakes(tmp_path, SPEC.replace("seeds", "baseline = 'nobody'\nseeds"))
    assert "names one twice" in mistakes(tmp_path, SPEC.replace("[3, 5]", "[3, 3]"))
    assert "base.tml: there is no such config file" in mistakes(tmp_path, SPEC.replace("base.toml", "base.tml"))
    with pytest.raises(ConfigError, match=r"other\.toml: cannot be read"):
        make_plan(tmp_path / "other.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.toml")), ids=lambda path: path.stem)
def test_the_specs_that_come_with_it_are_right(path: Path) -> None:
    assert len(make_plan(path).cells) >= 3


def test_the_spec_in_the_docs_is_right(tmp_path: Path) -> None:
    text = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(encoding="utf-8"), re.S)[0]
    (tmp_path / "spec.toml").write_text(text.replace("../configs", str(ROOT / "configs")))
    assert make_plan(tmp_path / "spec.toml").labels == ["local", "fedit+dense", "fedit+bit"]


def keeping(tmp_path: Path, keep: str) -> Path | None:
    text = f'base = "base.toml"\nseeds = [0]\n[splits.few]\n{keep}\ndata.sets = ["clinc150"]\n[variants.a]\n'
    plan = make_plan(write(tmp_path, text), data_dir=tmp_path / "data")
    return kept_rows(plan, "few", tmp_path / "out")


def test_a_split_keeps_rows_by_a_field(tmp_path: Path) -> None:
    rows = [{"text": str(i), "domain": "abc"[i % 3]} for i in range(6)]
    place = tmp_path / "data" / "clinc150" / "train.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text("\n".join(map(json.dumps, rows)))
    kept = keeping(tmp_path, 'keep.domain = ["a", "c"]')
    assert kept
    lines = (kept / "clinc150" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["0", "2", "3", "5"]
    assert keeping(tmp_path, "") is None
    with pytest.raises(DataError, match="keeps none of its 6 rows"):
        keeping(tmp_path, 'keep.domain = ["d"]')
    with pytest.raises(DataError, match="'colour'"):
        keeping(tmp_path, 'keep.colour = ["red"]')
    place.unlink()
    with pytest.raises(DataError, match="no such file"):
        keeping(tmp_path, 'keep.domain = ["a"]')
