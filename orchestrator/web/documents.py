"""Documents that only the API has; what a run is made of is in ``orchestrator.results``."""

from __future__ import annotations

from typing import Any, TypedDict

from orchestrator.results import Listed, ShownClient, ShownEvent, ShownReply, SummedRound
from orchestrator.web.configuration import Setting
from strategies.types import ClientKind


class RunsPage(TypedDict):
    """Some of the ``total`` runs that were looked for."""

    schema_version: int
    runs: list[Listed]
    total: int
    offset: int
    limit: int


class RoundsPage(TypedDict):
    """Steps from ``first`` on; ``next`` is the one to go on with, null at the end."""

    schema_version: int
    run_id: str
    rounds: list[SummedRound]
    total: int
    next: int | None


class RepliesDocument(TypedDict):
    """The replies of one step, or of one client."""

    schema_version: int
    run_id: str
    step: int
    replies: list[ShownReply]


class ClientsDocument(TypedDict):
    """The clients of a run, by id."""

    schema_version: int
    run_id: str
    clients: list[ShownClient]


class StepReply(TypedDict):
    """A client's part in a step."""

    step: int
    kind: str
    task: int
    round: int
    committed_at: str
    reply: ShownReply


class ClientDocument(TypedDict):
    """A client in one run, with its replies in order."""

    schema_version: int
    run_id: str
    client: ShownClient
    replies: list[StepReply]


class ClientRunSummary(TypedDict):
    """A client in one of its runs."""

    run_id: str
    name: str
    status: str
    kind: ClientKind | None
    asked: int
    rounds: int
    num_examples: int
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float | None]
    failures: dict[str, int]
    peak_memory_bytes: int
    ranks: dict[str, int]


class ClientRunsPage(TypedDict):
    """A client over runs, newest first; ``next`` is the offset to go on with, null at the end."""

    schema_version: int
    client_id: str
    runs: list[ClientRunSummary]
    next: int | None


class NumberedShownEvent(ShownEvent):
    """An event with its number, which grows with time within a run."""

    number: int


class EventsPage(TypedDict):
    """Events; ``next`` is the number to go on with, after or before as asked, null at the end."""

    schema_version: int
    run_id: str
    events: list[NumberedShownEvent]
    next: int | None


class ConfigDocument(TypedDict):
    """Every key of a run's configuration."""

    schema_version: int
    run_id: str
    settings: list[Setting]


class StrategyEntry(TypedDict):
    """An entry of the catalog."""

    kind: str
    name: str
    parameters: dict[str, Any]
    summary: str
    source: str


class Catalog(TypedDict):
    """``perennial strategies``."""

    strategies: list[StrategyEntry]


class Health(TypedDict):
    """Whether the run database answers."""

    status: str
    version: str
    schema_version: int
    read_only: bool


class Done(TypedDict):
    """What an action has come to."""

    run_id: str
    status: str
    message: str
