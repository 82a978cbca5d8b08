"""Code books: which code stands for which meaning, in agreement or in conflict from book to book."""

from __future__ import annotations

import numpy as np

from capfl.errors import DataError
from capfl.rng import stream


def codebooks(n_books: int, n_codes: int, conflict: float, seed: int) -> np.ndarray:
    """Permutations of the codes, one a row: entry (b, i) is the code that book b gives to meaning i.

    All books start from one random permutation. ``round(conflict * n_codes)`` meanings (at least 2 for any
    conflict above 0, since one code alone cannot move) are chosen, and book b shifts their codes by b places
    in a cycle; the books agree on the others. With conflict 1 this is a cyclic Latin square: no two books agree
    anywhere. With m meanings in conflict, 0 < m < n_books, only m books can differ pairwise, so that book b
    equals book b + m.

    Raises:
        DataError: sizes below 1, a conflict outside [0, 1], or conflict 1 with more books than codes.
    """
    if n_books < 1 or n_codes < 1:
        raise DataError(f"{n_books} code books of {n_codes} codes: give at least one of both")
    if not 0 <= conflict <= 1:
        raise DataError(f"conflict is {conflict}; give a share from 0 to 1")
    if conflict == 1 and n_books > n_codes:
        raise DataError(
            f"{n_books} code books of {n_codes} codes cannot all differ everywhere; "
            f"use at most {n_codes} books, more codes, or a conflict below 1"
        )
    generator = stream(seed, "codebooks", n_books, n_codes)
    base = generator.permutation(n_codes)
    moved = min(n_codes, max(2, round(conflict * n_codes))) if conflict > 0 else 0
    places = generator.permutation(n_codes)[:moved]
    books = np.tile(base, (n_books, 1))
    for book in range(n_books):
        books[book, places] = base[np.roll(places, -book)]
    return books
