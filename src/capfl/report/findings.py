"""What came out of a run, in sentences: first of all whether joining paid, and for whom."""

from __future__ import annotations

import math
from collections.abc import Sequence

from capfl import metrics
from capfl.report.summary import MODELS, TOGETHER, Z95, Pair, Summary, pair
from capfl.report.tables import apart, listed, percent, size


def verdicts(summary: Summary) -> list[str]:
    """A sentence for each first metric: did joining pay, and for whom? None where nobody joined."""
    return [line for metric in summary.leading for line in _verdict(summary, metric)]


def findings(summary: Summary) -> list[str]:
    """What else is to be said of a run beside its scores: what was sent, and what is missing."""
    found = [line for metric in summary.leading for line in _levels(summary, metric)]
    up, down = (size(summary.bytes_per_client(direction) / summary.rounds) for direction in ("up", "down"))
    found.append(f"sent for each client and round: {up} up, {down} down")
    if summary.stopped:
        found.append(summary.stopped)
    if summary.failures:
        found.append(f"{summary.failures} failed replies, see rounds.jsonl")
    if absent := sorted({f.client for f in summary.evaluation_failures} - {row.id for row in summary.rows}):
        found.append(f"no row for {', '.join(absent)}: no answer in the final evaluation, see summary.json")
    if summary.epsilon is not None and summary.protects == "items":
        found.append(
            f"adapters that leave a site are private to epsilon {summary.epsilon:.3g} at delta "
            f"{summary.delta:g}, for each of its training items; validation and test items are not covered"
        )
    elif summary.epsilon is not None:
        found.append(
            f"clients' changes in the shared adapter are private to epsilon {summary.epsilon:.3g} at "
            f"delta {summary.delta:g}; losses, counts and personal adapters are not covered"
        )
    return found


def in_short(summary: Summary) -> str:
    """What the columns mean, in one line."""
    shares = any(metrics.metric(name).is_share for name in summary.leading)
    chance = "±: by the choice of test items; " if shares else ""
    return (
        f"shared: adapter of the client's group; personal: its own; {chance}up, down: bytes in all. "
        "capfl report RUN explains more"
    )


def glossary(summary: Summary) -> list[str]:
    """What the columns of the tables mean, and where the adapters lie."""
    found = [
        f"{name}: {metrics.metric(name).words}" + ("" if metrics.metric(name).is_share else "; less is better")
        for name in summary.metrics
        if len(summary.metrics) > len(summary.leading)
    ]
    shares = any(metrics.metric(name).is_share for name in summary.leading)
    return [
        *found,
        "shared: the adapter of the client's group, in adapters/groups/GROUP, or of all clients, in adapters/global",
        "personal: the client's own adapter, in adapters/clients/CLIENT or at its site; capfl eval scores them all",
        ("± comes from the choice of test items, not from the seed; " if shares else "")
        + "spread: standard deviation over clients",
        "up, down: bytes from and to the client in the whole run, headers and final evaluation included",
    ]


def _verdict(summary: Summary, metric: str) -> list[str]:
    """One sentence: did joining pay, for whom, and can it be told from so many test items?"""
    rows = [row for row in summary.rows if row.metric == metric]
    model = next((model for model in ("personal", "shared") if summary.scores(model, metric)), None)
    if model is None or summary.method == "local":
        return []
    begin = f"{metric}: " if len(summary.leading) > 1 else ""
    if summary.scores("local_only", metric) is None:
        return [(f"{begin}whether joining paid is unknown, because no client trained alone; add --references local")]
    pairs = {row.id: found for row in rows if (found := pair(row, model, metric, row, "local_only"))}
    gain = math.fsum(one.gain for one in pairs.values()) / len(pairs)
    change = math.fsum(one.mine - one.alone for one in pairs.values()) / len(pairs)
    margin = _margin(list(pairs.values()))
    if margin is None:
        by = f"{metric} {abs(change):.3g} {'lower' if change < 0 else 'higher'} with the {MODELS[model]} adapter than"
        by += " after training alone, on average"
    else:
        by = f"{apart(change, metric)} ± {100 * margin:.1f}"
        by += f" by the {MODELS[model]} adapter against training alone, on average"
    if margin is not None and abs(gain) <= margin:
        n_items = sum(row.n_test for row in rows)
        said = f"{n_items} test items are too few to tell whether joining paid ({by})"
    else:
        said = f"joining {'paid' if gain > 0 else 'did not pay' if gain < 0 else 'made no difference'} ({by})"
    if all(client.startswith(TOGETHER) for client in pairs):
        return [f"{begin}{said}: only the sum of clients' scores is known"]
    clear = [client for client, one in pairs.items() if one.is_clearly_worse]
    whose = {
        "better": [client for client, one in pairs.items() if one.gain > 0],
        "worse": [client for client, one in pairs.items() if one.gain < 0],
    }
    parts = [f"{len(clients)} of {len(pairs)} {name}{_names(clients)}" for name, clients in whose.items()]
    clearly = f", clearly so{_names(clear)}" if clear else "" if margin is None else ", nobody clearly"
    return [f"{begin}{said}: {', '.join(parts)}{clearly if whose['worse'] else ''}"]


def _names(clients: Sequence[str]) -> str:
    return f" ({listed(clients, 8)})" if clients else ""


def _margin(pairs: Sequence[Pair]) -> float | None:
    """Half the width of the 95 % interval of a mean difference of shares; None: perplexities have no such."""
    if not metrics.metric(pairs[0].metric).is_share:
        return None
    return Z95 * math.sqrt(sum(one.variance for one in pairs)) / len(pairs)


def _levels(summary: Summary, metric: str) -> list[str]:
    """What takes no model."""
    chance, majority = summary.mean("chance", metric), summary.mean("majority", metric)
    if chance is None or majority is None:
        return []
    return [f"chance {percent(chance)} %, always the most frequent answer {percent(majority)} %"]
