"""The local trainer: what a client does with an assignment, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clients.flips import Answered
from clients.settings import ClientSettings
from clients.state_store import (
    ClientState,
    ClientStateStore,
    Importance,
    Outputs,
    Targets,
    Watch,
)
from clients.trainer import LocalTrainer
from orchestrator.federation import agree, initial_state
from orchestrator.fleet import Fleet
from orchestrator.planner import plan_step
from orchestrator.rounds import close_step
from strategies.errors import DataError
from strategies.heads.analytic import best_ridge, penalty_of
from strategies.heads.moments import Moments
from strategies.protocols import ReplayMemory
from strategies.types import (
    HEAD,
    ClientFailure,
    ClientId,
    FailureReason,
    ParamKey,
    Reply,
    StrategyChoice,
    Update,
    client_ids,
)
from strategies.wire import decode_profile, decode_result, encode_assignment, encode_recipe
from tests.conftest import tiny_config

IDS = client_ids(3)


class Lab:
    """Clients of one config and the server's pure half, without a store."""

    def __init__(self, folder, config):
        self.trainer = LocalTrainer(
            ClientSettings(cache_folder=folder / "cache", state_folder=folder / "state")
        )
        self.config = config
        request = encode_recipe(config.shared_recipe().model_dump_json(), ())
        self.federation = agree([decode_profile(self.trainer.answer(c, request))[0] for c in IDS])
        self.state = initial_state(config, self.federation)

    def plan(self, step_index=1, run_id="run"):
        state = dataclasses.replace(self.state, step_index=step_index)
        return plan_step(run_id, self.config, self.federation, state, Fleet())

    def ask(self, order):
        message = encode_assignment(order.assignment, order.tensors)
        return decode_result(self.trainer.answer(order.assignment.client_id, message))

    def close(self, plan, results):
        replies = [Reply(result=r, bytes_down=0, bytes_up=0, seconds=0.0) for r in results]
        state = dataclasses.replace(self.state, step_index=plan.step_index)
        return close_step(state, plan, replies, config=self.config, federation=self.federation)


@pytest.fixture
def lab(tmp_path):
    return lambda **changes: Lab(tmp_path, tiny_config(**changes))


def changed(order, **changes):
    return dataclasses.replace(order, assignment=dataclasses.replace(order.assignment, **changes))


def test_an_update_answers_its_plan(lab):
    bench = lab()
    order = bench.plan().orders[0]
    update = bench.ask(order)
    assert isinstance(update, Update)
    assert update.plan_hash == order.assignment.plan_hash()
    assert {key.group for key in update.delta} == set(order.assignment.groups)
    assert update.metrics["steps"] == 3
    assert {"load", "train", "save", "compute"} <= update.seconds.keys()
    assert all(entry["squared"] >= 0 for entry in update.statistics.values())


def test_the_head_counts_examples_per_class(lab):
    bench = lab()
    order = bench.plan().orders[0]
    counts = bench.ask(order).num_examples[HEAD]
    profile = bench.federation.clients[0]
    assert counts.shape == (10,)
    assert counts.sum() == profile.num_train[0]
    assert counts[5:].sum() == 0


def test_rows_of_classes_the_client_never_saw_do_not_move(lab):
    bench = lab(partition__alpha=0.1)
    for order in bench.plan().orders:
        update = bench.ask(order)
        absent = update.num_examples[HEAD] == 0
        assert absent.any()
        assert not update.delta[ParamKey(HEAD, "weight")][absent].any()
        assert not update.delta[ParamKey(HEAD, "bias")][absent].any()


def test_share_zero_is_finetuning_bit_for_bit(lab):
    with_er = lab(replay__share=0.0)
    plain = lab(learning__methods=[{"name": "finetune"}])
    for step in (1, 2, 4):  # the fourth is in the second task, with a memory to draw from
        ours = with_er.ask(with_er.plan(step, "a").orders[1])
        theirs = plain.ask(plain.plan(step, "b").orders[1])
        for key, value in theirs.delta.items():
            np.testing.assert_array_equal(ours.delta[key], value)
        for group, count in theirs.num_examples.items():
            np.testing.assert_array_equal(ours.num_examples[group], count)


