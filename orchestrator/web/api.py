"""The JSON API, version 1: the documents of the command line, paged."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from starlette.responses import Response

from orchestrator.digest import Digest
from orchestrator.entries import catalog_entries
from orchestrator.results import Comparison, Overview
from orchestrator.store.browsing import ClientRun, EventWindow, Window
from orchestrator.summary import (
    SCHEMA_VERSION,
    compare,
    outline,
    run_listing,
    shown_clients,
    shown_events,
    shown_replies,
    strict,
    summed_rounds,
)
from orchestrator.web import documents as shapes
from orchestrator.web.access import Reading, json_response
from orchestrator.web.configuration import settings_of
from orchestrator.web.queries import Limit, Offset, RunQuery
from orchestrator.web.schema import model_of

MOST_COMPARED = 8
router = APIRouter(prefix="/api/v1")

RunIds = Annotated[list[str], Query(alias="run", min_length=1, max_length=MOST_COMPARED)]


def _gives(kind: Any) -> dict[str, Any]:
    """Arguments of a route that answers with a document of this type."""
    return {"response_model": None, "responses": {200: {"model": model_of(kind)}}}


@router.get("/runs", **_gives(shapes.RunsPage))
def runs(reader: Reading, query: Annotated[RunQuery, Query()]) -> Response:
    """Runs by status, tag and text, a page at a time."""
    found = reader.store.find_runs(query.wanted())
    page = {"total": found.total, "offset": query.offset, "limit": query.limit}
    return json_response({**run_listing(found.runs), **page})


@router.get("/runs/{run_id}", **_gives(Overview))
def run(reader: Reading, run_id: str) -> Response:
    """A run without its steps, clients and events."""
    return json_response(reader.run(reader.run_id(run_id)).overview)


@router.get("/runs/{run_id}/rounds", **_gives(shapes.RoundsPage))
def rounds(reader: Reading, run_id: str, first: Offset = 0, limit: Limit = 100) -> Response:
    """Committed steps from ``first`` on, without their replies."""
    run_id = reader.run_id(run_id)
    steps = reader.store.steps(run_id, Window(first=first, limit=limit))
    pulse = reader.store.pulse(run_id)
    last = steps[-1].record.step_index if steps else pulse.last_step
    return json_response(
        {
            "schema_version": SCHEMA_VERSION,
            "run_id": run_id,
            "rounds": summed_rounds(steps),
            "total": pulse.num_steps,
            "next": last + 1 if last < pulse.last_step else None,
        }
    )


@router.get("/runs/{run_id}/rounds/{step}/replies", **_gives(shapes.RepliesDocument))
def replies(reader: Reading, run_id: str, step: int) -> Response:
    """What the clients answered in one step."""
    run_id = reader.run_id(run_id)
    if not reader.store.steps(run_id, Window(first=step, limit=1)):
        raise HTTPException(404, f"run {run_id} has no step {step}")
    found = shown_replies(reader.store.replies(run_id, step))
    known = {"schema_version": SCHEMA_VERSION, "run_id": run_id, "step": step}
    return json_response({**known, "replies": found})


@router.get("/runs/{run_id}/clients", **_gives(shapes.ClientsDocument))
def clients(reader: Reading, run_id: str) -> Response:
    """Every client that was ever asked, by id."""
    digest = Digest.by_sums(reader.store.sums(reader.run_id(run_id)))
    known = {"schema_version": SCHEMA_VERSION, "run_id": digest.run.run_id}
    return json_response({**known, "clients": shown_clients(digest)})


@router.get("/runs/{run_id}/clients/{client_id}", **_gives(shapes.ClientDocument))
def client(reader: Reading, run_id: str, client_id: str) -> Response:
    """A client of a run, with its replies in order."""
    digest = Digest.by_sums(reader.store.sums(reader.run_id(run_id)))
    run_id = digest.run.run_id
    found = [each for each in shown_clients(digest) if each["client_id"] == client_id]
    if not found:
        raise HTTPException(404, f"run {run_id} never asked a client {client_id!r:.100}")
    parts = reader.store.client_parts(run_id, client_id)
    answers = shown_replies([part.reply for part in parts])
    known = {"schema_version": SCHEMA_VERSION, "run_id": run_id, "client": found[0]}
    told = [
        {
            "step": part.step.step_index,
            "kind": part.step.kind,
            "task": part.step.task_index,
            "round": part.step.round_index,
            "committed_at": part.step.committed_at.isoformat(),
            "reply": reply,
        }
        for part, reply in zip(parts, answers, strict=True)
    ]
    return json_response({**known, "replies": told})


@router.get("/clients/{client_id}", **_gives(shapes.ClientRunsPage))
def client_runs(reader: Reading, client_id: str, offset: Offset = 0, limit: Limit = 50) -> Response:
    """A client over runs, newest first."""
    found = reader.store.client_runs(client_id, offset=offset, limit=limit + 1)
    return json_response(
        {
            "schema_version": SCHEMA_VERSION,
            "client_id": client_id,
            "runs": [_client_run(each) for each in found[:limit]],
            "next": offset + limit if len(found) > limit else None,
        }
    )


@router.get("/runs/{run_id}/events", **_gives(shapes.EventsPage))
def events(
    reader: Reading,
    run_id: str,
    after: Annotated[int | None, Query(ge=0)] = None,
    before: Annotated[int | None, Query(ge=1)] = None,
    limit: Limit = 100,
) -> Response:
    """What happened: oldest first, or with ``before`` newest first."""
    run_id = reader.run_id(run_id)
    window = EventWindow(after=after, before=before, limit=limit + 1)
    found = reader.store.event_window(run_id, window)
    shown = shown_events([each.event for each in found[:limit]])
    numbered = [{**event, "number": each.number} for each, event in zip(found, shown, strict=False)]
    following = found[limit - 1].number if len(found) > limit else None
    known = {"schema_version": SCHEMA_VERSION, "run_id": run_id}
    return json_response({**known, "events": numbered, "next": following})


@router.get("/runs/{run_id}/config", **_gives(shapes.ConfigDocument))
def config(reader: Reading, run_id: str) -> Response:
    """Every key of the run's configuration, with what differs from the defaults."""
    found = reader.store.get_run(run_id)
    known = {"schema_version": SCHEMA_VERSION, "run_id": found.run_id}
    return json_response(strict({**known, "settings": settings_of(found.config)}))


@router.get("/compare", **_gives(Comparison))
def comparison(reader: Reading, run_ids: RunIds) -> Response:
    """Results side by side, and the settings in which the runs differ."""
    courses = [reader.store.course(reader.run_id(each)) for each in run_ids]
    return json_response(compare([outline(course) for course in courses]))


@router.get("/strategies", **_gives(shapes.Catalog))
def strategies() -> Response:
    """The catalog of strategies."""
    return json_response(strict({"strategies": catalog_entries()}))


def _client_run(found: ClientRun) -> dict[str, Any]:
    totals = found.totals
    shown: dict[str, Any] = strict(
        {
            "run_id": found.run_id,
            "name": found.name,
            "status": found.status.value,
            "kind": totals.kind,
            "asked": totals.asked,
            "rounds": totals.rounds,
            "num_examples": totals.num_examples,
            "bytes_up": totals.bytes_up,
            "bytes_down": totals.bytes_down,
            "seconds": totals.seconds,
            "failures": totals.failures,
            "peak_memory_bytes": totals.peak_memory_bytes,
            "ranks": totals.last_ranks,
        }
    )
    return shown
