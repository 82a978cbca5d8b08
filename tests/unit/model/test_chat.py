"""Chats as tokens: every answer is found where it stands, and asked for as it will be, whatever the template does."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from capfl import adapter as algebra
from capfl.config.schema import TrainConfig
from capfl.errors import DataError, ModelError
from capfl.model import tiny
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.tokens import encode, prompt_ids
from capfl.model.train import local_steps
from capfl.types import Prompt
from chats import HELLO, HI, LONG, MORE, ONCE, SYSTEM, TRIMS, TURNS, read, remarked

Texts = tuple[tuple[str, str], ...]


WRITE = "{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}"
ASK = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
MOVES = (  # the system message goes into the last message, if that is the user's
    "{% for m in messages if m['role'] != 'system' %}"
    "{% if loop.last and m['role'] == 'user' and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }} "
    "{% endif %}" + WRITE + "{% endfor %}" + ASK
)
FORGETS = (  # the thoughts of all answers but the last are left out
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}<|assistant|><think></think>{{ m['content'] "
    "+ eos_token }}{% else %}" + WRITE + "{% endif %}{% endfor %}" + ASK
)
THINKS = (
    "{% for m in messages %}" + WRITE + "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
TALKS = (  # there is no system role
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + WRITE
    + "{% endfor %}"
    + ASK
)
IGNORES = "{% for m in messages if m['role'] != 'system' %}" + WRITE + "{% endfor %}" + ASK
DATES = (
    "{% if not day is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}"
    '{{ day }} {{ strftime_now("%Y") }};' + tiny.CHAT
)
FIRST = "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}" + IGNORES
PARTS = tiny.CHAT.replace(  # as some models for images have it; a text is no list of parts to them
    "{{ m['content'] }}", "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
)
ENDS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if loop.last and m['role'] != 'user' %}"
ENDS += "{{ eos_token }}{% endif %}{% endfor %}" + ASK


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


# -- which answers are learnt --------------------------------------------------------------------------------------

WHOLE = "<|system|>Be brief</s><|user|>Hi</s><|assistant|>Hello</s><|user|>And?</s><|assistant|>Bye"


def test_all_answers_are_learnt_or_the_last_alone() -> None:
    tokenizer = tiny.tokenizer()
    assert read(encode(LONG, "letter", tokenizer, 199).train, tokenizer) == (WHOLE, ["Hello</s>", "Bye</s>"])
    last = encode(LONG, "letter", tokenizer, 199, turns="last").train
    assert read(last, tokenizer) == (WHOLE, ["Bye</s>"])
    assert last.positions.tolist() == list(range(len(last.ids) - 4, len(last.ids)))
    given = encode(replace(LONG, given=4), "letter", tokenizer, 199).train  # of prompt and completion
    assert read(given, tokenizer) == (WHOLE, ["Bye</s>"])
    first = replace(LONG, messages=(HELLO, HI, HELLO, MORE))  # nobody has asked for the first
    assert read(encode(first, "letter", tokenizer, 199).train, tokenizer)[1] == ["Hello</s>", "Bye</s>"]
    trimmed = replace(LONG, messages=(HI, ("assistant", " Hello \n"), MORE))
    assert read(encode(trimmed, "letter", with_template(TRIMS), 199).train, tokenizer)[1] == ["Hello</s>", "Bye</s>"]


def test_the_loss_is_over_the_answers_wherever_they_stand(adapt) -> None:  # type: ignore[no-untyped-def]
    """Against the whole model's own logits, with all other positions masked."""
    model, plain = adapt(), tiny.model()
    rows = [encode(prompt, "letter", tiny.tokenizer(), 199).train for prompt in (LONG, replace(LONG, messages=(HI,)))]
    logits, targets = [], []
    for row in rows:
        found = plain(torch.from_numpy(row.ids.astype("int64"))[None]).logits[0]
        labels = torch.full((len(row.ids),), -100)
        labels[torch.from_numpy(row.positions.astype("int64"))] = torch.from_numpy(row.targets.astype("int64"))
        logits.append(found)
        targets.append(labels)
    expected = F.cross_entropy(torch.cat(logits), torch.cat(targets), ignore_index=-100)
    start = model.initial_adapter(0)
    config = TrainConfig(batch_size=2, accumulate=2)
    trained = local_steps(model, HiddenCache(2**20), Job(Rows(rows), [[0, 1]], start), config)
    assert trained.losses[0] == pytest.approx(expected.item(), rel=1e-5)
    assert algebra.size(trained.adapter)


def test_what_is_asked_for_is_what_was_trained_on() -> None:
    for template in (tiny.CHAT, ONCE, TRIMS, TALKS, FORGETS, None):
        tokenizer = with_template(template)
        row = encode(LONG, "letter", tokenizer, 199, turns="last").train
        asked = prompt_ids(LONG, tokenizer, 199)
        assert row.ids[: len(asked)].tolist() == asked.tolist()
        assert row.positions[0] == len(asked) - 1


