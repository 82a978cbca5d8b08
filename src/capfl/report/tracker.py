"""Numbers of a run for a tracker of experiments while it goes on: TensorBoard, MLflow, Weights & Biases or Trackio.

None of them is a dependency: the package is imported when its tracker is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from capfl.config import Config
from capfl.config.keys import flat
from capfl.errors import ConfigError
from capfl.report.progress import Reporter
from capfl.report.summary import MODELS, Summary
from capfl.types import ClientId, RoundRecord


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


Open = Callable[[Any, Path, dict[str, str]], Tracker]
"""(the package, run folder, config by dotted key) -> a tracker that has begun a run."""


class _TensorBoard:
    """Event files in RUN/tensorboard: tensorboard --logdir RUN."""

    def __init__(self, package: Any, path: Path, config: dict[str, str]) -> None:
        self._writer = package.SummaryWriter(log_dir=str(path / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {key} = {value}" for key, value in config.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """A run of the experiment `capfl`; where, MLflow's own settings say (MLFLOW_TRACKING_URI)."""

    def __init__(self, package: Any, path: Path, config: dict[str, str]) -> None:
        self._mlflow = package
        package.set_experiment("capfl")
        package.start_run(run_name=path.name)
        package.log_params(config)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _Wandb:
    """A run of the project `capfl`. Its x is the round: references count theirs from 1 again."""

    def __init__(self, package: Any, path: Path, config: dict[str, str]) -> None:
        self._run = package.init(project="capfl", name=path.name, dir=str(path), config=config)
        self._run.define_metric("*", step_metric="round")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "round": step})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of the project `capfl` in Trackio's local store."""

    def __init__(self, package: Any, path: Path, config: dict[str, str]) -> None:
        self._trackio = package
        package.init(project="capfl", name=path.name, config=config)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        self._trackio.finish()


TRACKERS: dict[str, tuple[str, Open]] = {  # name, which is the package's too -> module, how it begins
    "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
    "mlflow": ("mlflow", _MLflow),
    "wandb": ("wandb", _Wandb),
    "trackio": ("trackio", _Trackio),
}


class Tracked:
    """A reporter that passes everything on to another, and the numbers to a tracker as well."""

    def __init__(self, reporter: Reporter, package: Any, open: Open) -> None:
        self._reporter, self._package, self._open = reporter, package, open
        self._tracker: Tracker | None = None
        self._method = ""

    def begin(self, path: Path, config: Config) -> None:
        self._reporter.begin(path, config)
        known = {key: str(value) for key, value in flat(config.model_dump(mode="json"))}
        self._tracker = self._open(self._package, path, known)

    def note(self, text: str) -> None:
        self._reporter.note(text)

    def start(self, method: str, rounds: int, done: int, visits: int) -> None:
        self._method = method
        self._reporter.start(method, rounds, done, visits)

    def client(self, client: ClientId, loss: float) -> None:
        self._reporter.client(client, loss)

    def round(self, record: RoundRecord) -> None:
        self._reporter.round(record)
        self._log({f"{self._method}/{name}": value for name, value in round_values(record).items()}, record.round)

    def finish(self, summary: Summary) -> None:
        self._reporter.finish(summary)
        self._log(summary_values(summary), summary.rounds)

    def close(self) -> None:
        if self._tracker:
            self._tracker.close()

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if self._tracker:
            self._tracker.log(values, step)


def round_values(record: RoundRecord) -> dict[str, float]:
    """Numbers of a round: losses in nats a token, bytes of all clients, seconds; validation and ranks if known."""
    values: dict[str, float | None] = {
        "loss": record.loss if record.losses else None,
        "validation_accuracy": record.validation_accuracy,
        "validation_loss": record.validation_loss,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "clients": len(record.clients),
        "failures": len(record.failures),
        "epsilon": record.epsilon,
        "rank": fmean(rank for own in record.ranks.values() for rank in own) if record.ranks else None,
        "seconds": record.seconds,
    }
    return {name: value for name, value in values.items() if value is not None}


def summary_values(summary: Summary) -> dict[str, float]:
    """Mean, worst client and spread of every model on the clients' test items, and the bytes of the whole run."""
    values: dict[str, float] = {f"bytes/{d}": summary.total_bytes(d) for d in ("up", "down")}
    for model in MODELS:
        for name, value in (summary.statistics(model) or {}).items():
            if name in ("mean", "worst", "spread"):
                values[f"test/{model}/{name}"] = value
    return values


@contextmanager
def tracking(reporter: Reporter, name: str | None) -> Iterator[Reporter]:
    """The reporter, with a tracker beside it if one is named. The tracker's run is ended, whatever happens.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    if name is None:
        yield reporter
        return
    if name not in TRACKERS:
        raise ConfigError(f"--tracker {name}: choose from {', '.join(TRACKERS)}")
    module, open = TRACKERS[name]
    try:
        package = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"--tracker {name}: cannot import it ({error}); install it with: pip install {name}"
        ) from error
    tracked = Tracked(reporter, package, open)
    try:
        yield tracked
    finally:
        tracked.close()
