"""Finding the processes of a federation on loopback at the moment they are to die."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import psutil

from clients.addresses import read_token
from clients.trainer_client import TrainerClient
from strategies.errors import PerennialError
from tests.e2e.federation import Loopback

Name = Literal[
    "superlink", "supernode", "trainer", "clientapp", "serverapp", "postgres", "postgres restart"
]
_PROGRAMS: dict[str, str] = {
    "superlink": "orchestrator.deployment.superlink",
    "supernode": "flower_supernode as f",
    "trainer": "clients.trainer_service",
    "clientapp": "flwr-clientapp",
    "serverapp": "flwr-serverapp",
}
_PHASES = {"training": "training", "starting": "training", "scoring": "evaluating"}


class Strike(NamedTuple):
    """Who dies when: in the middle of a step, as it is committed (``between``), or, in a training,
    before it is at work (``starting``).

    ``client`` is the client whose process it is, or who must be at work where it is the server's.
    """

    victim: Name
    moment: Literal["training", "scoring", "between", "starting"]
    step: int
    client: int = 1


def process_of(federation: Loopback, strike: Strike) -> psutil.Process | None:
    """The victim, if it runs."""
    home = str(federation.folder / "home")
    if strike.victim in ("supernode", "trainer", "clientapp"):
        home = str(federation.folder / f"c{strike.client}")
    for process in psutil.process_iter():
        try:
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get("PERENNIAL_HOME") == home
                and _PROGRAMS[strike.victim] in " ".join(process.cmdline())
            ):
                return process
        except psutil.Error:
            continue
    return None


def is_at_work(federation: Loopback, number: int) -> bool:
    """Whether the trainer of a client is busy with an answer."""
    work = federation.folder / f"c{number}"
    try:
        token = read_token(work / "trainer.token")
        return bool(TrainerClient(f"unix:{work / 'trainer.sock'}", token).status().busy)
    except PerennialError:
        return False


def has_come(strike: Strike, progress: dict[str, object], at_work: Callable[[], bool]) -> bool:
    """Whether a run's progress is at the moment of the strike, or at a later one of its kind."""
    done = progress.get("steps_done")
    if not isinstance(done, int) or done < strike.step:
        return False
    if strike.moment == "between":
        return True
    if progress.get("phase") != _PHASES[strike.moment]:
        return False
    if strike.moment == "scoring":
        return True  # a trainer is done with it before anybody has seen it at work
    return at_work() != (strike.moment == "starting")


@dataclass
class Patience:
    """Waits for something, and says what it was if it never comes."""

    seconds: float

    def until(self, what: str, done: Callable[[], bool], alive: Callable[[], bool]) -> bool:
        """Whether it came while ``alive``; raises AssertionError where neither ends."""
        deadline = time.monotonic() + self.seconds
        while not done():
            if not alive():
                return False
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come within {self.seconds:g} s")
            time.sleep(0.05)
        return True
