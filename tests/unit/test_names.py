"""Names that there are not: what is proposed, and that the proposals can be followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from capfl.config import load_config
from capfl.config.keys import flags, meant
from capfl.config.load import load_command
from capfl.config.methods import check_method
from capfl.config.names import FLAGS, METHODS
from capfl.config.schema import MethodConfig
from capfl.data.load import check_sets
from capfl.errors import ConfigError, DataError, ModelError, counted
from capfl.model.place import check_adapter, check_base


def test_every_proposed_flag_and_method_exists() -> None:
    table = flags()
    assert {flag for flag in FLAGS.values() if flag not in table} == {"tracker"}  # an option of `capfl run`
    assert not set(FLAGS) & set(table), "a flag that there is needs no other name"
    for method in METHODS.values():
        name, *more = method.split()
        check_method(load_command(None, [], ["--method", name, *more]).method)


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [("--lr", "--learning-rate"), ("--num_rounds", "--rounds"), ("--learning-rat", "--learning-rate"),
     ("--lora-r", "--lora-rank"), ("--output-dir", "--out"), ("--batchsize", "--batch-size")],
)  # fmt: skip
def test_a_flag_of_other_programs_is_named_as_it_is_here(wrong: str, flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{wrong}: no such flag; did you mean {flag}(\?| or )"):
        load_command(None, [], [wrong, "1"])


def test_nothing_is_proposed_that_is_not_near() -> None:
    assert meant("xyzzyq") == []
    with pytest.raises(ConfigError, match=r"no method 'xyzzyq'; choose from ca-pfl"):
        check_method(MethodConfig(name="xyzzyq"))


@pytest.mark.parametrize(
    ("path", "said"),
    [("tinny", r"no model 'tinny'; did you mean tiny\?"), ("SmolLM2-135M", r"did you mean smollm2\?"),
     ("./smol", "there is no folder ./smol; give a folder")],
)  # fmt: skip
def test_models_that_are_not_there(path: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        check_base(path)


def test_what_only_the_hub_can_know_is_left_to_it(tmp_path: Path) -> None:
    for path in ("tiny", "gpt2", "owner/name", str(tmp_path)):
        check_base(path)


def test_files_and_folders_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sites"
    folder.mkdir()
    for name in ("north.jsonl", "south east.csv", "notes.txt"):
        (folder / name).write_text("")

    def said(path: str) -> str:
        with pytest.raises((DataError, ConfigError)) as caught:
            check_sets(load_config(None, {"data.sets": [path]}).data)
        return str(caught.value)

    assert said("sites/nort.jsonl") == "sites/nort.jsonl: no such file; did you mean sites/north.jsonl?"
    assert said("sites/north.csv").endswith("did you mean sites/north.jsonl?")  # the same name, another kind
    assert said("sites/xyz.csv").endswith(f"; {folder} has north.jsonl, south east.csv")
    assert f"there is no folder site in {tmp_path}" in said("site/north.jsonl")
    for path in ("sites", "./sites"):
        assert said(path).endswith("give its files, each a client: sites/north.jsonl 'sites/south east.csv'")
    (tmp_path / "outer").mkdir()
    folder.rename(tmp_path / "outer" / "sites")
    assert "give the files in its folders: outer/sites/north.jsonl" in said("./outer")
    (tmp_path / "outer" / "sites" / "dataset_info.json").write_text("{}")
    assert said("./outer").endswith("give one of those in it: outer/sites")
    (tmp_path / "empty").mkdir()
    assert "it has no file of rows in it (.jsonl, " in said("empty")


def test_a_folder_that_is_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "global").mkdir()
    with pytest.raises(ModelError, match=rf"is no folder; did you mean {tmp_path}/global\?"):
        check_adapter(tmp_path / "globl")
    with pytest.raises(ModelError, match=r"holds no PEFT adapter"):
        check_adapter(tmp_path / "global")


def test_the_same_fault_of_several_rows_is_said_once() -> None:
    faults = [(f"a.csv:{n}", f"an answer of {300 + n} tokens does not fit") for n in (2, 5, 9, 11, 12, 13, 20)]
    assert counted([*faults, ("a.csv:3", "is empty")]) == [
        "  a.csv:2: an answer of 302 tokens does not fit",
        "    and 6 more like it: 5, 9, 11, 12, 13, ...",
        "  a.csv:3: is empty",
    ]
    many = [(f"a: row {n}", "x" * n) for n in range(1, 9)]
    assert counted([*many, ("a: row 9", "x" * 8)], most=2) == [
        "  a: row 1: x", "  a: row 2: xx", "  ... and 7 more of 6 other kinds",
    ]  # fmt: skip
