"""Runs on a link: submitted, followed and stopped from the link's own machine."""

from __future__ import annotations

import importlib.resources
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tomli_w

from capfl.config import Config, to_toml
from capfl.engines.flower.connection import Connection, LinkError
from capfl.engines.flower.delivery import Patience
from capfl.engines.flower.processes import environment

PAUSE = 2.0  # seconds between two looks at a run
LOST = 300.0  # seconds for which a link may be away while a run is followed
FLOWERS_OWN = re.compile(r"^(\x1b\[\d+m)?(INFO|DEBUG)\b|^Using SuperLink: |^Successfully installed ")  # in a run's log

Say = Callable[[str], None]


def submit(link: Connection, config: Config, again: bool, patience: Patience) -> int:
    """Start a run, or go on with one, and return Flower's number for it.

    Raises:
        LinkError: the link does not take it.
    """
    given = {"config": to_toml(config), "resume": again, "answer": patience.answer, "node": patience.node}
    app = importlib.resources.files("capfl.engines.flower") / "bundle"
    with tempfile.TemporaryDirectory() as folder, importlib.resources.as_file(app) as path:
        settings = Path(folder) / "run.toml"
        settings.write_bytes(tomli_w.dumps(given).encode())
        answer = link.ask("run", str(path), f"--run-config={settings}")
    return int(answer["run-id"])


def follow(link: Connection, number: int, say: Say) -> bool:
    """Say what a run says until it ends. Has it succeeded?

    Raises:
        LinkError: the link was away for too long, or does not know the run.
    """
    said, since = 0, time.monotonic()
    while True:
        said += _listen(link, number, say, said)
        try:
            (run,) = link.ask("list", f"--run-id={number}")["runs"]
        except LinkError:
            if time.monotonic() - since > LOST:
                raise
        else:
            since = time.monotonic()
            if str(run["status"]).startswith("finished"):
                _listen(link, number, say, said)  # what came in the meantime
                if run["status"] != "finished:completed":
                    say(f"run {number} {run['status']}: {run['status-details']}")
                return bool(run["status"] == "finished:completed")
        time.sleep(PAUSE)


def stop(link: Connection, number: int) -> None:
    """End a run. Raises LinkError."""
    link.ask("stop", str(number))


def _listen(link: Connection, number: int, say: Say, known: int) -> int:
    """Hand on the lines of a run's log after the first ``known``, until the link closes it. How many were there?"""
    count = 0
    process = subprocess.Popen(
        link.command("log", str(number), "--stream"), env=environment(link.home), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if not line.strip() or FLOWERS_OWN.match(line):
                continue
            count += 1
            if count > known:
                say(line.rstrip("\n"))
    finally:
        process.terminate()
        process.wait()
    return max(0, count - known)
