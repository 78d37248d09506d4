"""What a client may claim: within the plan, within its profile, once, and for this order alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity

from clients.state_store import ClientStateStore
from orchestrator.examine import examined
from orchestrator.fleet import Fleet
from orchestrator.home import Home
from orchestrator.planner import plan_step
from orchestrator.plans import Order
from orchestrator.recall import share_of
from orchestrator.sections import Steering
from orchestrator.spool import Spool
from orchestrator.transport import InProcessTransport, failure
from strategies.errors import DataError, StoreError, TransportError
from strategies.types import (
    HEAD,
    ClientFailure,
    ClientId,
    FailureReason,
    ParamKey,
    Remembered,
    Score,
    Update,
)
from strategies.wire import decode_assignment, encode_profile, encode_result, kind_of
from tests.fuzz.cases import CASES, CLIENTS, CONFIG, FEDERATION, GROUPS, ORDER, STATE
from tests.orchestrator.builders import QUERY, an_update
from tests.orchestrator.fake_grid import FakeGrid
from tests.orchestrator.test_flower_transport import LONG, connected, exchanged, quiet

BY_NAME = {case.name: case for case in CASES}
TRAIN, PROBE, SUMS = BY_NAME["train "], BY_NAME["probe"], BY_NAME["sums"]


def found(case, **changes):
    answer = dataclasses.replace(case.answer, **changes)
    return examined(answer, case.order, GROUPS, case.chain, CLIENTS)


def first_score(**changes):
    score = dataclasses.replace(TRAIN.answer.scores[0], **changes)
    return (score, *TRAIN.answer.scores[1:])


def remembered(**changes):
    return (dataclasses.replace(TRAIN.answer.remembered[0], **changes),)


def statistics(**values):
    return {QUERY: dict(TRAIN.answer.statistics[QUERY]) | values}


def sketch(case, group, name, value):
    return dict(case.answer.sketches) | {ParamKey(group, name): value}


def counts(value):
    return dict(TRAIN.answer.num_examples) | {HEAD: np.array(value)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_honest_answers_of_every_kind_are_taken(case):
    assert isinstance(found(case), Update)


NAN, INF = float("nan"), float("inf")
CLAIMS = {
    "more than it has": (TRAIN, {"num_examples": counts(5)}, "the client has 4"),
    "more rows than it has": (TRAIN, {"num_examples": counts([5, 4, 0, 0])}, "the client has 8"),
    "counts that turn over": (TRAIN, {"num_examples": counts([2**62] * 4)}, "the client has 8"),
    "loss": (TRAIN, {"metrics": {"loss": NAN}}, "loss is nan"),
    "metric": (TRAIN, {"metrics": {"num_examples": 1e300}}, "num_examples 1e+300"),
    "half an example": (TRAIN, {"metrics": {"num_examples": 0.5}}, "num_examples 0.5"),
    "metrics of a probe": (PROBE, {"metrics": {"flops": 1e9}}, "nothing was to be trained"),
    "a link's time": (TRAIN, {"seconds": {"up": 0.1}}, "seconds of ['up']"),
    "no time": (TRAIN, {"seconds": {"train": -1.0}}, "expected 0 to"),
    "never": (TRAIN, {"seconds": {"train": INF}}, "expected 0 to"),
    "no peak": (TRAIN, {"peak_memory_bytes": -1}, "a peak of -1"),
    "a peak beyond SQL": (TRAIN, {"peak_memory_bytes": 2**80}, "a peak of"),
    "task nobody has": (TRAIN, {"remembered": remembered(task_index=9)}, "not asked for"),
    "negative task": (TRAIN, {"remembered": remembered(task_index=-1)}, "not asked for"),
    "memory too large": (TRAIN, {"remembered": remembered(num_examples=9)}, "counts more"),
    "rise of nan": (TRAIN, {"remembered": remembered(loss_rise=NAN)}, "or no loss"),
    "a fall": (TRAIN, {"remembered": remembered(loss_rise=-1.0)}, "or no loss"),
    "a task twice": (TRAIN, {"remembered": TRAIN.answer.remembered * 2}, "twice"),
    "memory unasked": (PROBE, {"remembered": TRAIN.answer.remembered}, "not asked for"),
    "score unasked": (PROBE, {"scores": TRAIN.answer.scores}, "not asked for"),
    "score of another task": (TRAIN, {"scores": first_score(task_index=7)}, "not asked for"),
    "score twice": (TRAIN, {"scores": TRAIN.answer.scores[:1] * 2}, "twice"),
    "scored too many": (TRAIN, {"scores": first_score(num_examples=3)}, "more examples"),
    "all right and more": (TRAIN, {"scores": first_score(num_correct=3)}, "more examples"),
    "negative": (TRAIN, {"scores": first_score(num_correct=-1)}, "more examples"),
    "impossible flips": (TRAIN, {"scores": first_score(num_gained=2)}, "impossible flips"),
    "negative loss": (TRAIN, {"scores": first_score(loss_sum=-1.0)}, "negative loss"),
    "a root of it": (TRAIN, {"statistics": statistics(squared=-1.0)}, "expected 0 or more"),
    "statistic of nan": (TRAIN, {"statistics": statistics(squared=NAN)}, "is nan"),
    "statistic unasked": (TRAIN, {"statistics": statistics(fisher=1.0)}, "expected ["),
    "a sketch as number": (PROBE, {"statistics": {QUERY: {"input-spectrum": 1.0}}}, "one number"),
    "statistics of none": (PROBE, {"statistics": {"ghost": {}}}, "not part of the plan"),
    "a number as sketch": (
        PROBE, {"sketches": sketch(PROBE, QUERY, "gradient-energy", np.ones(3, "f4"))}, "none of"),
    "spectrum of others": (
        PROBE, {"sketches": sketch(PROBE, QUERY, "input-spectrum", np.ones((2, 9), "f4"))},
        "none of"),
    "spectrum too tall": (
        PROBE, {"sketches": sketch(PROBE, QUERY, "input-spectrum", np.ones((9, 7), "f4"))},
        "none of"),
    "sketch of doubles": (
        PROBE, {"sketches": sketch(PROBE, QUERY, "input-spectrum", np.ones((2, 7)))}, "float64"),
    "pairs of none": (
        PROBE, {"sketches": sketch(PROBE, HEAD, "pair-curvature", np.ones((5, 1), "f4"))},
        "no frozen pairs"),
    "classes of nobody": (
        SUMS, {"sketches": sketch(SUMS, HEAD, "class-counts", np.full((2, 4), 3, "f4"))},
        "the client has 8"),
    "sums of nothing": (
        SUMS,
        {"sketches": sketch(SUMS, HEAD, "class-counts", np.eye(2, 4, dtype="f4"))},
        "class-counts of"),
    "a huge value": (
        TRAIN, {"delta": dict(TRAIN.answer.delta) | {
            ParamKey(HEAD, "bias"): np.full(4, 3e38, "f4")}}, "beyond 1e+15"),
    "nothing at all": (TRAIN, {"delta": {}, "num_examples": {}}, "is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_beyond_the_plan_is_refused_by_name(name):
    case, changes, words = CLAIMS[name]
    result = found(case, **changes)
    assert isinstance(result, ClientFailure), result
    assert words in result.detail
    assert result.client_id == case.order.assignment.client_id


def test_a_failure_of_another_order_does_not_count_as_this_ones():
    other = failure(ORDER, FailureReason.NO_EXAMPLES, "mine")
    assert examined(other, ORDER, GROUPS) == other
    stale = dataclasses.replace(other, assignment_id="run/00000/client-1")
    assert examined(stale, ORDER, GROUPS).reason is FailureReason.WRONG_PLAN
    unread = dataclasses.replace(other, assignment_id="")
    assert examined(unread, ORDER, GROUPS) == unread
    assert examined(dataclasses.replace(unread, client_id=ClientId("client-0")), ORDER, GROUPS)


def test_what_a_client_says_cannot_forge_a_line():
    detail = failure(ORDER, FailureReason.CRASHED, "a\nb\x1b[2J\u202ec" + "x" * 9999).detail
    assert detail.startswith("a; b?[2J?cx")
    assert len(detail) == 4096


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/etc", "", "a\x00b", ".hidden", "x" * 200])
def test_ids_never_become_paths(name, tmp_path):
    store = ClientStateStore(tmp_path)
    for run_id, client in ((name, "client-0"), ("run", name)):
        with pytest.raises(DataError, match="cannot name a folder"):
            store.folder_of(run_id, ClientId(client))
        with pytest.raises(DataError, match="cannot name a folder"):
            store.load(run_id, ClientId(client), before_step=1)
    with pytest.raises(StoreError, match="cannot name a folder"):
        Home(folder=tmp_path, database_url="sqlite://").run_folder(name)


def test_answers_wait_under_the_number_of_their_place(tmp_path):
    spool = Spool(tmp_path)
    spool.put(3, b"answer", 0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    assert spool.take(3) == (b"answer", 0.1)


# Replays, on both transports: what was sent is remembered and sent again for another order.


@pytest.fixture(scope="module")
def an_identity():
    """What Flower's runtime tells a process about itself before it calls an app."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield


