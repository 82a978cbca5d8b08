"""Partitions: disjoint, complete, repeatable, and skewed as asked."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl.config.data import PartitionConfig
from capfl.data.partition import cut, group_names, numbered, partition
from capfl.errors import ConfigError, DataError
from capfl.types import Item


def make(n, labels=5, **fields):
    """``n`` items, label ``k mod labels``."""
    return [Item(f"q{k}", fields={"task": "t", "label": f"L{k % labels}", **fields}, source="t") for k in range(n)]


def config(kind, **values):
    return PartitionConfig(kind=kind, **{"min_items": 3, **values})


@settings(max_examples=30)
@given(st.sampled_from(["iid", "dirichlet", "dirichlet:label", "by:label", "by_task", "conflict"]),
       st.integers(1, 2), st.integers(200, 400), st.integers(0, 2**20))  # fmt: skip
def test_every_item_has_one_client(kind, tens, n, seed):
    items, made = make(n), config(kind, clients=5 * tens, alpha=10.0)
    parts = partition(items, made, seed)
    assert sorted(k for part in parts.values() for k in part) == list(range(n))
    assert list(parts) == sorted(parts)
    assert len(parts) == made.clients
    assert all(part == sorted(part) for part in parts.values())
    assert parts == partition(items, made, seed)
    if kind != "by:label" or tens > 1:  # five values at five clients leave nothing to chance
        assert parts != partition(items, made, seed + 1)


def test_iid_sizes():
    parts = partition(make(23), config("iid", clients=4), 0)
    assert {client: len(part) for client, part in parts.items()} == {"00": 6, "01": 6, "02": 6, "03": 5}
    assert len(partition(make(100), config("iid"), 0)) == 10


def test_dirichlet_skew_falls_with_alpha():
    def skew(alpha):
        """Mean total variation distance between a client's label shares and those of all."""
        parts = partition(items, config("dirichlet", clients=5, alpha=alpha), 4)
        found = [Counter(items[k].fields["label"] for k in part) for part in parts.values()]
        return np.mean([sum(abs(c[f"L{v}"] / c.total() - 0.2) for v in range(5)) / 2 for c in found])

    items = make(2000)
    assert skew(0.2) > 0.35 > skew(2.0) > 0.1 > 0.08 > skew(1000.0)
    other = [Item(i.question, fields={"label": "same", "site": i.fields["label"]}) for i in items]
    by_site = partition(other, config("dirichlet:site", clients=5), 4)
    assert by_site == partition(items, config("dirichlet", clients=5), 4)


def test_groups_stay_together_and_are_split_evenly():
    items = make(80, labels=4)
    assert partition(items, config("by:label"), 0) == {f"L{v}": list(range(v, 80, 4)) for v in range(4)}
    parts = partition(items, config("by:label", clients=6), 0)
    assert {c: len(part) for c, part in parts.items()} == {
        "L0-1": 10, "L0-2": 10, "L1-1": 10, "L1-2": 10, "L2": 20, "L3": 20,
    }  # fmt: skip
    two = make(9) + [Item("x", fields={"task": "all", "label": "L0"}, source="all")] * 4
    assert partition(two, config("by_task"), 0) == {"all": [9, 10, 11, 12], "t": list(range(9))}


def test_max_items_caps_at_random():
    whole = partition(make(100), config("iid", clients=2), 0)
    capped = partition(make(100), config("iid", clients=2, max_items=20), 0)
    assert [len(part) for part in capped.values()] == [20, 20]
    assert all(set(capped[c]) < set(whole[c]) for c in whole)
    assert capped["00"] != whole["00"][:20]
    skewed = partition(make(100), config("dirichlet", clients=2, alpha=10, max_items=20), 0)  # dealt label by label
    assert all({k % 5 for k in part} == set(range(5)) for part in skewed.values())


