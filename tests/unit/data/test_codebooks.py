"""Code books: permutations that agree exactly where they should, and labels that follow them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl.data.codebooks import codebooks, relabel
from capfl.errors import ConfigError
from capfl.types import Item


@st.composite
def arguments(draw):
    n_codes = draw(st.integers(2, 20))
    n_books = draw(st.integers(1, n_codes))
    return n_books, n_codes, draw(st.floats(0, 1)), draw(st.integers(0, 2**32))


@settings(max_examples=60)
@given(arguments())
def test_rows_are_permutations_with_the_promised_agreement(args):
    n_books, n_codes, conflict, _ = args
    books = codebooks(*args)
    assert (np.sort(books, axis=1) == np.arange(n_codes)).all()
    assert (books == codebooks(*args)).all()
    moved = min(n_codes, max(2, round(conflict * n_codes))) if conflict > 0 else 0
    for i in range(n_books):
        for j in range(i):
            same = moved == 0 or (i - j) % moved == 0
            assert (books[i] == books[j]).sum() == (n_codes if same else n_codes - moved)


def test_full_conflict_is_a_latin_square_and_the_seed_counts():
    full = codebooks(12, 12, 1.0, 0)
    assert (np.sort(full, axis=0) == np.arange(12)[:, None]).all()
    assert not (codebooks(2, 12, 1.0, 0) == codebooks(2, 12, 1.0, 1)).all()


LABELS = ("a", "b", "c", "d", "e")


def test_every_second_client_calls_every_label_something_else():
    items = [Item(f"q{k}", LABELS, k % 5, listed=False, fields={"label": LABELS[k % 5]}) for k in range(100)]
    parts = {f"{n:02d}": list(range(25 * n, 25 * n + 25)) for n in range(4)}
    changed = relabel(items, parts, 0)
    maps = {client: {items[k].answer: changed[k].answer for k in part} for client, part in parts.items()}
    assert maps["00"] == maps["02"] == {k: k for k in range(5)}
    assert maps["01"] == maps["03"]
    assert sorted(maps["01"].values()) == list(range(5))
    assert all(maps["01"][k] != k for k in range(5))
    for number, part in enumerate(parts.values()):
        for k in part:
            label = LABELS[changed[k].answer]
            assert changed[k].fields == {"label": label, "cluster": str(number % 2)}
    with pytest.raises(ConfigError, match="1 of 101 items are no label task, such as 'mc'"):
        relabel([*items, Item("mc", ("x", "y"))], parts, 0)
    with pytest.raises(ConfigError, match="a single client has no other to disagree with"):
        relabel(items, {"00": list(range(100))}, 0)
