"""capfl generate, chat and export, and what is behind them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import capfl
from capfl.answers import converse
from capfl.cli.terminal import shown, typed_lines
from capfl.config.data import DataConfig
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.model.base import load_base
from capfl.model.card import card_of
from capfl.model.export import save_adapter
from capfl.model.lora import AdaptedModel
from capfl.scoring import LoadedAdapter
from commands import command, refused

TOKENS = ("--max-new-tokens", 6)
ROWS = [{"prompt": "How many?", "id": 1}, {"prompt": [{"role": "user", "content": "é"}], "id": 2}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two adapters."""
    path = tmp_path_factory.mktemp("answers") / "run"
    model = AdaptedModel(load_base(ModelConfig(path="tiny", device="cpu")), LoraConfig(layers="top:2"))
    for seed, name in enumerate(("global", "clients/north")):
        generator = torch.Generator().manual_seed(seed)
        adapter = {name: 0.5 * torch.randn(p.shape, generator=generator) for name, p in model.parameters.items()}
        save_adapter(adapter, model.peft_config(), path / "adapters" / name, card_of(model.base, DataConfig(), []))
    return path


@pytest.fixture(scope="module")
def north(run: Path) -> Path:
    return run / "adapters" / "clients" / "north"


@pytest.fixture(scope="module")
def adapter(north: Path) -> LoadedAdapter:
    return capfl.load(north)


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# -- from Python ---------------------------------------------------------------------------------


def test_answers_are_text_in_the_order_of_the_rows(adapter: LoadedAdapter) -> None:
    both = adapter.generate(ROWS, max_new_tokens=6)
    assert [adapter.generate([row], max_new_tokens=6)[0] for row in ROWS] == both
    assert adapter.generate(["How many?"], max_new_tokens=6) == both[:1]
    assert len(set(both)) == 2
    assert adapter.generate(ROWS, max_new_tokens=6, base=True) != both
    warm = adapter.generate(ROWS, max_new_tokens=6, temperature=2.0, seed=1)
    assert warm == adapter.generate(ROWS, max_new_tokens=6, temperature=2.0, seed=1) != both
    assert warm != adapter.generate(ROWS, max_new_tokens=6, temperature=2.0, seed=2)
    assert adapter.generate([]) == []


def test_the_example_of_the_page_runs(north: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "use.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    example = "runs/mine/adapters/clients/north"
    assert example in code
    exec(code.replace(example, str(north)).replace("temperature", "max_new_tokens=4, temperature"), {})


# -- capfl generate ------------------------------------------------------------------------------


def test_prompts_on_the_command_line(north: Path, adapter: LoadedAdapter) -> None:
    def answers(*rows: object, **settings: object) -> str:
        return "".join(f"{text}\n" for text in adapter.generate(rows, max_new_tokens=6, **settings))  # type: ignore[arg-type]

    def said(*words: object) -> str:
        result = command("generate", north, *TOKENS, *words)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert said("--prompt", "a", "--prompt", "b") == answers("a", "b")
    assert said("--prompt", "a", "--chat") == answers({"messages": [{"role": "user", "content": "a"}]})
    assert said("--prompt", "a", "--base") == answers("a", base=True)
    warm = ("--prompt", "a", "--temperature", 2, "--top-p", 0.9, "--seed", 3)
    assert said(*warm) == answers("a", temperature=2.0, top_p=0.9, seed=3)


def test_rows_of_a_file_get_their_answers(north: Path, adapter: LoadedAdapter, tmp_path: Path) -> None:
    data, out = written(tmp_path / "rows.jsonl", ROWS), tmp_path / "made" / "answers.jsonl"
    words = ("generate", north, "--data", data, "--out", out, *TOKENS)
    result = command(*words)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"2 rows with answers are in {out}\n"
    expected = [
        {**row, "answer": text} for row, text in zip(ROWS, adapter.generate(ROWS, max_new_tokens=6), strict=True)
    ]
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == expected
    assert " exists; choose" in refused(*words, "--base")
    assert command(*words, "--base", "--overwrite").exit_code == 0
    assert [json.loads(line)["id"] for line in out.read_text(encoding="utf-8").splitlines()] == [1, 2]
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] != expected


def test_rows_of_a_table_have_columns_of_their_own(north: Path, adapter: LoadedAdapter, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("Question,answer\nHow many?,1\n")
    columns = ("--columns", "prompt=Question,completion=answer")
    words = ("--data", tmp_path / "rows.csv", "--out", tmp_path / "out.jsonl", *columns)
    assert "already has it; name another one, such as --field" in refused("generate", north, *TOKENS, *words)
    result = command("generate", north, *TOKENS, *words, "--field", "model")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines())
    model = adapter.generate(ROWS[:1], max_new_tokens=6)[0]
    assert row == {"Question": "How many?", "answer": row["answer"], "model": model}


