"""``python -m tests.chaos.deployed --json -``: a federation whose processes are killed with -9.

A server, three clients (each a SuperNode and a trainer, as ``perennial client`` starts them),
TLS, node keys and PostgreSQL on loopback carry one run in peace and two under fire.  What is
waited for (SuperNode, trainer, ClientApp, database) must not stop a run; what carries it
(SuperLink, ServerApp) must leave an interrupted one that ``perennial resume RUN --on`` completes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.home import Home
from orchestrator.store.base import RunRecord
from tests import postgres
from tests.chaos.deployed_checks import faults_of, lost_replies
from tests.chaos.deployed_victims import Patience, Strike, has_come, is_at_work, process_of
from tests.conftest import REPOSITORY
from tests.e2e.federation import Command, Loopback

CLIENTS = 3
RUN = (
    "checkpoints.keep=99",  # every step is told again
    f"federation.clients={CLIENTS}",
    "federation.round_timeout_seconds=400.0",
    "stream.classes_per_task=5",
    "learning.rounds_per_task=3",
    "learning.local_steps=100",
    'learning.methods=[{name="finetune"}]',
    "model.pretext.steps=5",
)
# Steps: 0 scoring, 1 to 3 training, 4 scoring, 5 to 7 training, 8 scoring.  A strike comes at its
# step or, where that was over too soon, at a later one of its kind.
WAITED_FOR = (
    Strike("clientapp", "training", 1),
    Strike("postgres", "scoring", 4),
    Strike("clientapp", "starting", 5, client=0),
    Strike("supernode", "training", 5),
    # Not while it scores: that is over before a process is found, and one that is killed as it
    # hands its answer over is waited for by its SuperNode (docs/reliability.md).
    Strike("clientapp", "training", 6, client=2),
    Strike("postgres restart", "between", 7),
)
RESUMED = (
    Strike("postgres", "scoring", 0),
    Strike("trainer", "training", 1),
    Strike("serverapp", "training", 2),
    Strike("superlink", "training", 3),
    Strike("superlink", "between", 5),
    Strike("postgres restart", "training", 6),
    Strike("trainer", "training", 6, client=0),
    Strike("serverapp", "scoring", 8),
)
_LONG = 900.0  # seconds; for what must come, on a machine with better things to do
_INTERRUPTED = 130


@dataclass
class Battle:
    """One run on a federation and what was done to it."""

    federation: Loopback
    home: Home
    database: postgres.Server | None
    command: Command
    resumes: int = 0
    struck: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> RunRecord:
        return self.home.store().list_runs(limit=1)[0]

    def strike(self, strike: Strike) -> None:
        """Wait for the moment, kill, and have the run continued where it needs it."""
        if self.database is None and strike.victim.startswith("postgres"):
            return
        self._until(strike)
        began, before = time.monotonic(), self.resumes
        killed = self._kill(strike)
        if strike.victim in ("serverapp", "superlink"):
            self._resume()
        self.struck.append(
            {
                "victim": strike.victim,
                "moment": strike.moment,
                "step": strike.step,
                "pid": killed,
                "resumed": self.resumes > before,
                "seconds_to_go_on": round(time.monotonic() - began, 1),
            }
        )

    def end(self) -> int:
        """The exit code of the command that saw the run's end."""
        code = self.command.ends(_LONG)
        while code == _INTERRUPTED:
            self._resume()
            code = self.command.ends(_LONG)
        return code

    def _until(self, strike: Strike) -> None:
        def come() -> bool:
            progress = dict(self.run().progress)
            working = has_come(strike, progress, lambda: is_at_work(self.federation, strike.client))
            external = strike.victim in ("postgres", "postgres restart")
            return working and (external or process_of(self.federation, strike) is not None)

        def alive() -> bool:
            return self.command.process.poll() is None

        if not Patience(_LONG).until(str(strike), come, alive):
            raise AssertionError(f"the run ended before {strike}:\n{self.command.output}")

    def _kill(self, strike: Strike) -> int:
        if strike.victim.startswith("postgres"):
            assert self.database is not None
            number = self.database.crash() if strike.victim == "postgres" else 0
            if not number:
                self.database.stop()
            self.database.start_again()
            return number
        process = process_of(self.federation, strike)
        assert process is not None, f"{strike}: it ended by itself just now"
        process.kill()
        return int(process.pid)

    def _resume(self) -> None:
        """As its last line tells an operator."""
        code = self.command.ends(_LONG)
        assert code == _INTERRUPTED, f"ended with {code}, expected 130:\n{self.command.output}"
        assert "perennial resume" in self.command.output, self.command.output
        deadline = time.monotonic() + _LONG
        while True:
            self.command = _submit(self.federation, "resume", self.run().run_id)
            self.resumes += 1
            refused = _refused(self.command)
            if not refused:
                return
            assert time.monotonic() < deadline, self.command.output
            time.sleep(1.0)


