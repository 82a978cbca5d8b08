"""The downlink: every client knows a version of its group's adapter and is sent what leads from it to the newest.

Versions have numbers; version 0 follows from the seed. The server keeps the newest version and the messages that led
from each to the next; it is their sum that clients know, so the next difference carries what the ones before it lost. A
client that missed some is sent the differences it missed, or the whole adapter where the server no longer keeps them.

A difference is encoded by the server, or relayed: the bodies that clients sent, as they came, and how much each weighs.
A client whose own update alone has led to a version has it already, and is sent empty bytes in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, repeat

import numpy.typing as npt

from capfl import adapter as algebra
from capfl.errors import VersionError, WireError
from capfl.types import Adapter, Broadcast, ClientId, ClientState, Group, ServerState
from capfl.wire.codec import Codec
from capfl.wire.sections import WEIGHT, Section, read, write
from capfl.wire.values import VALUES

WHOLE = Codec(VALUES["fp32"])  # a whole adapter must arrive exactly: later differences build on it
OWN = b""  # in the place of a difference: the change that the client has sent itself

Lead = Callable[[Adapter, bytes, int], Adapter]
"""(version, difference, number of the next version) -> the next version. Raises WireError: damaged."""


# -- server ------------------------------------------------------------------------------------------


def advance(
    group: Group, target: Adapter, number: int, codec: Codec, template: Adapter, importance: npt.ArrayLike | None = None
) -> Group:
    """The group with its version of a number, as near to ``target`` as one message leads.

    Args:
        importance: of the ranks, as for ``Codec.encode``; a codec that loses nothing sends all that changed, whatever
            it is.
    """
    same = all(t is group.known.get(name) for name, t in target.items())  # nobody of many groups of few has trained
    if codec.exact:  # the whole adapter is no longer than a difference, and free of rounding
        return group if same else replace(group, known=target, log=())
    # the factors that clients have drawn theirs with
    difference = {} if same else algebra.moved(algebra.subtract(target, group.known))
    if not difference:
        return replace(group, idle=group.idle + 1)
    body = codec.encode(difference, template, number, importance)
    known = algebra.add(group.known, codec.decode(memoryview(body), template, number))
    if codec.scales:  # nothing is carried over: what clients know is the adapter
        group = replace(group, adapter=group.adapter | known)
    return with_version(group, known, body, nothing(template))


def with_version(group: Group, known: Adapter, body: bytes, nothing: bytes) -> Group:
    """The group with its next version, and with the difference that leads there from the one before.

    Differences are kept as long as they are together no longer than the whole adapter; the newest always is.

    Args:
        nothing: what ``nothing`` gives.
    """
    log, left = [body], 4 * algebra.size(known) - len(body)
    for before in chain(repeat(nothing, group.idle), reversed(group.log)):
        left -= len(before)
        if left < 0:
            break
        log.append(before)
    return replace(group, known=known, log=tuple(reversed(log)), idle=0)


def nothing(template: Adapter) -> bytes:
    """The difference between two versions that are the same. ``template`` is that of differences."""
    return WHOLE.encode({}, template, 0)


def differences(group: Group, number: int, nothing: bytes) -> tuple[bytes, ...] | None:
    """The newest differences of a group, so many; None: they are no longer kept."""
    idle = min(number, group.idle)
    if number - idle > len(group.log):
        return None
    found = (*group.log[len(group.log) - number + idle :], *repeat(nothing, idle))
    return found if number <= 1 or sum(map(len, found)) <= 4 * algebra.size(group.known) else None


def broadcast(state: ServerState, client: ClientId, template: Adapter, nothing: bytes) -> Broadcast:
    """What brings a client from the version of its group's adapter that it knows to the newest, in the next round.

    Args:
        template: has every tensor of a version.
        nothing: what ``nothing`` gives.
    """
    group, version = state.group(client), state.versions.get(client, 0)
    missed = differences(group, state.version - version, nothing)
    if missed is None:
        whole = WHOLE.encode(group.known, template, state.version)
        return Broadcast(state.round + 1, client, state.version, whole, ())
    if missed and state.own.get(client) == version + 1:
        missed = (OWN, *missed[1:])
    return Broadcast(state.round + 1, client, state.version, None, missed)


# -- client ------------------------------------------------------------------------------------------


def receive(message: Broadcast, memory: ClientState, lead: Lead, template: Adapter, version_0: Adapter) -> ClientState:
    """The memory of a client that has received a broadcast; ``known`` is then the newest version.

    Args:
        lead: what to do with a difference.
        template: as for ``broadcast``.

    Raises:
        VersionError: a difference leads from a version that the client does not have.
        WireError: a body is damaged.
    """
    newest = message.version
    if message.state is not None:
        known = WHOLE.decode(memoryview(message.state), template, newest)
        return replace(memory, known=known, version=newest, sent=b"")
    known, first = memory.known or version_0, newest - len(message.differences)
    if first == 0 and OWN not in message.differences:  # everybody has version 0, whatever else they remember
        known, memory = version_0, replace(memory, version=0, sent=b"" if memory.version else memory.sent)
    if not first <= memory.version <= newest:
        raise VersionError(
            f"client {memory.client!r} knows version {memory.version} of its group's adapter and was sent what leads "
            f"from {first} to {newest}: it has lost its state, or the server its own"
        )
    for version, body in enumerate(message.differences, first + 1):
        if version > memory.version:
            if body == OWN and not (version == memory.version + 1 and memory.sent):
                raise VersionError(
                    f"client {memory.client!r} was told to apply an update of its own that it does not have: it has "
                    "lost its state, or the server its own"
                )
            known = lead(known, body or memory.sent, version)
    return replace(memory, known=known, version=newest, sent=memory.sent if newest == memory.version else b"")


# -- relayed updates ---------------------------------------------------------------------------------


def relay(bodies: Iterable[tuple[int, bytes]]) -> bytes:
    """A turn's updates as one difference: a section for each (weight, body), in the order given."""
    return b"".join(write(Section.RELAYED, weight.to_bytes(WEIGHT, "little") + body) for weight, body in bodies)


def is_relayed(difference: bytes) -> bool:
    """Was a difference made by ``relay``?"""
    return difference[:1] == bytes([Section.RELAYED])


def relayed(difference: bytes) -> Iterator[tuple[int, memoryview]]:
    """The (weight, body) of each update that ``relay`` was given, one by one.

    Raises:
        WireError: a section that is none of them, is cut off, or weighs nothing.
    """
    for _, section in read(memoryview(difference), (Section.RELAYED,)):
        weight = int.from_bytes(section[:WEIGHT], "little")
        if len(section) < WEIGHT or not weight:
            raise WireError("a relayed update has no weight")
        yield weight, section[WEIGHT:]
