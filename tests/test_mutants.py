"""The tests can fail: each error in ``mutants`` is noticed."""

from __future__ import annotations

import pytest

from mutants import MUTANTS, noticed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", MUTANTS)
def test_an_error_is_noticed(name: str) -> None:
    assert noticed(MUTANTS[name])
