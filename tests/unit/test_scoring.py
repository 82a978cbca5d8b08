"""Adapters from disk: what their card says is used, and what contradicts it is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from capfl.config.data import DataConfig
from capfl.config.load import load_command
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.data import render
from capfl.errors import ConfigError, DataError, ModelError
from capfl.model import tiny
from capfl.model.base import load_base
from capfl.model.card import PROMPT, Card, card_of, labels_of, load_card
from capfl.model.export import save_adapter
from capfl.model.lora import AdaptedModel
from capfl.scoring import load, score_adapter
from capfl.types import Item

LABELS = ("access", "billing", "cards", "delivery")
ROWS = [{"text": f"request {n} of kind {n % 5}", "label": LABELS[n % 4]} for n in range(40)]

Save = Callable[..., Path]


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    return AdaptedModel(load_base(ModelConfig(path="tiny", device="cpu")), LoraConfig(layers="top:2"))


@pytest.fixture
def save(model: AdaptedModel, tmp_path: Path) -> Save:
    """The folder of an adapter that was trained on the labels, with changes of its card, or without one."""
    generator = torch.Generator().manual_seed(0)
    adapter = {name: 0.3 * torch.randn(p.shape, generator=generator) for name, p in model.parameters.items()}
    items = [Item(str(row["text"]), LABELS, 0, listed=False) for row in ROWS]
    own = card_of(model.base, DataConfig(), items, method="ca-pfl", group="north+south", run="first")

    def _save(name: str = "adapter", card: bool = True, **changes: object) -> Path:
        made = replace(own, **changes) if card else None  # type: ignore[arg-type]
        save_adapter(adapter, model.peft_config(), tmp_path / name, card=made)
        return tmp_path / name

    return _save


def scored(folder: Path, data: Path | str, *flags: str) -> dict[str, object]:
    return score_adapter(folder, load_command(None, [], ["--data", str(data), *flags]))


def test_a_card_comes_back_and_belongs_to_its_adapter_alone(save: Save, model: AdaptedModel) -> None:
    folder = save()
    card = load_card(folder)
    assert card == Card(
        "tiny", model.base.digest, "letter", LABELS, max_length=256, method="ca-pfl", group="north+south",
        run="first",
    )  # fmt: skip
    save(card=False)
    assert load_card(folder) is None
    (folder / "capfl.json").write_text('{"base": "tiny", "digest": "", "labels": [], "nonsense": 2}')
    with pytest.raises(ModelError, match=r"capfl\.json is damaged"):
        load_card(folder)
    save(prompt="capfl-2")
    with pytest.raises(ModelError, match="another version of capfl"):
        load_card(folder)
    wrong = {"base": 5, "digest": None, "labels": [1, {}], "scoring": "x", "max_length": "x", "date": {}}
    for key, value in wrong.items():
        save(**{key: value})
        with pytest.raises(ModelError, match=rf"capfl\.json is damaged: {key}"):
            load_card(folder)
    (folder / "capfl.json").write_text("[" * 10**5)
    with pytest.raises(ModelError, match=r"capfl\.json is damaged: .*recursion"):
        load_card(folder)


def test_a_file_without_one_of_the_labels_is_scored_by_the_letters_of_training(save: Save, tmp_path: Path) -> None:
    few = written(tmp_path / "held_out.jsonl", [row for row in ROWS if row["label"] != "billing"])
    with_card, without = save("a"), save("b", card=False)
    labels = ["--data.labels", ",".join(LABELS), "--model", "tiny"]
    found = scored(with_card, few)
    assert found == scored(without, few, *labels)
    assert found["chance"] == 1 / 4
    shifted = scored(without, few, "--model", "tiny")
    assert (shifted["chance"], shifted["loss"] == found["loss"]) == (1 / 3, False)
    one = written(tmp_path / "one.jsonl", [row for row in ROWS if row["label"] == "cards"])
    assert scored(with_card, one)["items"] == 10  # a file of one label alone has all letters, too


def test_what_contradicts_the_card_is_refused(save: Save, tmp_path: Path) -> None:
    rows, folder = written(tmp_path / "rows.jsonl", ROWS), save()
    with pytest.raises(ConfigError, match=r"data\.labels: the adapter was trained with access, billing.*leave it out"):
        scored(folder, rows, "--data.labels", "billing,access,cards,delivery")
    with pytest.raises(ConfigError, match=r"data\.scoring: the adapter was trained with letter, not with text"):
        scored(folder, rows, "--scoring", "text")
    assert scored(folder, rows, "--data.labels", ",".join(LABELS), "--scoring", "letter") == scored(folder, rows)
    strange = written(tmp_path / "strange.jsonl", [*ROWS, {"text": "an odd one", "label": "weather"}])
    with pytest.raises(DataError, match=r"'weather', which is none.*\n.*was trained with the labels access, billing"):
        scored(folder, strange)
    with pytest.raises(DataError, match="the adapter was trained with access, billing, cards, delivery, and knows no"):
        scored(folder, "helpdesk")
    with pytest.raises(DataError, match="has no rows; give one at least"):
        load(folder).score([])
    with pytest.raises(ConfigError, match="--data is missing: give a file of rows"):
        score_adapter(folder, load_command(None, [], []))
    choices = save("choices", labels=())
    with pytest.raises(DataError, match="was trained without labels; give rows of the kind"):
        scored(choices, rows)
    assert scored(choices, rows, "--data.labels", ",".join(LABELS))["items"] == 40  # of letters that the caller knows
    assert scored(save("text", labels=(), scoring="text"), rows)["items"] == 40


def test_the_base_is_known_by_its_weights_wherever_it_lies(save: Save, tmp_path: Path) -> None:
    rows, folder = written(tmp_path / "rows.jsonl", ROWS[:8]), save()
    for name, seed in (("same", 1), ("other", 2)):
        tiny.model(seed=seed).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    same, other = (["--model", str(tmp_path / name)] for name in ("same", "other"))
    assert scored(folder, rows, *same) == scored(folder, rows)
    assert scored(folder, rows, *same, "--dtype", "bfloat16")["items"] == 8
    with pytest.raises(ModelError, match=r"trained on tiny, and .*/other has other weights"):
        scored(folder, rows, *other)
    with pytest.raises(ModelError, match="at this precision capfl cannot check"):
        scored(folder, rows, *same, "--dtype", "float16")
    assert scored(folder, rows, "--dtype", "float16")["items"] == 8
    moved = save("moved", digest=load_base(ModelConfig(path=str(tmp_path / "other"))).digest)
    with pytest.raises(ModelError, match="has other weights"):
        scored(moved, rows)
    assert scored(save("plain", card=False), rows, *other)["loss"] != scored(folder, rows)["loss"]


def test_labels_in_the_order_of_their_letters() -> None:
    def of(*lists: tuple[str, ...], scoring: str = "letter") -> tuple[str, ...]:
        return labels_of([Item("q", labels, listed=False) for labels in lists], scoring)  # type: ignore[arg-type]

    assert of(("a", "b"), ("a", "b", "c")) == ("a", "b", "c")
    assert of(("a", "b"), ("b", "c")) == ()  # b is B to one and A to the other
    assert of(("a", "b"), ("b", "c"), scoring="text") == ("a", "b", "c")
    assert labels_of([Item("q", ("x", "y")), Item("q", completion="z")], "letter") == ()


def test_a_loaded_adapter_scores_and_predicts(save: Save, tmp_path: Path) -> None:
    folder = save()
    loaded = load(folder, device="cpu")
    assert loaded.card == load_card(folder)
    found = loaded.score(ROWS)
    assert found == scored(folder, written(tmp_path / "rows.jsonl", ROWS))
    predicted = loaded.predict([str(row["text"]) for row in ROWS])
    assert predicted == loaded.predict(ROWS)
    hits = [label == row["label"] for label, row in zip(predicted, ROWS, strict=True)]
    assert found["metrics"]["accuracy"] == sum(hits) / 40
    assert loaded.predict([{"question": "which", "choices": ["one", "two"]}])[0] in ("one", "two")
    named = load(folder, columns={"text": "said"})
    assert named.predict([{"said": row["text"], "label": "any"} for row in ROWS]) == predicted
    by_text = load(save("text", scoring="text"))
    hits = [label == row["label"] for label, row in zip(by_text.predict(ROWS), ROWS, strict=True)]
    assert by_text.score(ROWS)["metrics"]["accuracy"] == sum(hits) / 40
    with pytest.raises(
        DataError, match=r"row 2: asks for no choice, it has 'prompt'; give text, or question and choices"
    ):
        loaded.predict(["a", {"prompt": "b"}])
    with pytest.raises(DataError, match="row 1: the adapter has no labels to choose from; give question and choices"):
        load(save("none", labels=())).predict(["a"])
    with pytest.raises(DataError, match="score them apart"):
        loaded.score([Item("q", completion="z"), Item("q", ("x", "y"))])
    with pytest.raises(ConfigError, match="no key 'colour'"):
        load(folder, colour="red")


def test_another_prompt_text_needs_another_name() -> None:
    """An adapter is of the text that it was trained on: when this fails, give ``card.PROMPT`` a new value."""
    items = (Item("q", ("x", "y"), 1), Item("q", ("x", "y"), 1, listed=False), Item("q", completion="z"))
    texts = [render(item, scoring) for item in items for scoring in ("letter", "text")]
    said = "".join(prompt.text + "|".join(prompt.answers) + "\n" for prompt in texts)
    assert (PROMPT, hashlib.sha256(said.encode()).hexdigest()[:16]) == ("capfl-1", "9f5ff223088a6f33")


def test_logits_that_are_not_finite_are_an_error(save: Save) -> None:
    loaded = load(save())
    loaded.adapter[next(iter(loaded.adapter))][0, 0] = float("inf")
    for use in (loaded.score, loaded.predict):
        with pytest.raises(ModelError, match="its logits are not finite"):
            use(ROWS)
