"""The dashboard as one ASGI application."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from orchestrator.conduct import code_version
from orchestrator.home import Home
from orchestrator.summary import SCHEMA_VERSION
from orchestrator.telemetry import CONTENT_TYPE, render
from orchestrator.web import actions, api, downloads, pages, stream
from orchestrator.web.access import Reading, json_response, sessions_of
from orchestrator.web.documents import Health
from orchestrator.web.reader import Reader
from orchestrator.web.schema import model_of
from orchestrator.web.security import Guard
from orchestrator.web.sessions import Sessions
from orchestrator.web.settings import WebSettings
from strategies.errors import (
    ConfigError,
    PerennialError,
    RunNotFoundError,
    SchemaVersionError,
    StaleRunStatusError,
    StoreDamagedError,
    StoreUnreachableError,
)

_STATUS = (
    (RunNotFoundError, 404),
    (StaleRunStatusError, 409),
    (ConfigError, 409),
    ((StoreUnreachableError, StoreDamagedError, SchemaVersionError), 503),
    (PerennialError, 400),
)
health = APIRouter()


def create_app(home: Home, settings: WebSettings) -> FastAPI:
    """Pages, API, stream and Prometheus metrics over one data directory."""
    app = FastAPI(
        title="perennial",
        version="1",
        summary="Runs of continual federated fine-tuning.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.reader = Reader(home)
    app.state.settings = settings
    app.state.sessions = Sessions(token=settings.token)
    app.state.streams = stream.Streams()
    for part in (health, stream, downloads, api, actions, pages):
        app.include_router(part if isinstance(part, APIRouter) else part.router)
    app.include_router(actions.forms)
    own = str(files("orchestrator.web") / "static")
    app.mount("/static", StaticFiles(directory=own, packages=[("orchestrator.figures", "static")]))
    app.add_exception_handler(PerennialError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_middleware(Guard, hosts=settings.hosts)
    return app


@health.get("/healthz", include_in_schema=False)
async def alive() -> Response:
    """Whether this process serves."""
    return PlainTextResponse("ok\n")


@health.get("/readyz", include_in_schema=False)
def ready(reader: Reading) -> Response:
    """Whether the run database answers too."""
    reader.store.count_by_status()
    return PlainTextResponse("ok\n")


@health.get("/api/v1/health", response_model=None, responses={200: {"model": model_of(Health)}})
def healthy(request: Request, reader: Reading) -> Response:
    """Whether the run database answers, and what serves it."""
    reader.store.count_by_status()
    return json_response(
        Health(
            status="ok",
            version=code_version(),
            schema_version=SCHEMA_VERSION,
            read_only=sessions_of(request).token is None,
        )
    )


@health.get("/metrics", include_in_schema=False)
def metrics(reader: Reading) -> Response:
    """The run database as Prometheus reads it."""
    return Response(render(reader.store), media_type=CONTENT_TYPE)


def _refused(request: Request, error: Exception) -> Response:
    """What went wrong, as a page or as JSON; our messages name no secret."""
    headers, status, detail = None, 500, str(error)
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, str(error.detail), error.headers
    else:
        status = next(number for kinds, number in _STATUS if isinstance(error, kinds))
    if request.url.path.startswith("/api/"):
        answer = json_response({"detail": detail}, status)
    else:
        answer = pages.page(request, "error.html.j2", status=status, code=status, detail=detail)
    for name, value in (headers or {}).items():
        answer.headers[name] = value
    return answer
