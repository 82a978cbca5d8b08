"""What this machine has for capfl, and what will be slow on it and why: what `capfl doctor` says."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from capfl.errors import ModelError, number
from capfl.machine import PASSIVE, available_memory, cores, total_memory
from capfl.model.place import cache_root, converted, smollm2_weights
from capfl.report.tables import duration

SIZE = 384  # rows and columns of the matrices that are multiplied
SECONDS = 0.25  # of each measurement; there are six
HALF = "bfloat16"
GB = 10**9
STEP = 8 * 256  # tokens of a training step: 8 rows of 256
BASES = {"SmolLM2-135M": 135e6, "Llama-3.2-3B": 3.2e9}  # parameters

Kind = Literal["broken", "slow", "note"]


@dataclass(frozen=True)
class Note:
    """A sentence on what was found. What is ``broken`` makes the command fail."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Checkup:
    """All that was found, by section and name, and what follows from it."""

    found: Mapping[str, Mapping[str, Any]]
    notes: list[Note] = field(default_factory=list)

    @property
    def is_broken(self) -> bool:
        return any(note.kind == "broken" for note in self.notes)

    def to_json(self) -> dict[str, Any]:
        return {**self.found, "notes": [asdict(note) for note in self.notes]}


def examine() -> Checkup:
    """Look at packages, devices, threads, memory, disk and models, and multiply matrices for two seconds."""
    notes: list[Note] = []
    found: dict[str, dict[str, Any]] = {"versions": versions(notes)}
    found["machine"] = _machine(notes)
    found["models"] = _models(notes)
    if _loads_torch(notes):
        found["threads"] = _threads()
        found["devices"] = _devices()
        found["speed"] = speed = _speed(found["threads"]["chosen"])
        notes += _slow(found["devices"], found["threads"], speed)
    return Checkup(found, notes)


def _loads_torch(notes: list[Note]) -> bool:
    try:
        importlib.import_module("torch")
    except (ImportError, OSError) as error:  # the latter of libraries that it brings
        first = (str(error).strip().splitlines() or [""])[0]
        notes.append(Note("broken", f"torch cannot be loaded ({first}); install it again"))
        return False
    return True


# -- what there is -------------------------------------------------------------------------------------------------


def versions(notes: list[Note]) -> dict[str, Any]:
    """Versions of what capfl needs or can use; None: it is not installed, of which a note says what to do."""
    found: dict[str, Any] = {"python": platform.python_version(), "capfl": importlib.metadata.version("capfl")}
    wanted = [Requirement(text) for text in importlib.metadata.requires("capfl") or []]
    for one in sorted(wanted, key=lambda one: (one.marker is not None, one.name)):
        if one.name in found or _extra(one) in ("dev", "browser", "trackers"):
            continue
        try:
            found[one.name] = version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            if one.marker is None:
                found[one.name] = None
                notes.append(Note("broken", f"{one.name} is not installed; install it with: pip install '{one}'"))
            else:
                found[one.name] = f"not installed; pip install 'capfl[{_extra(one)}]'"
            continue
        if not one.specifier.contains(version, prereleases=True):
            notes.append(Note("broken", f"{one.name} is {version}, capfl needs {one.specifier}; pip install '{one}'"))
    return found


def _extra(one: Requirement) -> str:
    """The extra of capfl that a requirement belongs to, from a marker such as ``extra == "flower"``."""
    return str(one.marker).partition("extra == ")[2].strip("\"'") if one.marker else ""


def _machine(notes: list[Note]) -> dict[str, Any]:
    total, free = total_memory(), available_memory()
    found: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "cores": cores()}
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 1)
    found |= {"memory_bytes": total, "memory_free_bytes": free}
    disks = {"disk_free_here_bytes": Path.cwd(), "disk_free_cache_bytes": cache_root()}
    for name, place in disks.items():
        there = next(own for own in (place, *place.absolute().parents) if own.exists())
        found[name] = shutil.disk_usage(there).free
        if not os.access(there, os.W_OK):
            notes.append(Note("broken", f"cannot write to {there}; choose another folder or set CAPFL_CACHE"))
        elif found[name] < GB:
            notes.append(Note("note", f"{there} has {found[name] / GB:.1f} GB left; a converted SmolLM2 takes 0.6 GB"))
    if free < 2 * GB:
        notes.append(Note("note", f"{free / GB:.1f} GB of memory are free; SmolLM2 takes 1.5 GB, see capfl plan"))
    return found


def _models(notes: list[Note]) -> dict[str, Any]:
    """Is the default model here, and where is the Hub's cache?"""
    import huggingface_hub.constants as hub

    found: dict[str, Any] = {}
    try:
        weights = smollm2_weights()
        found["smollm2"] = "ready" if converted(weights) else "installed, not converted yet"
        if not converted(weights):
            notes.append(Note("note", "the first run with smollm2 converts it once; this takes about a minute"))
    except ModelError as error:
        found["smollm2"] = "not installed"
        notes.append(Note("note", str(error).removeprefix("model.path: ")))
    cache = Path(hub.HF_HUB_CACHE)
    models = sorted(own.name for own in cache.glob("models--*")) if cache.is_dir() else []
    found["cache"] = str(cache_root())
    found["hub_cache"] = str(cache)
    found["hub_models"] = [name.removeprefix("models--").replace("--", "/") for name in models]
    found["hub_offline"] = bool(hub.HF_HUB_OFFLINE)
    if hub.HF_HUB_OFFLINE:
        notes.append(Note("note", "HF_HUB_OFFLINE is set: models and data of the Hub load only from its cache"))
    return found


