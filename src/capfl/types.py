"""The words that every room shares: plain values, no logic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # what a run has left on disk is read without torch, which takes seconds to load
    import torch

ClientId = str

Adapter = dict[str, "torch.Tensor"]
"""LoRA factors by name: ``"<module>.A"`` of shape (r, d_in) and ``"<module>.B"`` of shape (d_out, r).

A part of an adapter (only the A factors, say) is an Adapter with fewer names. A method that changes the base has a
patch beside them, ``"<module>.W"`` of shape (d_out, d_in): the module then adds s (B A + W) to its frozen weight.
"""

SplitName = Literal["train", "validation", "test"]

Task = Literal["choices", "completions"]
"""What items ask for: one of their options, or a text to be written."""


# -- data ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """One example, whatever file it came from.

    Either a choice (``choices`` has at least two options and ``answer`` indexes the right one) or a
    completion (``choices`` is empty and ``completion`` is the text to produce). ``messages`` replaces
    ``question`` for chat data; the last message is then the completion.

    ``given`` is the number of messages at the start of a chat whose answers are never trained on. ``place`` is where
    the row is, such as ``data.jsonl:12``; it is for error messages, and items that differ in it alone are equal.
    """

    question: str
    choices: tuple[str, ...] = ()
    answer: int = 0
    completion: str = ""
    listed: bool = True  # are the options shown in the prompt (multiple choice) or learnt (labels)?
    fields: Mapping[str, str] = field(default_factory=dict)  # what partitions may divide by
    messages: tuple[tuple[str, str], ...] = ()  # (role, content) of a chat, without the last answer
    given: int = 0
    place: str = field(default="", compare=False)
    source: str = field(default="", compare=False)  # the data set, or the file without its ending, that it is from

    @property
    def task(self) -> Task:
        return "choices" if self.choices else "completions"


@dataclass(frozen=True, slots=True)
class Prompt:
    """An item rendered by the one template: what the model reads and what it may answer."""

    text: str
    answers: tuple[str, ...]  # candidate answers, each appended to text; one for a completion
    right: int  # index of the right answer
    messages: tuple[tuple[str, str], ...] = ()  # chat data: the tokenizer's chat template renders it
    ends: bool = True  # is end-of-sequence a target after the answer?
    given: int = 0  # as of the item
    place: str = field(default="", compare=False)


Scoring = Literal["letter", "text"]
TooLong = Literal["cut-prompt", "cut-answer", "refuse"]
Turns = Literal["all", "last"]


@dataclass(frozen=True)
class Penalty:
    """What moves the factors after each step of the optimiser, as weight decay does in AdamW; no term of the loss.

    ``step(trained factors, constants, learning rate)`` gives the factors after it and changes none in place. Adam would
    make full steps of a term's gradient once the task's is small: Loshchilov & Hutter, arXiv:1711.05101. Constants
    follow the model to its device.
    """

    step: Callable[[Adapter, Mapping[str, torch.Tensor], float], Adapter]
    constants: Mapping[str, torch.Tensor]


def _no_numbers() -> torch.Tensor:
    import torch

    return torch.zeros(0)


@dataclass(frozen=True)
class LocalSteps:
    """What a client asks for when it is to train: local steps from an adapter.

    Attributes:
        start: where they begin.
        first_step: steps that the client has taken in earlier rounds.
        penalty: follows each step.
    """

    start: Adapter
    round: int
    first_step: int
    penalty: Penalty | None


@dataclass(frozen=True)
class Trained:
    """What local training leaves."""

    adapter: Adapter
    losses: tuple[float, ...]  # of every step, nats a token; 0 where items are protected
    sensitivity: torch.Tensor = field(default_factory=_no_numbers)
    """Of the loss to each rank, (n,) float32, nats, in the adapter's order: the root mean square, over steps, of the
    derivative by a gate on the rank, sum_o b_o dL/db_o. Empty: not known."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a metric or a loss comes to: a sum, and over how many items or answer tokens."""

    sum: float
    count: int

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else float("nan")


@dataclass(frozen=True, slots=True)
class Score:
    """How an adapter does on some items: its loss, in nats, and metrics by name (``capfl.metrics``).

    The loss is taken over items for choices, and over answer tokens for completions.
    """

    loss: Tally
    metrics: Mapping[str, Tally]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A client's test items: how many there are, and what accuracy takes no model. None: they are completions."""

    number: int = 0
    chance: float | None = None  # of blind guessing
    majority: float | None = None  # of always giving the most frequent answer of training items (protected: test items)

    @property
    def task(self) -> Task:
        return "completions" if self.chance is None else "choices"