def test_replay_takes_its_share_once_there_is_a_past(lab):
    bench = lab()
    assert bench.ask(bench.plan(1).orders[0]).metrics["replayed"] == 0
    second = bench.ask(bench.plan(2).orders[0])
    assert second.metrics["replayed"] == 3 * 4  # three steps, half of eight
    assert second.metrics["memory"] == 10


def test_asking_twice_gives_the_same_answer(lab):
    """A client steps back with the server: a repeated step starts from the memory before it."""
    bench = lab()
    bench.ask(bench.plan(1).orders[0])
    first = bench.ask(bench.plan(2).orders[0])
    bench.ask(bench.plan(4).orders[0])
    again = bench.ask(bench.plan(2).orders[0])
    for key, value in first.delta.items():
        np.testing.assert_array_equal(again.delta[key], value)
    assert again.metrics == first.metrics


def test_scores_are_sums_and_unmet_classes_score_nothing(lab):
    bench = lab()
    order = bench.plan(3).orders[0]
    assert order.assignment.evaluation.seen_tasks == (0,)
    update = bench.ask(order)
    scores = {score.task_index: score for score in update.scores}
    assert scores[1].num_correct == 0
    assert np.isnan(scores[1].loss_sum)
    assert scores[0].num_examples == bench.federation.clients[0].num_test[0]
    assert scores[0].loss_sum / scores[0].num_examples == pytest.approx(np.log(5), rel=1e-3)
    assert update.delta == {}


def test_refusals_are_values(lab):
    bench = lab()
    order = bench.plan().orders[0]
    cases = {
        FailureReason.WRONG_BASE: changed(order, base_digest="other"),
        FailureReason.CRASHED: changed(
            order,
            work=dataclasses.replace(order.assignment.work, methods=(StrategyChoice(name="err"),)),
        ),
    }
    for reason, spoiled in cases.items():
        answer = bench.ask(spoiled)
        assert isinstance(answer, ClientFailure)
        assert answer.reason is reason
    message = encode_assignment(order.assignment, order.tensors)
    stranger = decode_result(bench.trainer.answer(ClientId("client-2"), message))
    assert stranger.reason is FailureReason.WRONG_PLAN


def test_a_client_without_examples_says_so(lab):
    bench = lab(partition__alpha=0.02, federation__clients=3)
    profiles = bench.federation.clients
    empty = [(c.client_id, t) for c in profiles for t in (0, 1) if c.num_train[t] == 0]
    if not empty:
        pytest.skip("this partition left nobody without examples")
    client, task = empty[0]
    order = next(o for o in bench.plan(1).orders)
    work = dataclasses.replace(order.assignment.work, tasks=(task,))
    answer = bench.ask(changed(order, client_id=client, work=work))
    assert answer.reason is FailureReason.NO_EXAMPLES


def test_prototypes_are_the_class_means_of_the_pooled_data(lab):
    bench = lab(
        model__head="cosine",
        strategy__head={"name": "prototype"},
        learning__adapted_tasks=0,
    )
    plan = bench.plan(1)
    outcome = bench.close(plan, [bench.ask(order) for order in plan.orders])
    rows = outcome.state.tensors[ParamKey(HEAD, "weight")]
    shop = next(iter(bench.trainer._workshops.values()))
    shop.model.apply({}, 1.0)
    train = shop.dataset.train
    for label in range(5):
        ids = np.flatnonzero(train.labels == label)
        pixels = torch.from_numpy(train.collate(ids)["pixel_values"])
        with torch.no_grad():
            mean = shop.model.features({"pixel_values": pixels}).mean(dim=0)
        np.testing.assert_allclose(rows[label], mean.numpy(), atol=1e-5)
    assert not rows[5:].any()


