"""Samples of a client's test items, with what each of its models answers: a file on the client's own disk, never sent.

A line of the file is a JSON object with ``prompt``, ``right`` and ``answers``, by model as in summary.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from capfl.errors import CheckpointError
from capfl.files import write_atomically
from capfl.vault import MAGIC, Vault

FOLDER = "samples"
"""In a run folder, of the files ``CLIENT.jsonl``; at a site there is one file, ``samples.jsonl``."""

OF_MAIN = {"base": "base", "global": "shared", "personal": "personal"}
OF_LOCAL = {"personal": "local_only"}
"""What models are called in summary.json: of a run's method, and of the local-only reference beside it."""


@dataclass(frozen=True)
class Sample:
    """A test item: its prompt, the right answer, and what models answered, by name."""

    prompt: str
    right: str
    answers: Mapping[str, str]


class Samples:
    """The file of one client, to which each method of a run adds what its models answer.

    Args:
        names: of models, as a client says them -> as they are called in summary.json.
        vault: encrypts the file.
    """

    def __init__(self, path: Path, names: Mapping[str, str], vault: Vault) -> None:
        self.path, self._names, self._vault = path, names, vault

    def add(self, model: str, texts: Sequence[tuple[str, str, str]]) -> None:
        """Keep a model's answers: (prompt, right answer, answer) each. The same items' other answers stay.

        Raises:
            CheckpointError: the file cannot be read or written.
        """
        before = {(sample.prompt, sample.right): sample.answers for sample in self._read()}
        name = self._names[model]
        made = [Sample(p, right, {**before.get((p, right), {}), name: answer}) for p, right, answer in texts]
        lines = "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in made)
        write_atomically(self.path, self._vault.lock(lines.encode(), self.path))

    def _read(self) -> list[Sample]:
        if not self.path.is_file():
            return []
        return _parsed(self._vault.unlock(self.path.read_bytes(), self.path), self.path)


def read_samples(folder: Path) -> dict[str, list[Sample]]:
    """The samples in a run folder by client, of files that are not encrypted.

    Raises:
        CheckpointError: a file is damaged.
    """
    blobs = {path: path.read_bytes() for path in sorted((folder / FOLDER).glob("*.jsonl"))}
    return {path.stem: _parsed(blob, path) for path, blob in blobs.items() if not blob.startswith(MAGIC)}


def _parsed(blob: bytes, path: Path) -> list[Sample]:
    try:
        return [Sample(**json.loads(line)) for line in blob.decode().splitlines()]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; remove it, or restore it from a copy") from error
