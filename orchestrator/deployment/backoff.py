"""How long to wait before a failed process is started again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Twice as long after every failure in a row, up to a limit; all times in seconds.

    A process that ran for ``healthy_seconds`` had recovered, so its failures are counted anew.
    """

    first_seconds: float = 1.0
    longest_seconds: float = 60.0
    healthy_seconds: float = 60.0

    def failures_after(self, failures: int, ran_seconds: float) -> int:
        """Failures in a row, with the one that ended a process after ``ran_seconds``."""
        return 1 if ran_seconds >= self.healthy_seconds else failures + 1

    def delay_seconds(self, failures: int) -> float:
        """The wait after ``failures`` ≥ 1 failures in a row."""
        return float(min(self.first_seconds * 2.0 ** min(failures - 1, 60), self.longest_seconds))
