"""What the items of a client ask for, and whether a metric measures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from capfl.data.split import Split
from capfl.errors import DataError
from capfl.metrics import METRICS, of_task
from capfl.types import ClientId, Item


def check_tasks(items: Sequence[Item], splits: Mapping[ClientId, Split], names: Sequence[str]) -> None:
    """See that every client has items of one task, and that a metric measures it.

    Args:
        names: of the run's metrics.

    Raises:
        DataError: a client would be measured in two ways, whose mean says nothing, or in none.
    """
    for client, split in splits.items():
        tasks = sorted({items[i].task for i in split.all})
        if len(tasks) > 1:
            raise DataError(
                f"client {client!r} has rows with options and rows with completions, which are scored "
                "differently; make two clients of them"
            )
        for task in tasks:
            if not of_task(names, task):
                known = ", ".join(name for name, metric in METRICS.items() if metric.task == task)
                raise DataError(
                    f"client {client!r} has {task}, which no metric of evaluation.metrics = {', '.join(names)} "
                    f"measures; add one of {known}"
                )
