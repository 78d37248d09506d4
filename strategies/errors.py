"""Every exception the project raises on purpose.

::

    PerennialError
    ├── ConfigError             a run file or an override cannot be used; lists every fault
    ├── StrategyError           an algorithm was asked for something it cannot do
    ├── ShapeMismatchError      a tensor does not have the planned shape, dtype or finiteness
    ├── WireError               bytes that are not one of our messages
    ├── DataError               a source, a stream or a partition that cannot be built
    ├── ModelError              a checkpoint or recipe that cannot be realised
    ├── RoundFailedError        fewer usable replies than ``min_replies``
    ├── RunInterrupted          somebody asked the run to stop; it can be resumed
    │   └── LeaseLostError          another orchestrator leads the run now; it goes on there
    ├── TransportError          the way to the clients is closed or was never there
    │   └── RefusedError            the other side will not have us, however often we ask
    ├── TrackingError           a tracking server did not take a run
    └── StoreError
        ├── RunNotFoundError
        ├── StaleRunStatusError     the run is not in the status the caller expected
        ├── SchemaVersionError      the database is older or newer than this program
        ├── StoreUnreachableError   the database was away for longer than is waited
        ├── StoreDamagedError       the database is not, or no longer, what it was
        └── BlobError               a checkpoint or tensor file is missing or damaged

A *client's* fault is never an exception here: it is a ``ClientFailure`` value, counted and
recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PerennialError(Exception):
    """Root of everything this project raises on purpose."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a configuration."""

    key: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.key}: found {self.found}, expected {self.expected}"
        return f"{text}; {self.hint}" if self.hint else text


class ConfigError(PerennialError):
    """A configuration that cannot be used; ``faults`` holds all that is wrong with it."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{source}: {len(self.faults)} fault(s)\n{lines}")


class StrategyError(PerennialError):
    """An algorithm was asked for something it cannot do."""


class ShapeMismatchError(PerennialError):
    """A tensor does not have the planned shape, dtype or finiteness."""


class WireError(PerennialError):
    """Bytes that are not one of our messages."""


class DataError(PerennialError):
    """A source, a stream or a partition that cannot be built."""


class ModelError(PerennialError):
    """A checkpoint or recipe that cannot be realised."""


class RoundFailedError(PerennialError):
    """Fewer usable replies than the run needs; names each client's reason."""


class RunInterrupted(PerennialError):  # noqa: N818 - an order, not an error
    """Somebody asked the run to stop; it can be resumed."""


class LeaseLostError(RunInterrupted):
    """Another orchestrator leads the run, or it was ended; whoever meets this writes no more."""


class TransportError(PerennialError):
    """The way to the clients is closed or was never there."""


class RefusedError(TransportError):
    """The other side will not have us, however often we ask; says what to change."""


class TrackingError(PerennialError):
    """A tracking server did not take a run; the run itself is not affected."""


class StoreError(PerennialError):
    """The run database or a blob cannot do what was asked."""


class RunNotFoundError(StoreError):
    """No run has that id, or several do."""


class StaleRunStatusError(StoreError):
    """The run is not in the status the caller expected."""


class SchemaVersionError(StoreError):
    """The database is older or newer than this program."""


class StoreUnreachableError(StoreError):
    """The database was away for longer than is waited; a run that met it can be resumed."""


class StoreDamagedError(StoreError):
    """The database is damaged, or another one took its place; waiting does not help."""


class BlobError(StoreError):
    """A checkpoint or tensor file is missing or damaged."""
