"""Links and speeds estimated from transfers."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.fleet import Fleet, LinkEstimate
from orchestrator.store.base import ReplyRecord
from tests.contract.test_run_store import a_round
from tests.orchestrator.builders import a_federation


def test_one_exchange_gives_both_directions_one_rate():
    link = LinkEstimate()
    link.observe(300, 100, 4.0)
    assert link.rates() == pytest.approx((100.0, 100.0))


def test_messages_of_different_proportions_tell_the_directions_apart():
    link = LinkEstimate()
    for down, up in [(1000, 10), (400, 400), (1000, 10), (100, 900)]:
        link.observe(down, up, down / 500 + up / 50)
    assert 1 / link.seconds_per_byte() == pytest.approx((500, 50), rel=0.02)


def test_a_direction_that_was_not_used_keeps_its_rate():
    link = LinkEstimate()
    link.observe(0, 100, 10.0)
    for _ in range(50):
        link.observe(1000, 0, 2.0)
    assert link.rates() == pytest.approx((500, 10), rel=1e-3)


def test_the_estimate_follows_a_line_that_changes():
    link = LinkEstimate()
    for rate in [100] * 10 + [400] * 15:
        link.observe(0, 1000, 1000 / rate)
    assert 1 / link.seconds_per_byte()[1] == pytest.approx(400, rel=0.1)


def test_an_unsteady_line_is_planned_with_caution():
    rng, steady, shaky = np.random.default_rng(0), LinkEstimate(), LinkEstimate()
    for _ in range(40):
        steady.observe(0, 1000, 10.0)
        shaky.observe(0, 1000, 10.0 * np.exp(rng.normal(0, 0.5)))
    assert steady.relative_error() == pytest.approx(0, abs=1e-9)
    assert 0.25 < shaky.relative_error() < 1.0
    assert shaky.rates()[1] < 0.85 / shaky.seconds_per_byte()[1]


def a_reply(
    client: str, seconds: dict[str, float], flops: float = 0.0, down: int = 20_000, up: int = 10_000
) -> ReplyRecord:
    return ReplyRecord(
        assignment_id="a", client_id=client, status="ok", failure_reason=None,
        failure_detail=None, num_examples=1, ranks={}, bytes_down=down, bytes_up=up,
        seconds=seconds, metrics={"flops": flops}, peak_memory_bytes=1,
    )  # fmt: skip


def test_profiles_get_what_was_measured_and_nothing_is_invented():
    from dataclasses import replace

    client, other = a_federation().clients[:2]
    record = replace(
        a_round(0),
        seconds={"simulated": 7.5},
        replies=(
            a_reply(client.client_id, {"total": 5.0, "compute": 2.0, "train": 1.5}, flops=3e9),
        ),
    )
    fleet = Fleet.of([record])
    known = fleet.known(client)
    assert known.uplink_bytes_per_second == pytest.approx(10_000)  # 30 000 bytes in 3 s
    assert known.flops_per_second == pytest.approx(2e9)
    assert fleet.known(other) == other
    assert fleet.now == 7.5


def test_simulated_directions_are_told_apart_at_once():
    from dataclasses import replace

    client = a_federation().clients[0]
    seconds = {"total": 9.0, "down": 4.0, "compute": 3.0, "up": 2.0, "train": 0.1}
    record = replace(a_round(0), replies=(a_reply(client.client_id, seconds, flops=3e9),))
    known = Fleet.of([record]).known(client)
    assert known.downlink_bytes_per_second == pytest.approx(5_000)
    assert known.uplink_bytes_per_second == pytest.approx(5_000)
    assert known.flops_per_second == pytest.approx(1e9)  # the simulated device's, not ours


def test_what_the_operator_lends_caps_the_line_before_and_after_it_was_measured():
    from dataclasses import replace

    from strategies.cost import cautious

    client = replace(a_federation().clients[0], uplink_limit_bytes_per_second=100.0)
    assert cautious(Fleet().known(client)).uplink_bytes_per_second == 100.0
    assert Fleet().known(client).uplink_bytes_per_second is None
    reply = a_reply(client.client_id, {"total": 5.0, "compute": 2.0})
    known = Fleet.of([replace(a_round(0), replies=(reply,))]).known(client)
    assert known.uplink_bytes_per_second == 100.0
    assert known.downlink_bytes_per_second == pytest.approx(10_000)
    generous = replace(client, uplink_limit_bytes_per_second=1e9)
    assert cautious(Fleet().known(generous)).uplink_bytes_per_second == 62_500


def test_what_every_exchange_takes_is_told_apart_from_what_its_bytes_take():
    from dataclasses import replace

    client = a_federation().clients[0]

    def told(*exchanges: tuple[int, int, float]):
        replies = [
            a_reply(client.client_id, {"total": 1.0 + s, "compute": 1.0}, down=down, up=up)
            for down, up, s in exchanges
        ]
        return Fleet.of([replace(a_round(i), replies=(r,)) for i, r in enumerate(replies)])

    # Five seconds of processes and polls; the line gives 32 kB/s.
    small, large = (6_000, 2_000, 5.0), (100_000, 60_000, 10.0)
    first = told(small).known(client)
    assert (first.exchange_seconds, first.uplink_bytes_per_second) == (5.0, None)
    assert told(small, large).known(client).uplink_bytes_per_second == pytest.approx(32_000)
    quick = told(small, (100_000, 60_000, 5.2)).known(client)
    assert quick.uplink_bytes_per_second == pytest.approx(8e5)
    # Without a small one to compare with, all of it counts as the line's.
    assert told(large).known(client).uplink_bytes_per_second == pytest.approx(16_000)
    # An exchange that was quicker than small ones were is no infinite line.
    assert told(small, (100_000, 60_000, 2.0)).known(client).uplink_bytes_per_second == 4e6
