"""A client that was never part of a run: it says what its data are like, and is given an adapter at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from capfl import adapter as algebra
from capfl import metrics
from capfl.checkpoint import RunFolder, StateReader
from capfl.checks import config_of
from capfl.config.schema import Config
from capfl.data import Split, load_items
from capfl.errors import CheckpointError, ConfigError
from capfl.federation import Federation
from capfl.files import in_the_way
from capfl.methods import build
from capfl.model.base import load_base
from capfl.model.card import Card, card_of, labels_of, load_card
from capfl.model.export import save_adapter
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import introduce, opened, received
from capfl.types import ClientId, ClientState, Item, ServerState


@dataclass(frozen=True)
class Welcome:
    """What a newcomer was given, and what it took."""

    client: ClientId
    n_items: int
    peers: tuple[ClientId, ...]  # whose adapter it is; none: that of everybody
    rank: float  # mean over the adapted modules
    bytes_up: int
    bytes_down: int
    scores: dict[str, dict[str, float]]
    """Of base, global and personal adapter, by metric, on items that the features were not made of."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def personalize(
    run: Path, data: Sequence[str], out: Path, name: ClientId, columns: Mapping[str, str] | None = None
) -> Welcome:
    """What `capfl personalize` does: as ``Run.welcome``, with the items of data sets or files.

    Args:
        columns: ``data.columns`` of these files; by default those of the run.

    Raises:
        CheckpointError, ConfigError: as ``Run``, or the folder ``out`` is in use.
        DataError: the data cannot be read.
    """
    if taken := in_the_way(out):
        raise ConfigError(f"--out: {taken}")
    met = Run(run)
    own = met.config.data.model_copy(update={"sets": tuple(data)} | ({"columns": dict(columns)} if columns else {}))
    items = load_items(own, met.config.seed)
    labels = fitting_labels(labels_of(items, own.scoring), cards_in(run))
    if labels:
        items = load_items(own.model_copy(update={"labels": labels}), met.config.seed)
    return met.welcome(name, items, out=out)


def cards_in(run: Path) -> list[Card]:
    """The cards of all adapters of a run, each once."""
    folders = sorted(path.parent for path in (run / "adapters").rglob("capfl.json"))
    return list(dict.fromkeys(card for folder in folders if (card := load_card(folder)) is not None))


def fitting_labels(own: Sequence[str], cards: Sequence[Card]) -> tuple[str, ...]:
    """The labels, in the order of their letters, of the run's adapter with the fewest that has all of ``own``.

    None if no adapter has all of them: then a newcomer's letters are those of its own file.
    """
    known = {card.labels for card in cards if own and set(own) <= set(card.labels)}
    return min(known, key=lambda labels: (len(labels), labels), default=())


class Run:
    """A finished run, ready to meet newcomers.

    Raises:
        CheckpointError: the folder is not a run, or it has not finished a round.
        ConfigError: its method has no adapter to give.
    """

    def __init__(self, path: Path) -> None:
        self.config: Config = config_of(path)
        self.method = build(self.config.method, self.config.seed)
        if not self.method.has_server_model:
            raise ConfigError(f"{path}: {self.method.name} shares no adapter, so a newcomer cannot get one")
        if self.method.grouping.divides and not self.method.grouping.describes:
            raise ConfigError(
                f"{path}: the run's groups are fixed by method.peers, and a newcomer is in none; use the "
                f"adapter of its group, in {path}/adapters/groups, or the global one, in "
                f"{path}/adapters/global"
            )
        self.model = AdaptedModel(load_base(self.config.model), self.config.lora)
        initial = self.model.initial_adapter(self.config.seed)
        self.agreement = Agreement(self.method, self.config.codec, initial, self.model.base.digest, self.config.seed)
        state = RunFolder(path).state(StateReader(self.method, initial))
        if state is None:
            raise CheckpointError(f"{path} has not finished a round; continue with: capfl run --resume {path}")
        self.state: ServerState = state

    def welcome(
        self, client: ClientId, items: Sequence[Item], held_back: Sequence[Item] = (), out: Path | None = None
    ) -> Welcome:
        """Give a client a personal adapter from what its items are like, without training.

        Args:
            items: that the features are made of.
            held_back: items to score the adapters on, if any.
            out: folder to save the adapter to.

        Raises:
            ConfigError: a client of the run has that name.
        """
        state, agreed, n = self.state, self.agreement, len(items)
        if client in state.visits:
            raise ConfigError(
                f"--name: {client!r} is already a client of this run and has its adapter; choose another name"
            )
        splits = {client: Split(list(range(n)), [], list(range(n, n + len(held_back))))}
        with HiddenCache(int(self.config.runtime.cache_gib * 2**30)) as cache:
            federation = Federation(self.config, [*items, *held_back], splits, self.model, cache)
            trainer = federation.trainer(client, self.method)

            # up: what its data are like
            blob, memory = b"", ClientState(client)
            if self.method.grouping.describes:
                asked = server.ask(state, client, agreed).blob
                blob, memory = introduce(asked, memory, trainer, agreed)
                said, _ = server.read_introduction(blob, client, state, agreed)
                state = server.introduced(state, {client: said}, agreed)

            # down: the adapter of its peers, and which ranks of it are for clients like this one
            alike = self.method.grouping.alike(state, client)
            state = replace(state, ranks=self.method.ranks.welcome(state, client, alike))
            message = server.request(state, client, agreed, again=True)
            memory = received(opened(message.blob, trainer, agreed), memory, agreed)
            start = self.method.starting_point(memory, agreed.initial)
            personal = self.method.without_unused_ranks(start, memory)
            own = algebra.pruned(personal)
            if out is not None:
                group = state.group_of.get(client)
                card = card_of(self.model.base, self.config.data, items, method=self.method.name, group=group)
                save_adapter(own, self.model.peft_config(), out, card=card)

            everybody = state.everybody.adapter | state.everybody.known
            adapters = {"base": agreed.initial, "global": everybody, "personal": personal}
            return Welcome(
                client=client,
                n_items=n,
                peers=_peers_of(state, client),
                rank=sum(algebra.ranks(own).values()) / len(algebra.ranks(own)),
                bytes_up=len(blob),
                bytes_down=len(message.blob),
                scores={
                    name: {metric: metrics.metric(metric).value(tally) for metric, tally in score.metrics.items()}
                    for name, score in (federation.evaluate(client, adapters) if held_back else {}).items()
                },
            )


def _peers_of(state: ServerState, client: ClientId) -> tuple[ClientId, ...]:
    group = state.group_of.get(client)
    return tuple(sorted(name for name, of in state.group_of.items() if of == group and name != client and group))
