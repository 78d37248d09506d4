"""Over a grid whose nodes come, go, fail, and answer late, twice or in any order."""

from __future__ import annotations

import dataclasses

import httpx
import pytest
from flwr.common.constant import ErrorCode
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.attendance import Attended, Lingering, noted
from orchestrator.buffer import Buffered
from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.flower_transport import FlowerTransport
from orchestrator.planner import plan_step
from strategies.errors import RunInterrupted, TransportError
from strategies.types import ClientFailure, ClientId, FailureReason, Update, client_ids
from strategies.wire import encode_profile, encode_result
from tests.orchestrator.builders import a_config, a_federation
from tests.orchestrator.fake_grid import FakeGrid, _error

CONFIG, FEDERATION = a_config(), a_federation()
CLIENTS = client_ids(3)
STATE = dataclasses.replace(initial_state(CONFIG, FEDERATION), step_index=1)
ORDERS = plan_step("run", CONFIG, FEDERATION, STATE, Fleet()).orders
LATER = plan_step(
    "run", CONFIG, FEDERATION, dataclasses.replace(STATE, step_index=2), Fleet()
).orders
SHORT, LONG = 0.15, 30.0  # seconds: to pass a deadline, never to reach one


@pytest.fixture(autouse=True, scope="module")
def an_identity():
    """What Flower's runtime tells a process about itself before it calls an app."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield


def quiet(_: int) -> None:
    """Nobody watches."""


def a_grid(*clients: int, **manners) -> FakeGrid:
    by_client = {ClientId(name.replace("_", "-")): how for name, how in manners.items()}
    nodes = {100 + index: CLIENTS[index] for index in clients or (0, 1, 2)}
    return FakeGrid(FEDERATION, nodes, by_client)


def connected(grid: FakeGrid, min_clients: int | None = None) -> FlowerTransport:
    transport = FlowerTransport(grid, 3, min_clients, look_seconds=0.0)
    transport.federation("{}", timeout_seconds=LONG, on_wait=quiet)
    return transport


def exchanged(transport, orders=ORDERS, timeout=LONG, on_wait=quiet):
    return list(transport.exchange(orders, timeout_seconds=timeout, on_wait=on_wait))


def look(transport, at_least=0, timeout=LONG):
    return transport.changes(at_least=at_least, timeout_seconds=timeout, on_wait=quiet)


def test_it_has_both_abilities():
    transport = FlowerTransport(a_grid(), 3)
    assert isinstance(transport, Attended)
    assert isinstance(transport, Lingering)


def test_a_run_starts_when_enough_clients_are_there_and_the_others_join_later():
    grid = a_grid(0, 2)
    transport = FlowerTransport(grid, 3, 2)
    found = transport.federation("{}", timeout_seconds=LONG, on_wait=quiet)
    assert [c.client_id for c in found.clients] == [CLIENTS[0], CLIENTS[2]]
    grid.nodes[500] = CLIENTS[1]
    assert [p.client_id for p in look(transport).joined] == [CLIENTS[1]]
    assert look(transport).joined == ()
    assert all(isinstance(r.result, Update) for r in exchanged(transport))


def test_a_client_that_is_at_work_still_is_asked_again_until_it_is_free(monkeypatch):
    monkeypatch.setattr("orchestrator.flower_nodes.AGAIN_SECONDS", 0.1)
    busy = ClientFailure(
        assignment_id="", client_id=CLIENTS[1], reason=FailureReason.BUSY, detail="at work"
    )
    grid, waits = a_grid(), list[int]()
    grid.profiles[CLIENTS[1]] = encode_result(busy)

    def becomes_free(there: int) -> None:
        waits.append(there)
        if len(waits) == 4:
            del grid.profiles[CLIENTS[1]]

    transport = FlowerTransport(grid, 3)
    found = transport.federation("{}", timeout_seconds=LONG, on_wait=becomes_free)
    assert [c.client_id for c in found.clients] == list(CLIENTS)
    assert set(waits) == {2}


@pytest.mark.parametrize(("deaths", "there"), [(2, 3), (3, 2)])
def test_a_client_whose_clientapp_dies_is_asked_three_times(monkeypatch, deaths, there):
    monkeypatch.setattr("orchestrator.flower_nodes.AGAIN_SECONDS", 0.1)
    grid, asked = a_grid(), list[int]()
    push = grid.push_messages

    def kills(messages):
        (message,) = messages
        (letter,) = push([message])
        if message.metadata.dst_node_id == 101:
            asked.append(101)
            if len(asked) <= deaths:
                grid.outbox[-1] = _error(letter, ErrorCode.CLIENT_APP_CRASHED)
        return [letter]

    grid.push_messages = kills
    transport = FlowerTransport(grid, 3, 2)
    transport.federation("{}", timeout_seconds=LONG, on_wait=quiet)
    look(transport, at_least=3)
    assert len(asked) == 3
    assert len(transport._nodes.homes) == there


def test_too_few_clients_at_the_deadline_are_counted():
    transport = FlowerTransport(a_grid(1), 3, 2)
    with pytest.raises(TransportError, match="1 of 3 clients could take part, 2 needed") as caught:
        transport.federation("{}", timeout_seconds=SHORT, on_wait=quiet)
    assert "1 SuperNodes are connected" in str(caught.value)


def test_clients_that_cannot_introduce_themselves_end_the_wait_at_once():
    grid = a_grid()
    grid.profiles[CLIENTS[1]] = b"not a profile"
    with pytest.raises(TransportError, match="2 of 3 clients") as caught:
        FlowerTransport(grid, 3).federation("{}", timeout_seconds=LONG, on_wait=quiet)
    assert "\n  - " in str(caught.value)


def test_who_has_left_is_not_sent_anything_and_fails_at_once():
    grid = a_grid()
    transport = connected(grid)
    del grid.nodes[101]
    replies = exchanged(transport)
    assert [r.result.client_id for r in replies] == list(CLIENTS)
    assert replies[1].result.reason is FailureReason.UNREACHABLE
    assert "was gone" in replies[1].result.detail
    assert look(transport).left == (CLIENTS[1],)
    assert look(transport).left == ()


@pytest.mark.parametrize(
    ("nodes_after", "left"),
    [({100: 0, 102: 2}, True), ({100: 0, 101: 1, 102: 2, 901: 1}, False)],
    ids=["gone", "back on another node"],
)
def test_who_vanishes_in_the_middle_of_a_round_fails_before_the_deadline(nodes_after, left):
    grid = a_grid(client_1="hold")
    transport = connected(grid)

    def vanish(replies: int) -> None:
        if replies == 2:
            grid.nodes = {node: CLIENTS[index] for node, index in nodes_after.items()}

    replies = exchanged(transport, on_wait=vanish)
    assert replies[1].result.reason is FailureReason.UNREACHABLE
    found = look(transport)
    assert (CLIENTS[1] in found.left) is left
    assert (CLIENTS[1] in {p.client_id for p in found.joined}) is not left
    grid.manners, grid.received = {}, []
    grid.release()
    second = exchanged(transport, LATER)
    assert isinstance(second[1].result, Update) is not left
    # What it had been doing there came in after all, and nobody took it for the new order's.
    assert [x.kind for x in transport.late_replies()] == ["late"]


def test_a_node_that_was_killed_and_is_back_under_its_id_has_lost_its_order():
    grid = a_grid(client_1="hold")
    transport = connected(grid)

    def comes_back(replies: int) -> None:
        if replies:
            grid.since[101] = "later"

    failed = exchanged(transport, on_wait=comes_back)[1].result
    assert isinstance(failed, ClientFailure)
    assert failed.reason is FailureReason.UNREACHABLE
    changes = look(transport, at_least=3)
    assert changes.left == (CLIENTS[1],)
    assert [p.client_id for p in changes.joined] == [CLIENTS[1]]


@pytest.mark.parametrize(
    "lost", [httpx.ConnectError("[SSL] EOF"), httpx.ReadTimeout(""), RunNotRunningException()]
)
def test_a_lost_superlink_interrupts_the_run(lost):
    transport = connected(a_grid(client_1="hold"))

    def pull(_):
        raise lost

    transport.grid.pull_messages = pull
    with pytest.raises(RunInterrupted, match="its SuperLink"):
        exchanged(transport)
    transport.grid.lost = lost
    with pytest.raises(RunInterrupted, match="its SuperLink"):
        look(transport)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ErrorCode.NODE_UNAVAILABLE, FailureReason.UNREACHABLE),
        (ErrorCode.MESSAGE_UNAVAILABLE, FailureReason.UNREACHABLE),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, FailureReason.DEADLINE),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, FailureReason.CRASHED),
        (ErrorCode.CLIENT_APP_CRASHED, FailureReason.CRASHED),
    ],
)
def test_what_flower_reports_is_that_clients_failure_with_its_own_reason(code, reason):
    replies = exchanged(connected(a_grid(client_2=code)))
    assert replies[2].result.reason is reason
    assert replies[2].result.detail == f"error {code}"
    assert [isinstance(r.result, Update) for r in replies] == [True, True, False]


def test_replies_in_any_order_are_handed_on_in_that_of_the_orders():
    grid = a_grid()
    transport = connected(grid)
    grid.backwards = True
    assert [r.result.client_id for r in exchanged(transport)] == list(CLIENTS)


def test_a_late_reply_is_recorded_and_not_mixed_into_a_later_round():
    grid = a_grid(client_1="hold")
    transport = connected(grid)
    first = exchanged(transport, timeout=SHORT)
    assert first[1].result.reason is FailureReason.DEADLINE
    assert transport.late_replies() == ()
    grid.release()
    second = exchanged(transport, LATER, timeout=SHORT)
    assert second[1].result.reason is FailureReason.DEADLINE  # not the late one of the first
    (late,) = transport.late_replies()
    assert (late.kind, late.client_id, late.step_index) == ("late", CLIENTS[1], 1)
    assert late.assignment_id == ORDERS[1].assignment.assignment_id
    assert late.seconds_late > 0
    assert late.bytes_up > 100
    assert "step 1" in noted(late).message
    assert transport.late_replies() == ()
    grid.release()
    assert [x.step_index for x in transport.late_replies()] == [2]


def test_an_answer_that_comes_twice_counts_once():
    grid = a_grid(client_0="twice", client_1="twice")
    transport = connected(grid)
    replies = exchanged(transport)
    assert [r.result.client_id for r in replies] == list(CLIENTS)
    assert [x.kind for x in transport.late_replies()] == ["duplicate", "duplicate"]
    assert len(exchanged(transport, LATER)) == 3


def test_nobody_is_waited_for_longer_than_allowed():
    grid = a_grid(0)
    transport = connected(grid, min_clients=1)
    assert look(transport, at_least=2, timeout=SHORT).joined == ()
    grid.nodes = {}
    found = look(transport, at_least=1, timeout=SHORT)
    assert found.left == (CLIENTS[0],)


def test_base_values_come_from_the_next_client_where_one_cannot_give_them():
    grid = a_grid()
    transport = connected(grid)
    good = encode_profile(FEDERATION.clients[1], {})
    del grid.nodes[100]
    grid.profiles[CLIENTS[1]] = good
    assert transport.base_values("{}", [], timeout_seconds=LONG) == {}
    grid.nodes = {}
    with pytest.raises(TransportError, match="no base values"):
        transport.base_values("{}", [], timeout_seconds=LONG)


def at_least(count):
    return lambda pairs: sum(isinstance(reply.result, Update) for _, reply in pairs) >= count


def flushed(transport, orders, count, timeout=LONG):
    pairs = transport.flush(orders, enough=at_least(count), timeout_seconds=timeout, on_wait=quiet)
    return {order.assignment.client_id: (order, reply) for order, reply in pairs}


def test_a_buffer_takes_what_comes_first_and_the_rest_with_its_own_order_later():
    grid = a_grid(client_1="hold")
    transport = connected(grid)
    assert isinstance(transport, Buffered)
    first = flushed(transport, ORDERS, 2)
    assert list(first) == [CLIENTS[0], CLIENTS[2]]
    assert transport.busy() == {CLIENTS[1]}
    grid.manners = {CLIENTS[0]: "hold"}
    grid.release()
    second = flushed(transport, [LATER[0], LATER[2]], 2)
    order, reply = second[CLIENTS[1]]
    assert order is ORDERS[1]
    assert reply.result.plan_hash == order.assignment.plan_hash()
    assert second[CLIENTS[2]][0] is LATER[2]
    assert transport.busy() == {CLIENTS[0]}
    ((dropped, answer),) = transport.drop()
    assert dropped is LATER[0]
    assert isinstance(answer.result, ClientFailure)
    assert transport.busy() == frozenset()
    grid.release()
    assert [x.client_id for x in transport.late_replies()] == [CLIENTS[0]]


def test_what_comes_beyond_a_full_buffer_waits_for_the_next():
    transport = connected(a_grid())
    assert len(flushed(transport, ORDERS, 1)) == 1
    assert len(transport.busy()) == 2
    assert len(flushed(transport, [], 1)) == 1
    assert len(transport.busy()) == 1


def test_a_buffer_gives_up_who_is_gone_and_who_takes_too_long():
    grid = a_grid(client_0="hold", client_1="hold")
    transport = connected(grid)
    assert list(flushed(transport, ORDERS, 1)) == [CLIENTS[2]]
    del grid.nodes[100]
    found = flushed(transport, [], 1, timeout=SHORT)
    assert found[CLIENTS[0]][1].result.reason is FailureReason.UNREACHABLE
    assert found[CLIENTS[1]][1].result.reason is FailureReason.DEADLINE
    assert transport.busy() == frozenset()
    (unsent,) = flushed(transport, [LATER[0]], 1).values()
    assert unsent[1].result.reason is FailureReason.UNREACHABLE


MANNERS = st.sampled_from(["answer", "twice", "hold", ErrorCode.NODE_UNAVAILABLE])


@settings(max_examples=8)
@given(
    manners=st.lists(st.tuples(MANNERS, MANNERS, MANNERS), min_size=2, max_size=2),
    backwards=st.booleans(),
    released=st.booleans(),
)
def test_a_round_has_each_client_once_and_only_answers_to_its_own_plan(
    manners, backwards, released
):
    grid = a_grid()
    transport = connected(grid)
    grid.backwards = backwards
    for orders, how in zip((ORDERS, LATER), manners, strict=True):
        grid.manners = dict(zip(CLIENTS, how, strict=True))
        replies = exchanged(transport, orders, timeout=SHORT if "hold" in how else LONG)
        assert [r.result.assignment_id for r in replies] == [
            o.assignment.assignment_id for o in orders
        ]
        for order, reply, manner in zip(orders, replies, how, strict=True):
            good = manner in ("answer", "twice")
            assert isinstance(reply.result, Update if good else ClientFailure)
            if good:
                assert reply.result.plan_hash == order.assignment.plan_hash()
        if released:
            grid.release()
    late = [x for x in transport.late_replies() if x.kind == "late"]
    assert len(late) == (sum(how.count("hold") for how in manners) if released else 0)
