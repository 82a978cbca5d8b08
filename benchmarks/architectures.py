"""Which architectures can be a base: each is made small, with random weights, and put through what a run needs.

    python benchmarks/architectures.py --markdown docs/architectures.md

Nothing in the table is typed by hand but the names.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging

from capfl.config.schema import LoraConfig, ModelConfig, TrainConfig
from capfl.errors import CapflError
from capfl.model import tiny
from capfl.model.accept import auto_class
from capfl.model.base import load_base
from capfl.model.export import save_adapter
from capfl.model.generate import generate, stop_tokens, until
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.score import Scorable, score
from capfl.model.tokens import Example, Row
from capfl.model.train import local_steps
from capfl.types import Adapter

KINDS = Path(__file__).parents[1] / "tests" / "architectures.toml"
LORA = LoraConfig(rank=2, alpha=4.0, layers="top:2")
COLUMNS = ("cut", "trains", "padding", "generates", "PEFT")
COLUMNS_SAY = """
- cut: hidden states below the lowest adapted layer are kept; otherwise every pass runs the whole model.
- trains: three steps have finite losses and change the adapter of every module.
- padding: scores of rows in one batch are those of each row alone.
- generates: greedy answers to three prompts of unlike length in one batch, decoded with a cache, are the tokens that
  each prompt gives alone and without one. Rows leave the batch when they end, if the model allows it.
- PEFT: stock PEFT loads the saved adapter on the same class, to the same logits.
"""
LENGTHS = (5, 9, 14, 6)  # tokens of rows


@dataclass(frozen=True)
class Result:
    """What became of one architecture.

    Attributes:
        refusal: why it is no base; empty: it is one.
        adapted: names of the adapted linear layers, without the layers' numbers.
        holds: what is so, by column.
        remarks: what a run says.
    """

    kind: str
    name: str
    refusal: str = ""
    adapted: tuple[str, ...] = ()
    holds: Mapping[str, bool] | None = None
    remarks: tuple[str, ...] = ()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Which architectures can be a base.")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--only", nargs="*", help="some of the kinds")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    results = []
    for kind in given.only or kinds():
        results.append(tried(kind))
        print(line(results[-1]), flush=True)
    if given.markdown:
        given.markdown.write_text(page(results), encoding="utf-8")


def kinds() -> list[str]:
    """All kinds that are tried, in the order of the table."""
    return list(tomllib.loads(KINDS.read_text(encoding="utf-8"))["kinds"])


def tried(kind: str) -> Result:
    """Make a small model, and put it through what a run needs."""
    settings = tomllib.loads(KINDS.read_text(encoding="utf-8"))
    own = dict(settings["kinds"][kind])
    name = own.pop("name")
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(own.pop("model_type", kind), settings, own, Path(folder))
            model = AdaptedModel(load_base(ModelConfig(path=folder, device="cpu")), LORA)
        except CapflError as error:
            return Result(kind, name, refusal=str(error).splitlines()[0].replace(folder, "it"))
        start = model.initial_adapter(0)
        adapted = tuple(dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", target) for target in model.targets))
        said = tuple(remark.replace(folder, "it") for remark in model.remarks)
        adapter = wandered(model)
        holds = {
            "cut": model.lowest > 0,
            "trains": trains(model, start),
            "padding": pads(model, adapter),
            "generates": generates(model, adapter),
            "PEFT": is_read_by_peft(model, adapter, Path(folder)),
        }
    return Result(kind, name, adapted=adapted, holds=holds, remarks=said)


def save(model_type: str, settings: Mapping[str, Any], own: dict[str, Any], folder: Path) -> None:
    """A model with random weights and the tiny model's tokenizer, as a folder."""
    common, architectures = settings["common"], own.pop("architectures", None)
    without = own.pop("without", ())
    values: dict[str, Any] = {key: value for key, value in common.items() if key not in without} | own
    text = own.pop("text", None)
    if text:
        of_text = {k: v for k, v in settings["kinds"].get(text, {}).items() if k != "name"}
        inner = common | of_text | {"model_type": text}
        for key in [key for key in own if key in ("cross_attention_layers", "rope_parameters")]:
            inner[key] = own.pop(key)
        values = own | {"text_config": inner, "tie_word_embeddings": False, "pad_token_id": common["pad_token_id"]}
    config = AutoConfig.for_model(model_type, **values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if architectures or model_type in ("t5", "bart", "bert", "roberta", "whisper"):
            config.architectures = architectures
            config.save_pretrained(folder)
        else:
            kind = AutoModelForImageTextToText if text else auto_class(config, model_type)  # as checkpoints are
            module = kind.from_config(config)
            for p in module.parameters():
                if not bool(p.any()):  # a scale that begins at zero would hide what is behind it
                    torch.nn.init.normal_(p, std=0.1)
            module.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def wandered(model: AdaptedModel) -> Adapter:
    """An adapter as training could have left it: no factor is zero."""
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(p.shape, generator=generator) for name, p in model.parameters.items()}


