"""What training has taken of a site's protected items: a file in the folder that the site has for a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from capfl.errors import CheckpointError
from capfl.files import write_atomically

TAKEN = "privacy.json"


@dataclass(frozen=True)
class Taken:
    """How often a site has taken the steps of a round, and the epsilon of its items that they come to."""

    trainings: int = 0
    epsilon: float = 0.0


def read_taken(folder: Path) -> Taken:
    """What has been taken in a run's folder; nothing where the file is missing.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / TAKEN
    if not path.is_file():
        return Taken()
    try:
        found = json.loads(path.read_text())
        taken = Taken(int(found["trainings"]), float(found["epsilon"]))
        if taken.trainings >= 0 and taken.epsilon >= 0:  # which is not so of what is no number
            return taken
    except (OSError, ValueError, OverflowError, KeyError, TypeError):
        pass
    raise CheckpointError(
        f"{path} is damaged: it says how often this site has trained, which epsilon is counted from; restore it"
    )


def write_taken(folder: Path, taken: Taken) -> None:
    """Raises CheckpointError: it cannot be written."""
    write_atomically(folder / TAKEN, json.dumps(asdict(taken)).encode())
