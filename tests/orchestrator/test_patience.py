"""How long a database that is away is waited for, and what is said then; no real time passes."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from orchestrator.store.address import parse_url
from orchestrator.store.patience import Patience, is_transient
from strategies.errors import StoreUnreachableError

URL = parse_url("postgresql://u:s3cret@h/runs")


@dataclass
class Clock:
    """Time that passes only while somebody sleeps."""

    now: float = 100.0
    naps: list[float] = field(default_factory=list)

    def patience(self, limit: float = 30.0) -> Patience:
        return Patience(limit_seconds=limit, clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


class SpokenError(Exception):
    """A driver's error with an SQLSTATE."""

    def __init__(self, state: str | None) -> None:
        super().__init__("server closed the connection; s3cret\nmore")
        self.sqlstate = state


def lost() -> DBAPIError:
    return OperationalError("COMMIT", {}, SpokenError("57P01"))


def test_a_passing_fault_is_waited_out_with_growing_pauses(caplog):
    clock, faults = Clock(), [lost() for _ in range(7)]

    def attempt() -> str:
        if faults:
            raise faults.pop()
        return "done"

    assert clock.patience().insist("trying", URL, attempt) == "done"
    assert clock.naps == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    assert caplog.messages == [
        "run database out of reach while trying, trying again: server closed the connection; ***"
    ]


def test_at_the_limit_the_error_says_what_where_how_long_and_what_to_do():
    clock = Clock()

    def attempt() -> None:
        raise lost()

    with pytest.raises(StoreUnreachableError) as caught:
        clock.patience(limit=5.0).insist("committing step 3 of run r", URL, attempt)
    assert str(caught.value) == (
        "run database postgresql+psycopg://u:***@h/runs was out of reach for 5 s (7 tries) while "
        "committing step 3 of run r: server closed the connection; ***. Every committed round is "
        "kept; when the database answers again (`perennial doctor` tells), continue with "
        "`perennial resume RUN`"
    )
    assert sum(clock.naps) == pytest.approx(5.0)
    assert caught.value.__cause__ is None


def test_time_spent_in_the_attempt_counts():
    clock = Clock()

    def attempt() -> None:
        clock.now += 20
        raise lost()

    with pytest.raises(StoreUnreachableError, match="2 tries"):
        clock.patience().insist("trying", URL, attempt)


def test_what_will_not_pass_is_raised_at_once():
    clock = Clock()

    def attempt() -> None:
        raise IntegrityError("INSERT", {}, SpokenError("23505"))

    with pytest.raises(IntegrityError):
        clock.patience().insist("trying", URL, attempt)
    assert clock.naps == []


@pytest.mark.parametrize(
    ("state", "passes"),
    [
        ("40001", True),  # serialization failure
        ("40P01", True),  # deadlock
        ("55P03", True),  # lock timeout
        ("57P01", True),  # pg_terminate_backend, shutdown
        ("57P03", True),  # starting up
        ("08006", True),  # connection failure
        (None, True),  # no connection came about
        ("53100", True),  # disk full: somebody may free space
        ("42P01", False),  # no such table
        ("28P01", False),  # wrong password
    ],
)
def test_faults_that_pass_are_told_by_their_sqlstate(state, passes):
    assert is_transient(OperationalError("x", {}, SpokenError(state))) is passes


def test_a_connection_that_is_gone_is_no_fault_of_the_statement():
    error = InterfaceError("x", {}, SpokenError("42P01"), connection_invalidated=True)
    assert is_transient(error)


@pytest.mark.parametrize(("name", "passes"), [("SQLITE_BUSY", True), ("SQLITE_CORRUPT", False)])
def test_faults_of_sqlite_that_pass_are_told_by_their_name(name, passes):
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorname = name
    assert is_transient(OperationalError("x", {}, error)) is passes
