"""Code books: permutations that agree exactly where they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl.data.codebook import codebooks
from capfl.errors import DataError


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


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((13, 12, 1.0), "13 code books of 12 codes cannot all differ everywhere; use at most 12 books"),
        ((2, 12, 1.5), "conflict is 1.5; give a share from 0 to 1"),
        ((0, 12, 0.5), "give at least one of both"),
    ],
)
def test_errors(args, message):
    with pytest.raises(DataError, match=message):
        codebooks(*args, seed=0)
