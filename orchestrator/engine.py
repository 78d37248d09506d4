"""The loop: plan, exchange, close, commit; and nothing else."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.carrier import Carrier
from orchestrator.checkpoint import ordered, restore
from orchestrator.config import RunConfig
from orchestrator.federation import Federation, initial_state
from orchestrator.fleet import Fleet
from orchestrator.gate import Gate
from orchestrator.merging import opened
from orchestrator.planner import plan_step
from orchestrator.plans import Plan
from orchestrator.progress import Progress
from orchestrator.publish import Publisher
from orchestrator.records import round_record
from orchestrator.retention import Keeper
from orchestrator.roll import Roll
from orchestrator.rounds import Outcome, TooFewRepliesError
from orchestrator.schedule import schedule
from orchestrator.store.base import RunStatus, RunStore
from orchestrator.store.blobs import BlobStore
from orchestrator.transport import Transport
from orchestrator.trouble import in_words
from strategies.errors import (
    LeaseLostError,
    PerennialError,
    RunInterrupted,
    StoreDamagedError,
    StoreError,
    StoreUnreachableError,
)
from strategies.types import GlobalState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Carries one run from its last commit to its end.

    ``folder`` is the run's own, for what it publishes.
    """

    run_id: str
    config: RunConfig
    transport: Transport
    store: RunStore
    blobs: BlobStore
    folder: Path

    @property
    def _carrier(self) -> Carrier:
        return Carrier(config=self.config, transport=self.transport)

    @property
    def _keeper(self) -> Keeper:
        keep = self.config.checkpoints.keep
        return Keeper(run_id=self.run_id, store=self.store, blobs=self.blobs, keep=keep)

    def execute(self) -> RunStatus:
        """Run to the end; the status returned and the reason on record say how it ended.

        Whatever was committed is kept.  Trouble with the disk or the database interrupts the run,
        which can be resumed once it is mended.  A run that another orchestrator leads by now is
        left to it.  Ctrl-C, and a fault that is not one of ours, are recorded and raised.
        Raises: LeaseLostError if another orchestrator leads the run from the start,
        StoreUnreachableError or StoreDamagedError if how it ended cannot be recorded.
        """
        startable = (RunStatus.CREATED, RunStatus.INTERRUPTED)
        progress = Progress(self.run_id, self.store)
        self.store.transition(
            self.run_id,
            RunStatus.RUNNING,
            expected=startable,
            reason="started",
            owner=progress.owner,
        )
        try:
            self._loop(progress)
        except LeaseLostError as lost:
            return self._left(lost)
        except (RunInterrupted, StoreError) as stop:
            return self._finish(progress, RunStatus.INTERRUPTED, str(stop))
        except OSError as error:
            log.warning("run %s met trouble of this machine", self.run_id, exc_info=True)
            return self._finish(progress, RunStatus.INTERRUPTED, in_words(error, self.folder))
        except PerennialError as error:
            return self._finish(progress, RunStatus.FAILED, str(error))
        except KeyboardInterrupt:
            self._finish(progress, RunStatus.INTERRUPTED, "interrupted from the keyboard")
            raise
        except BaseException as error:
            self._finish(progress, RunStatus.FAILED, f"{type(error).__name__}: {error}")
            raise
        return self._finish(progress, RunStatus.COMPLETED, "all steps done")

    def _loop(self, progress: Progress) -> None:
        federation = self._gather(progress)
        found = restore(self.run_id, self.store, self.blobs)
        self._keeper.begin()
        state = found[0] if found else ordered(initial_state(self.config, federation))
        num_tasks = len(federation.tasks)
        progress.begin(
            num_steps=len(schedule(self.config, num_tasks)),
            num_tasks=num_tasks,
            when=self.config.arrivals(num_tasks),
        )
        fleet = Fleet.of((), self.config.federation.quarantine)
        for record in self.store.each_round(self.run_id):
            progress.count(record)
            fleet.observe(record)
        gate = self._gate(federation, progress)
        release = gate.catch_up(state)
        state = opened(state, self.config, federation)
        roll = Roll(
            run_id=self.run_id,
            config=self.config,
            transport=self.transport,
            store=self.store,
            federation=federation,
        )
        while plan := self._planned(roll, state, fleet, release, progress):
            progress.planned(plan)
            try:
                state = self._exchange(
                    gate.publisher, roll.federation, state, plan, fleet, progress
                )
            except TooFewRepliesError as short:
                roll.retried(plan, short)
                fleet.failed(short.simulated_seconds)
                continue
            if plan.step.kind == "evaluate":
                progress.measured()
                progress.lead()
                release = gate.settle(state)
                state = opened(state, self.config, federation)

        roll.hear()

    def _planned(
        self,
        roll: Roll,
        state: GlobalState,
        fleet: Fleet,
        release: int | None,
        progress: Progress,
    ) -> Plan | None:
        """The next step for those who are there now; None after the last, where nobody need be."""
        if state.step_index >= progress.num_steps:
            return None
        federation = roll.called(progress.waiting)
        fleet.busy = self._carrier.busy(state)
        return plan_step(self.run_id, self.config, federation, state, fleet, release=release)

    def _gate(self, federation: Federation, progress: Progress) -> Gate:
        return Gate(
            run_id=self.run_id,
            owner=progress.owner,
            store=self.store,
            require=self.config.publish.require,
            task_names=[task.name for task in federation.tasks],
            board=progress.board,
            publisher=Publisher(
                config=self.config,
                federation=federation,
                transport=self.transport,
                folder=self.folder,
            ),
        )

    def _gather(self, progress: Progress) -> Federation:
        progress.show(phase="gathering clients")
        federation = self.transport.federation(
            self.config.shared_recipe().model_dump_json(),
            timeout_seconds=self.config.federation.round_timeout_seconds,
            on_wait=progress.waiting,
        )
        self.store.describe(self.run_id, task_names=[task.name for task in federation.tasks])
        return federation

    def _exchange(
        self,
        publisher: Publisher,
        federation: Federation,
        state: GlobalState,
        plan: Plan,
        fleet: Fleet,
        progress: Progress,
    ) -> GlobalState:
        """One step, from the first message to the commit; the state after it."""
        start = time.monotonic()
        carried = self._carrier.carried(state, plan, fleet, federation, progress.waiting)
        plan, outcome = carried.plan, carried.closed(state, self.config, federation)
        exchanged = time.monotonic() - start
        outcome = replace(outcome, state=ordered(outcome.state))
        checkpoint = self._keeper.save(outcome.state)
        seconds = {
            "exchange": exchanged - outcome.aggregation_seconds,
            "aggregate": outcome.aggregation_seconds,
            "checkpoint": time.monotonic() - start - exchanged,
        }
        if self.config.links:
            seconds["simulated"] = fleet.lost_seconds + outcome.simulated_seconds
        outcome = self._inspected(publisher, plan, outcome, seconds)
        record = fleet.ward.noted(round_record(plan, outcome, checkpoint, seconds))
        if not self.store.commit_round(self.run_id, record, owner=progress.owner):
            raise RunInterrupted(f"another orchestrator committed step {plan.step_index} first")
        self._keeper.tidy()
        fleet.observe(record)
        progress.committed(record)
        return outcome.state

    def _inspected(
        self, publisher: Publisher, plan: Plan, outcome: Outcome, seconds: dict[str, float]
    ) -> Outcome:
        """With ``intruders`` among the metrics of a scoring after a task, if they are asked for."""
        step = plan.step
        asked = self.config.evaluation.intruders and step.kind == "evaluate"
        if not asked or step.task_index < 0:
            return outcome
        start = time.monotonic()
        found = float(publisher.num_intruders(outcome.state))
        seconds["intruders"] = time.monotonic() - start
        return replace(outcome, metrics={**outcome.metrics, "intruders": found})

    def _finish(self, progress: Progress, status: RunStatus, reason: str) -> RunStatus:
        try:
            progress.end(status, reason)
        except LeaseLostError as lost:
            return self._left(lost)
        except (StoreUnreachableError, StoreDamagedError) as error:
            raise type(error)(f"{reason}. That could not be recorded: {error}") from error
        return status

    def _left(self, lost: LeaseLostError) -> RunStatus:
        """The run is another's, and so is what is recorded of its end."""
        log.warning("run %s is left to its other orchestrator: %s", self.run_id, lost)
        return RunStatus.INTERRUPTED