@pytest.mark.parametrize("kind", ["iid", "by:label"])
def test_spread_is_that_of_log_sizes(kind):
    """Six hundred clients: their log sizes have about that standard deviation, and no item is lost or doubled."""
    parts = partition(make(60_000), config(kind, clients=600, spread=0.7), 3)
    sizes = [len(part) for part in parts.values()]
    assert sum(sizes) == len({k for part in parts.values() for k in part}) == 60_000
    assert np.log(sizes).std() == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize(
    ("n", "made", "error", "message"),
    [
        (100, config("iid", clients=5, min_items=21), DataError, r"5 of 5 clients .*min_items = 21 items: 00 \(20\)"),
        (100, config("dirichlet", alpha=0.01), DataError, "raise partition.alpha, use fewer clients"),
        (4, config("iid", clients=5), DataError, "5 clients cannot share 4 items; lower partition.clients"),
        (20, config("dirichlet:x", clients=2), ConfigError, "no item has the field 'x'"),
        (20, config("by:site"), ConfigError, r"one file for each client.*: --partition.kind iid --partition.clients 2 "
         "or --partition.kind by:label$"),
        (40, config("by:label", clients=2), ConfigError, "is 2, but by:label keeps 5 values apart; give at least 5"),
        (20, config("dirichlet:label", spread=0.5), ConfigError, "spread does not go with dirichlet.*set one of them"),
        (20, config("iid", max_items=5, min_items=6), ConfigError, "max_items 5 is below partition.min_items 6"),
    ],
)  # fmt: skip
def test_errors(n, made, error, message):
    with pytest.raises(error, match=message):
        partition(make(n), made, 0)


def test_some_items_without_the_field():
    with pytest.raises(
        DataError,
        match=r"2 of 12 rows have no text or number in the field 'site' \(first: item 11, item 12\); fill it in",
    ):
        partition(make(10, site="a") + make(2), config("by:site"), 0)


def test_ids_are_safe_and_unique():
    assert numbered(101)[:2] == ["000", "001"]
    assert group_names(["a b", "a_b", "A_B", "../x", "", "all"], [1] * 6) == [
        ["a_b"], ["a_b.2"], ["A_B.3"], ["_x"], ["_"], ["all"],
    ]  # fmt: skip
    assert group_names(["x", "x-1"], [2, 2]) == [["x-1", "x-2"], ["x-1-1", "x-1-2"]]
    assert group_names(["x"], [10])[0][0] == "x-01"
    assert group_names(["北京", "Zu\u0308rich", "हिन्दी", "a/😀"], [1] * 4) == [["北京"], ["Zürich"], ["हिन्दी"], ["a__"]]


def test_sites_that_differ_in_case_or_spaces_alone_are_refused():
    items = make(20, site="north ") + make(20, site="North")
    with pytest.raises(DataError, match="'site' has 'North' and 'north ', which differ in case or spaces alone; write"):
        partition(items, config("by:site"), 0)


@settings(max_examples=20)
@given(st.lists(st.text(max_size=60), unique=True, max_size=6), st.integers(1, 12))
def test_ids_of_any_values(values, each):
    ids = [name for names in group_names(values, [each] * len(values)) for name in names]
    assert len({name.casefold() for name in ids}) == len(values) * each
    assert all(name and name[0] not in ".-" and not re.search(r"[\x00-,/:-@\[-^`{-\x9f\s]", name) for name in ids)
    assert all(len(name.encode()) < 250 for name in ids)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.integers(0, 300))
def test_pieces_are_complete_and_near_their_shares(shares, total):
    array = np.array(shares)
    pieces = cut(np.arange(total), array)
    assert [int(k) for piece in pieces for k in piece] == list(range(total))
    assert (np.abs(np.array([len(piece) for piece in pieces]) - array / array.sum() * total) < 1 + 1e-6).all()
    assert [len(piece) for piece in cut(np.arange(10), np.array([0.16, 0.55, 0.29]))] == [2, 5, 3]