# -- messages: what crosses between server and client ------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """A client's public keys, by which its update is hidden in one sum (``maths.masks``)."""

    client: ClientId
    key: bytes  # 32
    signature: bytes = b""  # by the key of the client's node, where it has one
    box: bytes = b""  # 32: against a malicious server, the key by which others seal shares for the client


@dataclass(frozen=True)
class Broadcast:
    """Server to client, at the start of a round: what brings the client to the newest adapter of its group.

    ``grouping`` and ``ranks`` are records (``wire.records``) of the method's two parts that may say something.
    """

    round: int
    client: ClientId
    version: int  # the number of the newest version, to which the message leads
    state: bytes | None  # the whole adapter, encoded, or
    differences: tuple[bytes, ...]  # from one version to the next, oldest first; empty bytes: the client's own update
    grouping: object | None = None
    ranks: object | None = None
    cohort: tuple[Offer, ...] = ()  # secure aggregation: all whose updates will be summed, by id
    gone: tuple[ClientId, ...] = ()  # those of them whose masks are to be opened
    shares: tuple[bytes, ...] = ()  # sealed by each other client of the cohort, by id, for this one


@dataclass(frozen=True)
class Introduction:
    """Client to server, before it trains for the first time: what its data are like."""

    round: int
    client: ClientId
    n_train: int
    grouping: object | None  # a record of the method's grouping


@dataclass(frozen=True)
class Update:
    """Client to server, at the end of its local training."""

    round: int
    client: ClientId
    adapter: Adapter  # changes, not values: trained minus received
    n_train: int  # items the client holds for training: its weight in the mean
    steps: int  # optimiser steps taken this round
    loss: float  # mean training loss over those steps, nats a token
    ranks: object | None = None  # a record of the method's ranks
    body: bytes = b""  # the adapter as it came, which the server may relay


@dataclass(frozen=True)
class Validation:
    """Client to server: how well the newest adapter of its group does on the client's validation items."""

    round: int
    client: ClientId
    score: Score


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Client to server, at the end of a run: how well its models do on the client's test items."""

    round: int
    client: ClientId
    n_train: int
    test: HeldOut
    scores: Mapping[str, Score]  # by model: base, global, personal, as far as there are such
    ranks: Mapping[str, float]  # of every module of the adapter that the client keeps: whole numbers


# -- states: what is remembered between rounds -------------------------------------------------------

EVERYBODY = "everybody"
"""The group that all clients are in. A client that is in no other group is sent the adapter of this one."""


@dataclass(frozen=True)
class Group:
    """Clients that share an adapter."""

    adapter: Adapter  # what the server has aggregated
    known: Adapter  # the newest version of it that clients are sent: with error feedback, not all has come down yet
    log: tuple[bytes, ...] = ()  # the last messages that lead from one version to the next, the newest last
    idle: int = 0  # versions after these in which nothing has changed: of each there is a message that says so
    since: int = 0  # the last round before the group was formed


@dataclass(frozen=True)
class ServerState:
    """All that the server remembers. ``round`` is the number of rounds completed.

    ``version`` is the number of turns completed: at least one in every round. Each gives all groups a new version.

    ``grouping`` and ``ranks`` are what the method's two parts with a memory keep (None: nothing): frozen dataclasses of
    their own. ``lines`` are digests of rounds.jsonl, of which one must be that of the file beside this state.
    """

    round: int
    groups: Mapping[str, Group]
    group_of: Mapping[ClientId, str] = field(default_factory=dict)  # who is in another group than EVERYBODY
    versions: Mapping[ClientId, int] = field(default_factory=dict)  # the version of its group that each client knows
    version: int = 0
    own: Mapping[ClientId, int] = field(default_factory=dict)  # the version that each client's update alone has led to
    heard: Mapping[ClientId, int] = field(default_factory=dict)  # the last round in which each client answered
    visits: Mapping[ClientId, int] = field(default_factory=dict)  # rounds in which each client's update was used
    claims: Mapping[ClientId, int] = field(default_factory=dict)  # training items that each client says it has
    grouping: object | None = None
    ranks: object | None = None
    lines: tuple[str, ...] = ()

    def group_name(self, client: ClientId) -> str:
        """The name of the group whose adapter a client is sent."""
        return self.group_of.get(client, EVERYBODY)

    def group(self, client: ClientId) -> Group:
        """The group whose adapter a client is sent."""
        return self.groups[self.group_name(client)]

    @property
    def everybody(self) -> Group:
        return self.groups[EVERYBODY]


