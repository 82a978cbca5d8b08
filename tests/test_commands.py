"""Every command line of README and docs is run here or by another test, or it is said why not.

Commands are run as a page has them, in its order, in one folder that has what the page assumes. They get the tiny model
and one round.
"""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from commands import command
from pages import PAGES, ROOT, commands
from sets import write_sets
from support import tiny_run

QUICK = [
    "capfl run --data configs/*",
    "capfl run --resume runs/mine",
    "capfl report *",
    "capfl eval *",
    "capfl plan *",
    "capfl personalize *",
    "capfl chat *",
    "capfl flower keys *",
    "python benchmarks/readme.py *",
]
"""Run here, but for those that ELSEWHERE has."""

SLOW = [
    "capfl demo*",
    "capfl run configs/*",
    "capfl run --clients-per-pass *",
    "python benchmarks/inversion.py --model tiny *",
    "python benchmarks/pareto.py *",
    "python benchmarks/picture.py *",
]
"""Run here by ``make test-slow``."""

DEPLOYMENT = "tests/network/test_deployment.py::"
ELSEWHERE = {
    "capfl * runs/three_sites*": "tests/test_tutorials.py::test_three_sites_with_labels",
    "capfl * runs/house_style*": "tests/test_tutorials.py::test_a_house_style",
    "capfl compare spec.toml *": "tests/test_compare.py::test_it_goes_on_to_the_same_bits_and_names_what_fails",
    "capfl export *": "tests/test_answers.py::test_export_writes_what_is_asked_for",
    "capfl generate * --prompt *": "tests/test_answers.py::test_prompts_on_the_command_line",
    "capfl generate * --data *": "tests/test_answers.py::test_rows_of_a_file_get_their_answers",
    "capfl predict *": "tests/test_answers.py::test_an_adapter_that_has_learnt_labels_gives_them_and_does_not_write",
    "capfl run config.toml --tracker *": "tests/test_tracker.py::test_tensorboard_has_the_numbers_of_the_records",
    "capfl flower server *": DEPLOYMENT + "test_a_run_over_real_nodes_is_the_serial_run",
    "capfl flower node *": DEPLOYMENT + "test_a_run_over_real_nodes_is_the_serial_run",
    "capfl flower run configs/*": DEPLOYMENT + "test_a_run_over_real_nodes_is_the_serial_run",
    "capfl flower run --resume *": DEPLOYMENT + "test_a_server_and_then_the_process_of_its_run_are_killed",
    "python benchmarks/fuzz_wire.py *": "tests/unit/wire/test_fuzz.py::test_forged_messages",
}
"""The test that runs such a command, with settings of its own."""

NOT_RUN = {
    "make demo": "trains SmolLM2 for minutes; `capfl demo` runs here with the tiny model",
    "make .venv/ready": "downloads and installs packages; CI does so first of all",
    "make test*": "would run this test again; CI runs it",
    "make check": "would run this test again; CI runs its two halves",
    "make format": "changes the files of the project",
    "make site": "downloads and installs packages; CI runs it",
    "pip install *": "downloads and installs packages",
    "vllm serve *": "another program, which the page says was not run",
    "llama-cli *": "another program; benchmarks/llama_cpp.py asks its library",
    "capfl run --method fedit --data helpdesk *--protects items *": "ten minutes; tests/unit/methods/test_items.py",
    "capfl run --quantization *": "the tiny model is too narrow; tests/unit/model/test_quantised.py has wider layers",
    "capfl compare benchmarks/*": "trains for hours; tests/test_pages.py reads the spec and finds the names in it",
    "python benchmarks/attacks.py *": "up to 13 minutes; tests/test_attacks.py has the same attacks",
    "python benchmarks/codec.py*": "takes speeds and memory of large adapters, which mean nothing beside other tests",
    "python benchmarks/flower_nodes.py --model tiny": "minutes; tests/network/test_deployment.py has such a network",
    "python benchmarks/flower_nodes.py * --kill *": "minutes of SmolLM2; tests/network/test_deployment.py kills, too",
    "python benchmarks/floor.py*": "takes the speed of SmolLM2, which means nothing beside other tests",
    "python benchmarks/flowertune.py *": "needs trl, ray, nvflare; tests/unit/test_benchmarks.py has what needs none",
    "python benchmarks/gpu.py": "needs a GPU",
    "python benchmarks/inversion.py --model smollm2 *": "over five minutes; it runs here with the tiny model",
    "python benchmarks/local_step.py *": "takes the speed of SmolLM2 for minutes",
    "python benchmarks/many_clients.py *": "asks 1,110 clients for their scores twice, for minutes",
    "python benchmarks/memory.py *": "trains 1,010 clients with SmolLM2 for 15 minutes",
    "python benchmarks/secure.py *": "takes speeds for a minute; tests/unit/test_keyring.py takes the same steps",
    "python benchmarks/text_step.py *": "needs trl, and takes the speed of SmolLM2 for minutes",
    "python tests/mutants.py *": "runs tests anew for each of many errors; tests/test_mutants.py reads its list",
}
"""Why nobody runs such a command."""

NEEDED = {"trl", "ray", "nvflare", "xllamacpp"}  # packages of some benchmarks that capfl does not install


