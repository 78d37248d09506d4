"""Whole runs whose clients vanish in the middle of a round, come back, and join late."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from orchestrator.attendance import Changes, LateReply
from orchestrator.checkpoint import load_state
from orchestrator.conduct import conduct, submit
from orchestrator.federation import Federation
from orchestrator.store.base import RunStatus
from orchestrator.transport import InProcessTransport, failure
from strategies.errors import RunInterrupted
from strategies.types import ClientId, FailureReason, Reply, client_ids
from tests.conftest import tiny_config

FIRST, SECOND, THIRD = client_ids(3)


@dataclass
class Unsteady:
    """``there`` at first; before the n-th plan ``script[n]`` (left, joined) comes true.

    ``vanish`` names the assignments whose clients are lost at work; their answers come in later.
    """

    inner: InProcessTransport
    there: list[ClientId]
    script: dict[int, tuple[list[ClientId], list[ClientId]]] = field(default_factory=dict)
    vanish: tuple[str, ...] = ()
    interrupt_at: int | None = None
    late: list[LateReply] = field(default_factory=list)
    plans: int = 0
    profiles: dict[ClientId, object] = field(default_factory=dict)

    def federation(self, recipe, *, timeout_seconds, on_wait):
        everybody = self.inner.federation(recipe, timeout_seconds=timeout_seconds, on_wait=on_wait)
        self.profiles = {profile.client_id: profile for profile in everybody.clients}
        return Federation(
            clients=tuple(self.profiles[client] for client in sorted(self.there)),
            tasks=everybody.tasks,
            model=everybody.model,
        )

    def base_values(self, recipe, groups, *, timeout_seconds):
        return self.inner.base_values(recipe, groups, timeout_seconds=timeout_seconds)

    def changes(self, *, at_least, timeout_seconds, on_wait):
        left, joined = self.script.get(self.plans, ([], []))
        self.plans += 1
        self.there = sorted(({*self.there} - {*left}) | {*joined})
        return Changes(left=tuple(left), joined=tuple(self.profiles[c] for c in joined))

    def late_replies(self):
        found, self.late = self.late, []
        return found

    def exchange(self, orders, *, timeout_seconds, on_wait):
        if orders[0].assignment.step_index == self.interrupt_at:
            raise RunInterrupted("test")
        assert {o.assignment.client_id for o in orders} <= {*self.there}
        for order in orders:
            name = order.assignment.assignment_id.split("/", 1)[1]
            if name in self.vanish:
                gone = failure(order, FailureReason.UNREACHABLE, "gone")
                yield Reply(result=gone, bytes_down=9, bytes_up=0, seconds=0.1)
                self.late.append(self._late(order))
            else:
                yield from self.inner.exchange(
                    [order], timeout_seconds=timeout_seconds, on_wait=on_wait
                )

    def _late(self, order):
        return LateReply(
            kind="late", assignment_id=order.assignment.assignment_id,
            client_id=order.assignment.client_id, step_index=order.assignment.step_index,
            seconds_late=1.5, bytes_up=77,
        )  # fmt: skip


@pytest.fixture
def transport(home):
    from clients.settings import ClientSettings
    from clients.trainer import LocalTrainer

    trainer = LocalTrainer(
        ClientSettings(cache_folder=home.cache_folder, state_folder=home.client_folder)
    )
    endpoints = {
        client: lambda message, client=client: trainer.answer(client, message)
        for client in client_ids(3)
    }

    def make(there, script=None, **how):
        return Unsteady(InProcessTransport(endpoints), list(there), script or {}, **how)

    return make


# Before the retry of step 1 the second client is gone and the third joins; it is back at step 4.
SCRIPT = {2: ([SECOND], [THIRD]), 5: ([], [SECOND])}
LOST = (f"00001/{SECOND}",)


def config(**changes):
    return tiny_config(federation__min_clients=2, federation__min_replies=2, **changes)


def run(home, transport, settings):
    run_id = submit(settings, home)
    return run_id, conduct(run_id, settings, transport, home)


def clients_of(home, run_id):
    return [[x.client_id for x in r.replies] for r in home.store().rounds(run_id)]


def messages(home, run_id, kind):
    return [e.message for e in home.store().events(run_id) if e.kind == kind]


def tensors(home, run_id):
    return load_state(home.store().last_checkpoint(run_id), home.blobs()).tensors


def test_a_run_finishes_and_every_loss_is_on_record(home, transport):
    run_id, status = run(home, transport([FIRST, SECOND], SCRIPT, vanish=LOST), config())
    assert status is RunStatus.COMPLETED
    both, everybody = [FIRST, THIRD], [FIRST, SECOND, THIRD]
    assert clients_of(home, run_id) == [[FIRST, SECOND], *[both] * 3, *[everybody] * 3]
    rounds = home.store().rounds(run_id)
    assert all(x.status == "ok" for r in rounds for x in r.replies)
    assert rounds[1].replies[0].assignment_id == f"{run_id}/00001/{FIRST}/attempt-1"
    (attempt,) = [e for e in home.store().events(run_id) if e.kind == "attempt-failed"]
    assert "attempt 1 of 3: task 0, round 0: 1 usable replies, 2 needed" in attempt.message
    assert [x["client_id"] for x in attempt.data["replies"]] == [FIRST, SECOND]
    assert attempt.data["replies"][1]["failure_reason"] == "unreachable"
    assert attempt.data["replies"][0]["bytes_up"] > 0
    assert messages(home, run_id, "client-left") == [f"{SECOND} left"]
    assert messages(home, run_id, "client-joined") == [f"{THIRD} joined", f"{SECOND} came back"]
    (late,) = [e for e in home.store().events(run_id) if e.kind == "client-late"]
    assert (late.data["client_id"], late.data["seconds_late"]) == (SECOND, 1.5)
    assert late.data["bytes_up"] == 77


def test_the_same_comings_and_goings_give_the_same_bits_interrupted_or_not(home, transport):
    whole, _ = run(home, transport([FIRST, SECOND], SCRIPT, vanish=LOST), config())
    part = transport([FIRST, SECOND], SCRIPT, vanish=LOST, interrupt_at=4)
    run_id, status = run(home, part, config())
    assert status is RunStatus.INTERRUPTED
    assert conduct(run_id, config(), transport(part.there), home) is RunStatus.COMPLETED
    assert clients_of(home, whole) == clients_of(home, run_id)
    for key, value in tensors(home, whole).items():
        np.testing.assert_array_equal(value, tensors(home, run_id)[key])


def test_a_round_that_stays_short_fails_the_run_after_so_many_attempts(home, transport):
    suffixes = ("", "/attempt-1", "/attempt-2")
    lost = tuple(f"00002/{client}{suffix}" for client in (FIRST, SECOND) for suffix in suffixes)
    run_id, status = run(home, transport([FIRST, SECOND], vanish=lost[:5]), config())
    assert status is RunStatus.FAILED
    assert len(messages(home, run_id, "attempt-failed")) == 3
    assert "1 usable replies, 2 needed" in home.store().get_run(run_id).reason
    patient = config(federation__round_retries=3)
    run_id, status = run(home, transport([FIRST, SECOND], vanish=lost[:5]), patient)
    assert status is RunStatus.COMPLETED


def test_a_round_does_not_begin_with_fewer_clients_than_it_needs(home, transport):
    run_id, status = run(home, transport([FIRST, SECOND], {2: ([SECOND], [])}), config())
    assert status is RunStatus.FAILED
    assert "1 clients are there, federation.min_replies = 2" in home.store().get_run(run_id).reason


def test_simulated_time_counts_failed_attempts(home, transport):
    line = {"name": "constant", "flops_per_second": 1e9}
    run_id, status = run(home, transport([FIRST, SECOND], SCRIPT, vanish=LOST), config(links=line))
    assert status is RunStatus.COMPLETED
    (attempt,) = [e for e in home.store().events(run_id) if e.kind == "attempt-failed"]
    lost = max(reply["seconds"] for reply in attempt.data["replies"])
    record = home.store().rounds(run_id)[1]
    took = max(reply.seconds["total"] for reply in record.replies)
    assert lost > 0
    assert record.seconds["simulated"] == pytest.approx(lost + took)


def test_who_joins_late_is_asked_for_the_sums_of_earlier_tasks(home, transport):
    solved = {
        "model__head": "random-features",
        "model__random_features": 200,
        "strategy__head": {"name": "analytic"},
        "learning__adapted_tasks": 0,
    }
    script = {3: ([], [THIRD])}
    run_id, status = run(home, transport([FIRST, SECOND], script), config(**solved))
    assert status is RunStatus.COMPLETED
    everybody, _ = run(home, transport([FIRST, SECOND, THIRD]), config(**solved))
    for key, value in tensors(home, everybody).items():
        np.testing.assert_allclose(value, tensors(home, run_id)[key], rtol=1e-4, atol=1e-5)


def buffered(**changes):
    return tiny_config(
        federation__buffer={"size": 1, "max_staleness": 1},
        learning__rounds_per_task=3,
        strategy__aggregation={"name": "ffa"},
        links={
            "name": "constant",
            "flops_per_second": 1e9,
            "uplink_bytes_per_second": (1e5, 1.3e5),
            "downlink_bytes_per_second": (1e5, 1.3e5),
        },
        **changes,
    )


def test_a_buffered_run_gives_the_same_bits_interrupted_or_not(home, transport):
    settings = buffered()
    whole, status = run(home, transport(client_ids(3)), settings)
    assert status is RunStatus.COMPLETED
    rounds = home.store().rounds(whole)
    trained = [r for r in rounds if r.kind == "train"]
    staleness = [x.metrics["staleness"] for r in trained for x in r.replies if x.status == "ok"]
    assert max(staleness) > 0
    assert all(sum(x.status == "ok" for x in r.replies) == 1 for r in trained)
    lost = {x.failure_reason for r in trained for x in r.replies if x.status == "failed"}
    assert lost == {"stale"}
    names = [x.assignment_id for r in rounds for x in r.replies]
    assert len(names) == len(set(names))
    for step in (2, 3):
        run_id, status = run(home, transport(client_ids(3), interrupt_at=step), settings)
        assert status is RunStatus.INTERRUPTED
        assert conduct(run_id, settings, transport(client_ids(3)), home) is RunStatus.COMPLETED
        assert clients_of(home, whole) == clients_of(home, run_id)
        for key, value in tensors(home, whole).items():
            np.testing.assert_array_equal(value, tensors(home, run_id)[key])
        again = [r.seconds["simulated"] for r in home.store().rounds(run_id)]
        assert again == [r.seconds["simulated"] for r in rounds]
