"""What a request may reach: the reader, and for actions who has shown the token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import parse_qs

from fastapi import Depends, HTTPException, Request
from starlette.responses import Response

from orchestrator.web.reader import Reader
from orchestrator.web.sessions import COOKIE, Session, Sessions, is_csrf
from orchestrator.web.settings import WebSettings

CSRF_FIELD: Final = "csrf"
CSRF_HEADER: Final = "X-CSRF-Token"
_LONGEST_FORM: Final = 16_384  # bytes
_READ_ONLY: Final = "this dashboard is read-only; start it with `perennial ui --token-file FILE`"


def json_response(value: object, status: int = 200) -> Response:
    """A document as it is: strict JSON, not validated again."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=str)
    return Response(text, status_code=status, media_type="application/json")


def _reader(request: Request) -> Reader:
    reader: Reader = request.app.state.reader
    return reader


def settings_of(request: Request) -> WebSettings:
    """How this dashboard is served."""
    settings: WebSettings = request.app.state.settings
    return settings


def sessions_of(request: Request) -> Sessions:
    """The logins of this process."""
    sessions: Sessions = request.app.state.sessions
    return sessions


def session_of(request: Request) -> Session | None:
    """The login of the request's browser."""
    return sessions_of(request).of(request.cookies.get(COOKIE))


async def form_of(request: Request) -> Mapping[str, str]:
    """The fields of a small form; the last value of each.

    Raises: HTTPException for one that is too large or is no form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "expected a form")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_FORM:
            raise HTTPException(413, f"a form here has at most {_LONGEST_FORM} bytes")
    try:
        fields = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        raise HTTPException(400, "the form cannot be read") from None
    return {name: values[-1] for name, values in fields.items()}


def require_token(request: Request) -> None:
    """Let API actions pass that carry the token, or a session's cookie and CSRF token.

    Raises: HTTPException.
    """
    sessions = sessions_of(request)
    if sessions.token is None:
        raise HTTPException(403, _READ_ONLY)
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and sessions.is_token(given.strip()):
        return
    session = None if scheme else session_of(request)
    if session is None:
        raise HTTPException(401, "an action needs the token", {"WWW-Authenticate": "Bearer"})
    if not is_csrf(session, request.headers.get(CSRF_HEADER)):
        raise HTTPException(403, f"expected the session's token in the header {CSRF_HEADER}")


async def require_form(request: Request) -> Mapping[str, str]:
    """The form of a browser that logged in, sent from a page of its session.

    Raises: HTTPException.
    """
    if sessions_of(request).token is None:
        raise HTTPException(403, _READ_ONLY)
    session = session_of(request)
    if session is None:
        raise HTTPException(401, "log in first")
    form = await form_of(request)
    if not is_csrf(session, form.get(CSRF_FIELD)):
        raise HTTPException(403, "the form is not from a page of this session; reload it")
    return form


Reading = Annotated[Reader, Depends(_reader)]
Form = Annotated[Mapping[str, Any], Depends(require_form)]
Acting = Depends(require_token)
