"""Messages survive the wire bit for bit, and nothing else gets through."""

from __future__ import annotations

import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.errors import WireError
from strategies.types import (
    HEAD,
    Assignment,
    ClientFailure,
    ClientId,
    ClientProfile,
    Dense,
    Evaluation,
    FailureReason,
    GroupName,
    GroupSpec,
    LowRank,
    ModelDescription,
    Optimization,
    ParamKey,
    ReplayDirective,
    Score,
    StrategyChoice,
    TaskInfo,
    Update,
    Work,
)
from strategies.wire import (
    decode_assignment,
    decode_profile,
    decode_recipe,
    decode_result,
    encode_assignment,
    encode_profile,
    encode_recipe,
    encode_result,
    from_record,
    to_record,
)

QUERY = GroupName("encoder.layer.0.query")


def an_assignment() -> Assignment:
    work = Work(
        tasks=(0,),
        steps=3,
        batch_size=4,
        first_step=6,
        total_steps=12,
        optimization=Optimization(
            learning_rate=1e-3,
            head_learning_rate=1e-2,
            weight_decay=0.0,
            max_grad_norm=1.0,
            schedule="cosine",
        ),
        methods=(StrategyChoice(name="er", params={"x": 1}),),
        replay=ReplayDirective(policy=StrategyChoice(name="reservoir"), capacity=5, share=0.5),
    )
    return Assignment(
        assignment_id="run/00003/client-1",
        run_id="run",
        client_id=ClientId("client-1"),
        step_index=3,
        task_index=0,
        round_index=2,
        recipe='{"seed": 1}',
        base_digest="abc",
        groups={QUERY: LowRank(rank=2, train_a=False), HEAD: Dense()},
        scale=2.0,
        seed=2**62 + 1,
        work=work,
        evaluation=Evaluation(tasks=(0, 1), seen_tasks=(0,), release=7, keep=True),
    )


def an_update() -> Update:
    return Update(
        assignment_id="run/00003/client-1",
        client_id=ClientId("client-1"),
        plan_hash="feed",
        delta={
            ParamKey(QUERY, "lora_B"): np.arange(6, dtype=np.float32).reshape(3, 2),
            ParamKey(HEAD, "weight"): np.array([[np.nan, np.inf]], dtype=np.float32),
        },
        num_examples={QUERY: np.array(7), HEAD: np.array([3, 4])},
        scores=(
            Score(
                task_index=0,
                num_examples=3,
                num_correct=1,
                loss_sum=0.5,
                num_lost=1,
                num_compared=2,
            ),
        ),
        metrics={"loss": float("nan")},
        seconds={"train": 0.25},
        statistics={QUERY: {"squared": 0.1}},
        peak_memory_bytes=12,
    )


def test_assignment_round_trip_keeps_the_plan_hash():
    sent, tensors = an_assignment(), {ParamKey(QUERY, "lora_A"): np.eye(2, 5, dtype=np.float32)}
    received, arrived = decode_assignment(encode_assignment(sent, tensors))
    assert received == sent
    assert received.plan_hash() == sent.plan_hash()
    np.testing.assert_array_equal(arrived[ParamKey(QUERY, "lora_A")], np.eye(2, 5))


def test_plan_hash_depends_on_the_plan():
    import dataclasses

    plan = an_assignment()
    other = dataclasses.replace(plan, groups={QUERY: LowRank(rank=3), HEAD: Dense()})
    assert plan.plan_hash() != other.plan_hash()


def test_update_round_trip_keeps_bits_even_of_nan():
    sent = an_update()
    received = decode_result(encode_result(sent))
    assert isinstance(received, Update)
    assert received.delta.keys() == sent.delta.keys()
    for key, value in sent.delta.items():
        assert received.delta[key].tobytes() == value.tobytes()
    assert received.num_examples[QUERY].shape == ()
    np.testing.assert_array_equal(received.num_examples[HEAD], [3, 4])
    assert received.scores == sent.scores
    assert received.seconds == sent.seconds


def test_failure_and_recipe_and_profile_round_trips():
    failure = ClientFailure(
        assignment_id="a", client_id=ClientId("c"), reason=FailureReason.DEADLINE, detail="späť"
    )
    assert decode_result(encode_result(failure)) == failure
    assert decode_recipe(encode_recipe('{"a": 1}', [HEAD])) == ('{"a": 1}', [HEAD])
    spec = GroupSpec(
        name=QUERY, kind="linear", role="query", block=0, parts={"weight": (3, 5)}, linear=(3, 5)
    )
    profile = ClientProfile(
        client_id=ClientId("c"),
        kind="cpu",
        device="2 CPUs",
        memory_bytes=1,
        tasks=(TaskInfo(name="t", labels=("a", "b")),),
        num_train=(4,),
        num_test=(2,),
        model=ModelDescription(base_digest="d", num_parameters=15, num_blocks=1, groups=(spec,)),
    )
    values = {ParamKey(HEAD, "bias"): np.zeros(2, dtype=np.float32)}
    received, arrived = decode_profile(encode_profile(profile, values))
    assert received == profile
    assert arrived.keys() == values.keys()


def test_what_many_clients_say_alike_is_in_memory_once():
    """Ten thousand descriptions of one model would be what a server's memory goes to."""
    profile = ClientProfile(
        client_id=ClientId("c"),
        kind="cpu",
        device="2 CPUs",
        memory_bytes=1,
        tasks=(TaskInfo(name="t", labels=("a", "b")),),
        num_train=(4,),
        num_test=(2,),
        model=ModelDescription(base_digest="d", num_parameters=15, num_blocks=1, groups=()),
    )
    one, _ = decode_profile(encode_profile(profile, {}))
    other, _ = decode_profile(encode_profile(replace(profile, client_id=ClientId("e")), {}))
    assert one.client_id != other.client_id
    assert one.model is other.model
    assert one.tasks is other.tasks
    larger = replace(profile.model, num_parameters=16)
    assert decode_profile(encode_profile(replace(profile, model=larger), {}))[0].model == larger


def test_flower_record_carries_the_bytes_unchanged():
    message = encode_result(an_update())
    assert from_record(to_record(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        pickle.dumps({"a": 1}),
        encode_recipe("{}", []),
        encode_result(an_update())[:-4],
        encode_result(an_update()).replace(b'\\"1\\"', b'\\"9\\"', 1),
    ],
)
def test_what_is_no_result_is_refused_by_name(message):
    with pytest.raises(WireError, match=r"."):
        decode_result(message)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_random_bytes_never_crash_the_decoder(noise):
    with pytest.raises(WireError):
        decode_result(noise)


@settings(max_examples=300)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_damaged_message_is_refused_or_still_a_result(position, value):
    message = bytearray(encode_result(an_update()))
    message[position % len(message)] = value
    try:
        decode_result(bytes(message))
    except WireError:
        return
