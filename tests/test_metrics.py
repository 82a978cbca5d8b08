"""A run on completions: what it measures, what it keeps, when it ends, and that sites and simulations agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

import capfl
from capfl import metrics
from capfl.config import load_config
from capfl.data import Split
from capfl.data.tasks import check_tasks
from capfl.engines.serial import serial
from capfl.errors import ConfigError, DataError
from capfl.experiment import resume
from capfl.report.summary import Summary
from capfl.result import Result
from capfl.rounds import why_stopped
from capfl.samples import OF_LOCAL, OF_MAIN, Samples, read_samples
from capfl.site import Site
from capfl.types import Item, RoundRecord
from capfl.vault import Vault
from support import tiny_config, tiny_run

HOSTILE = "<script>\x07"
SCORED = ("exact_match", "test_metrics:same_length", "perplexity", "rouge_l")


def same_length(answer: str, right: str, fields: dict[str, str]) -> float:
    assert fields["site"] in ("north", "south")
    return float(len(answer) == len(right))


def rows(client: str) -> list[dict[str, str]]:
    ends = {"north": "yes", "south": "no"}[client]
    return [{"prompt": f"{HOSTILE} {n}", "completion": f" {n} {ends}", "site": client} for n in range(20)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("text")
    for client in ("north", "south"):
        (place / f"{client}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(client)))
    return place


def settings(files: Path, **more: object) -> dict[str, object]:
    sets = [str(files / f"{client}.jsonl") for client in ("north", "south")]
    own: dict[str, object] = {"metrics": list(SCORED), "generated": 3, "max_new_tokens": 4, "keep": "best"}
    own |= {"references": ["local"]}
    return {"data__sets": sets, **{f"evaluation__{key}": value for key, value in own.items()}} | more


@pytest.fixture(scope="module")
def run(files: Path) -> Summary:
    return tiny_run(files / "run", **settings(files))


def test_every_model_has_every_metric_of_its_task(run: Summary, files: Path) -> None:
    assert run.metrics == SCORED
    assert run.leading == ("exact_match",)
    for row in run.rows:
        assert list(row.scores) == ["base", "shared", "personal", "local_only"]
        for own in row.scores.values():
            assert tuple(own) == SCORED
            assert [own[name].count for name in SCORED if name != "perplexity"] == [3, 3, 3]
            assert own["perplexity"].count > 3 * row.n_test  # tokens of all test items
    assert Result.open(files / "run").summary == run
    last = (files / "run" / "rounds.jsonl").read_text().splitlines()[-1]
    assert set(json.loads(last)["validation"]) == {"perplexity", "token_accuracy"}


def test_samples_stay_where_the_data_are_and_the_page_escapes_them(run: Summary, files: Path) -> None:
    found = read_samples(files / "run")
    assert list(found) == ["north", "south"]
    for client, samples in found.items():
        assert len(samples) == 3
        for sample in samples:
            assert sample.prompt.startswith(HOSTILE)
            assert sample.right in {row["completion"] for row in rows(client)}
            assert set(sample.answers) == {"base", "shared", "personal", "local_only"}
    text = Result.open(files / "run").report(files / "page.html").read_text()
    assert "&lt;script&gt;\\x07" in text
    ElementTree.fromstring(text)  # no control character, no tag of a model's making
    for word in ("exact_match, %", "test_metrics:same_length, %", "perplexity", "rouge_l, %"):
        assert f"<th>{word}</th>" in text


def test_eval_measures_as_the_run_did(run: Summary, files: Path) -> None:
    partition = json.loads((files / "run" / "partition.json").read_text())
    row = Result.open(files / "run").clients["south"]
    own = [rows("south")[i - 20] for i in partition["south"]["test"]]
    adapter = capfl.load(files / "run" / "adapters" / "clients" / "south")
    said = adapter.score(own, ["perplexity", same_length], generated=2, max_new_tokens=4)
    assert (said["items"], said["generated"]) == (row.n_test, 2)
    assert said["metrics"]["perplexity"] == pytest.approx(row.value("personal", "perplexity"), rel=1e-5)
    assert said["base"]["perplexity"] == pytest.approx(row.value("base", "perplexity"), rel=1e-5)
    assert 0 <= said["metrics"][metrics.name_of(same_length)] <= 1


def test_a_site_calls_only_functions_that_it_has_allowed(files: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "out", **settings(files))
    with pytest.raises(
        ConfigError, match=r"would call test_metrics:same_length here.*--set runtime.own_metrics=test_me"
    ):
        Site(config, "north", tmp_path / "north")
    assert not (tmp_path / "north").exists()
    allowed = tiny_config(tmp_path / "out", **settings(files, runtime__own_metrics=["test_metrics:same_length"]))
    with Site(allowed, "north", tmp_path / "north") as site:
        assert site.agreements["fedit"].metrics == SCORED


def test_data_that_no_metric_measures_are_refused_before_anything_is_loaded(files: Path) -> None:
    with pytest.raises(DataError, match=r"client 'north' has completions, which no metric .*= accuracy measures"):
        tiny_run(files / "refused", **settings(files, evaluation__metrics=["accuracy"]))
    with pytest.raises(ConfigError, match="there is no function nowhere:f"):
        tiny_run(files / "refused", **settings(files, evaluation__metrics=["nowhere:f"]))
    assert not (files / "refused").exists()
    items = [Item("a", ("x", "y")), Item("b", completion="c")]
    check_tasks(items, {"one": Split([0], [], []), "two": Split([1], [], [])}, metrics.DEFAULTS)
    with pytest.raises(DataError, match="make two clients of them"):
        check_tasks(items, {"one": Split([0], [], [1])}, metrics.DEFAULTS)


def test_samples_of_a_client_with_a_key_are_encrypted(tmp_path: Path) -> None:
    vault = Vault(bytes(32))
    for names, model in ((OF_MAIN, "base"), (OF_LOCAL, "personal"), (OF_MAIN, "base")):
        Samples(tmp_path / "samples" / "a.jsonl", names, vault).add(model, [("?", "!", f"{model} says")])
    blob = (tmp_path / "samples" / "a.jsonl").read_bytes()
    assert b"says" not in blob
    assert json.loads(vault.unlock(blob, tmp_path / "samples" / "a.jsonl")) == {
        "prompt": "?", "right": "!", "answers": {"base": "base says", "local_only": "personal says"},
    }  # fmt: skip
    assert read_samples(tmp_path) == {}


# -- when a run ends -------------------------------------------------------------------------------------


def records(*losses: float | None) -> list[RoundRecord]:
    plain = RoundRecord(0, (), {}, {}, (), (), 0.0)
    return [
        replace(plain, round=n, validation={"perplexity": 1.0}, validation_loss=loss)
        for n, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ((3.0, 2.0, 2.1), False),
        ((3.0, 2.0, 2.1, 2.2), True),
        ((3.0, 2.0, 2.0, 2.0), True),  # as low is not lower
        ((3.0, 2.0, 2.1, 1.9), False),
        ((float("nan"), 3.0, 2.0), False),
        ((2.0, float("nan"), float("nan")), True),
        ((3.0, 2.0, 2.1, 2.2, 2.3), False),  # it was the last round anyway
    ],
)
def test_a_run_waits_for_a_lower_loss(losses: tuple[float, ...], ends: bool) -> None:
    config = load_config(None, {"evaluation.patience": 2, "federation.rounds": 5})
    said = why_stopped(records(*losses), config)
    assert (said is not None) is ends
    if said:
        assert "and evaluation.patience is 2" in said
    assert why_stopped(records(*losses), load_config(None, {"federation.rounds": 5})) is None


def test_losses_of_two_tasks_have_no_mean_to_wait_for() -> None:
    config = load_config(None, {"evaluation.patience": 2})
    with pytest.raises(DataError, match="their losses cannot be averaged"):
        why_stopped(records(2.0, None), config)


def test_a_run_that_gains_nothing_ends_and_its_reference_with_it(tmp_path: Path) -> None:
    made = tiny_run(tmp_path / "run", federation__rounds=6, evaluation__patience=1, evaluation__references=["local"],
                    train__learning_rate=5.0, evaluation__personal=False)  # fmt: skip
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    alone = (tmp_path / "run" / "references" / "local" / "rounds.jsonl").read_text().splitlines()
    losses = [record["validation_loss"] for record in rounds]
    assert 2 <= len(rounds) == len(alone) == made.rounds < 6
    assert losses[-1] >= losses[-2] == min(losses)
    assert made.stopped is not None
    assert Result.open(tmp_path / "run").summary.stopped == made.stopped
    again, _ = resume(tmp_path / "run", serial)  # it does not go on to the sixth round
    assert (again.rows, again.stopped, again.rounds) == (made.rows, made.stopped, made.rounds)
    with pytest.raises(ConfigError, match=r"evaluation.patience: local shares no adapter"):
        tiny_run(tmp_path / "two", method__name="local", evaluation__patience=1)
