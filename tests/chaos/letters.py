"""A Flower grid in this process whose nodes are real trainers; replies come last one first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace

from flwr.supercore.task_identity import TaskIdentity

from clients.settings import ClientSettings
from clients.trainer import LocalTrainer
from orchestrator.conduct import conduct
from orchestrator.config import RunConfig
from orchestrator.flower_transport import FlowerTransport
from orchestrator.home import Home
from orchestrator.store.base import RunStatus
from orchestrator.transport import Endpoint
from strategies.types import ClientId, client_ids
from strategies.wire import from_record, to_record


@dataclass
class LetterGrid:
    """Nodes 100, 101, … are ``endpoints`` in order; each answers at once and is heard later."""

    endpoints: dict[ClientId, Endpoint]
    outbox: list[SimpleNamespace] = field(default_factory=list)
    _count: int = 0

    def get_nodes(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(node_id=100 + index, last_activated_at="")
            for index in range(len(self.endpoints))
        ]

    def push_messages(self, messages: Iterable[object]) -> list[str]:
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[SimpleNamespace]:
        wanted = set(message_ids)
        found = [x for x in self.outbox if x.metadata.reply_to_message_id in wanted]
        self.outbox = [x for x in self.outbox if x not in found]
        return found[::-1]

    def _push(self, message) -> str:
        client = list(self.endpoints)[message.metadata.dst_node_id - 100]
        answer = self.endpoints[client](from_record(message.content))
        self._count += 1
        name = f"letter-{self._count}"
        self.outbox.append(
            SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id=name),
                has_error=lambda: False,
                content=to_record(answer),
            )
        )
        return name


def run_over_letters(run_id: str, config: RunConfig, home: Home) -> RunStatus:
    """Like ``run_in_process``, over Flower's transport."""
    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, 1)  # what Flower's runtime tells a process before it calls
    trainer = LocalTrainer(
        ClientSettings(cache_folder=home.cache_folder, state_folder=home.client_folder)
    )
    endpoints: dict[ClientId, Endpoint] = {
        client: lambda message, client=client: trainer.answer(client, message)
        for client in client_ids(config.federation.clients)
    }
    transport = FlowerTransport(LetterGrid(endpoints), config.federation.clients)  # type: ignore[arg-type]
    return conduct(run_id, config, transport, home)
