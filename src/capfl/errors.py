"""Every error that capfl raises on purpose. Each message names the culprit and the remedy.

A message may name rows, labels and paths, which are the business of the machine that they are on. So an error of a
client that runs elsewhere travels as its ``code``, and the server shows what ``public`` says of the code.
"""

import re
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

_CHANGING = re.compile(r"""\d+|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")  # of a fault, from row to row

_HERE = Path(__file__).parent
_LIBRARIES = tuple(sysconfig.get_paths()[place] for place in ("stdlib", "platstdlib", "purelib", "platlib"))

PUBLIC = {
    "internal": "an unexpected error; the site's own log has it",
    "config": "the site cannot work with this config; the site's own log says why",
    "data": "the site's data cannot be used; the site's own log says why",
    "model": "the site's model cannot be used; the site's own log says why",
    "wire": "the site cannot use the request, because its base model or config differs or the request is damaged; "
    "the site's own log says which",
    "version": "the site no longer has the version of the adapter that the request builds on",
    "training": "training went wrong at the site, often for a learning rate that is too high; its own log says how",
    "run": "the site does not take part in this run, because its operator has not allowed it (capfl flower node --run "
    "NAME), another of this name has begun there, or it would take more epsilon than the site allows (--max-epsilon); "
    "the site's own log says which",
    "checkpoint": "the site cannot read or write its state of this run; the site's own log says why",
}


class CapflError(Exception):
    """Base of all errors below: the CLI prints it without a traceback and exits with 2."""

    code: ClassVar[str] = "internal"


class ConfigError(CapflError):
    """A run is described wrongly. Lists every mistake found, one a line."""

    code = "config"


class DataError(CapflError):
    """A row, file, partition or label cannot be used. Names file, line and field where there is one."""

    code = "data"


class ModelError(CapflError):
    """A base model, tokenizer or adapter cannot be loaded or does not fit."""

    code = "model"


class WireError(CapflError):
    """A message cannot be decoded against its template. Nothing of it has been applied."""

    code = "wire"


class VersionError(WireError):
    """A client does not have the version of the adapter that the differences in a request lead from."""

    code = "version"


class TrainingError(CapflError):
    """Local training went wrong (a loss that is not finite)."""

    code = "training"


class RunError(CapflError):
    """A site takes no part in a run that its operator has not allowed, or trains no more in it."""

    code = "run"


class CheckpointError(CapflError):
    """A run folder cannot be written, read or resumed."""

    code = "checkpoint"


class WorkerError(CapflError):
    """A process that worked for a client has died, or could not be started."""


class UnexpectedError(CapflError):
    """What nobody raised on purpose, as ``described``: a mistake in a method of one's own, or one of capfl."""


class ClientError(CapflError):
    """A client failed and the run's policy says stop."""

    def __init__(self, stage: str, round: int, client: str, reason: str) -> None:
        super().__init__(f"client {client!r} failed in round {round} ({stage}): {reason}")
        self.stage, self.round, self.client, self.reason = stage, round, client, reason


def code_of(error: BaseException) -> str:
    """The code of an error; that of one which capfl does not raise on purpose is ``internal``."""
    return error.code if isinstance(error, CapflError) else "internal"


def described(error: BaseException) -> str:
    """An error that capfl does not raise on purpose, in one sentence: what was raised, in which function of which file.

    The function is the innermost one of whoever extends capfl by a method or a metric of their own. If none of theirs
    was running, it is the innermost of capfl.
    """
    own, capfl = "", ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        at = f" in {code.co_qualname} ({code.co_filename}, line {line})"
        if _HERE in Path(code.co_filename).parents:
            capfl = at
        elif capfl and not code.co_filename.startswith(("<", *_LIBRARIES)):  # what came before capfl has called it
            own = at
    return printable(f"{type(error).__name__}{own or capfl}: {error}")


def public(code: str) -> str:
    """What may be said to everybody about an error with this code."""
    return PUBLIC.get(code, PUBLIC["internal"])


def counted(faults: Sequence[tuple[str, str]], most: int = 5) -> list[str]:
    """Lines of a report: (place, what is wrong there), where faults that differ in numbers and quotes alone are one.

    Args:
        most: kinds of faults, and further places of each, that are shown.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for place, fault in faults:
        kinds.setdefault(_CHANGING.sub("#", fault), []).append((place, fault))
    lines: list[str] = []
    for same in list(kinds.values())[:most]:
        (place, fault), *others = same
        lines.append(f"  {place}: {fault}")
        if others:
            here = place.rpartition(":")[0]
            places = [where.removeprefix(here).strip(": ") for where, _ in others[:most]]
            more = ", ..." if len(others) > most else ""
            lines.append(f"    and {len(others)} more like it: {', '.join(places)}{more}")
    if len(kinds) > most:
        left = sum(len(same) for same in list(kinds.values())[most:])
        lines.append(f"  ... and {left} more of {len(kinds) - most} other kinds")
    return lines


def number(count: int, noun: str) -> str:
    """1 round, 2 rounds."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def printable(text: str, longest: int = 10_000) -> str:
    """Text that others may have chosen, safe to show: control characters but line ends are escaped, the rest is cut."""
    cut = text if len(text) <= longest else f"{text[:longest]} ... ({len(text) - longest} more characters)"
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in cut)
