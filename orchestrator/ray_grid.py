"""A grid of simulated clients: Flower messages to a ClientApp in Ray actors that stay for the run.

Flower's own simulation runtime looks for messages every 0.1 s and gives an actor its next one when
the last answer has been taken from it.  Here an actor has its next message before it is done with
the one at hand, and whoever waits for answers is woken by the first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, ErrorCode
from flwr.supercore.task_identity import TaskIdentity

_SERVER: Final = 1  # the number Flower gives the node of the server
_FIRST_NODE: Final = 2


@dataclass(frozen=True, slots=True)
class SimulatedNode:
    """A node as Flower tells of it."""

    node_id: int
    last_activated_at: str = ""


class _Host:
    """A process that answers for any client, one message at a time."""

    def __init__(self, make_app: Callable[[], ClientApp]) -> None:
        self._app = make_app()

    def answer(self, message: Message, context: Context) -> Message:
        """The app's reply; what it raises is the client's failure."""
        try:
            return self._app(message, context)
        except Exception as error:  # noqa: BLE001 - at the edge of the process
            why = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, why), reply_to=message)


@dataclass(slots=True)
class RayGrid:
    """Nodes 2, 3, … are the clients of partitions 0, 1, …; ``num_hosts`` actors answer for all.

    Messages go out in the order they came in, each to the host that has least to do.  A host is
    given its next message ahead of time, except the last few: those go to whoever is free first.
    One that dies is replaced.
    """

    new_host: Callable[[], Any]  # Ray's handles have no type
    num_hosts: int
    num_nodes: int
    _hosts: list[Any] = field(init=False)
    _waiting: deque[Message] = field(default_factory=deque)
    _under_way: dict[Any, tuple[int, Message]] = field(default_factory=dict)  # by future
    _answers: dict[str, Message] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self) -> None:
        self._hosts = [self.new_host() for _ in range(self.num_hosts)]

    def get_nodes(self) -> Iterable[SimulatedNode]:
        """All of them, always."""
        return [SimulatedNode(_FIRST_NODE + index) for index in range(self.num_nodes)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send; the messages' ids."""
        names = list[str]()
        for message in messages:
            self._count += 1
            names.append(f"message-{self._count}")
            message.metadata.__dict__["_message_id"] = names[-1]  # as Flower's grids do
            self._waiting.append(message)
        self._hand_out()
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers that are there; each is handed on once."""
        self._collect(0.0)
        return [self._answers.pop(name) for name in message_ids if name in self._answers]

    def wait(self, seconds: float) -> None:
        """Until an answer comes in, at most so long."""
        if self._under_way:
            self._collect(seconds)
        else:
            time.sleep(seconds)

    def _collect(self, seconds: float) -> None:
        if not self._under_way:
            return
        done, _ = ray.wait(list(self._under_way), timeout=seconds)
        while done:
            self._take(done[0])
            self._hand_out()
            done = ray.wait(list(self._under_way), timeout=0)[0] if self._under_way else []

    def _take(self, future: Any) -> None:
        """Keep an answer; of a host that died, what it was at has failed, and the rest waits on."""
        index, message = self._under_way.pop(future)
        name = message.metadata.message_id
        try:
            self._answers[name] = ray.get(future)
        except ray.exceptions.RayError as error:
            why = f"its process died: {type(error).__name__}"
            self._answers[name] = Message(
                Error(ErrorCode.CLIENT_APP_CRASHED, why), reply_to=message
            )
            self._hosts[index] = self.new_host()
            behind = [x for x, (host, _) in self._under_way.items() if host == index]
            for other in reversed(behind):
                self._waiting.appendleft(self._under_way.pop(other)[1])

    def _hand_out(self) -> None:
        loads = [0] * self.num_hosts
        for index, _ in self._under_way.values():
            loads[index] += 1
        while self._waiting:
            ahead = len(self._waiting) > self.num_hosts
            index = min(range(len(loads)), key=loads.__getitem__)
            if loads[index] > ahead:
                return
            message = self._waiting.popleft()
            future = self._hosts[index].answer.remote(message, self._context(message))
            self._under_way[future] = (index, message)
            loads[index] += 1

    def _context(self, message: Message) -> Context:
        node = message.metadata.dst_node_id
        where: UserConfig = {
            PARTITION_ID_KEY: node - _FIRST_NODE,
            NUM_PARTITIONS_KEY: self.num_nodes,
        }
        return Context(run_id=1, node_id=node, node_config=where, state=RecordDict(), run_config={})


@contextmanager
def simulated(
    make_app: Callable[[], ClientApp], num_nodes: int, cpus_per_client: int
) -> Iterator[RayGrid]:
    """A grid for as long as it is used, on the Ray that runs; it is left afterwards.

    As many hosts as its CPUs allow; ``make_app`` is called once in each.
    """
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, _SERVER
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus = int(resources.get("CPU", 1))
        needed = min(cpus_per_client, cpus)
        host = ray.remote(num_cpus=needed)(_Host)
        yield RayGrid(lambda: host.remote(make_app), cpus // needed, num_nodes)
    finally:
        ray.shutdown()
