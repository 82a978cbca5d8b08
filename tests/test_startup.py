"""Commands that need no model load neither torch nor transformers, which take seconds to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import typer

from capfl.cli import app
from support import tiny_run

HEAVY = ("torch", "transformers", "peft", "datasets", "scipy", "flwr")
EACH = """
import json, sys
from click.testing import CliRunner
from typer.main import get_command
from capfl.cli import app
found, heavy = {}, json.loads(sys.argv[1])
for words in json.loads(sys.argv[2]):
    result = CliRunner().invoke(get_command(app), words)
    loaded = [name for name in heavy if name in sys.modules]
    found[" ".join(words)] = [result.exit_code, loaded, result.output[-300:]]
print(json.dumps(found))
"""


def after(*commands: list[str]) -> dict[str, tuple[int, list[str], str]]:
    """Exit code, what is loaded by then, and the end of what was printed, of commands one after the other."""
    words = [sys.executable, "-c", EACH, json.dumps(HEAVY), json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return {name: tuple(values) for name, values in json.loads(done.stdout.splitlines()[-1]).items()}  # type: ignore[misc]


def commands_of(group: object, *before: str) -> list[list[str]]:
    """Every command of the command line."""
    found: list[list[str]] = []
    for name, command in getattr(group, "commands", {}).items():
        found += commands_of(command, *before, name) or [[*before, name]]
    return found


def test_help_lists_and_mistakes(tmp_path: Path) -> None:
    commands = commands_of(typer.main.get_command(app))
    assert len(commands) >= 14
    (broken := tmp_path / "broken.jsonl").write_text("{")
    wrong = [
        ["run", "--ronds", "5"], ["plan", "--ronds", "5"], ["eval", "x", "--ronds", "5"], ["run", "gone.toml"],
        ["run", "--method", "fedsim"], ["run", "--method", "fedit", "--alpha-s", "1"], ["run", "--model", "./gone"],
        ["run", "--out", str(Path(__file__).parent)], ["run", "--resume", "gone"], ["run", "--data", "gone.jsonl"],
        ["run", "--data", "helpdesk", "--partition", "by:moon"], ["run", "--data", "helpdesk", "--metrics", "m:f"],
        ["plan", "--method", "fedsim"], ["plan", "--model", "./gone"], ["plan", "--data", str(broken)],
        ["eval", "gone", "--data", "helpdesk"],
        ["generate", "gone"], ["generate", "gone", "--prompt", "a"], ["chat", "gone"],
        ["predict", "gone"], ["predict", "gone", "--text", "a"],
        ["export", "gone", "--merged", "out"], ["bytes", "gone"], ["report", "gone"],
        ["personalize", "--run", "gone", "--data", "helpdesk", "--out", "out"],
    ]  # fmt: skip
    helped = [[*words, "--help"] for words in commands if words[0] != "flower"]
    for name, (code, loaded, said) in after(
        [], ["--help"], ["--version"], ["keys"], ["methods"], *helped, *wrong
    ).items():
        assert not loaded, f"capfl {name} loads {loaded}"
        assert code == (2 if name.split() in wrong else 0), f"{name}: {said}"
        assert "Traceback" not in said


def test_what_a_run_has_left_is_read_without_them(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", federation__rounds=1, evaluation__personal=False)
    spec = tmp_path / "spec.toml"
    (tmp_path / "base.toml").write_text("")
    spec.write_text('base = "base.toml"\nbaseline = "a"\n[splits.s]\n[variants.a]\n"method.name" = "fedit"\n')
    commands = ["bytes", str(tmp_path / "run")], ["report", str(tmp_path / "run")], ["compare", str(spec), "--show"]
    found = after(*commands)
    for name, (code, loaded, said) in found.items():
        assert not loaded, f"capfl {name} loads {loaded}"
        assert code == (2 if "compare" in name else 0), said
    assert "has no finished run" in found[" ".join(commands[2])][2]