# -- what templates do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (MOVES, (SYSTEM, HI, HELLO, MORE), "rewrites the chat up to message 3 .*; write the system message at"),
        (MOVES, (SYSTEM, HI), "message 3 as it goes on: 'Be brief <|user|>Hi.* became '<|user|>Hi.*; write the system"),
        (FORGETS, (HI, HELLO, MORE), "rewrites .*<think></think>.*; train on the last answers alone: --data.assistant"),
        (FIRST, (SYSTEM, HI, ("system", "No")), "template leaves out message 3, of the role system: 'No'; write it in"),
        (tiny.CHAT + "{% if %}", (HI,), "refuses messages with roles user, assistant: .*; it is not Jinja; mend chat_"),
        (THINKS, (HI,), "answers are asked for with '<|assistant|><think>\\\\n': write them such that they go on from"),
    ],
)  # fmt: skip
def test_a_template_that_rewrites_what_comes_before_an_answer_is_refused(
    template: str, messages: Texts, said: str
) -> None:
    with pytest.raises(DataError, match=said.replace("|", r"\|")):
        encode(replace(LONG, messages=messages, answers=("Bye. " * 9,)), "letter", with_template(template), 199)


@pytest.mark.parametrize(
    ("template", "messages", "answers"),
    [
        (MOVES, (HI, HELLO, MORE), ["Hello</s>", "Bye</s>"]),
        (FORGETS, (SYSTEM, HI), ["<think></think>Bye</s>"]),
        (THINKS, (HI,), ["ok</think>Bye</s>"]),
        (ENDS, (HI, HELLO, MORE), ["Hello", "Bye</s>"]),
    ],
)
def test_what_such_a_template_leaves_alone_is_learnt(template: str, messages: Texts, answers: list[str]) -> None:
    tokenizer = with_template(template)
    answer = "<think>\nok</think>Bye" if template == THINKS else "Bye"
    prompt = Prompt("", (answer,), 0, messages=messages)
    assert read(encode(prompt, "letter", tokenizer, 199).train, tokenizer)[1] == answers
    if template == FORGETS:
        longer = replace(prompt, messages=(HI, HELLO, *messages))
        assert read(encode(longer, "letter", tokenizer, 199, turns="last").train, tokenizer)[1] == answers


@pytest.mark.parametrize("template", [TALKS, IGNORES])
def test_a_system_message_that_a_template_has_no_role_for_is_said_by_the_user(template: str) -> None:
    tokenizer = with_template(template)
    examples, said = remarked([LONG, replace(LONG, messages=(HI,))], tokenizer)
    text = "<|user|>Be brief\n\nHi</s><|assistant|>Hello</s><|user|>And?</s><|assistant|>Bye"
    assert read(examples[0].train, tokenizer) == (text, ["Hello</s>", "Bye</s>"])
    assert said.startswith("the model's chat template has no system role: the system messages of 1 chats stand at the")
    assert not remarked([replace(LONG, messages=(HI,))], tokenizer)[1]
    with pytest.raises(DataError, match="no system role, and there is no user message to put it before"):
        encode(replace(LONG, messages=(SYSTEM,)), "letter", tokenizer, 199)


def test_a_model_without_a_template_has_a_plain_one() -> None:
    tokenizer = with_template(None)
    examples, said = remarked([LONG], tokenizer)
    text = "Be brief\n\nUser: Hi\nAssistant: Hello</s>\nUser: And?\nAssistant: Bye"
    assert read(examples[0].train, tokenizer) == (text, [" Hello</s>", " Bye</s>"])
    assert said.startswith("the model has no chat template: 1 chats are written in the plain one, User: ... and")
    assert not remarked([Prompt("a", ("b",), 0)], tokenizer)[1]
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        encode(LONG, "letter", tokenizer, 199)


def test_the_date_that_a_template_writes_is_that_of_the_run() -> None:
    tokenizer = with_template(DATES)
    prompt = replace(LONG, messages=(HI,))

    def text(date: str | None) -> str:
        made = encode(prompt, "letter", tokenizer, 199, date=date).train
        assert made.ids.tolist()[: len(made.ids) - 3] == prompt_ids(prompt, tokenizer, 199, date).tolist()
        return str(tokenizer.decode(made.ids.tolist()))

    assert text("2026-01-02") == "02 Jan 2026 2026;<|user|>Hi</s><|assistant|>Bye"
    assert text(None).startswith(datetime.date.today().strftime("%d %b %Y"))
    with pytest.raises(
        ModelError, match="writes today's date in a way that cannot be repeated tomorrow; set chat_temp"
    ):
        encode(prompt, "letter", with_template("{{ strftime_now(fmt) }}" + tiny.CHAT), 199)


