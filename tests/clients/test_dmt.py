"""DMT: how much of the past is mixed in, and what it is booked as."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clients.state_store import ClientStateStore
from strategies.types import StrategyChoice
from tests.clients.test_methods import same, trained
from tests.clients.test_trainer import IDS, lab

__all__ = ["lab"]  # a fixture


def state_before(bench, step, run_id="run"):
    store = ClientStateStore(bench.trainer.settings.state_folder)
    return store.load(run_id, IDS[2], before_step=step)


def ask(bench, step, run_id="run", methods=("dmt",), share=0.2, **work):
    """The third client's answer to one step."""
    order = bench.plan(step, run_id).orders[2]
    choices = tuple(
        StrategyChoice(name=name, params={"share": share} if name == "dmt" else {})
        for name in methods
    )
    planned = dataclasses.replace(order.assignment.work, methods=choices, **work)
    assignment = dataclasses.replace(order.assignment, work=planned)
    return bench.ask(dataclasses.replace(order, assignment=assignment))


def an_epoch(bench, share, *, epochs=1, run_id="run", methods=("dmt",)):
    """Its answer to passes over its pool in the second task, and the past's size."""
    for step in (1, 2):
        ask(bench, step, run_id, share=share)
    past = state_before(bench, 3, run_id).memory.num_offered
    pool = bench.federation.clients[2].num_train[1] + min(round(share * past), 60)
    return ask(bench, 4, run_id, methods, share, batch_size=1, steps=epochs * pool), past


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_an_epoch_meets_its_share_of_the_past(share, lab):
    answer, past = an_epoch(lab(replay__examples_per_client=60), share, epochs=2)
    assert past > 20
    assert abs(answer.metrics["replayed"] / 2 - share * past) <= 1


def test_share_zero_is_finetuning_bit_for_bit(lab):
    bench = lab()
    for step in (1, 2, 5):
        plain = trained(bench, "finetune", run_id=f"a{step}", step=step)
        assert same(plain, trained(bench, "dmt", run_id=f"b{step}", step=step, share=0.0))
    assert not same(plain, trained(bench, "dmt", run_id="c", step=5, share=0.5))


def test_mixed_in_examples_are_drawn_once_and_are_no_news_to_the_memory(lab):
    bench = lab(replay__examples_per_client=20)
    an_epoch(bench, 0.2)
    first = state_before(bench, 5)
    assert len(first.chosen["dmt"]) == round(0.2 * state_before(bench, 3).memory.num_offered)
    assert np.isin(first.chosen["dmt"], state_before(bench, 3).memory.ids).all()
    num_new = bench.federation.clients[2].num_train[1]
    of_task = first.memory.offered[first.memory.offered[:, 0] == 1]
    assert of_task[:, 2].sum() == num_new == len(first.offered)
    assert (of_task[:, 1] >= 5).all()  # labels of the second task alone
    ask(bench, 5)
    np.testing.assert_array_equal(state_before(bench, 6).chosen["dmt"], first.chosen["dmt"])


def test_rows_of_mixed_in_classes_count_although_the_memory_let_them_go(lab):
    bench = lab(replay__examples_per_client=4)
    answer, _ = an_epoch(bench, 0.05)
    state = state_before(bench, 99)
    labels = next(iter(bench.trainer._workshops.values())).dataset.train.labels
    for example in state.chosen["dmt"]:
        assert answer.num_examples["head"][labels[example]] > 0
    gone = np.setdiff1d(state.chosen["dmt"], state.memory.ids)
    assert len(gone)  # else this shows nothing


def test_dmt_and_er_replay_side_by_side(lab):
    for order in (("dmt", "er"), ("er", "dmt")):
        bench = lab(replay__examples_per_client=60)
        alone, past = an_epoch(bench, 0.3, run_id=f"{order[0]}-alone", methods=("dmt",))
        both, _ = an_epoch(bench, 0.3, run_id=f"{order[0]}-both", methods=order)
        assert both.metrics["replayed"] == alone.metrics["replayed"] == round(0.3 * past)
