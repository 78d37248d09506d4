"""Where a process under test can be struck: a table of names, and nothing in the product.

A point stands before or after one call.  ``call`` is what is wrapped, ``module:attribute``; with
``within`` only calls from modules whose names begin so count, which is how a call of the standard
library becomes a place of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

Side = Literal["server", "client", "resume"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """``side`` is whose process comes by; ``resume`` points are come by when a run is resumed."""

    name: str
    call: str
    when: Literal["before", "after"]
    side: Side
    within: str | None = None

    @property
    def module(self) -> str:
        """The module whose attribute is wrapped."""
        return self.call.partition(":")[0]


def _around(side: Side, name: str, call: str, within: str | None = None) -> Iterator[Point]:
    for when in ("before", "after"):
        yield Point(name=f"{name}.{when}", call=call, when=when, side=side, within=within)


_SERVER: Final = {
    "run.begin": "orchestrator.store.sql:SqlRunStore.transition",
    "plan": "orchestrator.planner:plan_step",
    "order.encode": "strategies.wire:encode_assignment",
    "reply.read": "orchestrator.transport:to_reply",
    "reply.examined": "orchestrator.examine:examined",
    "close": "orchestrator.rounds:close_step",
    "learnt": "orchestrator.learning:learnt",
    "recall": "orchestrator.recall:observed",
    "task.end": "orchestrator.merging:settled",
    "checkpoint.save": "orchestrator.checkpoint:save_state",
    "blob.put": "orchestrator.store.blobs:BlobStore.put",
    "round.record": "orchestrator.records:round_record",
    "commit": "orchestrator.store.sql:SqlRunStore.commit_round",
    "transaction.rows": "orchestrator.store.sql:insert_all",
    "progress": "orchestrator.progress:Progress.committed",
    "lease": "orchestrator.store.sql:SqlRunStore.renew_lease",
    "event": "orchestrator.store.sql:SqlRunStore.append_event",
    "settle": "orchestrator.gate:Gate.settle",
    "adapter.write": "strategies.peft_format:write_adapter",
    "adapter.path": "orchestrator.store.sql:SqlRunStore.set_adapter_path",
    "report": "orchestrator.conduct:write_report",
}
_INSIDE_SERVER: Final = {
    "blob.fsync": ("os:fsync", "orchestrator.store.blobs"),
    "blob.rename": ("pathlib:Path.replace", "orchestrator.store.blobs"),
    "adapter.rename": ("pathlib:Path.replace", "strategies.peft_format"),
    "transaction.commit": ("sqlalchemy.orm:Session.commit", "orchestrator.store.sessions"),
    "transaction.flush": ("sqlalchemy.orm:Session.flush", "orchestrator.store"),
}
_OVER_FLOWER: Final = {
    "post.send": "orchestrator.flower_post:Post.send",
    "post.fetch": "orchestrator.flower_post:Post.fetch",
    "spool.put": "orchestrator.spool:Spool.put",
    "spool.take": "orchestrator.spool:Spool.take",
    "grid.pull": "tests.chaos.letters:LetterGrid.pull_messages",
}
_INSIDE_FLOWER: Final = {"spool.write": ("pathlib:Path.write_bytes", "orchestrator.spool")}
_SUMS: Final = {
    "head.sums": "orchestrator.heads:HeadSums.absorb",
    "head.solve": "orchestrator.heads:HeadSums.solved",
}
_BUFFERED: Final = {
    "buffer.fill": "orchestrator.buffer:Filling.simulated",
    "buffer.pack": "orchestrator.under_way:packed",
}
_CLIENT: Final = {
    "client.answer": "clients.trainer:LocalTrainer.answer",
    "client.step": "clients.training:_one_step",
    "client.replay": "clients.recall:measured",
    "client.remember": "clients.training:LocalRun.remember",
    "client.scoring": "clients.evaluation:evaluate",
    "client.compress": "clients.feedback:Feedback.apply",
    "client.load": "clients.state_store:ClientStateStore.load",
    "client.save": "clients.state_store:ClientStateStore.save",
    "client.keep": "clients.received:ReceivedTensors.keep",
}
_INSIDE_CLIENT: Final = {
    "client.fsync": ("os:fsync", "clients."),
    "client.rename": ("pathlib:Path.replace", "clients."),
    "client.forget": ("pathlib:Path.unlink", "clients.state_store"),
    "client.drop": ("pathlib:Path.unlink", "clients.received"),
}
_CLIENT_SUMS: Final = {"client.sums": "clients.probed:probed"}
_RESUME: Final = {
    "resume.reclaim": "orchestrator.conduct:reclaim",
    "resume.restore": "orchestrator.checkpoint:restore",
    "resume.load": "orchestrator.checkpoint:load_state",
    "resume.rewind": "orchestrator.store.sql:SqlRunStore.rewind",
    "resume.catch-up": "orchestrator.gate:Gate.catch_up",
    "resume.fleet": "orchestrator.fleet:Fleet.of",
}


def _table() -> Iterator[Point]:
    for name, call in (_SERVER | _OVER_FLOWER | _SUMS | _BUFFERED).items():
        yield from _around("server", name, call)
    for name, (call, within) in (_INSIDE_SERVER | _INSIDE_FLOWER).items():
        yield from _around("server", name, call, within)
    for name, call in (_CLIENT | _CLIENT_SUMS).items():
        yield from _around("client", name, call)
    for name, (call, within) in _INSIDE_CLIENT.items():
        yield from _around("client", name, call, within)
    for name, call in _RESUME.items():
        yield from _around("resume", name, call)


POINTS: Final = {point.name: point for point in _table()}


def named(names: Iterable[str]) -> tuple[Point, ...]:
    """The points of these names, where the start of one means all that begin with it.

    Raises: KeyError naming what no point begins with.
    """
    found = dict[str, Point]()
    for name in names:
        these = {k: p for k, p in POINTS.items() if name == "all" or _begins(k, name)}
        if not these:
            raise KeyError(f"no point is called {name!r}; there are {', '.join(POINTS)}")
        found |= these
    return tuple(found.values())


def _begins(point: str, name: str) -> bool:
    return point == name or point.startswith(f"{name}.")
