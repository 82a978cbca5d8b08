"""How much of a client's texts its update gives away: gradient inversion of updates as they travel.

    python benchmarks/inversion.py --model tiny --data-dir FOLDER [--json FILE]
    python benchmarks/inversion.py --model smollm2 --largest 480 --data-dir FOLDER [--json FILE]

Clients with texts of CLINC150, LoRA of rank 8 on all linear layers, method ``fedit``, the defaults of the rest. Every
condition is a round of the package: the broadcast, the reply and, with secure aggregation, keys and masks, with the
codec that it names. The attack has what the server has: the base, the adapter that the round started from, the template
around texts, and the reply's bytes or the sum. Besides, it is told how many different tokens to look for, which no
server is.

``all``: q, k and v of the first layer read one vector for each token, so all tokens of the vocabulary can be tried
(``pursuit``). A single text is put in order by the model itself, as the likeliest order of its tokens; where a gradient
is seen whole, by the second layer's inputs. ``top:20%``, the default, has no layer like that: its inputs follow from
all tokens before. There the attack is told the true beginning of a text, and ranks 128 candidates for the next token,
of which one is right: more than any server knows.

ROUGE is of words, as ``capfl.metrics`` cuts texts. ``chance``: the same recovered words against texts of a client that
took no part.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from capfl.metrics import rouge_l
from capfl.types import ClientId
from pursuit import explained, left, outside, pursue
from server_view import ROWS, Bench, Seen, whole

CODECS: dict[str, dict[str, object]] = {
    "dense": {"codec.values": "bf16"},
    "one bit, 1/3": {"codec.values": "ternary", "codec.density": 1 / 3},
    "one bit, 1/10": {"codec.values": "ternary", "codec.density": 0.1},
}
SUMMED = {"codec.values": "8bit"}  # the nearest to dense that secure aggregation can have
CLIENTS, ALONE = 10, 3  # that are summed at most; whose updates are attacked by themselves
BEAM = 3


def rms(inputs: Tensor) -> Tensor:
    """How large each dimension is, (d,). AdamW's steps do not know it, so the attack takes it out of the inputs."""
    return inputs.square().mean(0).sqrt().clamp(min=1e-9)


def in_span(bench: Bench, seen: Seen, found: Sequence[int], n: int) -> list[int]:
    """A text of n tokens in order, as DAGER finds it: each is the one whose input of the second layer, after those
    before it, is the nearest to the span of what was seen. For gradients that are seen whole."""
    values, _ = seen.rows(1)
    text, choice = list(bench.head), sorted({*found, *bench.template})
    for _ in range(n):
        inputs = bench.inputs(1, torch.tensor([[*text, token] for token in choice]))
        text.append(choice[int(outside(values, inputs).argmin())])
    return text[len(bench.head) :]


@torch.no_grad()
def spoken(bench: Bench, found: Sequence[int]) -> list[int]:
    """The tokens in the order that the model finds the likeliest, each once, by beam search (Gupta et al., Recovering
    Private Text in Federated Learning of Language Models, NeurIPS 2022, arXiv:2205.08514)."""
    beams = [(0.0, list[int]())]
    for _ in found:
        ids = torch.tensor([[*bench.head, *text] for _, text in beams])
        says = bench.model.base.module(input_ids=ids).logits[:, -1].log_softmax(1)
        grown = [
            (so_far + float(own[token]), [*text, token])
            for (so_far, text), own in zip(beams, says, strict=True)
            for token in found
            if token not in text
        ]
        beams = sorted(grown, key=lambda beam: -beam[0])[:BEAM]
    return beams[0][1]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def rouge_1(mine: Sequence[str], other: Sequence[str]) -> float:
    """F1 of words (Lin, ROUGE, 2004), each as often as it is there."""
    common = sum((Counter(mine) & Counter(other)).values())
    return 2 * common / max(1, len(mine) + len(other))


def distinct(bench: Bench, rows: Sequence[int]) -> set[int]:
    """The tokens of some texts that are not the template's."""
    return {int(t) for i in rows for t in bench.rows[i].ids} - bench.template


