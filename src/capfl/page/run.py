"""The page of one run, from its folder: summary.json, rounds.jsonl, config.toml and run.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from capfl.checkpoint import RunFolder
from capfl.compare.statistics import clearly_worse
from capfl.config import load_config
from capfl.page import charts, parts
from capfl.page.parts import MODELS, Figure, Table
from capfl.report.ledger import Ledger, read_ledger
from capfl.report.tables import percent, size
from capfl.types import RoundRecord


def run_page(path: Path) -> dict[str, Any]:
    """What the template shows.

    Raises:
        CheckpointError: a file is missing or damaged, or the files do not agree.
    """
    folder = RunFolder(path)
    summary, made = folder.read_json("summary.json"), folder.read_json("run.json")
    config = load_config(path / "config.toml")
    records, ledger = folder.rounds(), read_ledger(path)
    clients: list[dict[str, Any]] = summary["clients"]
    figures = [parts.client_bars(clients), *_curves(records, summary), parts.rank_map(clients, config.lora.rank)]
    up, down = (ledger.parts(direction) for direction in ("up", "down"))
    note = f"{ledger.rounds} rounds and the final evaluation, all clients, headers included."
    return {
        "title": f"{summary['method']} on {', '.join(Path(name).stem for name in config.data.sets)}",
        "subtitle": f"{config.model.path}, {config.partition.kind}, seed {config.seed}",
        "words": words(summary),
        "table": client_table(summary),
        "caption": caption(summary),
        "figures": [figure for figure in figures if figure],
        "ledger": parts.ledger_figure([("up", up), ("down", down)], "Bytes by part", note),
        "ledger_table": parts.ledger_table(up, down),
        "messages": _messages(ledger),
        "command": parts.command(config),
        "config": (path / "config.toml").read_text(encoding="utf-8"),
        "machine": parts.machine(made),
    }


def words(summary: Mapping[str, Any]) -> list[str]:
    """What came out, in sentences."""
    clients, models = summary["clients"], summary["models"]
    what = "of the answers are right" if summary["metric"] == "accuracy" else "of the answer tokens are predicted"
    found = [model for model in ("personal", "global", "local_only", "base") if models[model]]
    shares = [f"{percent(models[model]['mean'])} %" for model in found]
    shares[0] += f" {what}"
    each = ", ".join(f"{share} with the {MODELS[model]} model" for share, model in zip(shares, found, strict=True))
    level = f"; chance is {percent(summary['chance'])} %" if summary["chance"] is not None else ""
    texts = [
        f"{len(clients)} clients trained for {summary['rounds']} rounds with {summary['method']}. On their own test "
        f"items, in the mean over clients, {each}{level}.",
    ]
    best = found[0]
    worst = min(clients, key=lambda row: row[best])
    texts.append(
        f"The {MODELS[best]} model is worst at {parts.spoken(worst['id'])}, with {percent(worst[best])} %. "
        f"Which items the clients were tested on makes a difference of ± {percent(models[best]['ci95'])} points "
        "(95 %); what another seed would change is not in that."
    )
    if models["local_only"] and best != "local_only":
        better = sum(row[best] > row["local_only"] for row in clients)
        worse = sum(row[best] < row["local_only"] for row in clients)
        clearly = sum(clearly_worse(row[best], row["local_only"], row["n_test"]) for row in clients)
        apart = models[best]["mean"] - models["local_only"]["mean"]
        texts.append(
            f"Against training alone that is {parts.points(apart)} points: {better} clients are better off, "
            f"{worse} worse, {clearly} of them clearly (by more than 1.96 standard errors)."
        )
    total = summary["bytes"]
    up, down = (size(total[d] / len(clients) / summary["rounds"]) for d in ("up", "down"))
    texts.append(
        f"A client sent {up} and received {down} a round, {size(total['total'])} in all for everyone. "
        f"It took {parts.duration(summary['seconds'])}."
        + (f" {summary['failures']} replies failed." if summary["failures"] else "")
    )
    if privacy := summary.get("privacy"):  # the folders of older runs have none
        texts.append(
            f"What a client's changes add to the global adapter is private to epsilon {privacy['epsilon']:.3g} at "
            f"delta {privacy['delta']:g}; losses, counts and the clients' own models are not covered."
        )
    return texts


def client_table(summary: Mapping[str, Any]) -> Table:
    clients, statistics = summary["clients"], summary["models"]
    models = [model for model in (*MODELS, "centralised") if statistics[model]]
    heads = ["client", "train", "test", *(MODELS.get(model, model) for model in models), "rank", "up", "down"]
    rows = [
        [parts.spoken(row["id"]), str(row["n_train"]), str(row["n_test"]), *(percent(row[m]) for m in models),
         f"{row['rank']:.3g}", size(row["bytes_up"]), size(row["bytes_down"])]
        for row in clients
    ]  # fmt: skip
    total = summary["bytes"]
    counts = [str(sum(row[key] for row in clients)) for key in ("n_train", "n_test")]
    rank = f"{fmean(row['rank'] for row in clients):.3g}"
    foot = [["mean", *counts, *(percent(statistics[m]["mean"]) for m in models), rank,
             size(total["up"]), size(total["down"])]]  # fmt: skip
    for name, key in (("± 95 %", "ci95"), ("worst", "worst"), ("spread", "spread")):
        foot.append([name, "", "", *(percent(statistics[m][key]) for m in models), "", "", ""])
    return Table(heads, rows, foot)


def caption(summary: Mapping[str, Any]) -> str:
    metric = "Accuracy" if summary["metric"] == "accuracy" else "Share of answer tokens predicted"
    return (
        f"{metric} on each client's own test items, %. ± comes from the choice of test items alone; spread is the "
        "standard deviation over clients; train and test are items; up and down are bytes of the whole run, of all "
        "clients in the line of means."
    )


def _curves(records: Sequence[RoundRecord], summary: Mapping[str, Any]) -> list[Figure]:
    figures = []
    levels = {"chance": 100 * summary["chance"]} if summary["chance"] is not None else {}
    spent, n = 0, len(summary["clients"])
    validated: list[tuple[int, float, float]] = []
    for record in records:
        spent += record.bytes_up + record.bytes_down
        if record.validation_accuracy is not None:
            validated.append((record.round, spent / n, 100 * record.validation_accuracy))
    note = "Validation items of all clients, global model."
    if validated:
        line = charts.Series("global model", [(b, a) for _, b, a in validated], css="m-global")
        image = charts.curves([line], "bytes for each client, both directions", "Accuracy against bytes", levels)
        figures.append(Figure("Accuracy against bytes, %", image, note=note))
        line = charts.Series("global model", [(r, a) for r, _, a in validated], css="m-global")
        image = charts.curves([line], "round", "Accuracy over rounds", levels)
        figures.append(Figure("Accuracy over rounds, %", image, note=note))
    trained = [record for record in records if record.losses]
    if trained:
        line = charts.Series(
            "mean over clients",
            [(record.round, record.loss) for record in trained],
            [(min(record.losses.values()), max(record.losses.values())) for record in trained],
        )
        note = "Mean over the clients of a round; the band goes from the lowest to the highest."
        image = charts.curves([line], "round", "Training loss over rounds")
        figures.append(Figure("Training loss, nats a token", image, note=note))
    both = [
        charts.Series("up", [(r.round, r.bytes_up) for r in records]),
        charts.Series("down", [(r.round, r.bytes_down) for r in records], css="s1"),
    ]
    image = charts.curves(both, "round", "Bytes of each round")
    figures.append(Figure("Bytes of each round, all clients", image, parts.legend(["up", "down"])))
    ranked = [record for record in records if record.ranks]
    if ranked:
        means = [[fmean(ranks) for ranks in record.ranks.values()] for record in ranked]
        line = charts.Series(
            "mean over clients",
            [(record.round, fmean(own)) for record, own in zip(ranked, means, strict=True)],
            [(min(own), max(own)) for own in means],
        )
        image = charts.curves([line], "round", "Mean rank over rounds")
        note = "Mean over modules and clients; the band goes from the client with the lowest mean to the highest."
        figures.append(Figure("Ranks over rounds", image, note=note))
    return figures


def _messages(ledger: Ledger) -> Table:
    rows = []
    for client in [*ledger.clients, None]:
        cells = []
        for direction in ("up", "down"):
            own = ledger.messages(direction, client)
            cells += [str(len(own)), size(sum(e.bytes for e in own)), size(ledger.per_round(direction, client))]
        rows.append(["all" if client is None else parts.spoken(client), *cells])
    heads = ["client", "messages up", "bytes", "a round", "messages down", "bytes", "a round"]
    return Table(heads, rows[:-1], rows[-1:])
