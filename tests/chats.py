"""Chats for tests of tokens, and what a model reads and writes of one."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from capfl.config.data import DataConfig
from capfl.model import tiny
from capfl.model.remarks import remarks
from capfl.model.tokens import Example, Row, encode
from capfl.types import Item, Prompt

EOS = 257
SYSTEM, HI, HELLO, MORE = ("system", "Be brief"), ("user", "Hi"), ("assistant", "Hello"), ("user", "And?")
LONG = Prompt("", ("Bye",), 0, messages=(SYSTEM, HI, HELLO, MORE))
TURNS = Prompt("", ("Bye",), 0, messages=(SYSTEM, *((HI, HELLO) * 3), ("user", "0123456789")))

ONCE = "{{ bos_token }}" + tiny.CHAT
TRIMS = tiny.CHAT.replace("m['content']", "(m['content'] | trim)")


def read(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[str]]:
    """All that the model reads, and every answer that it has to write."""
    answers, before = list[list[int]](), -2
    for at, target in zip(row.positions.tolist(), row.targets.tolist(), strict=True):
        if at != before + 1:
            answers.append([])
        answers[-1].append(target)
        before = at
        assert at == len(row.ids) - 1 or row.ids[at + 1] == target  # a target is the token that comes next
    return tokenizer.decode(row.ids.tolist()), [tokenizer.decode(answer) for answer in answers]


def remarked(prompts: list[Prompt], tokenizer: PreTrainedTokenizerBase, **data: object) -> tuple[list[Example], str]:
    config = DataConfig.model_validate({"max_length": 199} | data)
    examples = [encode(p, "letter", tokenizer, config.max_length, too_long=config.too_long) for p in prompts]
    items = [Item(p.text, completion=p.answers[0], messages=p.messages, place=f"a:{n}") for n, p in enumerate(prompts)]
    return examples, "\n".join(remarks(items, examples, config, tokenizer))
