"""Clients by groups: who joins one that there is, and who forms a new one. Time is near linear where groups are few.

A client joins the nearest group, if that is near enough. Those for whom there is none form groups by average linkage,
a block of them at a time. Then new groups that are near on the whole become one. A group is as near as its members are
on average, of whom the nearest third counts as the next: a few that stand between two groups, or claim to be near to
everybody, cannot bring others together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from capfl.maths.peers import Clients, Doubles, Ints, clusters, from_group, merged

WITNESSES = 32  # members that stand for a group, evenly over the order in which they came
BLOCK = 1000  # clients that are compared with each other at once
DOUBT = 0.5  # of ``Rule.near``: how much farther a group of one client counts, and one of k by 1 / sqrt(k) of it
GROUPS = 0.2  # how much farther apart than a pair of peers groups of many may be: their mean distance is known better
COLUMNS = 4096  # members that are compared with a block of clients at once

Groups = list[list[int]]
"""Numbers of clients, by groups."""


@dataclass(frozen=True)
class Rule:
    """When clients are peers.

    Attributes:
        largest: effect size between prompts of clients ``near`` apart whose answers cannot be compared.
        near: largest distance of a pair of peers.
        far: no pair counts for a larger distance.
    """

    largest: float
    near: float
    far: float

    def limit(self, pairs: int) -> float:
        """The largest mean distance over so many pairs of peers: chance moves a mean of k pairs by 1 / sqrt(k)."""
        return self.near + GROUPS * (1 - float(pairs**-0.5))


def place(clients: Clients, members: Sequence[Sequence[int]], new: Sequence[int], rule: Rule) -> Groups:
    """The groups, and then those that are formed, once the ``new`` clients are in one each. Nobody else is moved.

    A new group is numbered as its first member comes.
    """
    groups, pending = [list(group) for group in members], list(new)
    while pending:
        nearest = _nearest(clients, pending, groups, rule)
        strangers = [row for row, group in zip(pending, nearest, strict=True) if group < 0]
        waiting: list[int] = []
        for group in sorted(set(nearest[nearest >= 0].tolist())):
            joining = [row for row, its in zip(pending, nearest, strict=True) if its == group]
            joining, late = joining[:BLOCK], joining[BLOCK:]
            like, unlike = _like_each_other(clients, groups[group], joining, rule)
            stay, out = _vouched(clients, groups[group], like, rule)
            groups[group] += stay
            strangers += unlike + out
            waiting += late
        place_of = {row: i for i, row in enumerate(pending)}
        strangers.sort(key=place_of.__getitem__)
        block, pending = strangers[:BLOCK], strangers[BLOCK:] + waiting
        labels = clusters(_apart(clients, block, block, rule), rule.near)
        found: Groups = [[] for _ in range(int(labels.max(initial=-1)) + 1)]
        for row, label in zip(block, labels, strict=True):
            found[label].append(row)
        outside: list[int] = []
        for together in found:
            stay, out = _vouched(clients, [], together, rule)
            groups.append(stay)
            outside += out
        pending = sorted(outside, key=place_of.__getitem__) + pending
    return groups[: len(members)] + _merged(clients, groups[len(members) :], rule)


def joined(clients: Clients, groups: Groups, alone: Sequence[int], changed: Sequence[int], rule: Rule) -> Groups:
    """The groups once those of one client in ``alone`` have joined the nearest of ``changed``, if it is near enough.

    A group that was left is empty. Both are given by their numbers.
    """
    groups = [list(group) for group in groups]
    now = _nearest(clients, [groups[i][0] for i in alone], groups, rule, changed, alone)
    for own in [own for own, near in zip(alone, now, strict=True) if near >= 0]:
        if len(groups[own]) == 1:  # else another one that was alone has joined it
            (near,) = _nearest(clients, groups[own], groups, rule, changed, [own])
            if near >= 0:
                groups[near] += groups[own]
                groups[own] = []
    return groups


def _merged(clients: Clients, groups: Groups, rule: Rule) -> Groups:
    """New groups, once those that are near on the whole have become one. Of very many the largest are looked at."""
    by_size = sorted(range(len(groups)), key=lambda i: -len(groups[i]))
    so_far = np.cumsum([len(_witnesses(groups[i])) for i in by_size])
    chosen = sorted(by_size[: np.count_nonzero(so_far <= BLOCK)])
    witnesses = [_witnesses(groups[i]) for i in chosen]
    rows = [row for own in witnesses for row in own]
    numbers = iter(range(len(rows)))
    places = [[next(numbers) for _ in own] for own in witnesses]
    for first, *others in merged(_apart(clients, rows, rows, rule), places, rule.limit):
        for i in others:
            groups[chosen[first]] += groups[chosen[i]]
            groups[chosen[i]] = []
    return [group for group in groups if group]


def _apart(clients: Clients, rows: Sequence[int], others: Sequence[int], rule: Rule) -> Doubles:
    return clients.apart(np.array(rows, np.int64), np.array(others, np.int64), rule.largest, rule.near, rule.far)


def _witnesses(members: Sequence[int]) -> list[int]:
    n = min(len(members), WITNESSES)
    return [members[i * len(members) // n] for i in range(n)]


def _nearest(
    clients: Clients,
    rows: Sequence[int],
    groups: Groups,
    rule: Rule,
    among: Sequence[int] | None = None,
    own: Sequence[int] | None = None,
) -> Ints:
    """The number of the group nearest to each client, or -1 where none is near enough.

    Of two that are about as near it is the one of more members: where there are many small ones, one is near by chance.

    Args:
        among: groups that can be chosen; None: all.
        own: of each client, one that cannot.
    """
    best, found = np.full(len(rows), np.inf), np.full(len(rows), -1)
    for numbers, witnesses in _chunks(groups, range(len(groups)) if among is None else among):
        for first in range(0, len(rows), BLOCK):
            block = slice(first, first + BLOCK)
            apart = _apart(clients, rows[block], witnesses.ravel().tolist(), rule)
            far = from_group(apart.reshape(-1, witnesses.shape[1])).reshape(-1, len(numbers))
            if own is not None:
                far[np.array(own[block])[:, None] == numbers] = np.inf
            least = far.argmin(1)
            mean = far[np.arange(len(far)), least]
            score = mean + DOUBT * rule.near / witnesses.shape[1] ** 0.5
            better = (score < best[block]) & (mean <= rule.limit(witnesses.shape[1]))
            best[block] = np.where(better, score, best[block])
            found[block] = np.where(better, numbers[least], found[block])
    return found


def _chunks(groups: Groups, among: Sequence[int]) -> Iterator[tuple[Ints, Ints]]:
    """Numbers of groups (k,), and their witnesses (k, w), a few at a time. Empty ones are left out."""
    by_size: dict[int, list[int]] = {}
    for i in sorted(among):
        if groups[i]:
            by_size.setdefault(min(len(groups[i]), WITNESSES), []).append(i)
    for size, numbers in sorted(by_size.items()):
        step = COLUMNS // size
        for first in range(0, len(numbers), step):
            chunk = numbers[first : first + step]
            yield np.array(chunk), np.array([_witnesses(groups[i]) for i in chunk])


def _like_each_other(clients: Clients, group: list[int], joining: list[int], rule: Rule) -> tuple[list[int], list[int]]:
    """Part clients that are near to a small group: those who are also like each other, and the others.

    They are clustered with its members, who alone cannot tell whether those who join them belong together.
    """
    if len(joining) < 2 or len(group) >= WITNESSES:
        return joining, []
    together = [*group, *joining]
    labels = clusters(_apart(clients, together, together, rule), rule.near)
    main = np.bincount(labels[: len(group)]).argmax()
    is_in = labels[len(group) :] == main
    return [row for row, own in zip(joining, is_in, strict=True) if own], [
        row for row, own in zip(joining, is_in, strict=True) if not own
    ]


def _vouched(clients: Clients, group: list[int], joining: list[int], rule: Rule) -> tuple[list[int], list[int]]:
    """Part clients that would join a group together: those who are near the rest of it, and those who are not.

    The worst half of those who are not goes first, because others may have been far for its sake.
    """
    out: list[int] = []
    while joining:
        witnesses = np.array(_witnesses([*group, *joining]))
        itself = np.array(joining)[:, None] == witnesses
        far = from_group(_apart(clients, joining, witnesses.tolist(), rule), itself)
        wrong = np.flatnonzero(far > rule.near)
        if not len(wrong):
            break
        worst = set(wrong[np.argsort(-far[wrong], kind="stable")][: (len(wrong) + 1) // 2].tolist())
        out += [row for i, row in enumerate(joining) if i in worst]
        joining = [row for i, row in enumerate(joining) if i not in worst]
    return joining, out
