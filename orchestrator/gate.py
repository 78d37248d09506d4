"""Between a scored state and its publication: what meets the requirements becomes the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.publish import Publisher
from orchestrator.releases import Verdict, last_release, stage_name, verdicts
from orchestrator.scoreboard import Scoreboard
from orchestrator.sections import Requirements
from orchestrator.store.base import RunStore
from strategies.types import GlobalState


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Publishes or keeps aside the state after a task, as the record of the run decides.

    An ``owner`` publishes only while it leads the run.
    """

    run_id: str
    store: RunStore
    require: Requirements
    task_names: Sequence[str]
    board: Scoreboard
    publisher: Publisher
    owner: str | None = None

    def settle(self, state: GlobalState) -> int | None:
        """Carry out the verdict on ``state`` if the step before it scored it after a task.

        Returns the step that scored the last published state, None before the first.
        """
        found = self._verdicts()
        if found and found[-1].step_index == state.step_index - 1:
            if found[-1].published:
                self._publish(found[-1], state)
            else:
                self._withhold(found[-1], state)
        return _step_of(last_release(found))

    def catch_up(self, state: GlobalState) -> int | None:
        """Settle what an orchestrator that was killed after its last commit could not.

        Returns what ``settle`` does.
        """
        scored = next(
            (r for r in self.board.scorings if r.step_index == state.step_index - 1),
            None,
        )
        settled = any(
            event.kind in ("published", "withheld")
            and event.data.get("step_index") == state.step_index - 1
            and scored is not None
            and event.at >= scored.committed_at
            for event in self.store.events(self.run_id)
        )
        return _step_of(last_release(self._verdicts())) if settled else self.settle(state)

    def _verdicts(self) -> tuple[Verdict, ...]:
        board = self.board
        return verdicts(board.scorings, self.require, self.task_names, board.when)

    def _publish(self, verdict: Verdict, state: GlobalState) -> None:
        path = str(self.publisher.publish(verdict.task_index, state))
        self.store.set_adapter_path(self.run_id, path, self.owner)
        message = f"adapter after {self._after(verdict)}"
        self._log("published", message, {"path": path, "step_index": verdict.step_index})

    def _withhold(self, verdict: Verdict, state: GlobalState) -> None:
        path = str(self.publisher.keep_aside(verdict.task_index, state))
        why = ". ".join(verdict.reasons)
        message = f"adapter after {self._after(verdict)}, kept at {path}: {why}"
        data = {"path": path, "step_index": verdict.step_index, "reasons": list(verdict.reasons)}
        self._log("withheld", message, data)

    def _after(self, verdict: Verdict) -> str:
        when = self.board.when
        num_stages = when.num_stages if when else len(self.task_names)
        return stage_name(verdict.task_index, self.task_names, num_stages)

    def _log(self, kind: str, message: str, data: dict[str, object]) -> None:
        self.store.append_event(self.run_id, kind, message, data)


def _step_of(release: Verdict | None) -> int | None:
    return release.step_index if release else None
