"""What the product does with faults that do not kill: errors, delays, cut bytes, full disks."""

from __future__ import annotations

import logging
import re

import pytest

from orchestrator.conduct import reclaim, submit
from orchestrator.launch import run_in_process
from orchestrator.store.base import RunStatus
from tests.chaos.faults import Fault, Plan
from tests.chaos.letters import run_over_letters
from tests.chaos.recipes import recipe
from tests.chaos.verdict import facts
from tests.chaos.wrapping import following

CONFIG = recipe("golden")
STOPPED = (RunStatus.FAILED, RunStatus.INTERRUPTED)


def here(run_id, config, home):
    return run_in_process(run_id, config, home, on_progress=lambda: None)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """What a run leaves that nothing happened to."""
    from orchestrator.home import Home

    folder = tmp_path_factory.mktemp("golden")
    home = Home(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")
    run_id = submit(CONFIG, home)
    with following(Plan.write(folder / "plan")):
        assert here(run_id, CONFIG, home) is RunStatus.COMPLETED
    return facts(home, run_id)


@pytest.fixture
def struck(home, tmp_path):
    """A run that is carried out, or resumed, with faults; its id and how it ended."""
    plans = iter(range(10))

    def run(*faults, run_id=None, config=CONFIG, over=here):
        run_id = run_id or submit(config, home)
        with following(Plan.write(tmp_path / f"plan-{next(plans)}", *faults)) as plan:
            status = over(run_id, config, home)
        assert plan.struck() == bool(faults), "no fault was carried out"
        return run_id, status

    return run


@pytest.fixture
def resumed(home, struck):
    """The same run taken up again as `perennial resume` does, with nothing in its way."""

    def run(run_id, over=here):
        assert reclaim(run_id, home.store()).status is RunStatus.INTERRUPTED
        assert struck(run_id=run_id, over=over)[1] is RunStatus.COMPLETED
        return facts(home, run_id)

    return run


def failures(home, run_id):
    return [
        (r.step_index, x.client_id, x.failure_reason, x.failure_detail)
        for r in home.store().rounds(run_id)
        for x in r.replies
        if x.status == "failed"
    ]


def but_for(found, *names):
    return {name: value for name, value in found.items() if name not in names}


@pytest.mark.parametrize("point", ["plan.before", "commit.before", "settle.after"])
def test_an_error_fails_the_run_with_its_reason_and_the_run_can_be_taken_up_again(
    home, golden, struck, resumed, point
):
    run_id, status = struck(Fault(point=point, hit=3, action="raise"))
    assert status is RunStatus.FAILED
    assert f"struck at {point}" in home.store().get_run(run_id).reason
    assert resumed(run_id) == golden


def test_an_error_of_one_client_is_its_failure_and_the_run_goes_on(home, struck):
    run_id, status = struck(Fault(point="client.step.before", hit=3, action="raise"))
    assert status is RunStatus.COMPLETED
    ((step, _, reason, detail),) = failures(home, run_id)
    assert (step, reason) == (1, "crashed")
    assert "struck at client.step.before" in detail


def test_who_is_asked_after_the_deadline_is_recorded_as_late(home, struck):
    config = CONFIG.model_copy(
        update={"federation": CONFIG.federation.model_copy(update={"deadline_seconds": 4.0})}
    )
    slow = Fault(point="client.remember.before", hit=1, action="delay", seconds=4.5)
    run_id, status = struck(slow, config=config)
    assert status is RunStatus.COMPLETED
    late = [failure for failure in failures(home, run_id) if failure[0] == 1]
    assert [reason for _, _, reason, _ in late] == ["deadline", "deadline"]
    assert late[0][3] == "no reply within 4 s"


@pytest.mark.parametrize("until", ["plan.before", "commit.before"])
def test_a_damaged_checkpoint_is_named_and_its_step_done_again_to_the_same_bits(
    home, golden, struck, resumed, until
):
    """Up to ``commit.before`` the clients have met the step after the one that is lost."""
    run_id, _ = struck(
        Fault(point="blob.rename.after", hit=9, action="truncate"),  # a state and its hold each
        Fault(point=until, hit=6, action="raise"),
    )
    lost = home.store().last_checkpoint(run_id)
    found = resumed(run_id)
    assert but_for(found, "events") == but_for(golden, "events")
    told = [event for event in home.store().events(run_id) if event.kind == "checkpoint-damaged"]
    assert len(told) == 1
    assert lost in told[0].message


def test_a_damaged_client_state_is_named_and_the_one_before_is_used(home, struck, caplog):
    # A message and a state are kept by each of three clients in each step but the first.
    with caplog.at_level(logging.WARNING):
        run_id, status = struck(Fault(point="client.rename.after", hit=15, action="truncate"))
    assert status is RunStatus.COMPLETED
    assert not failures(home, run_id)
    (told,) = {x.getMessage() for x in caplog.records if "is damaged" in x.getMessage()}
    assert "step-00000002.npz" in told
    assert "using the version before" in told


def test_a_reply_that_is_cut_short_is_malformed(home, struck):
    # Three clients introduce themselves and are scored before anybody trains.
    run_id, status = struck(Fault(point="client.answer.after", hit=8, action="truncate"))
    assert status is RunStatus.COMPLETED
    ((step, client, reason, _),) = failures(home, run_id)
    assert (step, client, reason) == (1, "client-1", "malformed")
    assert any(event.kind == "client-failed" for event in home.store().events(run_id))


@pytest.mark.parametrize("action", ["reorder", "duplicate"])
def test_replies_in_another_order_and_repeated_ones_change_nothing(home, golden, struck, action):
    """Over letters replies come last one first as it is; every client's is heard once."""
    echo = Fault(point="grid.pull.after", hit=0, action=action)
    run_id, status = struck(echo, over=run_over_letters)
    assert status is RunStatus.COMPLETED
    assert but_for(facts(home, run_id), "events") == but_for(golden, "events")


@pytest.mark.parametrize(
    ("point", "over"),
    [("blob.fsync.before", here), ("spool.write.before", run_over_letters)],
)
def test_a_full_disk_stops_the_server_and_says_what_to_free(
    home, golden, struck, resumed, point, over
):
    full = Fault(point=point, hit=9, action="disk-full", times=100)
    run_id, status = struck(full, over=over)
    assert status in STOPPED
    reason = home.store().get_run(run_id).reason
    assert re.search(r"No space left on device( at .*bytes free\))?; free space there", reason)
    assert reason.endswith("then resume")
    assert 0 < len(home.store().rounds(run_id)) < len(golden["steps"])
    assert resumed(run_id, over) == golden


def test_a_full_disk_of_one_client_is_its_failure(home, struck):
    run_id, status = struck(Fault(point="client.fsync.before", hit=2, action="disk-full"))
    assert status is RunStatus.COMPLETED
    ((step, client, reason, detail),) = failures(home, run_id)
    assert (step, client, reason) == (1, "client-1", "no-room")
    assert "No space left on device" in detail
    folder = home.client_folder / run_id / "client-1"
    assert not list(folder.glob("*.tmp"))


def test_full_disks_of_all_clients_stop_the_run_which_goes_on_once_there_is_room(
    home, golden, struck, resumed
):
    run_id, status = struck(Fault(point="client.fsync.before", hit=0, action="disk-full"))
    assert status in STOPPED
    reason = home.store().get_run(run_id).reason
    assert reason.count("No space left on device") == 3
    assert but_for(resumed(run_id), "events") == but_for(golden, "events")