def attack(bench: Bench, seen: Seen, inputs: Tensor, rows: Sequence[int], others: Sequence[int]) -> dict[str, Any]:
    """Find the tokens of rows in what was seen, and compare them with theirs and with those of others.

    Args:
        inputs: of q, k and v of the first layer, (vocabulary, d).
    """
    true, decode = distinct(bench, rows), bench.model.base.tokenizer.decode
    values, marks = seen.rows(0)
    found: list[int] = []
    if values.any():  # from a fresh adapter, A has not moved after one step
        found = pursue(values, marks, inputs / rms(inputs) if seen.even else inputs, len(true), sorted(bench.template))
    score: dict[str, Any] = {"tokens": len(true), "hits": len(set(found) & true) / len(true)}
    score["hits_chance"] = len(set(found) & (absent := distinct(bench, others))) / len(absent)
    if bool(marks.all()):
        near = outside(values, inputs).argsort()[: len(true) + len(bench.template)].tolist()
        score["hits_span"] = len(set(near) & true) / len(true) if found else 0.0
    recovered = sorted({word for token in found for word in words(decode([token]))})
    for name, of in (("rouge_1", rows), ("rouge_1_chance", others)):
        score[name] = rouge_1(recovered, sorted({word for i in of for word in words(bench.texts[i])}))
    if len(rows) == 1:
        (i,), (j,) = rows, others
        n = len(bench.rows[i].ids) - len(bench.head) - len(bench.tail)
        text = decode((spoken(bench, found) if seen.even else in_span(bench, seen, found, n)) if found else [])
        score |= {"rouge_l": rouge_l(text, bench.texts[i], {}), "rouge_l_chance": rouge_l(text, bench.texts[j], {})}
        score["example"] = [text, bench.texts[i]]
    return score


def mean(scores: Sequence[Mapping[str, Any]], **settings: object) -> dict[str, Any]:
    """A row of the table, and the example of its first try."""
    numbers = {k: round(fmean(s[k] for s in scores), 3) for k, v in scores[0].items() if not isinstance(v, list)}
    return {**settings, "tries": len(scores), **numbers, **{k: v for k, v in scores[0].items() if isinstance(v, list)}}


def all_layers(bench: Bench, largest: int) -> Iterator[dict[str, Any]]:
    """The table for LoRA on all layers. ``largest``: most texts in a sum, for time."""
    inputs = bench.inputs(0, torch.arange(bench.model.vocabulary).unsqueeze(1))
    for batch, n_steps in itertools.product((1, 8), (1, 6)):
        n, settings = batch * n_steps, {"batch": batch, "steps": n_steps}
        many = [m for m in (3, CLIENTS) if m * n <= largest]
        trained = {name(k): bench.steps(bench.warm, rows_of(k, n), batch) for k in range(max([ALONE, *many]))}
        first = {name(0): bench.steps(bench.fresh, rows_of(0, n), batch)}
        if n_steps == 1:
            sight = [whole(bench.gradient(rows_of(k, n))) for k in range(ALONE)]
            tries = [attack(bench, g, inputs, rows_of(k, n), rows_of(CLIENTS, n)) for k, g in enumerate(sight)]
            yield mean(tries, **settings, sent="gradient", clients=1)
        for codec, keys in CODECS.items():
            seen = bench.travelled(bench.fresh, first, keys)
            found = attack(bench, seen, inputs, rows_of(0, n), rows_of(CLIENTS, n))
            yield mean([found], **settings, sent=f"{codec}, first round", clients=1)
            tries = []
            for k in range(ALONE):
                seen = bench.travelled(bench.warm, {name(k): trained[name(k)]}, keys)
                tries.append(attack(bench, seen, inputs, rows_of(k, n), rows_of(CLIENTS, n)))
            yield mean(tries, **settings, sent=codec, clients=1)
            for m in many:
                own, other = ([i for k in range(m) for i in rows_of(k + past, n)] for past in (0, CLIENTS))
                seen = bench.travelled(bench.warm, {name(k): trained[name(k)] for k in range(m)}, summable(codec))
                yield mean([attack(bench, seen, inputs, own, other)], **settings, sent=codec, clients=m)


