"""Partitions: disjoint, complete, repeatable, and skewed as asked."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl.config.schema import PartitionConfig
from capfl.data.names import group_names, numbered
from capfl.data.partition import partition
from capfl.data.quotas import counts, sizes
from capfl.errors import ConfigError, DataError
from capfl.types import Item


def make(n, labels=5, **fields):
    """``n`` items, label ``k mod labels``."""
    return [Item(f"q{k}", fields={"task": "t", "label": f"L{k % labels}", **fields}) for k in range(n)]


def config(kind, **values):
    return PartitionConfig(kind=kind, **{"min_items": 3, **values})


@st.composite
def partitions(draw):
    kind = draw(st.sampled_from(["iid", "dirichlet", "by:label", "by_task", "shards", "conflict"]))
    sigma = 0.0 if kind == "shards" else draw(st.sampled_from([0.0, 0.3]))
    clients = 5 * draw(st.integers(1, 2)) if kind == "by:label" else draw(st.integers(2, 8))
    settings_ = {"clients": clients, "size_sigma": sigma, "alpha": draw(st.sampled_from([0.5, 10.0]))}
    return make(draw(st.integers(200, 400))), config(kind, **settings_), draw(st.integers(0, 2**20))


@settings(max_examples=60, deadline=None)
@given(partitions())
def test_every_item_has_one_client(args):
    items, made, seed = args
    try:
        parts = partition(items, made, seed)
    except DataError as error:  # a skewed draw may leave a client short, and then says so
        if "min_items" not in str(error):
            raise
        return
    assert sorted(k for part in parts.values() for k in part) == list(range(len(items)))
    assert list(parts) == sorted(parts)
    assert len(parts) == made.clients
    assert all(part == sorted(part) for part in parts.values())
    assert parts == partition(items, made, seed)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "by:label", "by_task", "shards", "conflict"])
def test_seeds_differ(kind):
    made = config(kind, clients=5 if kind != "by:label" else 10, alpha=10)
    items = make(300)
    assert partition(items, made, 0) != partition(items, made, 1)


def test_iid_sizes():
    parts = partition(make(23), config("iid", clients=4), 0)
    assert sorted(map(len, parts.values())) == [5, 6, 6, 6]
    assert list(parts) == ["00", "01", "02", "03"]
    assert len(partition(make(100), config("iid"), 0)) == 10


def test_log_normal_sizes_spread():
    even = partition(make(1000), config("iid", clients=10), 0)
    odd = partition(make(1000), config("iid", clients=10, size_sigma=1.0), 0)
    assert np.std([len(p) for p in even.values()]) == 0
    assert np.std([len(p) for p in odd.values()]) > 30


def skew_of(parts, items):
    """Mean total variation distance between a client's label shares and those of all."""
    labels = sorted({item.fields["label"] for item in items})

    def shares(indices):
        count = Counter(items[k].fields["label"] for k in indices)
        return np.array([count[label] for label in labels]) / len(indices)

    overall = shares(range(len(items)))
    return np.mean([np.abs(shares(part) - overall).sum() / 2 for part in parts.values()])


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_dirichlet_skew_falls_with_alpha(sigma):
    items = make(2000)
    skews = [
        skew_of(partition(items, config("dirichlet", clients=5, alpha=alpha, size_sigma=sigma), 4), items)
        for alpha in (0.2, 2.0, 1000.0)
    ]
    assert skews[0] > 0.35 > skews[1] > 0.1 > 0.08 > skews[2]


def test_dirichlet_quotas_are_exact():
    """With ``size_sigma`` the sizes are those that ``iid`` would draw, however skewed the labels."""
    items = make(500, labels=3)
    parts = partition(items, config("dirichlet", clients=6, alpha=0.05, size_sigma=0.2), 1)
    small, large = min(map(len, parts.values())), max(map(len, parts.values()))
    assert 40 < small < large < 140


def test_tiny_alpha_gives_each_value_to_one_client():
    items = make(400, labels=8)
    parts = partition(items, config("dirichlet", clients=2, alpha=1e-5), 3)
    homes = [{items[k].fields["label"] for k in part} for part in parts.values()]
    assert not homes[0] & homes[1]


def test_by_field_keeps_groups():
    items = make(20, labels=4)
    parts = partition(items, config("by:label"), 0)
    assert parts == {f"L{v}": list(range(v, 20, 4)) for v in range(4)}


def test_by_field_splits_groups_evenly():
    items = make(32, labels=4)
    parts = partition(items, config("by:label", clients=8), 0)
    assert list(parts) == [f"L{v}-{k}" for v in range(4) for k in (1, 2)]
    assert {len(part) for part in parts.values()} == {4}
    assert sorted(parts["L2-1"] + parts["L2-2"]) == list(range(2, 32, 4))


