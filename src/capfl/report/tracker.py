"""The numbers of a run for a tracker of experiments, such as TensorBoard, MLflow or Trackio, through accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from capfl.config import Config
from capfl.config.keys import flat
from capfl.errors import ConfigError
from capfl.report.progress import Callback
from capfl.report.summary import Summary
from capfl.types import RoundRecord

PROJECT = "capfl"
RUN_NAME = {"mlflow": "run_name", "trackio": "name", "wandb": "name"}  # how a tracker is told the name of a run


class Tracked(Callback):
    """Passes the numbers of rounds and of the summary to a tracker of accelerate's.

    Steps are the run's rounds; those of the references follow those of the method, because some trackers take no step
    twice.
    """

    def __init__(self, name: str, tracker: Any) -> None:
        self._name, self._class = name, tracker
        self._tracker: Any = None
        self._method, self._rounds, self._before = "", 0, 0

    def on_begin(self, path: Path, config: Config) -> None:
        place = [str(path / self._name)] if self._class.requires_logging_directory else []
        words = {RUN_NAME[self._name]: path.name} if self._name in RUN_NAME else {}
        self._tracker = self._class(PROJECT, *place, **words)
        self._tracker.start()
        known = {key: str(value) for key, value in flat(config.model_dump(mode="json"))}
        self._tracker.store_init_configuration(known)

    def on_start(self, method: str, rounds: int, done: int, visits: int) -> None:
        self._before += self._rounds
        self._method, self._rounds = method, rounds

    def on_round(self, record: RoundRecord) -> None:
        values = {f"{self._method}/{name}": value for name, value in round_values(record).items()}
        self._log(values, self._before + record.round)

    def on_end(self, summary: Summary) -> None:
        self._log(summary_values(summary), self._before + self._rounds)

    def close(self) -> None:
        if self._tracker:
            self._tracker.finish()

    def _log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)


def round_values(record: RoundRecord) -> dict[str, float]:
    """Numbers of a round: losses in nats a token, bytes of all clients, seconds; validation and ranks if known."""
    values: dict[str, float | None] = {
        "loss": record.loss if record.losses else None,
        **{f"validation_{name}": value for name, value in record.validation.items()},
        "validation_loss": record.validation_loss,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "clients": len(record.clients),
        "failures": len(record.failures),
        "groups": len(set(record.groups.values())) if record.groups else None,
        "epsilon": record.epsilon,
        "rank": fmean(rank for own in record.ranks.values() for rank in own) if record.ranks else None,
        "seconds": record.seconds,
    }
    return {name: value for name, value in values.items() if value is not None}


def summary_values(summary: Summary) -> dict[str, float]:
    """``Summary.statistics`` of every model on the clients' test items, and the bytes of the whole run."""
    values: dict[str, float] = {f"bytes/{d}": summary.total_bytes(d) for d in ("up", "down")}
    for metric in summary.metrics:
        for model in summary.models:
            found = summary.statistics(model, metric) or {}
            values |= {f"test {metric}/{model}/{name}": value for name, value in found.items()}
    return values


@contextmanager
def tracking(name: str | None) -> Iterator[list[Callback]]:
    """A callback for the tracker that is named, or none. The tracker's run is ended, whatever happens.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    if name is None:
        yield []
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    if name not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"--tracker {name}: choose from {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
    if name in map(str, LoggerType) and name not in map(str, get_available_trackers()):
        raise ConfigError(f"--tracker {name}: its package is not installed; install it with: pip install {name}")
    tracked = Tracked(name, LOGGER_TYPE_TO_CLASS[name])
    try:
        yield [tracked]
    finally:
        tracked.close()
