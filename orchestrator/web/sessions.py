"""Who may act: a bearer token, or a browser that logged in with it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

COOKIE: Final = "perennial_session"
LASTS_SECONDS: Final = 12 * 3600
_MOST: Final = 1000  # sessions at once; the oldest goes first


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that logged in; forms of its pages carry ``csrf``."""

    csrf: str = field(repr=False)
    expires: float  # s, by the monotonic clock


@dataclass(slots=True)
class Sessions:
    """Logins of this process, kept by the digest of their cookie."""

    token: str | None = field(repr=False)
    clock: Callable[[], float] = time.monotonic
    _known: dict[str, Session] = field(default_factory=dict, repr=False)

    def is_token(self, given: str) -> bool:
        """Whether it is the token, in a time that does not tell how much of it is right."""
        return self.token is not None and _same(given, self.token)

    def login(self, given: str) -> str | None:
        """A new session's cookie for who has the token."""
        if not self.is_token(given):
            return None
        cookie, now = secrets.token_urlsafe(32), self.clock()
        known = {key: each for key, each in self._known.items() if each.expires > now}
        kept = dict(list(known.items())[-(_MOST - 1) :])
        self._known = kept | {
            _digest(cookie): Session(csrf=secrets.token_urlsafe(32), expires=now + LASTS_SECONDS)
        }
        return cookie

    def of(self, cookie: str | None) -> Session | None:
        """The session of a cookie that was given out and has not expired."""
        session = self._known.get(_digest(cookie)) if cookie else None
        return session if session and session.expires > self.clock() else None

    def logout(self, cookie: str | None) -> None:
        """Forget the session."""
        if cookie:
            self._known.pop(_digest(cookie), None)


def is_csrf(session: Session, given: str | None) -> bool:
    """Whether a form came from a page of this session."""
    return given is not None and _same(given, session.csrf)


def _same(one: str, other: str) -> bool:
    """Digests are compared: they are of one length, whatever the texts are."""
    return hmac.compare_digest(_digest(one), _digest(other))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