def test_by_field_gives_the_first_groups_the_clients_that_are_left_over():
    parts = partition(make(80, labels=4), config("by:label", clients=6, min_items=5), 0)
    assert list(parts) == ["L0-1", "L0-2", "L1-1", "L1-2", "L2", "L3"]
    assert [len(part) for part in parts.values()] == [10, 10, 10, 10, 20, 20]


def test_by_field_needs_a_client_for_each_group():
    with pytest.raises(ConfigError, match=r"clients is 2, but label has 4 values.*give at least 4"):
        partition(make(40, labels=4), config("by:label", clients=2), 0)


def test_by_task_is_by_field_task():
    items = make(9) + [Item("x", fields={"task": "u", "label": "L0"})] * 4
    assert partition(items, config("by_task"), 0) == {"t": list(range(9)), "u": [9, 10, 11, 12]}


def test_shards_hold_few_labels():
    items = make(400, labels=10)
    parts = partition(items, config("shards", clients=10, shards=2), 0)
    assert {len(part) for part in parts.values()} == {40}
    assert all(len({items[k].fields["label"] for k in part}) <= 2 for part in parts.values())


def test_max_items_caps_at_random():
    items = make(100)
    whole = partition(items, config("iid", clients=2), 0)
    capped = partition(items, config("iid", clients=2, max_items=20), 0)
    assert [len(part) for part in capped.values()] == [20, 20]
    assert all(set(capped[c]) < set(whole[c]) for c in whole)
    assert capped["00"] != whole["00"][:20]


def test_max_items_leaves_the_mixture_of_labels():
    items = make(400, labels=2)
    parts = partition(items, config("shards", clients=1, shards=2, max_items=200), 0)
    count = Counter(items[k].fields["label"] for k in parts["00"])
    assert 70 < count["L0"] < 130


@pytest.mark.parametrize(
    ("n", "made", "error", "message"),
    [
        (
            100,
            config("iid", clients=5, min_items=21),
            DataError,
            r"5 of 5 clients .*min_items = 21 items: 00 \(20\), 01",
        ),
        (4, config("iid", clients=5), DataError, "5 clients cannot share 4 items; lower partition.clients"),
        (0, config("iid"), DataError, "there are no items to share out"),
        (20, config("shards", clients=5, shards=5), DataError, "5 clients of 5 shards need 25 items and there are 20"),
        (20, config("shards", clients=2, size_sigma=1), ConfigError, "size_sigma has no effect on shards"),
        (20, config("by:colour"), ConfigError, "no item has the field 'colour'; choose from label, task"),
        (20, config("dirichlet", field="x", clients=2), ConfigError, "no item has the field 'x'"),
        (20, config("iid", max_items=5, min_items=6), ConfigError, "max_items 5 is below partition.min_items 6"),
    ],
)
def test_errors(n, made, error, message):
    with pytest.raises(error, match=message):
        partition(make(n), made, 0)


def test_some_items_without_the_field():
    items = make(10, site="a") + make(2)
    with pytest.raises(DataError, match=r"2 of 12 items lack the field 'site' \(item 10 of task 't': 'q0'; item 11"):
        partition(items, config("by:site"), 0)


def test_ids_are_safe_and_unique():
    assert numbered(101)[:2] == ["000", "001"]
    assert group_names(["a b", "a_b", "A_B", "../x", "", "é"], [1] * 6) == [
        ["a_b"], ["a_b.2"], ["A_B.3"], ["_x"], ["_"], ["_.2"],
    ]  # fmt: skip
    assert group_names(["x", "x-1"], [2, 2]) == [["x-1", "x-2"], ["x-1-1", "x-1-2"]]
    assert group_names(["x"], [10])[0][0] == "x-01"


@given(st.lists(st.text(max_size=60), unique=True, max_size=20), st.integers(1, 12))
def test_ids_of_any_values(values, each):
    ids = [name for names in group_names(values, [each] * len(values)) for name in names]
    assert len({name.casefold() for name in ids}) == len(values) * each
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) for name in ids)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.integers(0, 10_000))
def test_counts_sum_and_stay_near_the_shares(shares, total):
    array = np.array(shares)
    whole = counts(array, total)
    assert whole.sum() == total
    assert (np.abs(whole - array / array.sum() * total) < 1 + 1e-6).all()


def test_equal_sizes():
    assert sizes(3, 10, 0.0, np.random.default_rng(0)).tolist() == [4, 3, 3]
