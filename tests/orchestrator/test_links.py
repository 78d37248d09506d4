"""Simulated links: bytes over seconds as the line would have it, and what comes too late."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from orchestrator.links import Journey, Links
from strategies.types import ClientFailure, ClientId, FailureReason, Reply, Update


def links(**fields):
    return TypeAdapter(Links).validate_python(fields)


def a_reply(down: int = 0, up: int = 0) -> Reply:
    update = Update(
        assignment_id="a", client_id=ClientId("c"), plan_hash="p", delta={}, num_examples={}
    )
    return Reply(result=update, bytes_down=down, bytes_up=up, seconds=0.01)


def journey(line, *, start=0.0, deadline=None, client=0, num_clients=1) -> Journey:
    return Journey(
        links=line, client=client, num_clients=num_clients, seed=0, start=start,
        deadline_seconds=deadline,
    )  # fmt: skip


STEADY = links(
    name="constant", uplink_bytes_per_second=(100, 100), downlink_bytes_per_second=(400, 400)
)


def test_a_steady_line_takes_bytes_over_rate():
    reply = journey(STEADY, start=3.7).clocked(a_reply(down=800, up=350), 1.25)
    assert reply.link == pytest.approx({"down": 2.0, "compute": 1.25, "up": 3.5})
    assert reply.seconds == pytest.approx(6.75)


def test_clients_are_spread_evenly_in_logarithm_from_slowest_to_fastest():
    line = links(name="constant", uplink_bytes_per_second=(8e3, 2.5e6))
    rates = sorted(line.rates(client, 20, 0, 0.0).uplink for client in range(20))
    assert rates[0] == pytest.approx(8e3)
    assert rates[-1] == pytest.approx(2.5e6)
    np.testing.assert_allclose(np.diff(np.log(rates)), np.log(2.5e6 / 8e3) / 19)


@pytest.mark.parametrize("name", ["lognormal", "markov"])
def test_a_changing_line_is_a_function_of_client_and_second(name):
    line = links(name=name, coherence_seconds=5.0)
    first = [line.rates(1, 4, 7, second).uplink for second in range(0, 200, 5)]
    again = [line.rates(1, 4, 7, second + 4.9).uplink for second in range(195, -5, -5)][::-1]
    assert first == again
    assert len(set(first)) > 1
    assert first != [line.rates(2, 4, 7, second).uplink for second in range(0, 200, 5)]


def test_lognormal_fading_has_its_median_and_spread():
    line = links(name="lognormal", sigma=0.5, uplink_bytes_per_second=(1000, 1000))
    logs = np.log([line.rates(c, 500, 0, 0.0).uplink / 1000 for c in range(500)])
    assert np.median(logs) == pytest.approx(0, abs=0.08)
    assert logs.std() == pytest.approx(0.5, abs=0.06)


def test_a_markov_line_is_bad_as_often_as_its_chances_say():
    line = links(name="markov", good_to_bad=0.1, bad_to_good=0.3, bad_factor=0.1)
    good = line.uplink_bytes_per_second[0]
    rates = [line.rates(0, 1, seed, 500.0).uplink for seed in range(400)]
    bad = np.mean([rate < 0.5 * good for rate in rates])
    assert bad == pytest.approx(0.1 / (0.1 + 0.3), abs=0.07)


def a_trace(tmp_path, rows: str):
    path = tmp_path / "trace.csv"
    header = "client,seconds,uplink_bytes_per_second,downlink_bytes_per_second\n"
    path.write_text(header + rows)
    return path


def test_a_transfer_crosses_the_steps_of_a_trace(tmp_path):
    path = a_trace(tmp_path, "0,0,100,1000\n0,10,50,1000\n1,0,7,7\n")
    line = links(name="trace", file=path)
    # From second 8: 200 bytes in 2 s at 100, the other 300 in 6 s at 50.
    reply = journey(line, start=8.0).clocked(a_reply(up=500), 0.0)
    assert reply.link["up"] == pytest.approx(8.0)
    # The trace lasts 20 s (its last step as long as the one before) and then starts over.
    assert line.rates(0, 2, 0, 20.0).uplink == 100
    assert line.rates(3, 4, 0, 0.0).uplink == 7


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("0,0,100\n", "expected four numbers"),
        ("0,5,1,1\n", "begins at 5.0, not 0"),
        ("0,0,1,1\n0,0,1,1\n", "do not rise"),
        ("0,0,0,1\n", "a rate of 0"),
        ("", "no rows"),
    ],
)
def test_a_trace_that_cannot_be_used_is_named(tmp_path, rows, says):
    with pytest.raises(ValidationError, match=says):
        links(name="trace", file=a_trace(tmp_path, rows))


def test_what_comes_after_the_deadline_is_a_failure_that_says_what_was_slow():
    on_time = journey(STEADY, deadline=7.0).clocked(a_reply(down=800, up=350), 1.25)
    assert isinstance(on_time.result, Update)
    late = journey(STEADY, deadline=6.0).clocked(a_reply(down=800, up=350), 1.25)
    assert isinstance(late.result, ClientFailure)
    assert late.result.reason is FailureReason.DEADLINE
    assert "3.5 s up" in late.result.detail
    assert late.seconds == 6.0
    assert late.bytes_up == 275  # of 350, in the 2.75 s that were left


def test_nothing_is_sent_up_by_who_is_still_loading_at_the_deadline():
    assert journey(STEADY, deadline=1.0).clocked(a_reply(down=800, up=350), 9.0).bytes_up == 0
