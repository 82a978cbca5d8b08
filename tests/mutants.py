"""Errors put into the code on purpose, one at a time, and the tests that have to notice each.

    python tests/mutants.py [--all] [WORD ...]

runs those whose name or file has one of the words, or every one. Each is made in a copy of the package, so the code
itself stays as it is. Prints a row for each, and ends with 1 unless all were noticed: one may be MISSED, or its tests
BROKEN, which fail as the code is. With --all, every quick test may notice, not only those that are named beside it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 900  # seconds that tests may take; what loops for good has been noticed


@dataclass(frozen=True)
class Mutant:
    """``old`` stands once in ``file``, below src/capfl, and becomes ``new``; ``tests``, below tests, should fail."""

    file: str
    old: str
    new: str
    tests: str  # one or more, with spaces between them


MUTANTS = {
    row.pop("error"): Mutant(**row)
    for row in tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))["mutant"]
}


def faulty(mutant: Mutant) -> str:
    """The text of a mutant's file with its error in it.

    Raises:
        ValueError: the text that it changes does not stand there once.
    """
    path = ROOT / "src" / "capfl" / mutant.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has {mutant.old!r} {text.count(mutant.old)} times, not once")
    return text.replace(mutant.old, mutant.new)


def failure(source: Path, tests: str) -> str | None:
    """How the tests fail with the package in ``source``, or None."""
    paths = os.pathsep.join(filter(None, (str(source), os.environ.get("PYTHONPATH"))))
    settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests.split()]
    with tempfile.TemporaryDirectory() as own:  # failing examples of hypothesis are not remembered
        settings["HYPOTHESIS_STORAGE_DIRECTORY"] = own
        try:
            done = subprocess.run(
                words, cwd=ROOT / "tests", env=os.environ | settings, capture_output=True, text=True, timeout=LONGEST
            )
        except subprocess.TimeoutExpired:
            return f"not done after {LONGEST} s"
    return (done.stdout + done.stderr)[-1000:] or f"ended with code {done.returncode}" if done.returncode else None


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--all"]
    chosen = {n: m for n, m in MUTANTS.items() if not words or any(w in f"{n} {m.file}" for w in words)}
    before: dict[str, str | None] = {}  # how tests fail without any error in the code
    counts = {"noticed": 0, "MISSED": 0, "BROKEN": 0}
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        for name, mutant in chosen.items():
            tests, began = "." if "--all" in sys.argv else mutant.tests, time.monotonic()
            if tests not in before:
                before[tests] = failure(source, tests)
                if before[tests]:
                    print(f"{tests} fails as the code is:\n{before[tests]}")
            path = source / "capfl" / mutant.file
            sound = path.read_bytes()
            path.write_text(faulty(mutant), encoding="utf-8")
            found = "BROKEN" if before[tests] else "noticed" if failure(source, tests) else "MISSED"
            path.write_bytes(sound)
            counts[found] += 1
            print(f"{found:7} {time.monotonic() - began:4.0f} s  {name}", flush=True)
    print(", ".join(f"{n} {found}" for found, n in counts.items()))
    raise SystemExit(counts["noticed"] < len(chosen))


if __name__ == "__main__":
    main()