class Parsed(BaseException):
    """The arguments of a script are right. Not an Exception: nothing catches it."""


def way(words: Sequence[str]) -> str | None:
    """The pattern that a command has first, of those that say what becomes of it."""
    line = " ".join(words)
    return next((pattern for pattern in [*ELSEWHERE, *NOT_RUN, *SLOW, *QUICK] if fnmatchcase(line, pattern)), None)


def all_commands(patterns: Sequence[str]) -> dict[str, list[list[str]]]:
    """By page, the commands that have one of some patterns."""
    found = {page: [words for words in commands(path) if way(words) in patterns] for page, path in PAGES.items()}
    return {page: own for page, own in found.items() if own}


def small(words: Sequence[str]) -> list[str]:
    """A command with the tiny model, which has four layers, and one round, where it has a model or trains."""
    trains = words[1] in ("demo", "run") and "--resume" not in words
    out, rest = [], iter(word for word in words[1:] if word != "...")
    for word in rest:
        if word in ("--model", "--model-path", "--rounds"):
            next(rest)
        else:
            out.append(word)
    if trains or any(word.startswith("--model") for word in words):
        out += ["--model", "tiny"]
    return [*out, "--layers", "top:2", "--rounds", "1"] if trains else out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the sites north and south."""
    place = tmp_path_factory.mktemp("finished")
    for name in ("north", "south"):
        shutil.copy(ROOT / "configs" / "example_sites" / f"clinic_{name}.jsonl", place / f"{name}.jsonl")
    files = [str(place / f"{name}.jsonl") for name in ("north", "south")]
    tiny_run(place / "run", data__sets=files, partition__kind="by_task", partition__validation=0.2, evaluation__every=1)
    return place / "run"


@pytest.fixture
def place(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone to work in, with the files and folders that pages speak of."""
    for name in ("heldout", "new"):
        shutil.copy(ROOT / "configs" / "example_sites" / "clinic_north.jsonl", tmp_path / f"{name}.jsonl")
    for name in ("benchmarks", "configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    same = {name: name for name in ("gemma", "text", "text_gemma", "text_sql")}
    for name, source in ({"methods": "comparison"} | same).items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        shutil.copy(ROOT / "docs" / "results" / f"{source}.json", tmp_path / "runs" / name / "comparison.json")
        (tmp_path / "runs" / name / "table.md").write_text("the table\n")
    write_sets(tmp_path / "FOLDER", rows=1200)
    for name in ("RUN", "FOLDER/domains.dense.0"):
        shutil.copytree(finished, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return tmp_path


def script(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a Python file in this process."""
    monkeypatch.setattr(sys, "argv", list(words))
    runpy.run_path(words[0], run_name="__main__")


def run(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "python":
        script(small(words), monkeypatch)
        return
    done = command(*small(words), typed="My parcel is late\n")
    assert done.exit_code == 0, f"{' '.join(words)}\n{done.output}\n{done.exception!r}"


@pytest.mark.parametrize(("page", "lines"), all_commands(QUICK).items(), ids=list(all_commands(QUICK)))
def test_the_quick_commands_of_a_page_run(
    page: str, lines: list[list[str]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page != "README.md":  # which makes its own
        shutil.copytree(place / "RUN", place / "runs" / "mine")
    for words in lines:
        run(words, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", sorted({shlex.join(words) for lines in all_commands(SLOW).values() for words in lines})
)
def test_a_slow_command_runs(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(shlex.split(line), monkeypatch)


def test_it_is_said_of_every_command_what_becomes_of_it() -> None:
    found = {" ".join(words): way(words) for page in PAGES.values() for words in commands(page)}
    nothing = [line for line, pattern in found.items() if pattern is None]
    assert nothing == [], "add them to QUICK, SLOW, ELSEWHERE or NOT_RUN"
    stale = {*QUICK, *SLOW, *ELSEWHERE, *NOT_RUN} - set(found.values())
    assert stale == set(), "no page has such a command"


def test_the_tests_that_are_named_are_there() -> None:
    for named in ELSEWHERE.values():
        file, _, name = named.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, named
    for reason in NOT_RUN.values():
        for file in re.findall(r"[\w/]+\.py", reason):
            assert (ROOT / file).exists(), reason


def arguments_of_benchmarks() -> list[list[str]]:
    """Those that pages give to scripts, and ``--help`` for the scripts that no page runs."""
    given = [words[1:] for page in PAGES.values() for words in commands(page) if words[0] == "python"]
    rest = {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")} - {words[0] for words in given}
    return [
        *(words for words in given if words[0].startswith("benchmarks/")),
        *([name, "--help"] for name in sorted(rest)),
    ]


def test_benchmarks_are_loaded_and_know_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    read, parsed = argparse.ArgumentParser.parse_args, 0

    def parse(parser: argparse.ArgumentParser, *args: Sequence[str]) -> None:
        raise Parsed(read(parser, *args))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for words in arguments_of_benchmarks():
        try:
            script(words, monkeypatch)
        except Parsed:
            parsed += 1
        except SystemExit as end:
            if end.code != 0:
                pytest.fail(f"it does not know its arguments: {' '.join(words)}")
        except ModuleNotFoundError as missing:
            if missing.name not in NEEDED:
                raise
    assert parsed > 20
