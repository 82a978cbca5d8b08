"""Negative control: what the public CA-PFL code does, on the data of ``benchmarks/methods.toml``.

    python benchmarks/public_code.py --data-dir DIR --out FILE [--splits peers ...] [--seeds 0 1 2]

Written from what that code was seen to do (YanDang/CA-PFL as of 2026-01-20), not from its text. In a round

- the clients train one after the other on one and the same model, each from where the one before has left it;
- kappa is a draw from Gamma(1, 1), where its posterior stays because its learning rate is next to none; the modulator
  is in no loss, and is left out here because it would change nothing;
- of every column, all tensors B keep the share of values that kappa of the *first* layer gives, and of every row all
  tensors A the share of the *last* layer's, within [0.25, 0.5] by minimum and maximum; the rest goes to a residual;
- the server adds the mean of the sparse changes *on top of* the model that has been trained already.

What is left is dense training on the clients in turn. The paper's proximal term stays out: it holds the model to a
reference that is the model itself. Accuracies are those of the one model on every client's own test items, before and
after six local steps. Bytes are 12 for each value sent (float32 and a 64-bit index) and 4 for each received.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from capfl import adapter as algebra
from capfl.compare.runs import kept_rows
from capfl.compare.spec import make_plan
from capfl.config import Config, to_toml
from capfl.config.load import from_toml
from capfl.data import deal
from capfl.federation import Federation
from capfl.methods import build
from capfl.model.base import load_base
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.rng import torch_stream
from capfl.types import Adapter, ClientId

SPEC = Path(__file__).with_name("methods.toml")
LEAST, SPAN = 0.25, 0.25  # of a column's or row's values: hard-coded there
BYTES_SENT, BYTES_RECEIVED = 12, 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--splits", nargs="+", default=["peers"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    rows = json.loads(options.out.read_text()) if options.out.is_file() else []
    plan = make_plan(SPEC, options.splits, ["fedit"], options.seeds, options.data_dir)
    for cell in plan.cells:
        if any((row["split"], row["seed"]) == (cell.split, cell.seed) for row in rows):
            continue
        with tempfile.TemporaryDirectory() as place:
            kept = kept_rows(plan, cell, Path(place))
            config = from_toml(to_toml(cell.config), {"data.dir": str(kept)} if kept else {})
            rows.append({"split": cell.split, "seed": cell.seed, **run(config)})
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
        print({key: value for key, value in rows[-1].items() if key != "clients"}, flush=True)


def run(config: Config) -> dict[str, Any]:
    torch.set_num_threads(config.runtime.threads or 1)
    items, splits = deal(config.data, config.partition, config.seed)
    model = AdaptedModel(load_base(config.model), config.lora)
    with HiddenCache(int(config.runtime.cache_gib * 2**30)) as cache:
        federation = Federation(config, items, splits, model, cache)
        return chained(federation, model.initial_adapter(config.seed))


def chained(federation: Federation, shared: Adapter) -> dict[str, Any]:
    """All rounds, and the model on every client's test items."""
    config, method = federation.config, build(federation.config.method)
    steps: dict[ClientId, int] = dict.fromkeys(federation.clients, 0)
    residuals: dict[ClientId, Adapter] = {}
    sent = received = 0

    def trained(client: ClientId, round: int) -> Adapter:
        return federation.site(client, method).train(shared, round, steps[client], None).adapter

    for round in range(1, config.federation.rounds + 1):
        mean = algebra.Mean()
        for client in federation.clients:
            before, shared = shared, trained(client, round)
            steps[client] += federation.steps(client)
            change = algebra.add(algebra.subtract(shared, before), residuals.get(client, {}))
            with torch_stream(config.seed, "kappa", client, round):
                sparse = thinned(change)
            residuals[client] = algebra.subtract(change, sparse)
            mean.add(sparse, len(federation.splits[client].train))
            sent += BYTES_SENT * sum(int(t.count_nonzero()) for t in sparse.values())
            received += BYTES_RECEIVED * sum(t.numel() for t in shared.values())
        shared = algebra.add(shared, mean.value())

    last = config.federation.rounds + 1
    clients = [
        {"id": client, "global": federation.score(client, "test", shared).metrics["accuracy"].mean,
         "personal": federation.score(client, "test", trained(client, last)).metrics["accuracy"].mean}
        for client in federation.clients
    ]  # fmt: skip
    n = len(clients)
    return {
        "global": 100 * statistics.fmean(row["global"] for row in clients),
        "personal": 100 * statistics.fmean(row["personal"] for row in clients),
        "worst": 100 * min(row["personal"] for row in clients),
        "bytes_per_client": (sent + received) / n,
        "clients": clients,
    }


def thinned(change: Adapter) -> Adapter:
    """The largest of every column of B by the first layer's kappa, of every row of A by one over the last layer's."""
    modules = list(algebra.factors(change))
    first, last = (
        torch.distributions.Exponential(1.0).sample((len(down),)) for _, down, _ in (modules[0], modules[-1])
    )
    kept: Adapter = {}
    for module, down, up in modules:
        kept[f"{module}.A"] = largest(down, shares(1 / last, len(down)))
        kept[f"{module}.B"] = largest(up.T, shares(first, up.shape[1])).T.contiguous()
    return kept


def shares(importance: torch.Tensor, n: int) -> list[float]:
    spread = (importance - importance.min()) / (importance.max() - importance.min())
    return [LEAST + SPAN * float(x) for x in spread[:n]]


def largest(rows: torch.Tensor, shares: list[float]) -> torch.Tensor:
    """Of row i of (r, d) the ``shares[i]`` * d values of greatest magnitude; zero elsewhere."""
    kept = torch.zeros_like(rows)
    for row, share, out in zip(rows, shares, kept, strict=True):
        at = row.abs().topk(max(1, round(share * len(row)))).indices
        out[at] = row[at]
    return kept


if __name__ == "__main__":
    main()