def test_an_adapter_that_has_learnt_labels_gives_them_and_does_not_write(north: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    shutil.copytree(north, labels)
    card = labels / "capfl.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"labels": ["late", "lost"]}))
    result = command("generate", labels, *TOKENS, "--prompt", "a")
    assert result.exit_code == 0, result.output
    assert "this adapter has learnt to choose a label (late, lost), not to write" in result.stderr
    texts = ["Where is it?", "It is late", "Gone"]
    right = capfl.load(labels).predict(texts)
    assert command("predict", labels, "--text", texts[0], "--text", texts[1]).stdout.splitlines() == right[:2]
    (tmp_path / "rows.csv").write_text("Said,label,n\n" + "".join(f"{text},,{n}\n" for n, text in enumerate(texts)))
    rows = ("--data", tmp_path / "rows.csv", "--columns", "text=Said")
    result = command("predict", labels, *rows, "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.output
    found = list(map(json.loads, (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()))
    assert [(row["Said"], row["answer"]) for row in found] == list(zip(texts, right, strict=True))
    assert " exists; choose" in refused("predict", labels, *rows, "--out", tmp_path / "out.jsonl")
    assert "--data rows.jsonl --out labels.jsonl" in refused("predict", labels)
    (tmp_path / "odd.jsonl").write_text('{"text": "a"}\n{"prompt": "b"}\n')
    said = refused("predict", labels, "--data", tmp_path / "odd.jsonl", "--out", tmp_path / "other.jsonl")
    assert "odd.jsonl:2: asks for no choice, it has 'prompt'" in said


def test_what_cannot_be_answered_is_refused_before_the_model_is_loaded(
    run: Path, north: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capfl.scoring.load_base", None)
    out = ("--out", tmp_path / "answers.jsonl")
    named = written(tmp_path / "named.jsonl", [{"prompt": "a", "answer": "b"}])
    assert f"{named}:1: the model's answer goes into field 'answer'" in refused(
        "generate", north, "--data", named, *out
    )
    labels = written(tmp_path / "labels.jsonl", [{"text": "a", "label": "b"}])
    assert f"{labels}:1: " in refused("generate", north, "--data", labels, *out)
    for words in ((), ("--prompt", "a", *out), ("--data", named), ("--data", named, *out, "--chat")):
        assert "give one of these:" in refused("generate", north, *words)
    assert "train.steps: `capfl generate` does not use it; --help" in refused(
        "generate", north, "--prompt", "a", "--steps", 2
    )
    assert "--warmth: no such flag" in refused("generate", north, "--prompt", "a", "--warmth", "2")
    said = refused("generate", run, "--prompt", "a")
    assert f"{run} holds no PEFT adapter" in said
    assert f"in it:\n  {north}\n  {run / 'adapters' / 'global'}\n" in said
    assert "holds no PEFT adapter (adapter_config.json and adapter_model.safetensors)\n" in refused(
        "generate", tmp_path, "--prompt", "a"
    )


def test_a_prompt_that_does_not_fit_is_refused(north: Path, tmp_path: Path) -> None:
    assert "the prompts: row 1 has 2048 tokens" in refused("generate", north, "--prompt", "a" * 2048)
    data = written(tmp_path / "rows.jsonl", [ROWS[0], {"prompt": "a" * 2048}])
    said = refused("generate", north, "--data", data, "--out", tmp_path / "answers.jsonl")
    assert f"{data}:2 has 2048 tokens, which with max_new_tokens = 256 do not fit into the 2048 positions" in said
    assert "--prompt 2 is empty; write a text" in refused("generate", north, "--prompt", "a", "--prompt", " ")
    table = tmp_path / "answers.csv"
    assert f"--out: {table}: answers are written as JSON Lines" in refused(
        "generate", north, "--data", data, "--out", table
    )
    assert "top_p is 2.0" in refused("generate", north, "--prompt", "a", "--top-p", 2)


# -- capfl chat ----------------------------------------------------------------------------------


def test_a_chat_keeps_what_was_said_until_it_is_reset(adapter: LoadedAdapter) -> None:
    said: list[str] = []

    def asked(*turns: str) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
        return adapter.generate([{"messages": messages}], max_new_tokens=6)[0]

    first = asked("a")
    second = asked("a", first, "a")
    assert first.strip() != second.strip()
    converse(adapter, ["a\n", "\n", " a \n", "/reset\n", "a\n", "/exit\n", "b\n"], said.append, max_new_tokens=6)
    assert "".join(said) == f"{first}\n{second}\n(a new chat)\n{first}\n"

    said.clear()  # what is no command is not sent to the model either, unless there is a space before it
    converse(adapter, ["/foo\n", "/quit", "a\n", "/exit"], said.append, max_new_tokens=6)
    words = "begins a new chat, /exit ends; behind a space it is a message)"
    assert "".join(said) == f"(no command /foo; /reset {words}\n(no command /quit; /reset {words}\n{first}\n"
    said.clear()
    converse(adapter, [" /foo\n"], said.append, max_new_tokens=6)
    assert "no command" not in "".join(said)

    said.clear()
    converse(adapter, ["a", "b" * 2048, "a"], said.append, max_new_tokens=6)
    assert "".join(said).startswith(f"{first}\n(the prompts: row 1 has ")
    assert "/reset begins a new chat)\n" in "".join(said)
    assert "".join(said).endswith(f")\n{second}\n")

    said.clear()
    system = {"role": "system", "content": "s"}
    converse(adapter, ["a", "/reset", "a"], said.append, system="s", max_new_tokens=6)
    own = adapter.generate([{"messages": [system, {"role": "user", "content": "a"}]}], max_new_tokens=6)[0]
    assert "".join(said) == f"{own}\n(a new chat)\n{own}\n"


def test_each_turn_of_a_chat_draws_anew(adapter: LoadedAdapter) -> None:
    def chat(seed: int) -> str:
        said: list[str] = []
        converse(adapter, ["a", "/reset", "a"], said.append, seed=seed, temperature=2.0, max_new_tokens=6)
        return "".join(said)

    first, second = chat(1).split("\n(a new chat)\n")
    assert first != second.rstrip("\n")
    assert chat(1) == chat(1) != chat(2)


def test_an_answer_without_words_is_no_turn(adapter: LoadedAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, said = [], []

    def nothing(rows: list[dict[str, object]], **_: object) -> list[str]:
        asked.append(rows)
        return [" "]

    monkeypatch.setattr(adapter, "generate", nothing)
    converse(adapter, ["a", "b"], said.append)
    assert said == ["(no answer)\n"] * 2
    assert asked[1] == [{"messages": [{"role": "user", "content": "b"}]}]


def test_a_chat_through_a_pipe(north: Path, adapter: LoadedAdapter) -> None:
    (answer,) = adapter.generate([{"messages": [{"role": "user", "content": "a"}]}], max_new_tokens=6)
    for typed in ("a\n/exit\nb\n", "a"):
        result = command("chat", north, *TOKENS, typed=typed)
        assert result.exit_code == 0, result.output
        assert result.stdout == f"{answer}\n"


def test_a_terminal_obeys_nothing_that_a_model_or_an_adapter_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "\x1b]0;title\x07 d\u00e9j\u00e0 \U0001f468\u200d\U0001f469 \x9b2J\r\t.\n"
    assert shown(said) == said  # into a file or a pipe
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert shown(said) == "\\x1b]0;title\\x07 d\u00e9j\u00e0 \U0001f468\u200d\U0001f469 \\x9b2J\\r\t.\n"


def test_who_types_is_shown_where(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, prompts = iter(["a", "b"]), []

    def typed(prompt: str) -> str:
        prompts.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", typed)
    assert list(typed_lines()) == ["a", "b"]
    assert prompts == ["> "] * 3


# -- capfl export --------------------------------------------------------------------------------


def test_export_writes_what_is_asked_for(run: Path, north: Path, tmp_path: Path) -> None:
    assert "give --merged FOLDER, --gguf FILE, or both" in refused("export", north)
    merged, gguf = tmp_path / "merged", tmp_path / "north.gguf"
    result = command("export", north, "--merged", merged, "--gguf", gguf)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{gguf}\n{merged}\n"
    ids = torch.arange(1, 9).reshape(1, 8)
    own = capfl.load(north)
    own.model.write(own.adapter)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(merged)(input_ids=ids).logits
        torch.testing.assert_close(logits, own.model.base.module(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert gguf.read_bytes().startswith(b"GGUF")
    assert " exists; choose" in refused("export", north, "--gguf", gguf)
    assert f"--merged: {gguf} is a file; give a new or empty folder" in refused("export", north, "--merged", gguf)
    assert str(north) in refused("export", run, "--merged", tmp_path / "other")
