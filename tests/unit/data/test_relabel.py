"""Conflicting labels between clusters of clients."""

from __future__ import annotations

import pytest

from capfl.config.schema import PartitionConfig
from capfl.data.partition import partition, relabel
from capfl.errors import ConfigError, DataError
from capfl.types import Item

LABELS = ("a", "b", "c", "d", "e")
ITEMS = [Item(f"q{k}", LABELS, k % 5, listed=False, fields={"task": "t", "label": LABELS[k % 5]}) for k in range(100)]


def run(conflict, clusters=2, clients=4, items=ITEMS, seed=0):
    config = PartitionConfig(kind="conflict", clients=clients, clusters=clusters, conflict=conflict)
    parts = partition(items, config, seed)
    return parts, relabel(items, parts, config, seed)


def maps(parts, changed):
    """What each client's cluster makes of every label."""
    return {client: {ITEMS[k].answer: changed[k].answer for k in part} for client, part in parts.items()}


def test_clusters_disagree_everywhere_and_members_agree():
    made = maps(*run(1.0))
    assert made["00"] == made["02"] == {k: k for k in range(5)}
    assert made["01"] == made["03"]
    assert sorted(made["01"].values()) == list(range(5))
    assert all(made["01"][k] != k for k in range(5))


def test_part_of_the_labels():
    made = maps(*run(0.4))
    assert sum(made["01"][k] != k for k in range(5)) == 2
    no_conflict = run(0.0)[1]
    assert [item.answer for item in no_conflict] == [item.answer for item in ITEMS]


def test_fields_follow():
    parts, changed = run(1.0)
    for number, client in enumerate(parts):
        for k in parts[client]:
            assert changed[k].fields["label"] == LABELS[changed[k].answer]
            assert changed[k].fields["cluster"] == str(number % 2)
            assert changed[k].question == ITEMS[k].question


def test_other_kinds_change_nothing():
    config = PartitionConfig(kind="iid", clients=4)
    assert relabel(ITEMS, partition(ITEMS, config, 0), config, 0) == ITEMS


def test_errors():
    listed = [*ITEMS, Item("mc", ("x", "y"), 0, fields={"task": "t", "label": "A"})]
    with pytest.raises(ConfigError, match="1 of 101 items are no label task, such as 'mc'"):
        run(1.0, items=listed)
    with pytest.raises(ConfigError, match="clusters is 5 and there are 4 clients"):
        run(1.0, clusters=5)
    with pytest.raises(DataError, match="6 code books of 5 codes cannot all differ"):
        run(1.0, clusters=6, clients=6)