def test_a_template_that_reads_parts_is_given_parts() -> None:
    tokenizer = with_template(PARTS)
    assert read(encode(LONG, "letter", tokenizer, 199).train, tokenizer) == (WHOLE, ["Hello</s>", "Bye</s>"])
    assert prompt_ids(LONG, tokenizer, 199).tolist() == prompt_ids(LONG, tiny.tokenizer(), 199).tolist()


def test_of_several_templates_the_default_is_taken() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = {"tool_use": "x", "default": tiny.CHAT}
    assert read(encode(LONG, "letter", tokenizer, 199).train, tokenizer)[0] == WHOLE


# -- length --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_length", "text"),
    [
        (145, "<|system|>Be brief</s>" + "<|user|>Hi</s><|assistant|>Hello</s>" * 3 + "<|user|>0123456789</s>"),
        (144, "<|system|>Be brief</s>" + "<|user|>Hi</s><|assistant|>Hello</s>" * 2 + "<|user|>0123456789</s>"),
        (85, "<|system|>Be brief</s><|user|>Hi</s><|assistant|>Hello</s><|user|>0123456789</s>"),
        (84, "<|system|>Be brief</s><|user|>0123456789</s>"),
        (54, "<|system|>Be brief</s><|user|>123456789</s>"),
        (46, "<|system|>Be brief</s><|user|>9</s>"),
    ],
)
def test_a_long_chat_loses_its_oldest_turns_and_then_the_start_of_the_request(max_length: int, text: str) -> None:
    tokenizer = tiny.tokenizer()
    example = encode(TURNS, "letter", tokenizer, max_length)
    assert read(example.train, tokenizer)[0] == text + "<|assistant|>Bye"
    whole = encode(TURNS, "letter", tokenizer, 999)
    assert len(example.train.ids) < max_length  # with the end of sequence
    assert (example.cut, whole.cut) == (len(whole.train.ids) - len(example.train.ids), 0)
    asked = prompt_ids(TURNS, tokenizer, max_length - 4)
    assert asked.tolist() == example.train.ids[: len(asked)].tolist()
    assert len(asked) == len(example.train.ids) - 3


def test_cuts_are_said() -> None:
    assert not remarked([TURNS, LONG], tiny.tokenizer(), max_length=145)[1]
    assert remarked([LONG, TURNS], tiny.tokenizer(), max_length=130)[1].startswith(
        "WARNING: 1 of 2 items are longer than data.max_length = 130 tokens and lose the beginning of their prompts, "
        "in chats the oldest turns: 30 tokens in all (most at a:1: 30); raise data.max_length to keep them, or refuse"
    )


def test_what_cannot_be_cut_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    for prompt, length, said in (
        (TURNS, 45, "an answer of 4 tokens does not fit into data.max_length = 45 with what has to stand before it"),
        (
            replace(TURNS, answers=("long" * 9,)),
            30,
            "an answer of 37 tokens does not fit into .* = 30; raise max_length",
        ),
    ):
        with pytest.raises(DataError, match=said):
            encode(prompt, "letter", tokenizer, length)
    with pytest.raises(DataError, match=r"a prompt of 141 tokens cannot be cut to 40; raise the limit"):
        prompt_ids(TURNS, tokenizer, 40)
    with pytest.raises(DataError, match=r"145 tokens are more than data.max_length = 99; raise it, or let rows be cut"):
        encode(TURNS, "letter", tokenizer, 99, too_long="refuse")
    with pytest.raises(DataError, match=r"a prompt of 43 tokens leaves no room for an answer in data.max_length = 40"):
        encode(TURNS, "letter", tokenizer, 40, too_long="cut-answer")
    with pytest.raises(DataError, match=r"a prompt of 10 tokens leaves no room for an answer in data.max_length = 8"):
        encode(Prompt("0123456789", ("a",), 0), "letter", tokenizer, 8, too_long="cut-answer")
    with pytest.raises(DataError, match=r"14 tokens are more than data.max_length = 13; raise it"):
        encode(Prompt("0123456789", ("abc",), 0), "letter", tokenizer, 13, too_long="refuse")


def test_an_answer_may_lose_its_end_instead() -> None:
    tokenizer = tiny.tokenizer()
    example = encode(Prompt("0123456789", ("abcdef",), 0), "letter", tokenizer, 12, too_long="cut-answer")
    assert read(example.train, tokenizer) == ("0123456789a", ["ab"])  # and no end of sequence, because it goes on
    assert example.cut == 5
    example = encode(TURNS, "letter", tokenizer, 70, too_long="cut-answer")
    text = "<|system|>Be brief</s><|user|>Hi</s><|assistant|>Hello</s>"
    assert read(example.train, tokenizer) == (text.removesuffix("</s>"), ["Hello</s>"])
    _, said = remarked([TURNS], tokenizer, max_length=70, too_long="cut-answer")
    assert "lose the end of their answers: " in said
