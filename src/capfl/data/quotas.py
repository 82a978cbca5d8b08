"""Whole numbers of items from shares."""

from __future__ import annotations

import numpy as np


def counts(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to ``shares`` that sum to ``total``, by largest remainders."""
    exact = shares / shares.sum() * total
    whole: np.ndarray = np.floor(exact).astype(np.int64)
    rest = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:rest]] += 1
    return whole


def equal(n_clients: int, total: int) -> np.ndarray:
    """Numbers of items of the clients, equal to within one item."""
    return counts(np.ones(n_clients), total)


def cut(indices: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """``indices`` in consecutive pieces of the given sizes."""
    return np.split(indices, np.cumsum(numbers)[:-1])