@pytest.mark.parametrize(
    "partition",
    [{"kind": "iid"}, {"kind": "dirichlet", "alpha": 0.05}, {"kind": "dirichlet", "alpha": 5.0}],
    ids=["iid", "hardly shared", "nearly even"],
)
def test_an_analytic_head_is_that_of_the_pooled_data_however_it_is_dealt(partition, lab):
    """From what clients really send, over two tasks, some with fewer examples than features."""
    bench = lab(
        model__head="random-features",
        model__random_features=300,
        strategy__head={"name": "analytic"},
        learning__adapted_tasks=0,
        partition=partition,
    )
    start, answers = bench.state, {}
    assert any(client.num_train[0] < 300 for client in bench.federation.clients)
    for order in ((0, 1, 2), (2, 0, 1)):
        bench.state = start
        for step in (1, 3):  # the sums after each task
            plan = bench.plan(step)
            for each in plan.orders if step not in answers else ():
                answers.setdefault(step, []).append(bench.ask(each))
            plan = dataclasses.replace(plan, orders=tuple(plan.orders[i] for i in order))
            bench.state = bench.close(plan, [answers[step][i] for i in order]).state
        rows = bench.state.tensors[ParamKey(HEAD, "weight")]
        np.testing.assert_allclose(rows, pooled_ridge(bench), atol=1e-5)


def pooled_ridge(bench):
    """The analytic head (10, M) of all training data in one place, by other means."""
    shop = next(iter(bench.trainer._workshops.values()))
    shop.model.apply({}, 1.0)
    train = shop.dataset.train
    with torch.no_grad():
        inputs = shop.model.device.inputs(train.collate(np.arange(len(train.labels))))
        phi = shop.model.head_inputs(inputs).double().numpy()
    total = Moments(phi.T @ phi, phi.T @ np.eye(10)[train.labels])
    exponent, _ = best_ridge(total, np.full(2, len(phi)))
    shifted = total.gram + penalty_of(total, exponent) * np.eye(len(total.gram))
    return np.linalg.solve(shifted, total.cross).T


def test_imprinting_starts_new_rows_at_class_means_and_leaves_trained_ones(lab):
    bench = lab(
        model__head="cosine",
        learning__local_steps=0,
        learning__methods=[{"name": "imprint"}],
    )
    first = bench.ask(bench.plan(1).orders[0])
    weight = first.delta[ParamKey(HEAD, "weight")]
    present = first.num_examples[HEAD] > 0
    assert (np.linalg.norm(weight[present], axis=1) > 0.1).all()
    assert not weight[~present].any()
    trained = np.zeros((10, 16), dtype=np.float32)
    trained[0] = 1.0
    bench.state = dataclasses.replace(
        bench.state, tensors=bench.state.tensors | {ParamKey(HEAD, "weight"): trained}
    )
    again = bench.ask(bench.plan(1).orders[0]).delta[ParamKey(HEAD, "weight")]
    assert not again[0].any()


def test_hooks_are_called_in_order(lab, monkeypatch):
    from clients.methods.base import ClientMethod

    calls = []

    class Recorder(ClientMethod):
        pass

    hooks = [name for name in vars(ClientMethod) if not name.startswith("_")]
    for hook in hooks:
        original = getattr(ClientMethod, hook)
        setattr(
            Recorder,
            hook,
            lambda self, run, *args, hook=hook, original=original: (
                calls.append(hook),
                original(self, run, *args),
            )[1],
        )
    import clients.trainer

    monkeypatch.setattr(clients.trainer, "method_of", lambda choice: Recorder())
    bench = lab()
    bench.ask(bench.plan(1).orders[0])
    step = ["batch", "loss", "grad", "after_step"]
    assert calls == ["task_start", "select", "before_local", *step * 3, "after_local"]
    calls.clear()
    bench.ask(bench.plan(2).orders[0])
    assert calls == ["select", "before_local", *step * 3, "after_local", "task_end"]


