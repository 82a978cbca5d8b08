"""A client that was never part of a run is given an adapter from its data's features alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capfl.checks import config_of
from capfl.cli import app
from capfl.data import load_items
from capfl.errors import CheckpointError, ConfigError
from capfl.model.export import load_adapter
from capfl.newcomer import Run
from support import tiny_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("newcomer") / "run"
    tiny_run(path, method__name="ca-pfl", method__rank_floor=0.9, federation__rounds=3)
    return path


def items(path: Path):  # type: ignore[no-untyped-def]
    return load_items(config_of(path).data, 7)


def test_a_newcomer_like_a_client_joins_its_group(finished: Path) -> None:
    run = Run(finished)
    before = dict(run.state.group_of)
    config = config_of(finished)
    like = [item for item in load_items(config.data, config.seed) if item.fields["site"] == "bank"]
    found = run.welcome("new", like[:25], like[25:])
    assert found.peers == ("bank",)
    assert run.state.group_of == before, "the run's own state was changed"
    assert set(found.scores) == {"base", "global", "personal"}
    assert found.rank < 8  # of the ranks that its peers have dropped it has none
    assert found.bytes_up > 2 * 4 * 32  # features and deviations, in bfloat16
    assert found.bytes_down > 1000
    with pytest.raises(
        ConfigError, match="'bank' is already a client of this run and has its adapter; choose another name"
    ):
        run.welcome("bank", like[:20])


def test_the_command_saves_an_adapter(finished: Path, tmp_path: Path) -> None:
    rows = [{"Request": i.question, "Queue": i.choices[i.answer]} for i in items(finished)[:20]]
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["personalize", "--run", str(finished), "--data", str(tmp_path / "new.jsonl")]
    arguments += ["--columns", "text=Request,label=Queue", "--out"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "adapter")])
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert said["n_items"] == 20
    adapter, config = load_adapter(tmp_path / "adapter")
    assert adapter
    assert config.rank_pattern
    again = CliRunner().invoke(app, [*arguments, str(tmp_path / "adapter")])
    assert again.exit_code != 0
    assert "is not empty" in again.output


def test_runs_without_peers(tmp_path: Path) -> None:
    tiny_run(tmp_path / "fedit", federation__rounds=1, data__items=20)
    own = items(tmp_path / "fedit")
    found = Run(tmp_path / "fedit").welcome("new", own[:9], own[9:20])
    assert found.peers == ()
    assert found.scores["global"] == found.scores["personal"]
    tiny_run(tmp_path / "alone", method__name="local", federation__rounds=1, data__items=20)
    with pytest.raises(ConfigError, match="local shares no adapter"):
        Run(tmp_path / "alone")
    with pytest.raises(CheckpointError, match=r"has no config.toml"):
        Run(tmp_path / "nowhere")