def rows() -> list[Row]:
    """Some rows of unlike length, with the last three tokens as targets."""
    generator = np.random.default_rng(0)
    drawn = [generator.integers(1, 250, length + 1).astype(np.int32) for length in LENGTHS]
    return [Row(ids[:-1], ids[-3:]) for ids in drawn]


def trains(model: AdaptedModel, start: Adapter) -> bool:
    """Do three steps on a batch have finite losses, and does every module's adapter change?"""
    with HiddenCache(2**20) as cache:
        trained = local_steps(model, cache, Job(Rows(rows()), [range(len(LENGTHS))] * 3, start), TrainConfig())
    moved = [name for name, t in trained.adapter.items() if name.endswith(".B") and bool(t.any())]
    idle = [name for name in start if name.endswith(".B") and name not in moved]
    return all(map(math.isfinite, trained.losses)) and not idle


def pads(model: AdaptedModel, adapter: Adapter) -> bool:
    """Are scores of rows in one batch those of each alone?"""
    found = []
    for batch_size in (1, len(LENGTHS)):
        with HiddenCache(2**20) as cache:
            found.append(
                score(model, cache, Scorable([Example(row, 0) for row in rows()]), adapter, batch_size).loss.sum
            )
    return math.isclose(*found, rel_tol=1e-4)


@torch.no_grad()
def generates(model: AdaptedModel, adapter: Adapter, count: int = 6) -> bool:
    """Are the answers to prompts of unlike length the tokens that the model gives one by one, without a cache?

    The token that ends an answer is chosen so that answers differ in length: rows leave the batch one by one.
    """
    generator = np.random.default_rng(0)
    prompts = [generator.integers(2, 250, length).astype(np.int32) for length in (7, 4, 5)]
    model.write(adapter)
    module: Any = model.base.module
    alone = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt).long().reshape(1, -1)
        for _ in range(count):
            ids = torch.cat([ids, module(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        alone.append(ids[0, len(prompt) :].tolist())

    written = sorted({token for own in alone for token in own})
    ends = max(written, key=lambda token: len({len(until(own, [token])) for own in alone}))
    module.generation_config.eos_token_id = ends
    expected = [until(own, stop_tokens(model.base)) for own in alone]
    return generate(model, adapter, prompts, max_new_tokens=count) == expected


@torch.no_grad()
def is_read_by_peft(model: AdaptedModel, adapter: Adapter, folder: Path) -> bool:
    """Does PEFT load the saved adapter on the same class, to the same logits?"""
    model.write(adapter)
    ids = torch.arange(2, 18).reshape(2, 8)
    ours = model.logits(ids, torch.arange(16), model.lower(ids) if model.lowest else None)
    save_adapter(adapter, model.peft_config(), folder / "adapter")
    plain = type(model.base.module).from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(plain, str(folder / "adapter")).eval()(input_ids=ids, use_cache=False)
    return torch.allclose(ours, theirs.logits.flatten(0, 1), rtol=1e-3, atol=1e-4 * float(ours.abs().max()))


def line(result: Result) -> str:
    """One architecture in the terminal."""
    if result.holds is None:
        return f"{result.kind}: refused: {result.refusal}"
    wrong = [column for column, holds in result.holds.items() if not holds]
    return f"{result.kind}: {', '.join(result.adapted)}; not: {', '.join(wrong) or '-'} {list(result.remarks)}"


def page(results: Sequence[Result]) -> str:
    """The page of documentation."""
    return "\n".join(_page(results)) + "\n"


def _page(results: Sequence[Result]) -> Iterator[str]:
    bases = [result for result in results if result.holds is not None]
    yield "# Which models can be a base"
    yield ""
    yield (
        f"Made by `python benchmarks/architectures.py --markdown docs/architectures.md` with transformers "
        f"{transformers.__version__} and PEFT {peft.__version__}: small models with random weights, four layers, of "
        "which the two top ones are adapted under `lora.targets = all-linear`. [models.md](models.md) says what is "
        "asked of a base."
    )
    yield ""
    yield from COLUMNS_SAY.strip().splitlines()
    yield ""
    yield f"| architecture | `model_type` | adapted linear layers | {' | '.join(COLUMNS)} |"
    yield f"|---|---|---|{'---|' * len(COLUMNS)}"
    for result in bases:
        assert result.holds is not None
        cells = [("yes" if result.holds[column] else "no") for column in COLUMNS]
        adapted = ", ".join(f"`{name}`" for name in result.adapted)
        yield f"| {result.name} | `{result.kind}` | {adapted} | {' | '.join(cells)} |"
    yield ""
    yield "## What a run says of some"
    yield ""
    for result in bases:
        for remark in result.remarks:
            yield f"- `{result.kind}`: {remark}."
    yield ""
    yield "## Refused"
    yield ""
    for result in results:
        if result.holds is None:
            yield f"- {result.name} (`{result.kind}`): {result.refusal}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