def a_client_state(n: int) -> ClientState:
    zeros = np.zeros(n, np.int64)
    memory = ReplayMemory(capacity=9, ids=np.arange(n), tasks=zeros, labels=zeros, num_offered=n)
    return ClientState(memory=memory, task_index=n, offered=np.arange(2 * n))


def test_client_state_survives_and_steps_back(tmp_path):
    store = ClientStateStore(tmp_path)
    for step in range(1, 6):
        store.save("run", IDS[0], step, a_client_state(step))
    assert store.load("run", IDS[0], before_step=99).task_index == 5
    assert store.load("run", IDS[0], before_step=5).task_index == 4
    assert store.load("run", IDS[0], before_step=3).task_index == 2  # three commits back
    assert store.load("run", IDS[0], before_step=2) is None  # only the last four are kept
    assert store.load("run", IDS[1], before_step=99) is None
    store.save("run", IDS[0], 4, a_client_state(7))
    assert store.load("run", IDS[0], before_step=99).task_index == 7


def a_whole_client_state() -> ClientState:
    """Something in every field."""
    key, some = ParamKey(HEAD, "weight"), np.arange(3)
    tensors = {key: np.ones((2, 3), np.float32), ParamKey(HEAD, "bias"): np.zeros(2, np.float32)}
    memory = ReplayMemory(
        capacity=9,
        ids=some + 10,
        tasks=some // 2,
        labels=some % 2,
        num_offered=7,
        offered=np.array([[0, 0, 4], [1, 1, 3]]),
        losses=np.array([[0.1, 0.2], [0.3, 0.3], [np.nan, np.nan]]),
    )
    return ClientState(
        memory=memory,
        task_index=4,
        offered=some,
        watch=Watch(lowest=0.25, window=some, known=some[:1], held=some[:2]),
        outputs={"lwf": Outputs(ids=some, values=np.array([[1, -np.inf]] * 3, np.float32))},
        importances={"ewc-0": Importance(fisher=tensors, anchors=dict(list(tensors.items())[:1]))},
        chosen={"dmt": some[1:]},
        targets=Targets(ids=some[:1], tokens=np.array([[5, 2, -1]])),
        personal=tensors,
        residuals={key: -tensors[key]},
        answered={3: Answered(ids=some, right=some > 1)},
    )


def leaves(value, name=""):
    """Every number and array of a state, by where it lies."""
    if dataclasses.is_dataclass(value) and not isinstance(value, ParamKey):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        assert value, name
        return {k: v for key in value for k, v in leaves(value[key], f"{name}/{key}").items()}
    return {name: np.asarray(value)}


def test_every_part_of_a_client_state_survives(tmp_path):
    store, state = ClientStateStore(tmp_path), a_whole_client_state()
    store.save("run", IDS[0], 1, state)
    found, wanted = leaves(store.load("run", IDS[0], before_step=2)), leaves(state)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value.size, f"{name}: nothing of it would be missed"
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_damaged_client_state_is_named_and_stepped_over(tmp_path, caplog):
    store = ClientStateStore(tmp_path)
    store.save("run", IDS[0], 1, a_client_state(1))
    store.save("run", IDS[0], 2, a_client_state(2))
    newest = max((tmp_path / "run" / IDS[0]).glob("step-*.npz"))
    newest.write_bytes(newest.read_bytes()[:20])
    assert store.load("run", IDS[0], before_step=9).task_index == 1
    assert str(newest) in caplog.text
    for path in (tmp_path / "run" / IDS[0]).glob("step-*.npz"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="every state file of client-0"):
        store.load("run", IDS[0], before_step=9)