ORDERS = plan_step("run", CONFIG, FEDERATION, STATE, Fleet()).orders
NEXT = plan_step(
    "run", CONFIG, FEDERATION, dataclasses.replace(STATE, step_index=2), Fleet()
).orders
ANOTHER_RUN = plan_step("run2", CONFIG, FEDERATION, STATE, Fleet()).orders
REPLAYS = {
    "an older order's": encode_result(an_update(ORDERS[1], FEDERATION)),
    "another client's": encode_result(an_update(NEXT[0], FEDERATION)),
    "another run's": encode_result(an_update(ANOTHER_RUN[1], FEDERATION)),
    "this order's, of another plan": encode_result(
        dataclasses.replace(an_update(NEXT[1], FEDERATION), plan_hash="0" * 16)
    ),
    "an older failure": encode_result(failure(ORDERS[1], FailureReason.BUSY, "")),
}


def in_process(answer: bytes):
    """Three clients, of whom the second answers every order with ``answer``."""

    def endpoint(client: ClientId):
        def ask(message: bytes) -> bytes:
            if kind_of(message) == "recipe":
                return encode_profile(CLIENTS[client], {})
            if client == "client-1":
                return answer
            assignment, tensors = decode_assignment(message)
            order = Order(assignment=assignment, tensors=tensors, max_reply_bytes=10**9)
            return encode_result(an_update(order, FEDERATION))

        return ask

    return InProcessTransport({client: endpoint(client) for client in CLIENTS})


