"""The pure parts of the benchmarks: who a newcomer is, intervals, and what the negative control sends."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from capfl.types import Item


@pytest.fixture
def cold_start(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("cold_start")


@pytest.fixture
def public_code(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("public_code")


def test_newcomers_share_no_item(cold_start: ModuleType) -> None:
    items = [Item(f"question {i}", ("a", "b"), fields={"domain": "home"}) for i in range(300)]
    shares = cold_start.drawn(items, 0, 2)
    assert [(len(seen), len(held_back)) for seen, held_back in shares] == [(46, 100), (46, 100)]
    questions = [item.question for seen, held_back in shares for item in [*seen, *held_back]]
    assert len(set(questions)) == len(questions)
    assert cold_start.drawn(items, 0, 2) == shares != cold_start.drawn(items, 1, 2)
    assert [len(held_back) for _, held_back in cold_start.drawn(items[:110], 0, 2)] == [9, 9]  # too few of them


def test_an_interval_knows_that_newcomers_of_a_seed_go_together(cold_start: ModuleType) -> None:
    assert cold_start.bootstrap(np.full(6, 2.5), [0, 0, 1, 1, 2, 2]) == (2.5, 2.5, 2.5)
    apart = np.array([0.0, 0.0, 0.0, 6.0, 6.0, 6.0])
    assert cold_start.bootstrap(apart, [0, 0, 0, 1, 1, 1]) == (3.0, 0.0, 6.0)  # all is between seeds: 0, 3 or 6
    assert cold_start.bootstrap(apart, [0] * 6) == (3.0, 1.0, 5.0)  # all is within: six draws, sd 3 / sqrt(6)


def test_the_control_keeps_the_largest_and_spreads_shares_by_minimum_and_maximum(public_code: ModuleType) -> None:
    rows = torch.tensor([[1.0, -4.0, 2.0, 3.0], [5.0, 0.1, -0.2, 0.3]])
    assert public_code.largest(rows, [0.5, 0.25]).tolist() == [[0.0, -4.0, 0.0, 3.0], [5.0, 0.0, 0.0, 0.0]]
    assert public_code.shares(torch.tensor([2.0, 1.0, 3.0]), 3) == [0.375, 0.25, 0.5]
    close = public_code.shares(torch.tensor([1.0, 1.0 + 1e-6]), 2)  # however close: the defect that it shows
    assert close == [0.25, 0.5]


def test_the_control_gives_all_modules_the_shares_of_two(public_code: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {f"m.{layer}.{factor}": shape for layer in range(3) for factor, shape in (("A", (4, 64)), ("B", (64, 4)))}
    adapter = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.manual_seed(0)
    kept = public_code.thinned(adapter)
    down = [kept[f"m.{layer}.A"].count_nonzero(dim=1).tolist() for layer in range(3)]
    up = [kept[f"m.{layer}.B"].count_nonzero(dim=0).tolist() for layer in range(3)]
    assert down[0] == down[1] == down[2]
    assert up[0] == up[1] == up[2]
    assert (min(up[0]), max(up[0])) == (16, 32)
    assert all(bool(((t == 0) | (t == adapter[name])).all()) for name, t in kept.items())


@pytest.fixture
def flowertune(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("flowertune")


def test_a_later_round_is_the_median_of_all_but_the_first(flowertune: ModuleType) -> None:
    names = ("began", "ended", "cpu_before", "cpu_after", "down")
    rows = ((103, 112, 0, 8, 0), (112, 114, 8, 9, 30), (114, 118, 9, 12, 30), (118, 121, 12, 14, 60))
    rounds = [dict(zip(names, row, strict=True)) | {"up": 10, "loss": 2} for row in rows]
    assert flowertune.figures(rounds, 100.0) == {
        "start": 3, "first": 9, "later": 3, "first_cpu": 8, "later_cpu": 2, "up": 10, "down": 30, "train_loss": 2,
    }  # fmt: skip
    alone = flowertune.figures(rounds[:1], 100.0)
    assert (alone["first"], alone["later"], alone["later_cpu"]) == (9, 9, 8)


def test_ratios_are_of_amounts_and_not_of_losses(flowertune: ModuleType) -> None:
    amounts = {"start": 1, "first": 2, "later": 4, "first_cpu": 2, "later_cpu": 1, "memory": 50, "up": 0, "down": 20}
    other = {name: 3 * value for name, value in amounts.items()} | {"later": 20}
    losses = {"train_loss": 1.0, "validation_loss": 1.0}
    found = {"capfl": amounts | losses, "flowertune": other | losses}
    assert flowertune.ratios(found, "flowertune") == {
        "capfl": {"start": 3, "first": 3, "later": 5, "first_cpu": 3, "later_cpu": 3, "memory": 3, "down": 3}
    }
    assert flowertune.table({"capfl": amounts | losses}).splitlines()[2] == (
        "| capfl | 1.0 | 2.0 | 4.0 | 2.0 | 1.0 | 50 | 0 | 20 | 1.000 | 1.000 |"
    )


def test_whatever_is_not_capfl_is_compared_with_it_and_needs_no_other_contestants_packages(
    flowertune: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = flowertune.importlib.metadata.PackageNotFoundError
    installed = {"torch": "2", "nvflare": "2.9.0"}

    def version(name: str) -> str:
        if name in installed:
            return installed[name]
        raise missing

    monkeypatch.setattr(flowertune.importlib.metadata, "version", version)
    found = {name: dict.fromkeys(flowertune.COLUMNS, 1.0) for name in ("capfl", "capfl-dense", "nvflare")}
    kept = flowertune.result(found, {})
    assert {name: set(own) for name, own in kept["times_as_much"].items()} == {"nvflare": {"capfl", "capfl-dense"}}
    assert kept["versions"] == installed


def test_the_processor_seconds_are_of_the_process_that_is_named(flowertune: ModuleType) -> None:
    assert flowertune.Cpu()() == pytest.approx(flowertune.Cpu(os.getpid())(), abs=1)
    assert flowertune.Cpu(2**31 - 1)() == 0


def test_the_job_against_flowertune_is_the_same_for_all(flowertune: ModuleType, tmp_path: Path) -> None:
    from capfl.config.schema import ModelConfig
    from capfl.data import deal
    from capfl.model.base import load_base
    from capfl.model.lora import AdaptedModel
    from flowertune_job import Job, from_peft, to_peft

    job = Job(str(tmp_path), clients=3, steps=1, rows=8)
    job.write_rows()
    config = job.config()
    items, splits = deal(config.data, config.partition, 0)
    assert list(splits) == ["client-00", "client-01", "client-02"]
    assert [(len(s.train), len(s.validation), len(s.test)) for s in splits.values()] == [(8, 1, 1)] * 3
    assert len({item.question for item in items}) == 30
    base = load_base(ModelConfig(path="tiny"))
    start = job.start(base.module)
    ours = AdaptedModel(base, config.lora).initial_adapter(0)
    assert start.keys() == ours.keys()
    assert all(torch.equal(start[name], ours[name]) for name in ours)
    assert set(map(len, (start, to_peft(start)))) == {len(ours)}
    assert from_peft(to_peft(start)).keys() == ours.keys()
    assert all(name.startswith("base_model.model.") and ".lora_" in name for name in to_peft(start))
