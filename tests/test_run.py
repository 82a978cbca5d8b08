"""A whole run, from config to folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from capfl.checkpoint import ClientStore
from capfl.engines.serial import serial
from capfl.errors import ConfigError
from capfl.experiment import run
from capfl.roles import Agreement
from capfl.types import Exchange
from support import tiny_config, tiny_run


def bits(out: Path) -> dict[str, bytes]:
    """Everything a run computed: server state, client states, adapters. Not times, not versions."""
    kept = [p for p in sorted(out.rglob("*")) if p.is_file() and p.suffix not in (".json", ".jsonl", ".toml")]
    return {str(p.relative_to(out)): p.read_bytes() for p in kept}


def test_the_folder_holds_what_the_readme_promises(runs: Path) -> None:
    summary = tiny_run(runs, evaluation__references=["local", "centralised"])
    names = {str(p.relative_to(runs)) for p in runs.rglob("*")}
    assert {"config.toml", "run.json", "partition.json", "rounds.jsonl", "summary.json", "adapters/global"} <= names
    saved = json.loads((runs / "summary.json").read_text())
    assert saved == json.loads(json.dumps(summary.to_json()))
    assert [row["id"] for row in saved["clients"]] == ["bank", "hospital"] or len(saved["clients"]) == 2
    assert set(saved["clients"][0]) >= {
        "id", "n_train", "n_test", "base", "shared", "personal", "local_only", "centralised", "rank",
        "bytes_up", "bytes_down",
    }  # fmt: skip
    for row in saved["clients"]:
        assert (runs / "adapters" / "clients" / row["id"] / "adapter_model.safetensors").is_file()


def test_one_seed_gives_identical_bits_and_another_seed_does_not(runs: Path) -> None:
    tiny_run(runs / "a")
    tiny_run(runs / "b")
    tiny_run(runs / "c", seed=1)
    assert bits(runs / "a") == bits(runs / "b")
    assert (runs / "a/state/server").read_bytes() != (runs / "c/state/server").read_bytes()


def test_the_order_in_which_clients_are_visited_does_not_matter(runs: Path) -> None:
    def backwards(site, store: ClientStore, agreement: Agreement) -> Exchange:  # type: ignore[no-untyped-def]
        forwards = serial(site, store, agreement)
        return lambda kind, round, clients, request: iter(sorted(forwards(kind, round, clients[::-1], request)))

    tiny_run(runs / "a", data__sites=4)
    run(tiny_config(runs / "b", data__sites=4), backwards)
    assert bits(runs / "a") == bits(runs / "b")


def test_training_changes_the_global_adapter_and_the_ledger_counts_every_message(runs: Path) -> None:
    summary = tiny_run(runs)
    trained = load_file(runs / "adapters/global/adapter_model.safetensors")
    assert all(bool(t.any()) for name, t in trained.items() if "lora_B" in name)
    per_message = [e.bytes for e in summary.ledger]
    n_values = sum(t.numel() for t in trained.values())
    for entry in summary.ledger:
        assert sum(entry.parts.values()) == entry.bytes
        if entry.round == 1 and entry.direction == "down":  # everybody has what there is before the first round
            assert entry.bytes == 42 + len(entry.client)
        elif entry.round == 3 and entry.direction == "up":  # three scores, the test items, and a rank a module
            n_scores = 3 * 17 + 20 + 2 * len(trained) // 2
            assert entry.parts == {"header": 42 + len(entry.client) + 3 * 5, "scores": n_scores}
        else:  # four bytes a value; the few that are zero, or as they began, are not sent
            assert 0.95 * 4 * n_values < entry.parts["values"] <= 4 * n_values
            n_sections = 2 + (entry.direction == "down") + (entry.parts["positions"] > 0)
            assert entry.parts["header"] == 42 + len(entry.client) + 5 * n_sections + 1
    rounds = summary.to_json()["bytes"]["by_round"]
    assert [r["round"] for r in rounds] == [1, 2, 3]
    assert all(r["up"] > 0 for r in rounds)
    assert sum(r["up"] + r["down"] for r in rounds) == sum(per_message)
    # two clients, two rounds and the evaluation, both ways
    assert len(per_message) == 2 * 3 * 2


def test_a_folder_in_use_is_refused(runs: Path) -> None:
    tiny_run(runs)
    with pytest.raises(ConfigError, match="--resume"):
        tiny_run(runs)


def test_records_survive_json(runs: Path) -> None:
    from capfl.checkpoint import RunFolder

    tiny_run(runs)
    records = RunFolder(runs).rounds()
    assert [r.round for r in records] == [1, 2]
    assert records[0].validation_accuracy is not None
    lines = (runs / "rounds.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == json.loads(json.dumps(dataclasses.asdict(records[0])))


def test_the_client_does_not_touch_the_servers_tensors(runs: Path) -> None:
    seen = []

    def watching(site, store: ClientStore, agreement: Agreement) -> Exchange:  # type: ignore[no-untyped-def]
        forwards = serial(site, store, agreement)
        before = {name: t.clone() for name, t in agreement.initial.items()}

        def exchange(kind, round, clients, request):  # type: ignore[no-untyped-def]
            yield from forwards(kind, round, clients, request)
            seen.append(all(torch.equal(before[name], t) for name, t in agreement.initial.items()))

        return exchange

    run(tiny_config(runs), watching)
    assert seen == [True, True, True]  # two rounds and the evaluation


def test_a_client_without_peers_ends_where_training_alone_does(runs: Path) -> None:
    """To the bit, with all ranks: joining takes nothing from it."""
    shared = {"federation__rounds": 3, "evaluation__every": 0}
    alone = tiny_run(runs / "a", method__name="local", **shared)
    apart = {"method__name": "ca-pfl", "method__peer_distance": 1e-12, "method__budget": "uniform"}
    joined = tiny_run(runs / "b", codec__values="ternary", **apart, **shared)
    for row in alone.rows:
        mine, theirs = (load_file(runs / at / f"adapters/clients/{row.id}/adapter_model.safetensors") for at in "ba")
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [row.personal for row in joined.rows] == [row.personal for row in alone.rows]
    assert sum(row.bytes_up for row in joined.rows) > 1000
