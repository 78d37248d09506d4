"""What the dashboard may do to a run: what the command line does, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import RedirectResponse, Response

from orchestrator import garbage
from orchestrator.conduct import reclaim, require_simulated
from orchestrator.config import parse_config
from orchestrator.home import Home
from orchestrator.launch import Simulation
from orchestrator.stopping import ask_to_stop
from orchestrator.web.access import Acting, Form, Reading, json_response
from orchestrator.web.documents import Done
from orchestrator.web.reader import Reader
from orchestrator.web.schema import model_of

router = APIRouter(
    prefix="/api/v1",
    dependencies=[Acting],
    default_response_class=Response,
)
forms = APIRouter(include_in_schema=False)
_ANSWER: Final[dict[str, Any]] = {
    "response_model": None,
    "responses": {200: {"model": model_of(Done)}},
}
_WATCH_SECONDS: Final = 1.0


class Tagging(BaseModel):
    """Words to give a run and to take from it."""

    model_config = ConfigDict(extra="forbid")
    add: list[str] = Field(default=[], max_length=20)
    remove: list[str] = Field(default=[], max_length=20)


def stop(run_id: str, home: Home) -> str:
    """Have a run that is under way stop at its next safe point; what came of it.

    Raises: HTTPException if it is not running.
    """
    if not ask_to_stop(run_id, home.store(), "asked to stop from the dashboard"):
        status = home.store().get_run(run_id).status
        raise HTTPException(409, f"run {run_id} is {status}; only a running one can be stopped")
    return "asked to stop at its next safe point"


def resume(run_id: str, home: Home) -> str:
    """Carry a run on in a process of its own, which this one need not outlive.

    Raises: ConfigError for a run that is completed, led by somebody, or not simulated.
    """
    record = home.store().get_run(run_id)
    require_simulated(record)
    record = reclaim(run_id, home.store())
    parse_config(record.config, source=f"run {record.run_id}")
    child = Simulation.start(record.run_id, home)
    # Puts on record how it ended if it dies without a word; the run does not need it.
    watching = threading.Thread(
        target=child.watch,
        args=(lambda: None,),
        kwargs={"every_seconds": _WATCH_SECONDS},
        name=f"watching {run_id}",
        daemon=True,
    )
    watching.start()
    return "resumed"


def tag(run_id: str, reader: Reader, add: Sequence[str], remove: Sequence[str]) -> str:
    """Give a run words and take some from it."""
    found = reader.store.tag(run_id, add=add, remove=remove).tags
    return f"tagged {', '.join(found)}" if found else "without tags"


@router.post("/runs/{run_id}/stop", **_ANSWER)
def stop_run(reader: Reading, run_id: str) -> Response:
    """Have a running run stop at its next safe point; it can be resumed."""
    whole = reader.run_id(run_id)
    return _done(reader, whole, stop(whole, reader.home))


@router.post("/runs/{run_id}/resume", **_ANSWER)
def resume_run(reader: Reading, run_id: str) -> Response:
    """Continue an interrupted or failed simulation from its last committed step."""
    whole = reader.run_id(run_id)
    return _done(reader, whole, resume(whole, reader.home))


@router.post("/runs/{run_id}/tags", **_ANSWER)
def tag_run(reader: Reading, run_id: str, tagging: Annotated[Tagging, Body()]) -> Response:
    """Give the run words and take some from it."""
    whole = reader.run_id(run_id)
    return _done(reader, whole, tag(whole, reader, tagging.add, tagging.remove))


@router.delete("/runs/{run_id}", **_ANSWER)
def delete_run(reader: Reading, run_id: str) -> Response:
    """Forget a run for good, with all its files; the id must be whole."""
    gone = garbage.delete(_whole(reader, run_id), reader.home)
    return json_response(Done(run_id=gone, status="deleted", message="deleted"))


@forms.post("/runs/{run_id}/actions")
def act(reader: Reading, run_id: str, form: Form) -> RedirectResponse:
    """The forms of a run's page; back to that page, or to the list where there is none any more."""
    whole, action = _whole(reader, run_id), form.get("action")
    if action == "delete":
        if form.get("confirm") != whole:
            raise HTTPException(400, f"to delete the run, enter its whole id: {whole}")
        garbage.delete(whole, reader.home)
        return RedirectResponse("/", status_code=303)
    if action == "stop":
        stop(whole, reader.home)
    elif action == "resume":
        resume(whole, reader.home)
    elif action in ("tag", "untag"):
        words = [form.get("tag", "")]
        tag(whole, reader, *((words, []) if action == "tag" else ([], words)))
    else:
        raise HTTPException(400, f"unknown action {action!r:.50}")
    return RedirectResponse(f"/runs/{whole}", status_code=303)


def _whole(reader: Reader, run_id: str) -> str:
    """An id that is not the start of one or ``latest``: what it names must not change."""
    found = reader.run_id(run_id)
    if found != run_id:
        raise HTTPException(400, f"expected a whole run id, such as {found}")
    return found


def _done(reader: Reader, run_id: str, message: str) -> Response:
    status = reader.store.get_run(run_id).status.value
    return json_response(Done(run_id=run_id, status=status, message=message))