def _refused(command: Command) -> bool:
    """Whether the SuperLink, on its way up, took nothing yet."""
    try:
        command.wait_for("submitted to", _LONG)
    except AssertionError:
        assert "SuperLink" in command.output, command.output
        return True
    return False


def _submit(federation: Loopback, *words: str | Path) -> Command:
    roots = federation.certs / "ca.crt"
    return federation.start(*words, "--on", federation.address, "--root-certificates", roots)


def fight(
    federation: Loopback, home: Home, database: postgres.Server | None, strikes: Sequence[Strike]
) -> dict[str, Any]:
    """One run with these strikes, from its start to the verdict on it."""
    began = time.monotonic()
    settings = [word for value in RUN for word in ("--set", value)]
    command = _submit(federation, "run", REPOSITORY / "examples" / "digits.toml", *settings)
    command.wait_for("^run ", _LONG)
    battle = Battle(federation, home, database, command)
    for strike in strikes:
        battle.strike(strike)
        sys.stderr.write(f"{battle.struck[-1:]}\n")
    code, run = battle.end(), battle.run()
    threads = 1 if _core(0) else len(os.sched_getaffinity(0))
    work = federation.folder / "retold" / run.run_id
    faults = faults_of(run.run_id, home, work, threads)
    if code:
        faults.append(f"exit code {code}: {battle.command.output}")
    return {
        "run_id": run.run_id,
        "kills": battle.struck,
        "resumes": battle.resumes,
        "lost_replies": lost_replies(run.run_id, home),
        "checkpoint": home.store().last_checkpoint(run.run_id),
        "faults": faults,
        "seconds": round(time.monotonic() - began, 1),
    }


def report(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first of ``runs`` was left in peace: who lost no reply must end with its checkpoint."""
    peace = runs[0]
    for run in runs:
        if not run["lost_replies"] and run["checkpoint"] != peace["checkpoint"]:
            run["faults"].append(f"checkpoint {run['checkpoint']}, in peace {peace['checkpoint']}")
    kills = [kill for run in runs for kill in run["kills"]]
    return {
        "kills": len(kills),
        "completed": sum(len(run["kills"]) for run in runs if not run["faults"]),
        "same_checkpoint": sum(run["checkpoint"] == peace["checkpoint"] for run in runs[1:]),
        "victims": dict(Counter(kill["victim"] for kill in kills)),
        "moments": dict(Counter(kill["moment"] for kill in kills)),
        "runs": list(runs),
    }


def _core(number: int) -> list[str]:
    """A core for a client: threads of several that wait for each other wait longest for a core."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[number % len(cores)])] if shutil.which("taskset") else []


def carry_out(folder: Path, plans: Sequence[Sequence[Strike]]) -> dict[str, Any]:
    """A federation in ``folder``, a run in peace, and one for each of ``plans``."""
    database = None if postgres.missing() else postgres.Server.make()
    url = database.new_database() if database else f"sqlite:///{folder / 'home' / 'perennial.db'}"
    federation = Loopback(folder, database=url)
    home = Home(folder=folder / "home", database_url=url)
    try:
        federation.make_certificates(CLIENTS)
        federation.server()
        clients = [federation.client(number, CLIENTS, _core(number)) for number in range(CLIENTS)]
        for client in clients:
            client.wait_for("connected to .* trainer warm", _LONG)
        done = report([fight(federation, home, database, plan) for plan in ((), *plans)])
        gone = [client.output for client in clients if client.process.poll() is not None]
        return done | {"database": "postgresql" if database else "sqlite", "clients_gone": gone}
    finally:
        federation.end()
        if database:
            database.remove()


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos.deployed", description=__doc__)
    parser.add_argument("--json", required=True, help="where the report goes; - for here")
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory(prefix="perennial-deployed-") as folder:
        found = carry_out(Path(folder), (WAITED_FOR, RESUMED))
    text = json.dumps(found, indent=2)
    if arguments.json == "-":
        sys.stdout.write(f"{text}\n")
    else:
        Path(arguments.json).write_text(text, encoding="utf-8")
    return 0 if found["completed"] == found["kills"] and not found["clients_gone"] else 1


if __name__ == "__main__":
    sys.exit(main())
