"""A network without sockets: the server's side as in a network, and a node in this process for each client.

Flower's own simulation runs nodes in Ray, in processes with a model each. Here all have one model, like the clients of
the serial engine; every message goes through Flower's encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo

from capfl.checkpoint import ClientStore, StateReader
from capfl.config import Config
from capfl.data import deal
from capfl.engines.flower.client_app import reply
from capfl.engines.flower.exchange import Patience
from capfl.engines.flower.internals import carried, identify
from capfl.engines.flower.messages import Reply, Request, pack, read_request
from capfl.engines.flower.server_app import serve
from capfl.federation import Federation
from capfl.model.base import load_base
from capfl.model.export import save_adapter
from capfl.model.hidden import open_cache
from capfl.model.lora import AdaptedModel
from capfl.report.progress import Callback
from capfl.report.summary import Summary
from capfl.roles.agreement import agreements
from capfl.site import visit
from capfl.types import ClientId
from capfl.vault import open_vault

PATIENCE = Patience(answer=1e9, node=60.0)  # a node here answers before it is asked whether it has


class LocalGrid:
    """What a run needs of Flower's Grid, with a node for each client."""

    def __init__(self, clients: Sequence[ClientId], answer: Callable[[ClientId, Request], Reply]) -> None:
        identify()
        self._clients, self._answer = dict(enumerate(clients, start=1)), answer
        self._replies: dict[str, Message] = {}

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=client) for node, client in self._clients.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for sent in messages:
            message = carried(sent)
            ids.append(str(message.metadata.message_id))
            answer = self._answer(self._clients[message.metadata.dst_node_id], read_request(message))
            self._replies[ids[-1]] = carried(Message(pack(answer), reply_to=message))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(id) for id in message_ids if id in self._replies]


def simulate(config: Config, again: bool, reporter: Callback) -> tuple[Summary, Path]:
    """A run over virtual nodes. What each of them would have on its disk is in ``nodes/CLIENT`` of the run's folder.

    Raises:
        CapflError: as ``experiment.run``.
    """
    assert config.out is not None
    out = Path(config.out)
    vault = open_vault(config.runtime.state_key, out)
    items, splits = deal(config.data, config.partition, config.seed)
    model = AdaptedModel(load_base(config.model), config.lora)
    agreed = agreements(config, model.initial_adapter(config.seed), model.base.digest)
    main, peft_config = next(iter(agreed)), model.peft_config()
    with open_cache(config.runtime, out / "hidden", vault) as cache:
        federation = Federation(config, items, splits, model, cache, reporter.on_client)

        def body(client: ClientId, request: Request) -> bytes:
            agreement, node = agreed[request.method], out / "nodes" / client
            reader = StateReader(agreement.method, agreement.initial)
            store = ClientStore(node / "state" / request.method, reader, vault)
            store.forget(client, after=request.used)
            trainer = federation.trainer(
                client,
                agreement.method,
                lambda own: save_adapter(own, peft_config, node / "adapter") if request.method == main else None,
            )
            return visit(request.kind, request.round, request.body, trainer, store, agreement)

        def answer(client: ClientId, request: Request) -> Reply:
            return reply(client, lambda: body(client, request))

        return serve(LocalGrid(federation.clients, answer), federation.clients, config, again, PATIENCE, reporter)