def test_no_flipped_byte_of_a_client_state_goes_unnoticed(tmp_path, caplog):
    """The file is named and the version before it used, or the byte held nothing of the state."""
    store = ClientStateStore(tmp_path)
    store.save("run", IDS[0], 1, a_client_state(1))
    store.save("run", IDS[0], 2, a_whole_client_state())
    wanted = leaves(a_whole_client_state())
    path = max((tmp_path / "run" / IDS[0]).glob("step-*.npz"))
    written, named = path.read_bytes(), 0
    # The end of the archive's own directory, whose optional entries nothing else would miss, whole.
    places = [*range(0, len(written) - 400, 41), *range(len(written) - 400, len(written))]
    for at in places:
        spoiled = bytearray(written)
        spoiled[at] ^= 0x55
        path.write_bytes(spoiled)
        caplog.clear()
        found = store.load("run", IDS[0], before_step=9)
        if found.task_index == 1:
            assert str(path) in caplog.text
            named += 1
            continue
        assert leaves(found).keys() == wanted.keys()
        for name, value in leaves(found).items():
            np.testing.assert_array_equal(value, wanted[name])
    assert named > 0.5 * len(places)


def test_a_probe_changes_nothing_that_training_sees(lab):
    probing, plain = (
        lab(strategy__layer_selection={"name": name, **blocks})
        for name, blocks in (("selective", {"blocks": 2}), ("top", {"blocks": 2}))
    )
    probe = probing.plan(1).orders[0]
    assert probe.assignment.probe
    answer = probing.ask(probe)
    assert isinstance(answer, Update)
    assert not answer.delta
    assert {name for values in answer.statistics.values() for name in values} == {"gradient-energy"}
    assert answer.seconds["probe"] > 0
    order = plain.plan(1, "probed").orders[0]
    after = probing.ask(order)
    before = plain.ask(plain.plan(1, "unprobed").orders[0])
    for key, value in before.delta.items():
        np.testing.assert_array_equal(after.delta[key], value)


def test_what_a_client_keeps_is_never_sent_and_survives_a_restart(lab, tmp_path):
    bench = lab(strategy__aggregation={"name": "fedsa"})
    first = bench.ask(bench.plan(1).orders[0])
    assert {key.part for key in first.delta if key.group != HEAD} == {"lora_A"}
    order = bench.plan(4).orders[0]  # the rounds between were missed
    fresh = LocalTrainer(bench.trainer.settings)  # another process: nothing but the disk is left
    message = encode_assignment(order.assignment, order.tensors)
    with_own = decode_result(fresh.answer(IDS[0], message))
    store = ClientStateStore(bench.trainer.settings.state_folder)
    kept = store.load("run", IDS[0], before_step=4).personal
    assert {key.part for key in kept} == {"lora_B"}
    assert any(value.any() for value in kept.values())
    stranger = changed(order, run_id="another")
    message = encode_assignment(stranger.assignment, stranger.tensors)
    without = decode_result(fresh.answer(IDS[0], message))
    key = next(key for key in with_own.delta if key.part == "lora_A")
    assert not np.array_equal(with_own.delta[key], without.delta[key])


def test_a_client_that_lost_what_it_was_sent_says_so(lab):
    bench = lab()
    order = bench.plan(1).orders[0]
    lost = dataclasses.replace(order.assignment.held, step=0, ranks={"head|weight": 0})
    answer = bench.ask(changed(order, held=lost))
    assert isinstance(answer, ClientFailure)
    assert answer.reason is FailureReason.MISSING_TENSORS


def test_compression_keeps_back_what_it_leaves_out(lab):
    bench = lab(strategy__compression=[{"name": "topk", "density": 0.1}])
    order = bench.plan(1).orders[0]
    update = bench.ask(order)
    assert all("#" in key.part for key in update.delta)
    store = ClientStateStore(bench.trainer.settings.state_folder)
    residuals = store.load("run", IDS[0], before_step=2).residuals
    assert any(value.any() for value in residuals.values())
    plan = bench.plan(1)
    outcome = bench.close(plan, [bench.ask(o) for o in plan.orders])
    assert all(reply.status == "ok" for reply in outcome.replies)
