"""What docs/methods.md says: its method runs, and its table is that of the package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from capfl.checkpoint import RunFolder
from capfl.config.schema import MethodConfig
from capfl.methods import METHODS, build
from capfl.model.base import load_base
from capfl.model.lora import AdaptedModel
from capfl.types import ServerState
from fake import CLIENTS, Fake, n_train
from support import tiny_config, tiny_run

PAGE = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's method, registered under its name for one test."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.setattr("capfl.methods.METHODS", METHODS)
    before = dict(METHODS)
    exec(compile(block, "docs/methods.md", "exec"), {"__name__": "example"})
    (name,) = METHODS.keys() - before.keys()
    yield name
    del METHODS[name]


def state_of(folder: Path) -> ServerState:
    config = tiny_config(folder)
    state = RunFolder(folder).server(AdaptedModel(load_base(config.model), config.lora).initial_adapter(0))
    assert state is not None
    return state


def test_a_method_of_your_own_takes_less_than_forty_lines() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(block.splitlines()) < 40


def test_the_method_of_the_page_runs(example: str, runs: Path) -> None:
    summary = tiny_run(runs / "own", method__name=example, federation__rounds=3)
    tiny_run(runs / "fedit", method__name="fedit", federation__rounds=3)
    assert (summary.method, summary.rounds) == (example, 3)
    own, plain = state_of(runs / "own"), state_of(runs / "fedit")
    assert any(not torch.equal(t, plain.adapter[name]) for name, t in own.adapter.items())
    assert set(own.notes) == {f"v/{name}" for name in own.adapter}


def test_the_method_of_the_page_does_what_it_says(example: str) -> None:
    fake = Fake(example, "fp32")
    speed = {name: torch.zeros_like(t) for name, t in fake.state.adapter.items()}
    theta = dict(fake.state.adapter)
    for _ in range(3):
        fake.play(1)
        for name in theta:
            mean = sum(n_train(c) * fake.changes[c][-1][name] for c in CLIENTS) / sum(map(n_train, CLIENTS))
            speed[name] = 0.9 * speed[name] + mean
            theta[name] = theta[name] + speed[name]
            torch.testing.assert_close(fake.state.adapter[name], theta[name])


@pytest.mark.parametrize("codec", ["default", "bf16", "global"])
def test_the_method_of_the_page_conforms(example: str, codec: str) -> None:
    Fake(example, codec).play(4)  # which checks what clients know, and that states survive bytes


@pytest.mark.slow
def test_the_file_of_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "fedavgm.py").write_text(block)
    done = subprocess.run([sys.executable, "fedavgm.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "summary.json").is_file()


def test_the_table_of_the_page_has_every_method() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)`(.*)$", PAGE, re.MULTILINE))
    assert set(rows) == set(METHODS)
    for name, row in rows.items():
        method = build(MethodConfig(name=name))
        cells = [cell.strip() for cell in row.split("|")]
        if method.citation.startswith("arXiv:"):
            assert f"https://arxiv.org/abs/{method.citation.removeprefix('arXiv:')}" in cells[0]
        assert cells[4].startswith("yes") == (method.exact is True), name
        assert ("own steps" in cells[5]) == (method.personal is None and not method.pooled)
