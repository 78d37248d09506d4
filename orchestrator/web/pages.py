"""The pages: each reads what it needs, and one template shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Query, Request
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.responses import HTMLResponse, RedirectResponse, Response

from orchestrator.digest import Digest
from orchestrator.entries import catalog_entries
from orchestrator.report import writing
from orchestrator.store.browsing import EventWindow, Wanted, Window
from orchestrator.summary import shown_clients, shown_replies, summed_rounds
from orchestrator.web import views
from orchestrator.web.access import (
    Form,
    Reading,
    form_of,
    session_of,
    sessions_of,
)
from orchestrator.web.api import MOST_COMPARED
from orchestrator.web.downloads import adapter_folder
from orchestrator.web.queries import Limit, Offset, RunQuery
from orchestrator.web.sessions import COOKIE, LASTS_SECONDS

ROUNDS_SHOWN: Final = 20  # newest steps on a run's page
EVENTS_SHOWN: Final = 50
router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def environment() -> Environment:
    """Templates with what writes numbers for people."""
    made = Environment(
        loader=PackageLoader("orchestrator.web"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        breakable=writing.breakable,
        number=writing.number,
        error=writing.error,
        percent=writing.percent,
        size=writing.size,
        seconds=writing.duration,
        setting=writing.setting,
        shade=writing.shade,
    )
    return made


_TEMPLATES: Final = environment()


def page(request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A template with what every page has: who is logged in, and its token for forms."""
    session = session_of(request)
    text = _TEMPLATES.get_template(name).render(
        path=request.url.path,
        csrf=session.csrf if session else None,
        read_only=sessions_of(request).token is None,
        **values,
    )
    return HTMLResponse(text, status_code=status)


@router.get("/")
def runs(request: Request, reader: Reading, query: Annotated[RunQuery, Query()]) -> Response:
    """The list of runs."""
    wanted = query.wanted()
    found = reader.store.find_runs(wanted)
    ordered = {**query.filters(), "sort": query.sort, "order": query.order}
    view = views.RunsView(
        runs=views.run_lines(found.runs),
        wanted=wanted,
        statuses={s.value: n for s, n in reader.store.count_by_status().items()},
        tags=reader.store.known_tags(),
        paging=views.paging_of(
            "/", ordered, offset=query.offset, limit=query.limit, total=found.total
        ),
        sort_links=views.sort_links(query.filters(), wanted),
    )
    return page(request, "runs.html.j2", view=view)


@router.get("/runs/{run_id}")
def run(request: Request, reader: Reading, run_id: str) -> Response:
    """One run."""
    whole = reader.run_id(run_id)
    if whole != run_id:
        return RedirectResponse(f"/runs/{whole}", status_code=307)
    pulse = reader.store.pulse(run_id)  # first: what comes after it, the stream tells
    newest = EventWindow(before=pulse.last_event + 1, limit=EVENTS_SHOWN)
    events = reader.store.event_window(run_id, newest)
    documents = reader.run(run_id)
    view = views.run_view(
        documents,
        pulse,
        events,
        num_shown=ROUNDS_SHOWN,
        has_adapter=adapter_folder(documents.digest.run, reader.home) is not None,
    )
    return page(request, "run.html.j2", view=view)


@router.get("/runs/{run_id}/rounds")
def rounds(
    request: Request, reader: Reading, run_id: str, first: Offset = 0, limit: Limit = 100
) -> Response:
    """The steps of a run, a page at a time."""
    whole = reader.run_id(run_id)
    pulse = reader.store.pulse(whole)
    steps = reader.store.steps(whole, Window(first=first, limit=limit))
    paging = views.paging_of(
        f"/runs/{whole}/rounds", {}, offset=first, limit=limit, total=pulse.last_step + 1,
        name="first",
    )  # fmt: skip
    shown = reader.store.get_run(whole)
    return page(request, "rounds.html.j2", run=shown, rounds=summed_rounds(steps), paging=paging)


@router.get("/runs/{run_id}/rounds/{step}")
def one_round(request: Request, reader: Reading, run_id: str, step: int) -> Response:
    """One step with the replies of its clients."""
    whole = reader.run_id(run_id)
    found = summed_rounds(reader.store.steps(whole, Window(first=step, limit=1)))
    if not found or found[0]["step"] != step:
        raise HTTPException(404, f"run {whole} has no step {step}")
    replies = shown_replies(reader.store.replies(whole, step))
    shown = reader.store.get_run(whole)
    return page(request, "round.html.j2", run=shown, round=found[0], replies=replies)


