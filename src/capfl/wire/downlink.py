"""The downlink: every client knows a version of its group's adapter and is sent what leads from it to the newest.

Version r is what clients know after round r; version 0 follows from the seed. The server keeps the newest version
and the messages that led from each to the next; it is their sum that clients know, so the next difference carries
what the ones before it lost. A client that missed rounds is sent the differences it missed, or the whole adapter
where that is shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from capfl import adapter as algebra
from capfl.errors import VersionError, WireError
from capfl.types import Adapter, Broadcast, ClientId, ClientState, Group
from capfl.wire.body import pack, unpack
from capfl.wire.codec import Codec
from capfl.wire.layout import Ints, Layout
from capfl.wire.scales import Doubles
from capfl.wire.values import VALUES

PLAIN = VALUES["fp32"]  # a whole adapter must arrive exactly: later differences build on it

Lead = Callable[[Adapter, bytes, int], Adapter]
"""(version, difference, number of the next version) -> the next version. Raises WireError: damaged."""


def advance(
    group: Group, target: Adapter, round: int, codec: Codec, template: Adapter, importance: Doubles | None = None
) -> Group:
    """The group with its version of a completed round, as near to ``target`` as one message leads.

    Args:
        importance: of the ranks, as for ``Codec.encode``; a codec that loses nothing sends all that changed, whatever
            it is.
    """
    if codec.exact:  # the whole adapter is no longer than a difference, and free of rounding
        return replace(group, known=target, log=())
    difference = _changed(algebra.subtract(target, group.known), by_rank=importance is not None)
    body = codec.encode(difference, template, round, importance)
    known = algebra.add(group.known, codec.decode(memoryview(body), template, round))
    if codec.unbiased:  # nothing is carried over: what clients know is the adapter
        group = replace(group, adapter=group.adapter | known)
    return with_version(group, known, body)


def with_version(group: Group, known: Adapter, body: bytes) -> Group:
    """The group with a newest version, and with the difference that leads there from the one before."""
    log = (*group.log, body)
    while len(log) > 1 and sum(map(len, log)) > 4 * algebra.size(known):  # the whole adapter is shorter
        log = log[1:]
    return replace(group, known=known, log=log)


def _changed(difference: Adapter, by_rank: bool) -> Adapter:
    """The tensors of a difference that are not zero; by rank, all of a factor any of whose tensors is not.

    What is drawn by rank depends on which tensors a message has, and clients have drawn theirs with the whole factor.
    """
    if not by_rank:
        return {name: t for name, t in difference.items() if bool(t.any())}
    return algebra.moved(difference)


def broadcast(
    group: Group, newest: int, client: ClientId, version: int, template: Adapter, version_0: Adapter
) -> Broadcast:
    """What brings a client that knows ``version`` to the ``newest``, in the fewest bytes.

    Args:
        template: has every tensor of a version.
    """
    n_missed = newest - version
    differences = group.log[len(group.log) - n_missed :] if n_missed <= len(group.log) else None
    if differences is not None and n_missed < 2:
        return Broadcast(newest + 1, client, None, differences)
    least = 4 * sum(int((t != version_0[name]).sum()) for name, t in group.known.items())  # of what follows
    if differences is not None and sum(map(len, differences)) <= least:
        return Broadcast(newest + 1, client, None, differences)
    whole = _whole(group.known, template, version_0)
    if differences is not None and sum(map(len, differences)) <= len(whole):
        return Broadcast(newest + 1, client, None, differences)
    return Broadcast(newest + 1, client, whole, ())


def receive(message: Broadcast, memory: ClientState, lead: Lead, template: Adapter, version_0: Adapter) -> ClientState:
    """The memory of a client that has received a broadcast; ``known`` is then the newest version.

    Args:
        lead: what to do with a difference.
        template: as for ``broadcast``.

    Raises:
        VersionError: a difference leads from a version that the client does not have.
        WireError: a body is damaged.
    """
    newest = message.round - 1
    if message.state is not None:
        return replace(memory, known=_apply_whole(message.state, template, version_0), version=newest)
    known, first = memory.known or version_0, newest - len(message.differences)
    if first == 0:  # everybody has version 0, whatever else they remember
        known, memory = version_0, replace(memory, version=0)
    if not first <= memory.version <= newest:
        raise VersionError(
            f"client {memory.client!r} knows version {memory.version} of its group's adapter and was sent what leads "
            f"from {first} to {newest}: it has lost its state, or the server its own"
        )
    for version, body in enumerate(message.differences, first + 1):
        if version > memory.version:
            known = lead(known, body, version)
    return replace(memory, known=known, version=newest)


def adding(codec: Codec, template: Adapter) -> Lead:
    """How differences lead that are changes, encoded by a codec: each is added."""
    return lambda version, body, number: algebra.add(version, codec.decode(memoryview(body), template, number))


def _whole(known: Adapter, template: Adapter, version_0: Adapter) -> bytes:
    """The elements that are no longer what everybody starts with."""
    layout = Layout.of(known, template)
    flat = layout.flatten(known)
    kept = np.flatnonzero(flat != layout.flatten(version_0))
    return pack(flat, kept, len(kept) < layout.size, PLAIN, layout, template)


def _apply_whole(body: bytes, template: Adapter, version_0: Adapter) -> Adapter:
    layout, kept, values = unpack(memoryview(body), PLAIN, template, _all)
    flat = layout.flatten(version_0)
    flat[kept] = values
    return layout.unflatten(flat)


def _all(layout: Layout, ranks: memoryview | None, alive: memoryview | None) -> Ints:
    if ranks is not None or alive is not None:
        raise WireError("a whole adapter has ranks of some importance")
    return np.arange(layout.size)
