"""What joining is worth to every client: methods and ablations against training alone, on four splits.

    python benchmarks/personal.py run  --data-dir DIR --out FOLDER [--splits NAME ...] [--only VARIANT ...]
                                       [--seeds 0 1 2] [--processes 1]
    python benchmarks/personal.py show FOLDER [--json FILE]

``run`` makes a run folder for each split, variant and seed of ``benchmarks/personal.toml``; what was interrupted goes
on, what is finished stays. ``show`` prints, for each split, accuracies on the clients' own test items (mean over
clients, then mean ± sd over seeds), the personal model's difference from local-only, paired by seed, with its 95 %
interval (t over seeds), the share of clients whose personal model is worse than their local-only one beyond what their
test items can tell (a difference of more than 1.96 standard errors), the mean loss of all that are worse, and bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from seeds import T_95

SPEC = Path(__file__).with_suffix(".toml")
LOCAL = "local"


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data-dir", type=Path, required=True)
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--splits", nargs="*")
    run.add_argument("--only", nargs="*")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--processes", type=int, default=1, help="runs at once, each with one core")
    show = commands.add_parser("show")
    show.add_argument("folder", type=Path)
    show.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        run_all(options)
    else:
        show_all(options)


def run_all(options: argparse.Namespace) -> None:
    spec = tomllib.loads(SPEC.read_text())
    tasks = [
        (split, variant, seed)
        for seed in options.seeds
        for split in options.splits or spec["splits"]
        for variant in options.only or spec["variants"]
    ]

    def one(task: tuple[str, str, int]) -> None:
        split, variant, seed = task
        folder = options.out / f"{split}.{variant}.{seed}"
        if (folder / "summary.json").is_file():
            return
        if (folder / "config.toml").is_file():
            arguments = ["--resume", str(folder)]
        else:
            chosen = {key: value for key, value in spec["splits"][split].items() if key not in ("about", "domains")}
            data = with_domains(options.data_dir, spec["splits"][split].get("domains"), options.out / "data" / split)
            changes = spec["common"] | chosen | spec["variants"][variant]
            changes |= {"data.dir": data, "seed": seed, "out": folder}
            arguments = [str(SPEC.parent / spec["base"])]
            arguments += [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
        options.out.mkdir(parents=True, exist_ok=True)
        with (options.out / f"{folder.name}.log").open("a") as output:
            done = subprocess.run([sys.executable, "-m", "capfl.cli", "run", *arguments], stdout=output, stderr=output)
        print(*task, "done" if done.returncode == 0 else f"FAILED, see {folder}.log", flush=True)

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(one, tasks))


def with_domains(data: Path, domains: list[str] | None, out: Path) -> Path:
    """A data folder whose CLINC150 has these domains alone."""
    if domains is None:
        return data
    rows = [line for line in (data / "clinc150" / "train.jsonl").read_text().splitlines()
            if json.loads(line)["domain"] in domains]  # fmt: skip
    (out / "clinc150").mkdir(parents=True, exist_ok=True)
    (out / "clinc150" / "train.jsonl").write_text("\n".join(rows) + "\n")
    return out


def read(folder: Path) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """What is finished: split -> variant -> seed -> summary."""
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for path in sorted(folder.glob("*/summary.json")):
        split, variant, seed = path.parent.name.split(".")
        found.setdefault(split, {}).setdefault(variant, {})[int(seed)] = json.loads(path.read_text())
    return found


def show_all(options: argparse.Namespace) -> None:
    spec = tomllib.loads(SPEC.read_text())
    rows = []
    for split, variants in read(options.folder).items():
        print(f"\n{split}: {spec['splits'][split]['about']}\n")
        print("| variant | seeds | global, % | personal, % | worst client, % | against local only | "
              "clients worse off | by, points | rank | kB per client |")  # fmt: skip
        print("|" + "---|" * 10)
        for variant in [name for name in spec["variants"] if name in variants]:
            row = summed_up(variants[variant], variants.get(LOCAL, {})) | {"split": split, "variant": variant}
            rows.append(row)
            print("| " + " | ".join([
                variant, ", ".join(map(str, row["seeds"])), spread(row["global"]), spread(row["personal"]),
                spread(row["worst"]), interval(row["difference"]), percent(row["worse_off"]), number(row["loss"]),
                spread(row["rank"]), f"{row['bytes'] / 1e3:.0f}",
            ]) + " |")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def summed_up(seeds: dict[int, dict[str, Any]], alone: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """One variant over its seeds, against local-only on the same seeds. Accuracies in percent."""
    runs = [seeds[s] for s in sorted(seeds)]
    both = [s for s in sorted(seeds) if s in alone]
    pairs = [
        (100 * mine["personal"], 100 * theirs["personal"], mine["n_test"])
        for s in both
        for mine, theirs in zip(seeds[s]["clients"], alone[s]["clients"], strict=True)
    ]
    apart = [mean_of(seeds[s], "personal") - mean_of(alone[s], "personal") for s in both]
    losses = [b - a for a, b, _ in pairs if a < b]
    return {
        "seeds": sorted(seeds),
        "global": [mean_of(run, "global") for run in runs if run["clients"][0]["global"] is not None],
        "personal": [mean_of(run, "personal") for run in runs],
        "worst": [100 * min(row["personal"] for row in run["clients"]) for run in runs],
        "difference": with_interval(apart),
        "worse_off": statistics.fmean(clearly_worse(*pair) for pair in pairs) if pairs else None,
        "loss": statistics.fmean(losses) if losses else 0.0 if pairs else None,
        "rank": [statistics.fmean(row["rank"] for row in run["clients"]) for run in runs],
        "bytes": statistics.fmean(run["bytes"]["total"] / len(run["clients"]) for run in runs),
    }


def mean_of(run: dict[str, Any], model: str) -> float:
    return 100 * statistics.fmean(row[model] for row in run["clients"])


def clearly_worse(mine: float, alone: float, n_test: int) -> bool:
    """By more than 1.96 standard errors of a difference of two accuracies on ``n_test`` items, in percent."""
    error = math.sqrt((mine * (100 - mine) + alone * (100 - alone)) / n_test)
    return alone - mine > 1.96 * error


def with_interval(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = {"mean": statistics.fmean(values)}
    if len(values) > 1:
        half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
        found |= {"low": found["mean"] - half, "high": found["mean"] + half}
    return found


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def interval(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['mean']:+.1f}" + (f" ({found['low']:+.1f} to {found['high']:+.1f})" if "low" in found else "")


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