def top_layers(bench: Bench) -> Iterator[dict[str, Any]]:
    """The table for the default layers: how often the true next token comes first, given all before it."""
    tried = [list(bench.nexts(rows_of(k, 1)[0])) for k in range(ALONE)]
    for batch, n_steps in itertools.product((1, 8), (1, 6)):
        n, settings = batch * n_steps, {"batch": batch, "steps": n_steps}
        trained = {name(k): bench.steps(bench.warm, rows_of(k, n), batch) for k in range(ALONE)}
        other = {name(0): bench.steps(bench.warm, rows_of(CLIENTS, n), batch)}
        views: list[tuple[str, int, list[Seen]]] = []  # of each client whose text is tried
        if n_steps == 1:
            views.append(("gradient", 1, [whole(bench.gradient(rows_of(k, n))) for k in range(ALONE)]))
        for codec, keys in CODECS.items():
            views.append((codec, 1, [bench.travelled(bench.warm, {c: t}, keys) for c, t in trained.items()]))
            views.append((f"{codec}, of other texts", 1, [bench.travelled(bench.warm, other, keys)] * ALONE))
            views.append((codec, ALONE, [bench.travelled(bench.warm, trained, summable(codec))] * ALONE))
        for sent, m, seen in views:
            ranks = [rank for k in range(ALONE) for rank in places(seen[k], bench.model.lowest, tried[k])]
            first, ten = (fmean(rank < limit for rank in ranks) for limit in (1, 10))
            numbers = {"positions": len(ranks), "first": round(first, 3), "first_ten": round(ten, 3)}
            yield {**settings, "sent": sent, "clients": m, **numbers}


def places(seen: Seen, layer: int, nexts: Sequence[tuple[Tensor, Tensor]]) -> Iterator[int]:
    """At each position the number of candidates that seem likelier than the true token, which is the last of them."""
    values, marks = seen.rows(layer)
    values = normalize(values * marks, dim=1)
    for before, candidates in nexts:
        both = torch.cat([before, candidates])
        if seen.even:
            both = both / rms(both)
            score = explained(left(values, marks, both[: len(before)]), marks, both[len(before) :])
        else:
            score = -outside(values, candidates)
        yield int((score[:-1] >= score[-1]).sum())


def name(k: int) -> ClientId:
    return f"c{k:02}"


def rows_of(k: int, n: int) -> list[int]:
    """The first n rows of a client; those after the tenth client's are nobody's."""
    return list(range(k * ROWS, k * ROWS + n))


def summable(codec: str) -> Mapping[str, object]:
    return SUMMED if codec == "dense" else CODECS[codec]


COLUMNS = {
    "all": ("batch", "steps", "sent", "clients", "tokens", "hits", "hits_chance", "hits_span", "rouge_1",
            "rouge_1_chance", "rouge_l", "rouge_l_chance"),
    "top:20%": ("batch", "steps", "sent", "clients", "first", "first_ten"),
}  # fmt: skip


def lines(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        cells = (f"{x:.2f}" if isinstance(x := row.get(c, ""), float) and c != "tokens" else f"{x}" for c in columns)
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--layers", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--largest", type=int, default=480, help="most texts in a sum")
    parser.add_argument("--json", type=Path, help="results go there, beside those of other models and layers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, path = time.process_time(), options.json
    for layers in options.layers:
        bench = Bench(options.model, layers, options.data_dir)
        if len(bench.rows) < (least := 2 * CLIENTS * ROWS):
            raise SystemExit(f"{options.data_dir}: CLINC150 has {len(bench.rows)} rows there; {least} are needed")
        rows = list(all_layers(bench, options.largest) if layers == "all" else top_layers(bench))
        print(f"\n{options.model}, {layers}\n", *lines(rows, COLUMNS[layers]), sep="\n", flush=True)
        if path:
            table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            table.setdefault(options.model, {})[layers] = rows
            path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"\n{time.process_time() - began:.0f} s of one core")


if __name__ == "__main__":
    main()
