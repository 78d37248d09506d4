"""What travels down: the client's slice, less what it has; and what the server believes it has."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clients.received import MissingTensorsError, ReceivedTensors
from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.outgoing import Receipts, Sender, changes
from orchestrator.planner import plan_step
from strategies.lora import factors_of, keys_of
from strategies.types import (
    HEAD,
    ClientFailure,
    FailureReason,
    GlobalState,
    Holding,
    LowRank,
    ParamKey,
    Reply,
)
from tests.orchestrator.builders import QUERY, VALUE, a_config, a_federation, an_update

CONFIG = a_config(strategy__rank={"name": "fixed", "rank": 3})
FEDERATION = a_federation()
CLIENT = FEDERATION.clients[0].client_id
PLANS = {QUERY: LowRank(rank=2)}


def a_state(changed_at: int = 4) -> GlobalState:
    rng, tensors = np.random.default_rng(0), dict(initial_state(CONFIG, FEDERATION).tensors)
    for key in tensors:
        tensors[key] = rng.normal(size=tensors[key].shape).astype(np.float32)
    tensors[ParamKey(HEAD, "weight")] = rng.normal(size=(4, 7)).astype(np.float32)
    return GlobalState(
        step_index=5, tensors=tensors, changed={key.text: changed_at for key in tensors}
    )


def parcel(state: GlobalState, holding: Holding | None = None, plans=PLANS, **how):
    if holding:
        state = dataclasses.replace(state, holdings={CLIENT: holding})
    return Sender(state=state, downlink=how.pop("downlink", ())).parcel(
        CLIENT, plans, how.pop("kept", {}), **how
    )


def test_trained_groups_are_cut_to_their_rank_and_others_sent_whole():
    sent = parcel(a_state())
    assert factors_of(sent.tensors, QUERY).rank == 2
    assert factors_of(sent.tensors, VALUE).rank == 3
    assert ParamKey(HEAD, "weight") in sent.tensors
    assert not sent.held.ranks


def test_what_is_carried_besides_the_chosen_groups_is_what_the_client_lacks():
    state = a_state(changed_at=4)
    sender = Sender(state=state, downlink=())
    value = 3 * (5 + 7)  # the other linear group at the server's rank
    assert sender.carried_bytes(CLIENT, [QUERY, HEAD], {}, 4.0) == 4 * value
    assert sender.carried_bytes(CLIENT, [QUERY, VALUE, HEAD], {}, 4.0) == 0
    has = dataclasses.replace(state, holdings={CLIENT: parcel(state).holding})
    assert Sender(state=has, downlink=()).carried_bytes(CLIENT, [QUERY, HEAD], {}, 4.0) == 0


def test_what_is_left_out_is_not_sent_at_all():
    sent = parcel(a_state(), left_out=frozenset({VALUE}))
    assert {key.group for key in sent.tensors} == {QUERY, HEAD}


def test_what_has_not_changed_since_the_last_answer_stays_home():
    state = a_state(changed_at=4)
    first = parcel(state)
    again = parcel(dataclasses.replace(state, step_index=6), first.holding)
    assert again.tensors == {}
    assert again.held.step == 5
    assert again.held.ranks[ParamKey(QUERY, "lora_A").text] == 2


def test_more_components_than_the_client_has_are_sent():
    state = a_state(changed_at=4)
    first = parcel(state)
    more = parcel(state, first.holding, plans={QUERY: LowRank(rank=3)})
    assert set(more.tensors) == set(keys_of(QUERY))
    fewer = parcel(state, first.holding, plans={QUERY: LowRank(rank=1)})
    assert fewer.tensors == {}


def test_what_changed_since_is_sent():
    state = a_state(changed_at=4)
    first = parcel(state)
    moved = {**state.changed, ParamKey(HEAD, "weight").text: 6}
    later = dataclasses.replace(state, step_index=6, changed=moved)
    assert set(parcel(later, first.holding).tensors) == {ParamKey(HEAD, "weight")}


def test_first_factors_travel_as_the_seed_they_are_drawn_from():
    state = initial_state(CONFIG, FEDERATION)
    sent = parcel(state)
    assert sent.tensors == {}
    assert sent.held.ranks == {key.text: 2 for key in keys_of(QUERY)}


def test_parts_a_client_keeps_are_sent_until_it_has_its_own():
    kept = {QUERY: ("lora_B",)}
    first = parcel(a_state(), kept=kept)
    assert ParamKey(QUERY, "lora_B") in first.tensors
    own = Holding(step=4, own=(ParamKey(QUERY, "lora_B").text,))
    later = parcel(a_state(), own, kept=kept)
    assert ParamKey(QUERY, "lora_B") not in later.tensors
    assert ParamKey(QUERY, "lora_B").text not in later.held.ranks
    assert first.holding.own == own.own


def test_changes_are_by_value():
    before = {ParamKey(HEAD, "weight"): np.zeros(3), ParamKey(HEAD, "bias"): np.zeros(2)}
    after = {ParamKey(HEAD, "weight"): np.zeros(3), ParamKey(HEAD, "bias"): np.ones(2)}
    assert changes(before, after, 7) == {"head|bias": 7}


def test_receipts_follow_answers_and_forget_what_is_out_of_date():
    state = dataclasses.replace(initial_state(CONFIG, FEDERATION), step_index=1)
    order = plan_step("run", CONFIG, FEDERATION, state, Fleet()).orders[0]
    good = Reply(result=an_update(order, FEDERATION), bytes_down=1, bytes_up=1, seconds=1.0)
    receipts = Receipts()
    holding = Holding(step=1, ranks={"head|weight": 0, "head|bias": 0})
    receipts.note(order.assignment, holding, good)
    assert receipts.of_use({"head|weight": 1, "head|bias": 2}) == {
        CLIENT: Holding(step=1, ranks={"head|weight": 0})
    }
    lost = ClientFailure(
        assignment_id="a", client_id=CLIENT, reason=FailureReason.MISSING_TENSORS, detail=""
    )
    receipts.note(order.assignment, holding, dataclasses.replace(good, result=lost))
    assert receipts.of_use({"head|weight": 1}) == {}


@pytest.mark.parametrize("downlink", [(), "fp16", "int8"])
def test_a_client_assembles_what_the_server_meant(tmp_path, downlink):
    from strategies.types import StrategyChoice

    choices = (StrategyChoice(name=downlink),) if downlink else ()
    state, store = a_state(), ReceivedTensors(tmp_path)
    groups, order = (
        FEDERATION.groups(),
        plan_step(
            "run", CONFIG, FEDERATION, dataclasses.replace(a_state(), step_index=1), Fleet()
        ).orders[0],
    )

    def arrives(sent, step):
        assignment = dataclasses.replace(
            order.assignment, held=sent.held, downlink=choices, step_index=step
        )
        model = store.assemble(assignment, sent.tensors, seed=0, groups=groups)
        store.keep(step, model)
        return model

    first = parcel(state, downlink=choices)
    received = arrives(first, 5)
    again = arrives(parcel(state, first.holding, downlink=choices), 6)
    assert received.keys() == again.keys()
    for key, value in received.items():
        np.testing.assert_array_equal(again[key], value)
        whole = state.tensors[key]
        wanted = whole[: value.shape[0], : value.shape[1]]
        np.testing.assert_allclose(value, wanted, atol={(): 0, "fp16": 2e-3}.get(downlink, 0.02))
    for file in tmp_path.glob("*"):
        file.unlink()
    with pytest.raises(MissingTensorsError, match="send it again"):
        arrives(parcel(state, first.holding, downlink=choices), 7)


def test_a_client_draws_first_factors_itself(tmp_path):
    state = initial_state(CONFIG, FEDERATION)
    sent = parcel(state)
    order = plan_step(
        "run", CONFIG, FEDERATION, dataclasses.replace(state, step_index=1), Fleet()
    ).orders[0]
    assignment = dataclasses.replace(order.assignment, held=sent.held)
    model = ReceivedTensors(tmp_path).assemble(
        assignment, sent.tensors, seed=0, groups=FEDERATION.groups()
    )
    for key in keys_of(QUERY):
        whole = state.tensors[key]
        np.testing.assert_array_equal(
            model[key], whole[:2] if key.part == "lora_A" else whole[:, :2]
        )
