"""Scores and rows of clients, short to write."""

from __future__ import annotations

from capfl.report.summary import ClientRow
from capfl.types import Score, Tally

ITEMS = 400


def right(correct: int, items: int, loss: float) -> Score:
    """So many of so many items with options are right; ``loss`` is a sum in nats."""
    return Score(Tally(loss, items), {"accuracy": Tally(correct, items)})


def completed(hits: int, tokens: int, loss: float, **written: Tally) -> Score:
    """So many of so many tokens are the likeliest; and metrics of written answers."""
    whole = Tally(loss, tokens)
    return Score(whole, {"perplexity": whole, "token_accuracy": Tally(hits, tokens), **written})


def client_row(client: str = "a", metric: str = "accuracy", items: int = ITEMS, **scores: float) -> ClientRow:
    """A client with these scores by one metric, by model."""
    found = {model: {metric: Tally(score * items, items)} for model, score in scores.items()}
    chance = (0.25, 0.5) if metric == "accuracy" else (None, None)
    return ClientRow(client, 7, items, (metric,), found, 8.0, {}, *chance, 1500, 2_000_000)
