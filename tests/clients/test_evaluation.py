"""Scoring a state whose encoder nobody has touched: nothing is encoded twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clients.evaluation import evaluate
from clients.workshop import shard_of
from strategies.types import HEAD, LORA_B, Evaluation, ParamKey
from tests.clients.test_trainer import IDS, lab

__all__ = ["lab"]  # a fixture
CLIENT = IDS[2]


def shop_of(bench):
    return bench.trainer._workshop(bench.plan(1).orders[0].assignment.recipe)


def head(seed):
    weight = np.random.default_rng(seed).standard_normal((10, 16)).astype(np.float32)
    return {ParamKey(HEAD, "weight"): weight}


def scores(shop, seen=(0, 1), **changes):
    plan = Evaluation(tasks=(0, 1), seen_tasks=seen, **changes)
    return evaluate(shop.model, shop.dataset, shard_of(shop, CLIENT), plan, shop.recipe).scores


def test_an_untouched_encoder_sees_each_example_once(lab):
    shop = shop_of(lab())
    shop.model.apply(head(0), 1.0)
    first = scores(shop, seen=(0,))
    assert shop.model.kept.num_computed == first[0].num_examples  # the second task is hopeless
    again = scores(shop)
    everything = sum(score.num_examples for score in again)
    assert shop.model.kept.num_computed == everything
    shop.model.apply(head(1), 1.0)
    assert scores(shop) != again
    assert shop.model.kept.num_computed == everything


def test_kept_features_give_the_scores_of_the_whole_model(lab, monkeypatch):
    shop = shop_of(lab())
    shop.model.apply(head(0), 1.0)
    kept = scores(shop)
    monkeypatch.setattr("clients.evaluation._lower", lambda *_: None)
    for one, other in zip(kept, scores(shop), strict=True):
        assert dataclasses.replace(one, loss_sum=0.0) == dataclasses.replace(other, loss_sum=0.0)
        assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-5)


def test_more_examples_than_can_be_kept_are_encoded_anew(lab):
    shop = shop_of(lab())
    shop.model.kept.most_bytes = 5 * 16 * 4
    shop.model.apply(head(0), 1.0)
    scores(shop)
    assert shop.model.kept.num_computed == 0


def test_what_was_scored_before_does_not_change_a_bit(lab, tmp_path):
    early, late = shop_of(lab()), shop_of(lab())
    early.model.apply(head(0), 1.0)
    scores(early, seen=(0,))
    late.model.apply(head(0), 1.0)
    assert scores(early) == scores(late)


def test_blocks_below_all_that_moved_are_not_asked_again(lab):
    bench = lab()
    order = bench.plan(1).orders[0]
    shop = shop_of(bench)
    sent = bench.trainer._assemble(shop, order.assignment, order.tensors)
    shop.model.apply(sent, order.assignment.scale)  # every B is zero: still the base
    count = sum(score.num_examples for score in scores(shop))
    assert shop.model.kept.num_computed == count
    upper = {k: v + (k.part == LORA_B) for k, v in sent.items() if ".1." in k.group}
    for _ in range(2):
        shop.model.apply(sent | upper, order.assignment.scale)
        before = scores(shop)
        assert shop.model.kept.num_computed == 2 * count  # once more, at another border
    everywhere = head(0) | {k: v + (k.part == LORA_B) for k, v in sent.items()}
    shop.model.apply(everywhere, order.assignment.scale)
    assert scores(shop) != before
    assert shop.model.kept.num_computed == 2 * count
