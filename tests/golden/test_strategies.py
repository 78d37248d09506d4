"""Every strategy by name in a whole run: it ends, learns something and keeps its books."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.checkpoint import load_state
from orchestrator.launch import run_in_process
from orchestrator.store.base import RunStatus
from orchestrator.summary import show
from strategies.catalog import AGGREGATORS, LAYER_SELECTORS, RANK_ALLOCATORS
from strategies.protocols import Probing
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
    return load_state(home.blobs().get(home.store().last_checkpoint(run_id)))


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


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy__rank": {"name": "adalora", "rank": 4, "target": 2}},
        {"strategy__layer_selection": {"name": "selective", "blocks": 1}},
        {"strategy__aggregation": {"name": "fedsa"}},
        {"strategy__compression": [{"name": "topk", "density": 0.2}]},
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

    with pytest.raises(KeyboardInterrupt):
        run_in_process(other, config, home, on_progress=stop_after_four)
    store.transition(
        other, RunStatus.INTERRUPTED, expected=tuple(RunStatus), reason="stopped by the test"
    )
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
