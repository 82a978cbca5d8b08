"""A network for the tests of a file, and the serial run to which runs over it are compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from capfl.engines.serial import serial
from capfl.experiment import run
from sites import config_for, write_files


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file for each client."""
    return write_files(tmp_path_factory.mktemp("files") / "data")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, sites: dict[str, Path]) -> Iterator[object]:
    """A server and three nodes."""
    from deployment import Network

    made = Network(tmp_path_factory.mktemp("network"))
    try:
        made.start_server([*sites, "extra"])
        for client, path in sites.items():
            made.start_node(client, path)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def serially(tmp_path_factory: pytest.TempPathFactory, sites: dict[str, Path]) -> Path:
    """The folder of the serial run."""
    from deployment import SETTINGS

    out = tmp_path_factory.mktemp("serial") / "run"
    run(config_for(out, sites, **SETTINGS), serial)
    return out