def over_flower(answer: bytes, monkeypatch):
    grid = FakeGrid(FEDERATION, {100: "client-0", 101: "client-1", 102: "client-2"})
    whole = FakeGrid._push

    def push(self, message):
        name = whole(self, message)
        if message.metadata.dst_node_id == 101 and self.outbox and self.received[-1:]:
            (reply,) = [x for x in self.outbox if x.metadata.reply_to_message_id == name]
            from strategies.wire import to_record

            reply.content = to_record(answer)
        return name

    transport = connected(grid)
    monkeypatch.setattr(FakeGrid, "_push", push)
    return transport


@pytest.mark.usefixtures("an_identity")
@pytest.mark.parametrize("kind", ["in-process", "flower"])
@pytest.mark.parametrize("name", REPLAYS)
def test_a_replayed_answer_is_recognised_on_every_transport(name, kind, monkeypatch):
    answer = REPLAYS[name]
    transport = in_process(answer) if kind == "in-process" else over_flower(answer, monkeypatch)
    replies = exchanged(transport, NEXT)
    results = [
        examined(reply.result, order, GROUPS, (), CLIENTS)
        for order, reply in zip(NEXT, replies, strict=True)
    ]
    assert isinstance(results[0], Update)
    assert isinstance(results[2], Update)
    assert isinstance(results[1], ClientFailure)
    assert results[1].reason is FailureReason.WRONG_PLAN
    assert results[1].assignment_id == NEXT[1].assignment.assignment_id


def test_nobody_introduces_himself_as_another():
    message = encode_profile(CLIENTS[ClientId("client-0")], {})
    transport = InProcessTransport({ClientId("client-1"): lambda _: message})
    with pytest.raises(TransportError, match="client-1 introduced itself as client-0"):
        transport.federation("{}", timeout_seconds=LONG, on_wait=quiet)


@pytest.mark.usefixtures("an_identity")
def test_a_node_that_is_no_client_of_the_run_stays_outside():
    stranger = dataclasses.replace(FEDERATION.clients[1], client_id=ClientId("client-99"))
    grid = FakeGrid(FEDERATION, {100: "client-0", 101: "client-1", 102: "client-2"})
    grid.profiles[ClientId("client-1")] = encode_profile(stranger, {})
    with pytest.raises(TransportError, match="introduced itself as client-99"):
        connected(grid)


def test_clients_that_describe_one_model_differently_do_not_agree():
    from orchestrator.federation import agree

    groups = dataclasses.replace(FEDERATION.model.groups[0], parts={"weight": (1, 1)})
    model = dataclasses.replace(FEDERATION.model, groups=(groups,))
    with pytest.raises(TransportError, match="differently"):
        agree([FEDERATION.clients[0], dataclasses.replace(FEDERATION.clients[1], model=model)])


def test_tasks_a_client_counted_itself_are_bounded_and_break_no_plan():
    order = dataclasses.replace(
        ORDER, assignment=dataclasses.replace(TRAIN.order.assignment, step_index=4)
    )
    counted = dataclasses.replace(
        TRAIN.answer,
        plan_hash=order.assignment.plan_hash(),
        remembered=remembered(task_index=4),
    )
    assert isinstance(examined(counted, order, GROUPS, (), CLIENTS), Update)
    beyond = dataclasses.replace(counted, remembered=remembered(task_index=5))
    assert isinstance(examined(beyond, order, GROUPS, (), CLIENTS), ClientFailure)
    steering = Steering(lowest_share=0.1, full_at_nats=1.0)
    state = {"rise|4": np.array([3.0, 2.0])}
    assert share_of(steering, 0.5, CLIENTS[ClientId("client-1")], state) == 0.1


def test_sums_and_scores_are_as_they_were_sent():
    result = found(TRAIN)
    assert result.scores == TRAIN.answer.scores or np.isnan(result.scores[1].loss_sum)
    assert isinstance(result.scores[0], Score)
    assert isinstance(result.remembered[0], Remembered)
