"""Every strategy by name in a whole run: it ends, learns something and keeps its books."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.checkpoint import load_state
from orchestrator.launch import run_in_process
from orchestrator.store.base import RunStatus
from orchestrator.summary import show
from strategies.catalog import (
    AGGREGATORS,
    HEADS,
    LAYER_SELECTORS,
    MERGERS,
    RANK_ALLOCATORS,
    REPLAY_POLICIES,
    REPLAY_ROUNDS,
    SCREENERS,
)
from strategies.lora import is_merged
from strategies.merging.atlas import coefficients_of
from strategies.protocols import HeadSolver, Probing, Refining
from strategies.types import HEAD
from tests.conftest import tiny_config

UNEQUAL = [name for name, kind in RANK_ALLOCATORS.items() if not kind.same_for_all]
QUICK = {"airllm": {"pretrain_episodes": 2}}
LINKS = {
    "name": "constant",
    "uplink_bytes_per_second": [3000, 60000],
    "downlink_bytes_per_second": [12000, 240000],
    "flops_per_second": 1e9,
}


def final_state(home, run_id):
    return load_state(home.store().last_checkpoint(run_id), home.blobs())


def training(home, run_id):
    return [record for record in home.store().rounds(run_id) if record.kind == "train"]


@pytest.mark.parametrize("name", sorted(LAYER_SELECTORS))
def test_layer_selection(name, home, run_here):
    methods = [{"name": "er"}] + ([{"name": "local-alt"}] if name == "fedselect" else [])
    run_id = run_here(
        tiny_config(strategy__layer_selection={"name": name}, learning__methods=methods)
    )
    rounds = home.store().rounds(run_id)
    probes = [record for record in rounds if record.kind == "probe"]
    assert bool(probes) == issubclass(LAYER_SELECTORS[name], Probing)
    for probe in probes:  # on the books: bytes both ways, and the client's time
        assert all(reply.status == "ok" and reply.bytes_up for reply in probe.replies)
        assert all(reply.seconds["probe"] > 0 for reply in probe.replies)
    assert all(reply.ranks for record in training(home, run_id) for reply in record.replies)


@pytest.mark.parametrize("name", sorted(RANK_ALLOCATORS))
def test_rank(name, home, run_here):
    selection = {"name": "all", "kinds": ["head"]} if name == "dense" else {"name": "all"}
    run_id = run_here(
        tiny_config(
            strategy__rank={"name": name, **QUICK.get(name, {})},
            strategy__layer_selection=selection,
            federation__deadline_seconds=30.0,
            links=LINKS,
        )
    )
    replies = [reply for record in training(home, run_id) for reply in record.replies]
    assert {reply.status for reply in replies} <= {"ok", "failed"}
    assert any(reply.status == "ok" for reply in replies)


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_aggregation(name, home, run_here):
    run_id = run_here(tiny_config(strategy__aggregation={"name": name}))
    state = final_state(home, run_id)
    assert any(key.group == HEAD and value.any() for key, value in state.tensors.items())
    shown = show(home.store().get_run(run_id), home.store().rounds(run_id), [])
    assert shown["acc"] > 0.05


@pytest.mark.parametrize("name", sorted(SCREENERS))
def test_screening(name, home, run_here):
    hostile = {"hostile": 0.2} if "krum" in name else {}  # f = 1 of 5
    config = tiny_config(strategy__screening={"name": name, **hostile}, federation__clients=5)
    run_id = run_here(config)
    store = home.store()
    replies = [reply for record in training(home, run_id) for reply in record.replies]
    assert all(("screening_share" in r.metrics) == (name != "none") for r in replies)
    said = [event for event in store.events(run_id) if event.kind == "screened"]
    reduced = sum(reply.metrics.get("screening_share", 1.0) < 1 for reply in replies)
    assert len([e for e in said if "fewer than 2f + 3" not in e.message]) == reduced
    assert bool(reduced) == (name != "none")
    assert show(store.get_run(run_id), store.rounds(run_id), [])["acc"] > 0.05


@pytest.mark.parametrize("name", sorted(HEADS))
def test_head(name, home, run_here):
    solver = HEADS[name]
    solved = isinstance(solver(), HeadSolver)
    head = solver.head if solved else "simplex"
    run_id = run_here(
        tiny_config(model__head=head, model__random_features=200, strategy__head={"name": name})
    )
    rounds = home.store().rounds(run_id)
    sums = [record for record in rounds if record.kind == "head"]
    assert len(sums) == (2 if solved else 0)  # one after each task
    assert all(reply.status == "ok" for record in sums for reply in record.replies)
    assert show(home.store().get_run(run_id), rounds, [])["acc"] > 0.05


@pytest.mark.parametrize("name", ["analytic", "prototype"])
def test_a_solved_head_asks_for_every_example_once(name, home, run_here):
    run_id = run_here(
        tiny_config(
            model__head=HEADS[name].head,
            model__random_features=200,
            strategy__head={"name": name},
            learning__adapted_tasks=0,
        )
    )
    state, rounds = final_state(home, run_id), home.store().rounds(run_id)
    assert not training(home, run_id)
    assert [record.kind for record in rounds] == ["evaluate", *["head", "evaluate"] * 2]
    from sklearn.datasets import load_digits

    counts = np.atleast_2d(state.memories["head"]["counts"])[0]
    assert 0.7 * len(load_digits().target) < counts.sum() < len(load_digits().target)
    shown = show(home.store().get_run(run_id), rounds, [])
    assert shown["acc"] > 0.25


def test_sums_start_again_from_memories_when_the_encoder_moves(home, run_here):
    changes = {
        "model__head": "random-features",
        "model__random_features": 200,
        "strategy__head": {"name": "analytic"},
    }
    still = run_here(tiny_config(**changes, learning__adapted_tasks=1))
    moved = run_here(tiny_config(**changes))
    counts = [
        np.atleast_2d(final_state(home, run).memories["head"]["counts"])[0]
        for run in (still, moved)
    ]
    # Memories stand for what they were offered, which is what was trained on.
    assert 0 < counts[1][:5].sum() < counts[0][:5].sum()
    np.testing.assert_array_equal(counts[1][5:], counts[0][5:])


@pytest.mark.parametrize("name", sorted(REPLAY_POLICIES))
def test_replay(name, home, run_here):
    run_id = run_here(tiny_config(replay__policy={"name": name}, replay__examples_per_client=12))
    second = [record for record in training(home, run_id) if record.task_index == 1]
    assert all(reply.metrics["replayed"] > 0 for record in second for reply in record.replies)


@pytest.mark.parametrize("name", sorted(set(REPLAY_ROUNDS) - {"none"}))
def test_replay_rounds_train_the_sensitive_groups_alone(name, home, run_here):
    params = {"adaptive": {"threshold": 1e-6}, "k-fpf": {"k": 2}}.get(name, {})
    run_id = run_here(
        tiny_config(
            replay__rounds={"name": name, "share": 0.2, "steps": 2, **params},
            replay__share=0.0,
            checkpoints__keep=99,
        )
    )
    rounds = home.store().rounds(run_id)
    replays = [record for record in rounds if record.kind == "replay" and record.replies]
    assert replays
    planned = {"fpf": 2, "k-fpf": 2, "adaptive": 4}[name]
    assert sum(record.kind == "replay" for record in rounds) == planned
    for record in replays:
        states = [
            load_state(rounds[index].checkpoint, home.blobs())
            for index in (record.step_index - 1, record.step_index)
        ]
        trained = {group for reply in record.replies for group in reply.ranks}
        for key, value in states[0].tensors.items():
            if key.group not in trained:
                np.testing.assert_array_equal(states[1].tensors[key], value)
        assert 0 < len(trained) <= 3
        assert all(reply.metrics["replayed"] > 0 for reply in record.replies)
    assert all(r.metrics["replayed"] == 0 for t in training(home, run_id) for r in t.replies)


def test_no_replay_rounds_out_of_k_are_none_bit_for_bit(home, run_here):
    plain, none = (
        final_state(home, run_here(tiny_config(replay__rounds=rounds)))
        for rounds in ({"name": "none"}, {"name": "k-fpf", "k": 0})
    )
    assert plain.tensors.keys() == none.tensors.keys()
    for key, value in plain.tensors.items():
        np.testing.assert_array_equal(none.tensors[key], value)


def test_an_adaptive_replay_round_without_need_asks_nobody_and_says_so(home, run_here):
    run_id = run_here(tiny_config(replay__rounds={"name": "adaptive", "threshold": 1e6}))
    rounds = home.store().rounds(run_id)
    assert not any(record.replies for record in rounds if record.kind == "replay")
    notes = [e.message for e in home.store().events(run_id) if "no replay round" in e.message]
    assert len(notes) == sum(record.kind == "replay" for record in rounds) == 4


def test_steering_sets_each_clients_share(home, run_here):
    run_id = run_here(
        tiny_config(
            replay__steering={"lowest_share": 0.0, "full_at_nats": 1e-9},
            learning__rounds_per_task=3,
        )
    )
    replayed = [[r.metrics["replayed"] for r in t.replies] for t in training(home, run_id)]
    assert not any(replayed[0])  # nothing is known of forgetting yet
    assert any(replayed[-1])


@pytest.mark.parametrize("name", sorted(MERGERS))
def test_merging(name, home, run_here):
    methods = [{"name": "er"}] + ([{"name": "olora"}] if name == "olora" else [])
    config = tiny_config(strategy__merging={"name": name}, learning__methods=methods)
    run_id = run_here(config)
    state, rounds = final_state(home, run_id), home.store().rounds(run_id)
    assert any(key.group == HEAD and value.any() for key, value in state.tensors.items())
    folds = MERGERS[name].changes_base
    assert any(is_merged(key) for key in state.tensors) == folds
    if folds:
        assert not any(v.any() for k, v in state.tensors.items() if k.part == "lora_B")
    probes = [record for record in rounds if record.kind == "probe"]
    looks = merger.probes if isinstance(merger := config.merger(), Refining) else 0
    assert len(probes) == 2 * (looks + issubclass(MERGERS[name], Probing))
    assert not any(value.ndim == 2 for found in state.evidence.values() for value in found.values())
    assert show(home.store().get_run(run_id), rounds, [])["acc"] > 0.05


def test_learnt_coefficients_fit_the_memories_better_than_equal_ones(home, run_here):
    run_id = run_here(tiny_config(strategy__merging={"name": "atlas"}, checkpoints__keep=99))
    store = home.store()
    state, rounds = final_state(home, run_id), store.rounds(run_id)
    learnt = coefficients_of(state.memories["merging"])
    assert {task for task, _ in learnt} == {0, 1}
    assert len(set(learnt.values())) > 2  # not all where they started
    looks = [
        [load_state(r.checkpoint, home.blobs()).memories["merging"] for r in rounds
         if r.kind == "probe" and r.task_index == task]
        for task in (0, 1)
    ]  # fmt: skip
    for first, second, last in looks:
        assert second["search|best.loss"] < first["search|best.loss"]
        assert "search|best.loss" not in last  # the search is over


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["fedavg", "ffa", "hetlora", "rolora", "partition"])
@pytest.mark.parametrize("name", ["fot", "model-stock"])
def test_merging_goes_with_other_aggregations(name, aggregation, home, run_here):
    run_here(
        tiny_config(strategy__merging={"name": name}, strategy__aggregation={"name": aggregation})
    )


@pytest.mark.parametrize("name", ["ewc", "online-ewc", "dmt"])
def test_client_method(name, home, run_here):
    run_id = run_here(
        tiny_config(learning__methods=[{"name": name}], strategy__aggregation={"name": "fedavg"})
    )
    replies = [reply for record in training(home, run_id) for reply in record.replies]
    assert all(reply.status == "ok" and np.isfinite(reply.metrics["loss"]) for reply in replies)
    shown = show(home.store().get_run(run_id), home.store().rounds(run_id), [])
    assert shown["acc"] > 0.05


@pytest.mark.parametrize("ranks", UNEQUAL)
@pytest.mark.parametrize("merging", ["exact", "partition"])
def test_unequal_ranks_merge(ranks, merging, home, run_here):
    run_id = run_here(
        tiny_config(
            strategy__rank={"name": ranks, **QUICK.get(ranks, {})},
            strategy__aggregation={"name": merging},
            federation__deadline_seconds=12.0,
            links=LINKS,
        )
    )
    found = {max(r.ranks.values()) for record in training(home, run_id) for r in record.replies}
    assert found


@pytest.mark.parametrize(
    "compression", [["fp16"], ["bf16"], ["int8"], [{"name": "topk", "density": 0.2}, "int8"]]
)
def test_compression_saves_bytes_and_learns_on(compression, home, run_here):
    chain = [{"name": c} if isinstance(c, str) else c for c in compression]
    model = {"hidden_size": 32, "intermediate_size": 64}  # tensors that outweigh their headers
    plain = run_here(tiny_config(model__config={**tiny_config().model.config, **model}))
    small = run_here(
        tiny_config(
            model__config={**tiny_config().model.config, **model}, strategy__compression=chain
        )
    )
    sums = [
        sum(r.bytes_up for record in training(home, run) for r in record.replies)
        for run in (plain, small)
    ]
    assert sums[1] < sums[0]
    for step in (0, 1):
        losses = [training(home, run)[step].metrics["loss"] for run in (plain, small)]
        assert losses[1] == pytest.approx(losses[0], rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"strategy__rank": {"name": "adalora", "rank": 4, "target": 2}},
        {"strategy__layer_selection": {"name": "selective", "blocks": 1}},
        {"strategy__aggregation": {"name": "fedsa"}},
        {"strategy__compression": [{"name": "topk", "density": 0.2}]},
        {"strategy__merging": {"name": "fot"}},
        {"strategy__merging": {"name": "olora"}, "learning__methods": [{"name": "olora"}]},
        {"strategy__merging": {"name": "wise-ft"}},
        {"strategy__merging": {"name": "task-vectors"}},
        {"strategy__merging": {"name": "atlas"}},
        {"strategy__screening": {"name": "norm-clipping", "past": 3}},
        {"strategy__aggregation": {"name": "trimmed-mean"}},
        {
            "replay__policy": {"name": "forgetting"},
            "replay__rounds": {"name": "k-fpf", "k": 3, "steps": 2},
            "replay__steering": {},
        },
        {
            "strategy__head": {"name": "analytic"},
            "model__head": "random-features",
            "model__random_features": 200,
        },
        {"learning__methods": [{"name": "dmt", "share": 0.2}]},
        {
            "learning__methods": [{"name": "ewc"}, {"name": "online-ewc"}],
            "strategy__aggregation": {"name": "ffa"},
        },
        {
            "strategy__rank": {"name": "spectral", "rank": 4},
            "links": {**LINKS, "name": "lognormal"},
            "federation__deadline_seconds": 20.0,
        },
    ],
    ids=lambda changes: next(iter(changes.values())).__repr__()[:40],
)
def test_a_run_stopped_half_way_goes_on_to_the_same_bits(changes, home, run_here):
    from orchestrator.conduct import submit

    config = tiny_config(**changes)
    whole = run_here(config)
    other = submit(config, home)
    store = home.store()

    def stop_after_four() -> None:
        if len(store.rounds(other)) == 4:
            raise KeyboardInterrupt

    # With merging atlas the fourth step is its first look: the search itself is taken up again.
    stopped = run_in_process(other, config, home, on_progress=stop_after_four)
    assert stopped is RunStatus.INTERRUPTED
    assert run_in_process(other, config, home, on_progress=lambda: None) is RunStatus.COMPLETED
    first, second = final_state(home, whole), final_state(home, other)
    assert first.tensors.keys() == second.tensors.keys()
    for key, value in first.tensors.items():
        np.testing.assert_array_equal(second.tensors[key], value)
    books = [
        [(r.bytes_down, r.bytes_up) for record in store.rounds(run) for r in record.replies]
        for run in (whole, other)
    ]
    assert [d for d, _ in books[0]] == [d for d, _ in books[1]]


def test_a_client_keeps_its_factor_and_sends_none_of_it(home, run_here):
    run_id = run_here(tiny_config(strategy__aggregation={"name": "fedsa"}))
    state = final_state(home, run_id)
    assert all(not value.any() for key, value in state.tensors.items() if key.part == "lora_B")
    assert any(value.any() for key, value in state.tensors.items() if key.part == "lora_A")
    fixed = run_here(tiny_config())
    first = [training(home, run)[0].replies[0].bytes_up for run in (run_id, fixed)]
    assert first[0] < first[1]


def test_nothing_travels_twice(home, run_here):
    """After an evaluation the next round's tensors are known: only what was never sent goes out."""
    run_id = run_here(tiny_config())
    rounds = home.store().rounds(run_id)
    second_task = next(r for r in rounds if r.kind == "train" and r.task_index == 1)
    same_task = next(r for r in rounds if r.kind == "train" and r.round_index == 1)
    assert second_task.replies[0].bytes_down < same_task.replies[0].bytes_down


@pytest.mark.parametrize("name", ["atlas", "fot", "olora", "task-vectors", "wise-ft"])
def test_a_published_adapter_has_the_runs_own_logits(name, home, run_here):
    import torch
    from peft import PeftModel

    from clients.model import load_base
    from clients.settings import ClientSettings
    from clients.workshop import open_workshop

    config = tiny_config(strategy__merging={"name": name})
    run_id = run_here(config)
    settings = ClientSettings(cache_folder=home.cache_folder, state_folder=home.client_folder)
    shop = open_workshop(config.shared_recipe().model_dump_json(), settings)
    inputs = {"pixel_values": torch.from_numpy(np.random.default_rng(0).random((4, 1, 8, 8), "f4"))}
    shop.model.module.eval()
    with torch.no_grad():
        base = shop.model.logits(inputs).clone()
        shop.model.apply(final_state(home, run_id).tensors, config.adapter.scale)
        own = shop.model.logits(inputs)
        folder = home.store().get_run(run_id).adapter_path
        published = PeftModel.from_pretrained(load_base(folder), folder).eval()(**inputs).logits
    assert float((own - base).abs().max()) > 0.1
    torch.testing.assert_close(published, own, atol=1e-5, rtol=0)
