"""Tutorials, examples and notebooks run, with the tiny model and less of everything; pictures are their script's."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import capfl
from commands import command
from support import script

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
LESS: dict[str, Any] = {"rounds": 1, "epochs": 1, "steps": 1, "batch_size": 2, "data_items": 12, "generated": 1}
"""What a run is given in place of what the text says."""
TINY: dict[str, Any] = {"model": "tiny", "threads": 1, "max_new_tokens": 2}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone to work in, whose runs are small: a run is given fewer rounds and rows than the text asks for."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    whole = import_module("capfl.api").run

    def small(*config: Any, **keys: Any) -> capfl.Result:
        return whole(*config, **({key: LESS.get(key, value) for key, value in keys.items()} | TINY))

    monkeypatch.setattr(capfl, "run", small)
    return tmp_path


def words(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").split())


def follow(page: Path) -> dict[str, Any]:
    """Do what a tutorial says, block after block. Returns the names that it has made."""
    names: dict[str, Any] = {}
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(block, page.name, "exec"), names)
            continue
        assert language == "bash", f"{page.name}: a block in {language} is not run by this test"
        for line in block.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            assert program == "capfl"
            done = command(*arguments)
            assert done.exit_code == 0, f"{line}\n{done.output}"
    return names


def test_three_sites_with_labels(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = follow(TUTORIALS / "three-sites.md")
    assert list(names["result"].clients) == names["SITES"]
    assert [row.n_test for row in names["result"].clients.values()] == [8, 8, 8]  # as the page says
    assert [row.n_train for row in names["result"].clients.values()] == [28, 28, 28]
    assert (place / "runs" / "three_sites" / "report.html").exists()
    assert set(ast.literal_eval(capsys.readouterr().out.splitlines()[-1])) <= set(names["north"].data.labels)
    assert words(TUTORIALS / "three-sites.md") <= 700


def test_a_house_style(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = follow(TUTORIALS / "house-style.md")
    assert [item.fields["style"] for item in names["items"][::110]] == ["formal", "brief"] * 2
    assert names["result"].summary.metrics == ("exact_match", "rouge_l", "perplexity")
    assert names["everybody"].summary.method == "fedit"
    assert "FedIT: " in capsys.readouterr().out.splitlines()[-1]
    assert words(TUTORIALS / "house-style.md") <= 700


def example(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--model", "tiny"])
    runpy.run_path(str(ROOT / "examples" / f"{script}.py"), run_name="__main__")


def test_the_examples_of_labels_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("three_sites", "read_result", "own_method"):
        example(name, monkeypatch)
    out = capsys.readouterr().out
    assert "the shop's adapter says:" in out
    assert "ca-pfl, 1 rounds" in out  # of the run that was there: read_result made none
    assert (place / "runs" / "three_sites" / "report.html").exists()
    summary = json.loads((place / "runs" / "own_method" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["method"], summary["rounds"]) == ("by-name", 1)


def test_the_method_of_the_example_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    order = import_module("own_method").ByName(turns=3)
    turns = [order.of_round(list("dbac"), {}, seed=0, round=n) for n in (1, 2)]
    assert turns == [[["a"], ["b"], ["c", "d"]]] * 2
    assert order.of_round(["b"], {}, seed=0, round=1) == [["b"]]


@pytest.mark.slow
def test_the_example_of_texts_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example("house_style", monkeypatch)
    assert capsys.readouterr().out.count("adapter:") == 1
    assert (place / "runs" / "house_style" / "summary.json").exists()


@pytest.mark.slow
def test_the_example_of_a_network_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example("network", monkeypatch)
    assert capsys.readouterr().out.count("bytes up") == 3


@pytest.mark.slow
@pytest.mark.parametrize("notebook", ["first_run", "groups"])
def test_a_notebook_runs_and_is_saved_without_outputs(notebook: str, place: Path) -> None:
    held = json.loads((ROOT / "examples" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    assert held["nbformat"] == 4
    names: dict[str, Any] = {}
    for number, cell in enumerate(held["cells"]):
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            exec(compile("".join(cell["source"]), f"{notebook}, cell {number}", "exec"), names)
    results = names.get("results") or {"ca-pfl": names["result"]}
    assert {name: result.summary.method for name, result in results.items()} == {name: name for name in results}
    assert results["ca-pfl"]._repr_html_().startswith("<")


def test_every_example_is_on_the_page_of_examples() -> None:
    page = (TUTORIALS / "examples.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\(\.\./\.\./examples/([^)]+)\)", page))
    assert named == {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")}


def test_the_pictures_are_those_of_the_script() -> None:
    pictures = script(ROOT / "docs" / "site" / "pictures.py")
    folder = ROOT / "docs" / "pictures"
    assert {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")} == {
        name: draw() for name, draw in pictures.PICTURES.items()
    }
