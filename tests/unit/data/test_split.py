"""Splits: every item in one part, no part empty, copies together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfl.config.data import DataConfig, PartitionConfig
from capfl.data import remarks
from capfl.data.split import Split, split
from capfl.errors import DataError
from capfl.types import Item

SHARES = st.sampled_from([(0.0, 0.2), (0.1, 0.2), (0.45, 0.5), (0.01, 0.98), (0.98, 0.01), (0.0, 0.99)])


@given(st.lists(st.integers(0, 12), min_size=3, max_size=60), SHARES, st.integers(0, 100))
def test_parts_are_disjoint_complete_not_empty_and_share_no_text(texts, shares, seed):
    items = [Item("q", completion=str(text)) for text in texts]
    config = PartitionConfig(validation=shares[0], test=shares[1])
    if len(set(texts)) < 2 + (shares[0] > 0):
        with pytest.raises(DataError, match=r"client '00' has \d+ items.*, too few for"):
            split(items, range(len(items)), config, seed, "00")
        return
    made = split(items, range(len(items)), config, seed, "00")
    assert sorted(made.all) == list(range(len(items)))
    assert made.train
    assert made.test
    assert bool(made.validation) == (shares[0] > 0)
    parts = [{texts[k] for k in part} for part in (made.train, made.validation, made.test)]
    assert sum(map(len, parts)) == len(set(texts))
    assert made == split(items, range(len(items)), config, seed, "00")


def test_shares_seed_and_client():
    items = [Item(f"q{k}") for k in range(100)]
    config = PartitionConfig(validation=0.1, test=0.2)
    made = split(items, range(100), config, 0, "00")
    assert (len(made.train), len(made.validation), len(made.test)) == (70, 10, 20)
    assert made != split(items, range(100), config, 1, "00")
    assert made != split(items, range(100), config, 0, "01")
    assert split(items, [5, 7, 9, 11, 13], config, 0, "x") == Split([5, 7, 11], [9], [13])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=12, max_size=60), st.integers(0, 100))
def test_items_of_one_value_stay_together_and_so_do_their_copies(rows, seed):
    rows = [*rows, *((text, text) for text in range(10, 13))]  # three groups at least
    items = [Item(f"q{text}", fields={"patient": str(patient)}) for text, patient in rows]
    made = split(items, range(len(items)), PartitionConfig(keep_together="patient"), seed, "00")
    parts = [made.train, made.validation, made.test]
    assert sorted(made.all) == list(range(len(items)))
    assert all(parts)
    for which in (0, 1):
        values = [{rows[k][which] for k in part} for part in parts]
        assert sum(map(len, values)) == len(set().union(*values))


def test_a_field_to_keep_together_has_to_be_there() -> None:
    items = [Item(f"q{k}", fields={"patient": "a" if k < 9 else "b", "task": "t"}) for k in range(20)]
    with pytest.raises(DataError, match=r"items of 2 patient, .* too few for 3 parts"):
        split(items, range(20), PartitionConfig(keep_together="patient"), 0, "00")
    with pytest.raises(DataError, match=r"client '00': .* item 0 \('q0'\) lacks the field 'site'.*they have: patient"):
        split(items, range(20), PartitionConfig(keep_together="site"), 0, "00")
    with pytest.raises(DataError, match=r"keep_together: own.jsonl:7 \('q'\) lacks the field 'site'"):
        split([Item("q", place="own.jsonl:7")] * 9, range(9), PartitionConfig(keep_together="site"), 0, "00")


def test_copies_are_counted_and_said():
    items = [Item(f"q{k % 20}", completion="a", fields={"id": str(k)}) for k in range(30)]
    config = PartitionConfig(kind="iid")
    made = {"a": split(items, range(20), config, 0, "a"), "b": split(items, range(15, 30), config, 0, "b")}
    assert remarks(None, config, items, made) == ["data: rows in memory; 30 items at 2 clients"]
    whole = {"b": split(items, range(30), config, 0, "b")}
    said = remarks(DataConfig(sets=("boolq", "x.jsonl")), config, items, whole)
    source = "boolq, x.jsonl (split train, from the Hugging Face Hub), partition.kind iid"
    assert said[0] == f"data: {source}; 30 items at 1 client"
    assert said[1].startswith("WARNING: 10 items are exact copies of another item of their client (most at b: 10 of")
    two = [Item("q", completion=str(k % 2)) for k in range(60)]
    with pytest.raises(DataError, match="client 'x' has 60 items, of which 2 are different, too few for 3 parts"):
        split(two, range(60), config, 0, "x")