def _threads() -> dict[str, Any]:
    """How many threads a run takes by default, and how OpenMP was told to let them wait."""
    import torch

    settings = {name: os.environ[name] for name in ("OMP_NUM_THREADS", *PASSIVE) if name in os.environ}
    passive = all(os.environ.get(name, "").upper() == value for name, value in PASSIVE.items())
    return {"chosen": torch.get_num_threads(), "wait_passively": passive, "environment": settings}


def _devices() -> dict[str, Any]:
    import torch

    cards = {}
    for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        own = torch.cuda.get_device_properties(n)
        cards[f"cuda:{n}"] = f"{own.name}, {own.total_memory / GB:.0f} GB"
    if torch.backends.mps.is_available():
        cards["mps"] = "Apple GPU"
    return {"auto": next(iter(cards), "cpu").partition(":")[0], "cpu": _cpu_name(), **cards}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), platform.processor() or platform.machine())


# -- how fast it is ------------------------------------------------------------------------------------------------


def _speed(threads: int) -> dict[str, float]:
    """GFLOP/s of matrix products on the CPU, the better of two measurements: in float32 by number of threads, and in
    bfloat16 with all of them."""
    import torch

    before = torch.get_num_threads()
    whole, half = torch.ones(SIZE, SIZE), torch.ones(SIZE, SIZE, dtype=torch.bfloat16)
    found: dict[str, float] = {}
    try:
        for name, n, a in 2 * (("1", 1, whole), (str(threads), threads, whole), (HALF, threads, half)):
            torch.set_num_threads(n)
            done = rate(partial(torch.mm, a, a), 2.0 * SIZE**3, SECONDS)
            found[name] = max(found.get(name, 0.0), round(done / 1e9, 1))
    finally:
        torch.set_num_threads(before)
    return found


def rate(work: Callable[[], object], amount: float, seconds: float) -> float:
    """``amount`` a second, of work that is done again and again for so many seconds after a first time."""
    work()
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or not done:
        work()
        done += 1
    return amount * done / max(spent, 1e-9)


def _slow(devices: Mapping[str, Any], threads: Mapping[str, Any], speed: Mapping[str, float]) -> Iterator[Note]:
    """What will be slow, and why."""
    one, every, n = speed["1"], speed[str(threads["chosen"])], threads["chosen"]
    if n > 1 and every < 1.2 * one:
        yield Note(
            "slow",
            (
                f"{n} threads do {every:g} GFLOP/s and one does {one:g}: other programs use the cores; stop "
                "them, or use fewer cores with --threads 1"
            ),
        )
    if not threads["wait_passively"]:
        yield Note(
            "slow",
            (
                "the environment keeps idle threads awake: beside another busy program a run may take many "
                f"times as long; unset {', '.join(PASSIVE)}"
            ),
        )
    if n < (there := cores()):
        yield Note("note", f"a run uses {n} of {there} cores (OMP_NUM_THREADS?); --threads {there} uses all")
    if devices["auto"] == "cpu":
        half = speed[HALF]
        if max(half, every) > 1.5 * min(half, every):
            faster = HALF if half > every else "float32"
            yield Note("note", f"{HALF} does {half:g} GFLOP/s here and float32 {every:g}: --dtype {faster} is faster")
        best = max(one, every)
        seconds = {name: 4 * parameters * STEP / (1e9 * best) for name, parameters in BASES.items()}
        said = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
        yield Note(
            "slow",
            f"no GPU: at {best:g} GFLOP/s a training step of {STEP} tokens through all layers takes at least {said}; "
            "fewer layers take less (--layers), and capfl plan measures it",
        )


# -- for people ----------------------------------------------------------------------------------------------------


def lines(checkup: Checkup) -> Iterator[tuple[str, str]]:
    """(style, text) of all lines that are printed."""
    for section, values in checkup.found.items():
        yield "bold", section
        if section == "versions":
            yield "", "  " + ", ".join(f"{name} {_shown(name, value)}" for name, value in values.items())
            continue
        for name, value in values.items():
            yield "", f"  {_words(name)}: {_shown(name, value)}"
    for note in checkup.notes:
        yield {"broken": "bold red", "slow": "yellow", "note": ""}[note.kind], f"{note.kind}: {note.text}"
    if not checkup.notes:
        yield "", "nothing to say"


def _words(name: str) -> str:
    if name.isdecimal():
        return f"GFLOP/s with {number(int(name), 'thread')}"
    if name == HALF:
        return "GFLOP/s in bfloat16"
    return name.removesuffix("_bytes").replace("_", " ")


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "not installed"
    if name.endswith("_bytes"):
        return f"{value / GB:.1f} GB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={own}" for key, own in value.items()) or "nothing is set"
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)
