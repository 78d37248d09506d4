"""Transactions that outlive a lost connection.  Nothing else in the store tries anything twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.store.address import READS
from orchestrator.store.patience import Patience
from strategies.errors import LeaseLostError, StaleRunStatusError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sessions:
    """Reads and writes of one database, each repeated while it is away for a moment."""

    engine: Engine
    patience: Patience

    def read(self, what: str, query: Callable[[Session], T]) -> T:
        """``query``'s result; all it sees is of one instant.

        Raises: StoreUnreachableError.
        """

        def attempt() -> T:
            with Session(self._of_one_instant()) as session:
                return query(session)

        return self.patience.insist(what, self.engine.url, attempt)

    def write(
        self,
        what: str,
        work: Callable[[Session], T],
        written: Callable[[Session], bool] | None = None,
    ) -> T:
        """``work``'s result, committed once.

        When a connection is lost between COMMIT and its answer, nobody knows whether the
        transaction counts.  ``written`` then tells by what ``work`` wrote whether it is there; None
        means that doing ``work`` again changes nothing.
        Raises: StoreUnreachableError, and whatever ``work`` raises, with nothing written.
        """
        write = _Write(self, work, written)
        return self.patience.insist(what, self.engine.url, write.attempt)

    def _of_one_instant(self) -> Engine:
        """SQLite's readers see one instant anyway; PostgreSQL's default is one per statement."""
        if self.engine.dialect.name != "postgresql":
            return self.engine.execution_options(**{READS: True})
        return self.engine.execution_options(isolation_level="REPEATABLE READ")


@dataclass(slots=True)
class _Write(Generic[T]):
    """One write through all of its attempts; ``sent`` is the result whose COMMIT has no answer."""

    sessions: Sessions
    work: Callable[[Session], T]
    written: Callable[[Session], bool] | None
    in_doubt: bool = False
    sent: T | None = None

    def attempt(self) -> T:
        if self._is_there():
            return cast("T", self.sent)
        try:
            return self._once()
        except (IntegrityError, StaleRunStatusError, LeaseLostError):
            # The transaction in doubt may have been committed while this one waited for its locks.
            if self._is_there():
                return cast("T", self.sent)
            raise

    def _once(self) -> T:
        with Session(self.sessions.engine) as session:
            result = self.work(session)
            session.flush()
            self.in_doubt, self.sent = True, result
            session.commit()
        return result

    def _is_there(self) -> bool:
        if not self.in_doubt or self.written is None:
            return False
        with Session(self.sessions.engine) as session:
            return self.written(session)