@router.get("/runs/{run_id}/events")
def events(
    request: Request,
    reader: Reading,
    run_id: str,
    before: Annotated[int | None, Query(ge=1)] = None,
    limit: Limit = 100,
) -> Response:
    """What happened in a run, newest first."""
    whole = reader.run_id(run_id)
    start = before or reader.store.pulse(whole).last_event + 1
    found = reader.store.event_window(whole, EventWindow(before=start, limit=limit + 1))
    older = found[limit - 1].number if len(found) > limit else None
    shown = reader.store.get_run(whole)
    return page(
        request, "events.html.j2", run=shown, events=found[:limit], older=older, limit=limit
    )


@router.get("/runs/{run_id}/clients/{client_id}")
def client(request: Request, reader: Reading, run_id: str, client_id: str) -> Response:
    """A client in one run."""
    digest = Digest.by_sums(reader.store.sums(reader.run_id(run_id)))
    run_id = digest.run.run_id
    pairs = zip(digest.clients, shown_clients(digest), strict=True)
    found = [views.client_line(*pair) for pair in pairs if pair[0].client_id == client_id]
    if not found:
        raise HTTPException(404, f"run {run_id} never asked a client {client_id!r:.100}")
    parts = reader.store.client_parts(run_id, client_id)
    view = views.client_view(digest.run, found[0], parts)
    return page(request, "client.html.j2", view=view)


@router.get("/clients")
def clients(
    request: Request,
    reader: Reading,
    text: Annotated[str, Query(alias="q", max_length=80)] = "",
    offset: Offset = 0,
    limit: Limit = 100,
) -> Response:
    """All clients of all runs, by id."""
    found = reader.store.known_clients(text, offset=offset, limit=limit + 1)
    paging = _open_ended("/clients", {"q": text} if text else {}, offset, limit, len(found))
    return page(request, "clients.html.j2", clients=found[:limit], text=text, paging=paging)


@router.get("/clients/{client_id}")
def client_runs(
    request: Request, reader: Reading, client_id: str, offset: Offset = 0, limit: Limit = 50
) -> Response:
    """A client over runs."""
    found = reader.store.client_runs(client_id, offset=offset, limit=limit + 1)
    if not found and not offset:
        raise HTTPException(404, f"no run asked a client {client_id!r:.100}")
    view = views.ClientRunsView(
        client_id=client_id,
        runs=tuple(found[:limit]),
        paging=_open_ended(f"/clients/{client_id}", {}, offset, limit, len(found)),
    )
    return page(request, "client_runs.html.j2", view=view)


@router.get("/compare")
def compare(
    request: Request,
    reader: Reading,
    run_ids: Annotated[list[str] | None, Query(alias="run", max_length=MOST_COMPARED)] = None,
) -> Response:
    """Runs side by side; without any, the choice of runs."""
    if not run_ids:
        found = reader.store.find_runs(Wanted(limit=100))
        return page(request, "compare_choice.html.j2", runs=views.run_lines(found.runs))
    wanted = dict.fromkeys(reader.run_id(each) for each in run_ids)
    view = views.compare_view([reader.store.course(each) for each in wanted])
    return page(request, "compare.html.j2", view=view)


@router.get("/strategies")
def strategies(request: Request) -> Response:
    """The catalog."""
    return page(request, "strategies.html.j2", entries=catalog_entries())


@router.get("/login")
def login_form(request: Request) -> Response:
    """The form for the token."""
    return page(request, "login.html.j2", refused=False)


@router.post("/login")
async def login(request: Request) -> Response:
    """A session for who has the token."""
    sessions, form = sessions_of(request), await form_of(request)
    cookie = sessions.login(form.get("token", ""))
    if cookie is None:
        return page(request, "login.html.j2", status=403, refused=True)
    answer = RedirectResponse("/", status_code=303)
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=LASTS_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/logout")
def logout(request: Request, form: Form) -> Response:
    """The end of a session."""
    sessions_of(request).logout(request.cookies.get(COOKIE))
    answer = RedirectResponse("/", status_code=303)
    answer.delete_cookie(COOKIE)
    return answer


def _open_ended(
    path: str, query: Mapping[str, Any], offset: int, limit: int, found: int
) -> views.Paging:
    """Paging where only one more than the page was looked for."""
    return views.paging_of(path, query, offset=offset, limit=limit, total=offset + found)