@dataclass(frozen=True)
class ClientState:
    """All that one client remembers, on its own disk."""

    client: ClientId
    steps: int = 0  # optimiser steps taken so far: position in the data
    trained: int = 0  # the last round in which it trained
    version: int = 0  # of its group's adapter, that the client knows
    known: Adapter = field(default_factory=dict)  # that version; empty where it need not be kept
    adapter: Adapter = field(default_factory=dict)  # factors of its own, which do not travel
    residual: Adapter = field(default_factory=dict)  # what its messages have not carried so far
    sent: bytes = b""  # the change of its last update, as it went: it may have become the version after the one known
    best: Adapter = field(default_factory=dict)  # the best of its own models so far; empty where it need not be kept
    best_loss: float | None = None  # of that one on its validation items
    grouping: object | None = None  # what the method's two parts with a memory keep, as in ServerState
    ranks: object | None = None


@dataclass(frozen=True)
class Failure:
    """Why a client's reply did not come."""

    client: ClientId
    stage: str
    reason: str
    code: str = "internal"  # the kind of error, see ``errors``


@dataclass(frozen=True, slots=True)
class Entry:
    """One message in the byte ledger, as long as it really is."""

    round: int
    client: ClientId
    direction: Literal["up", "down"]
    bytes: int
    parts: Mapping[str, int]
    """header, positions, scales, values, records, keys, scores, catch-up, unreadable: they sum to ``bytes``."""


@dataclass(frozen=True)
class RoundRecord:
    """What one round did. A line of rounds.jsonl (``history``)."""

    round: int
    clients: tuple[ClientId, ...]  # whose updates were used
    losses: dict[ClientId, float]  # mean training loss of each, nats a token; with secure aggregation that of its sum
    steps: dict[ClientId, int]  # optimiser steps of each; with secure aggregation the mean of its sum
    failures: tuple[Failure, ...]
    ledger: tuple[Entry, ...]
    seconds: float
    validation: dict[str, float] = field(default_factory=dict)
    """By metric, of the adapters that clients were sent, over the validation items of all that it measures."""
    validation_loss: float | None = None  # of all these items; None of two kinds of task, whose losses have no mean
    norms: dict[ClientId, float] = field(default_factory=dict)  # L2 norm of each client's change, if it was seen
    ranks: dict[ClientId, list[int]] = field(default_factory=dict)  # of every module, as the client's report says
    kappa: dict[ClientId, list[float]] = field(default_factory=dict)  # of every module: mean importance of its ranks
    groups: Mapping[ClientId, str] = field(default_factory=dict)  # of who is in another one than everybody, afterwards
    capped: dict[ClientId, int] = field(default_factory=dict)  # items that count of those who say they have very many
    epsilon: float | None = None  # of differential privacy, of all rounds so far: see methods.private

    @property
    def loss(self) -> float:
        """Mean of the clients' training losses; not a number where nobody has said one."""
        return sum(self.losses.values()) / len(self.losses) if self.losses else float("nan")

    @property
    def bytes_up(self) -> int:
        return sum(e.bytes for e in self.ledger if e.direction == "up")

    @property
    def bytes_down(self) -> int:
        return sum(e.bytes for e in self.ledger if e.direction == "down")


Request = Callable[[ClientId], bytes]

Kind = Literal["introduce", "keys", "shares", "train", "open", "validate", "evaluate"]
"""What a client is asked for: what its data are like, a round of training, a score of the newest version of its group's
adapter, or, last, of all models. With secure aggregation, before training public keys and, against a malicious server,
shares of secrets; and after it what opens the sum."""

Exchange = Callable[[Kind, int, Sequence[ClientId], Request], Iterator[tuple[ClientId, bytes | Failure]]]
"""An engine: ``exchange(kind, round, clients, request)`` delivers ``request(client)`` to every client and yields the
replies in the order of ``clients``. It moves bytes and nothing else. Requests are encoded when they are sent and
replies handed on one by one, so that memory does not grow with the number of clients."""
